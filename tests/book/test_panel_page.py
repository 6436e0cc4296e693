"""The executed page of all models."""

import nbformat

from calib_utils import paths
from calib_utils.book import commands


def test_the_page_shows_no_number_of_a_model_that_was_not_run():
    page = paths.book_dir() / "panel" / "05_model_panel.ipynb"
    text = "\n".join(
        output.data["text/html"]
        for cell in nbformat.read(page, as_version=4).cells
        for output in cell.get("outputs", ())
        if "text/html" in output.get("data", {})
    )
    table, rest = text.split("</table>", 1)
    for row in commands.coverage().query("panel == 'paper'").itertuples():
        assert f">{row.name}<" in table and f"MODEL={row.hub}<" in table
        assert not row.measured
        assert f">{row.name}<" not in rest
