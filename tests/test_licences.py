"""The page of licences: current, complete, and nothing in it unknown or surprising."""

import pytest

from calib_utils import licences, paths
from calib_utils.registry import EMBEDDED, ENCODERS

LOCKED = licences.locked()


def test_the_page_is_the_one_for_the_lock():
    page = paths.book_dir() / "reference" / "licences.md"
    assert page.read_text(encoding="utf-8") == licences.page(), "run python -m calib_utils licences"


@pytest.mark.parametrize("package", LOCKED)
def test_every_locked_package_has_a_known_licence(package):
    licence = licences.licence_of(package)
    assert licence != "unknown", "read its files and add it to READ_BY_HAND"
    assert licences.kind_of(licence) in ("permissive", "weak copyleft") or package == "docutils"


def test_what_is_named_by_hand_is_locked():
    assert set(licences.ELSEWHERE) | set(licences.READ_BY_HAND) <= set(LOCKED)


def test_what_docutils_has_under_the_gpl_is_not_installed():
    from importlib import metadata

    files = [file.name for file in metadata.files("docutils")]
    assert "nodes.py" in files
    assert not [name for name in files if name.endswith(".el")]


@pytest.mark.parametrize(
    ("licence", "kind"),
    [
        ("BSD-3-Clause AND MIT", "permissive"),
        ("MPL-2.0 AND MIT", "weak copyleft"),
        ("LGPL-2.1-or-later", "weak copyleft"),
        ("GPL-3.0-only", "strong copyleft"),
        ("GNU General Public License v3 (GPLv3)", "strong copyleft"),
        ("AGPL-3.0", "strong copyleft"),
        ("CC-BY-NC-4.0", "strong copyleft"),
        ("MIT; GPL-2.0", "strong copyleft"),
        ("Gemma terms", "terms of its own"),
        ("unknown", "terms of its own"),
    ],
)
def test_kinds(licence, kind):
    assert licences.kind_of(licence) == kind


def test_a_package_that_is_nowhere_is_unknown():
    assert licences.licence_of("calib-utils-no-such-package") == "unknown"


def test_every_model_file_is_listed_with_its_licence():
    page = licences.page()
    for model in (*EMBEDDED.values(), *ENCODERS.values()):
        row = next(line for line in page.splitlines() if line.startswith(f"| {model.name} |"))
        assert f"| {model.licence} |" in row
    assert "Llama 3.1 Community, gated | terms of its own" in page
