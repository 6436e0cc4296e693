"""A Sphinx extension: what every built page gets that its notebook does not have.

Addresses from the one repository setting of `_config.yml`, the box with the command that runs a
page, and texts for those who cannot see a figure. Knows Sphinx; changes no source file.
"""

import json
import re
from pathlib import Path
from string import Template

from docutils import nodes
from sphinx.errors import ConfigError

_BOX = "run_box.md"
_REPOSITORY = re.compile(r"https://(github|gitlab)\.com/([^/]+)/([^/]+?)(?:\.git)?/?")
_EXECUTED = re.compile(r"/book/(?:panel|results/[^/]+)/([^/]+)\.ipynb$")
_OWN = "The page appears in a part of that model's own, its rows in `data/results`."
_ALL = "All chapters run for it, and then this page, which is about every model with rows."
# docutils names the entries of a list by a role that ARIA 1.2 withdrew; a list needs list items.
_WITHDRAWN, _ITEM = 'role="doc-biblioentry"', 'role="listitem"'


def setup(app) -> dict:
    """Registers the steps; Sphinx calls it with the application."""
    # Before sphinx-notfound-page looks at its prefix.
    app.connect("config-inited", _addresses, priority=100)
    app.connect("source-read", _add_run_box)
    app.connect("doctree-resolved", _describe_figures)
    app.connect("html-page-context", _name_list_items)
    # After the theme has added its buttons.
    app.connect("html-page-context", _point_to_the_source, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def site_url(repository: str, given: str = "") -> str:
    """Where the pages of a repository are published, with a slash at its end.

    Args:
        repository: its address on GitHub or GitLab.
        given: the address, where the pages have one of their own (`html: baseurl:`).

    Raises:
        ConfigError: for another host, where the address cannot be derived.

    >>> site_url("https://github.com/owner/name")
    'https://owner.github.io/name/'
    """
    if given:
        return given.rstrip("/") + "/"
    parts = _REPOSITORY.fullmatch(repository)
    if parts is None:
        raise ConfigError(
            f"where are the pages of {repository!r} published? Name it in _config.yml as "
            "html: baseurl:"
        )
    host, owner, name = parts.groups()
    return f"https://{owner}.{host}.io/{name}/"


def _addresses(app, config) -> None:
    """The site's address for the card of a link, the canonical link and the page of a wrong one."""
    site = site_url(config.html_theme_options["repository_url"], config.html_baseurl)
    config.html_baseurl = config.ogp_site_url = site
    config.ogp_site_name = config.html_title
    config.notfound_urls_prefix = "/" + site.split("/", 3)[3]


def run_box(docname: str, repository: str, template: str) -> str | None:
    """The box of a page in MyST, or None for a page that is no executed notebook.

    Args:
        docname: of the page, as `results/<model>/<notebook>` or `panel/<notebook>`.
    """
    part, _, rest = docname.partition("/")
    if part not in ("results", "panel") or not rest:
        return None
    own = part == "results"
    return Template(template).substitute(
        repository=repository,
        folder=repository.rstrip("/").rsplit("/", 1)[-1].removesuffix(".git"),
        choice=f" --notebook {docname.rsplit('/', 1)[-1]}" if own else "",
        outcome=_OWN if own else _ALL,
    )


def _add_run_box(app, docname: str, content: list[str]) -> None:
    """Puts the box below the page's opening; the file itself, which readers download, has none."""
    template = Path(app.srcdir, "templates", _BOX).read_text(encoding="utf-8")
    box = run_box(docname, app.config.html_theme_options["repository_url"], template)
    if box is None:
        return
    notebook = json.loads(content[0])
    cell = {"cell_type": "markdown", "metadata": {}, "source": box}
    if notebook["nbformat_minor"] >= 5:
        cell["id"] = "run-this-page"
    notebook["cells"].insert(1, cell)
    content[0] = json.dumps(notebook)


def _describe_figures(app, doctree: nodes.document, docname: str) -> None:
    """A figure without an alternative text gets its caption's, its formulas as they are written."""
    for figure in doctree.findall(nodes.figure):
        captions = [child for child in figure.children if isinstance(child, nodes.caption)]
        for image in figure.findall(nodes.image) if captions else ():
            if not image.get("alt"):
                image["alt"] = f"Figure: {captions[0].astext()}"


def _name_list_items(app, pagename, templatename, context, doctree) -> None:
    if body := context.get("body"):
        context["body"] = body.replace(_WITHDRAWN, _ITEM)


def _point_to_the_source(app, pagename, templatename, context, doctree) -> None:
    """The edit button of an executed notebook leads to what people edit, not to the copy."""
    for group in context.get("header_buttons", ()):
        for button in group.get("buttons", ()):
            if button.get("label") == "source-edit-button":
                button["url"] = _EXECUTED.sub(r"/notebooks/\1.py", button["url"])
