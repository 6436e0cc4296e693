"""The environment files agree with each other and leave the torch build to the machine."""

import re
import tomllib

import yaml
from packaging.requirements import Requirement

from calib_utils import paths

ROOT = paths.project_root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line]


def _wanted() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    return [Requirement(r) for r in (*PROJECT["dependencies"], *extras["book"], *extras["test"])]


def test_the_lock_covers_every_requirement_within_its_range():
    locked = {}
    for pin in LOCK:
        locked.setdefault(pin.name.lower(), []).append(next(iter(pin.specifier)).version)
    for wanted in _wanted():
        versions = locked.get(wanted.name.lower())
        assert versions, f"{wanted.name} is not locked: run make lock"
        assert all(wanted.specifier.contains(v) for v in versions), wanted


def test_the_lock_names_no_torch_build():
    names = {pin.name for pin in LOCK}
    assert not [n for n in names if n.startswith(("nvidia", "cuda", "triton"))]
    assert all("+" not in str(pin.specifier) for pin in LOCK if pin.name == "torch")


def test_environment_yml_installs_the_project_with_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, with_pip = environment["dependencies"]
    assert python == f"python{PROJECT['requires-python']}"
    assert pip == "pip"
    makefile = (ROOT / "Makefile").read_text()
    constraints, project = with_pip["pip"]
    assert constraints.split() == ["-c", "constraints.txt"]
    assert f"-c constraints.txt -e '{project.removeprefix('-e ')}'" in makefile


def test_one_version_everywhere():
    import calib_utils

    assert calib_utils.__version__ == PROJECT["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


def test_the_workflow_runs_the_two_commands():
    workflow = (ROOT / ".github" / "workflows" / "book.yml").read_text()
    assert "bash .ci/run" in workflow and "make book" in workflow
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


def test_the_workflow_pins_its_actions_and_releases_what_make_release_makes():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "book.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(re.search(r"@v\d+", step["uses"]) for step in steps if "uses" in step)
    made = [step for step in steps if step.get("run") == "make release"]
    assert made[0]["if"] == "github.ref_type == 'tag'" == workflow["jobs"]["release"]["if"]
    assert workflow["jobs"]["release"]["needs"] == "test"
    (sums,) = re.findall(r"sha256sum (.*) > SHA256SUMS", (ROOT / "Makefile").read_text())
    assert sums.split() == ["book.pdf", "book.zip", "results.tar.gz"]


def test_the_readme_tree_names_every_module():
    readme = (ROOT / "README.md").read_text()
    modules = {p.name for p in (ROOT / "calib_utils").glob("*.py") if not p.name.startswith("__")}
    missing = [name for name in sorted(modules) if name not in readme]
    assert not missing, missing


def test_the_speed_page_is_the_one_for_the_records():
    import importlib.util

    spec = importlib.util.spec_from_file_location("page", ROOT / "benchmarks" / "page.py")
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    assert page.PAGE.read_text() == page.page(), "run python benchmarks/page.py"
