"""The page of licences lists every model that the project knows by name."""

from calib_utils import paths
from calib_utils.models.registry import EMBEDDED, ENCODERS, find, paper_panel


def test_every_model_is_listed_with_its_source_and_licence():
    page = (paths.book_dir() / "reference" / "licences.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in page.splitlines()
        if "|" in line
    ]
    listed = {row[0]: row[1:3] for row in rows}
    for model in EMBEDDED.values():
        source, licence = listed[model.name]
        assert model.wheels[0].package in source and licence == find(model.name).licence
    for encoder in ENCODERS.values():
        assert listed[encoder.name] == [
            f"{encoder.wheel.package} {encoder.wheel.version}",
            encoder.licence,
        ]
    for one in paper_panel():
        assert listed[one.name] == [one.hub, one.licence + (", gated" if one.gated else "")]
