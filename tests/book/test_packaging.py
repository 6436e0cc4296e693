"""The environment files agree, check what they install, and leave the torch build to the machine.

The lock's hashes are tried on a wheel made here, by pip with the options of `make env`.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
import yaml
from packaging.requirements import Requirement

from calib_utils import paths

ROOT = paths.project_root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line]
HASHED = (ROOT / "requirements.lock").read_text().replace("\\\n", "").splitlines()
MAKEFILE = (ROOT / "Makefile").read_text()


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


def test_the_hashed_lock_pins_the_same_versions_and_everything_but_torch():
    pins = [line.split(" --hash=") for line in HASHED]
    for pin, *hashes in pins:
        assert hashes, f"{pin} has no hash: run make lock"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", found.strip()) for found in hashes), pin
    (torch,) = (pin for pin in LOCK if pin.name == "torch")
    locked = {str(Requirement(pin.strip())) for pin, *_ in pins}
    assert locked == {str(pin) for pin in LOCK} - {str(torch)}
    assert f"TORCH := {next(iter(torch.specifier)).version}\n" in MAKEFILE
    assert "+" not in str(torch.specifier), "the build is left to the machine"
    assert not [pin for pin in LOCK if pin.name.startswith(("nvidia", "cuda", "triton"))]


def test_environment_yml_installs_the_project_with_the_locked_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, with_pip = environment["dependencies"]
    assert python == f"python{PROJECT['requires-python']}"
    assert pip == "pip"
    assert with_pip["pip"] == ["-c constraints.txt", "-e .[book,test]"]
    assert "--extra book --extra test" in MAKEFILE


def _install(tmp_path, digest):
    """pip, with the options of `make env`, on a wheel made here and a lock that names `digest`."""
    wheel = tmp_path / "onefile-1.0-py3-none-any.whl"
    if not wheel.is_file():
        with zipfile.ZipFile(wheel, "w") as archive:
            info = "onefile-1.0.dist-info"
            archive.writestr("onefile.py", "")
            archive.writestr(
                f"{info}/METADATA", "Metadata-Version: 2.1\nName: onefile\nVersion: 1.0\n"
            )
            archive.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            names = ["onefile.py", *(f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD"))]
            archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in names))
    lock = tmp_path / "requirements.lock"
    digest = digest or hashlib.sha256(wheel.read_bytes()).hexdigest()
    lock.write_text(f"onefile==1.0 \\\n    --hash=sha256:{digest}\n")
    options = re.search(r"pip install (--.*--require-hashes.*) -r requirements.lock", MAKEFILE)
    command = [sys.executable, "-m", "pip", "--isolated", "install", *options[1].split()]
    command += ["--no-index", "--find-links", tmp_path, "--target", tmp_path / "to", "-r", lock]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_file_that_is_not_the_locked_one_is_not_installed(tmp_path):
    spoilt = _install(tmp_path, "0" * 64)
    assert spoilt.returncode
    assert "DO NOT MATCH THE HASHES" in spoilt.stderr
    assert not (tmp_path / "to").exists()
    right = _install(tmp_path, None)
    assert right.returncode == 0, right.stderr
    assert (tmp_path / "to" / "onefile.py").is_file()


def test_one_version_everywhere():
    import calib_utils

    assert calib_utils.__version__ == PROJECT["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


def test_the_workflow_pins_its_actions_and_releases_what_make_release_makes():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "book.yml").read_text())
    assert "bash .ci/run" in str(workflow)  # whose tests build the pages that are published
    recipe = re.search(r"^test: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "$(CU) book" in recipe[1]
    assert re.search(r"^ *exec make test$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(re.search(r"@v\d+", step["uses"]) for step in steps if "uses" in step)
    made = [step for step in steps if step.get("run") == "make release"]
    assert made[0]["if"] == "github.ref_type == 'tag'" == workflow["jobs"]["release"]["if"]
    assert workflow["jobs"]["release"]["needs"] == "test"
    (sums,) = re.findall(r"sha256sum (.*) > SHA256SUMS", (ROOT / "Makefile").read_text())
    assert sums.split() == ["book.pdf", "book.zip", "results.tar.gz"]


ELSEWHERE = """
import sys
from pathlib import Path
import calib_utils as cu
from calib_utils import errors, paths
from calib_utils.__main__ import main

assert Path(cu.__file__).is_relative_to(sys.argv[1]), cu.__file__
{example}
# Every room is the wheel's: a checkout that is installed as well would lend what is missing.
own = [module.__file__ for name, module in sys.modules.items() if name.startswith("calib_utils.")]
assert all(Path(file).is_relative_to(sys.argv[1]) for file in own), own
# The extra for the book is not needed for it.
assert not {"nbformat", "papermill", "sphinx", "matplotlib"} & set(sys.modules)
assert len(cu.sample_answers(model, "us-states", n=2)) == 2
assert main(["models", "--format", "csv"]) == 0
asked = ["evaluate", "--model", str(model.folder), "--task", "us-states", "--format", "markdown"]
assert main([*asked, "--output", "table.md"]) == 0
for command in (["run"], ["book"], ["toc"], ["check"], ["reproduce"]):
    assert main(command) == 2, command
"""


@pytest.mark.full
def test_the_wheel_is_a_library_without_a_checkout(tmp_path, tiny_folder):
    """The README's example on a tiny model; only what needs notebooks and pages is refused."""
    source, target, place = (tmp_path / name for name in ("source", "installed", "elsewhere"))
    # A copy, since setuptools packs again what an earlier build has left in build/.
    for name, skipped in (("calib_utils", "__pycache__"), ("data", "results")):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns(skipped))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--isolated", "-q"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run(wheel, check=True)
    (made,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", target, made], check=True)
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    example, n = re.subn(r'load_model\(".*?"\)', f'load_model("{tiny_folder()}")', code)
    assert n == 1 and "rng-3" in example
    place.mkdir()
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            ELSEWHERE.replace("{example}", example.replace("rng-3", "rng-2")),
            target,
        ],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    refused = [line for line in done.stderr.splitlines() if line.startswith("calib_utils: ")]
    assert len(refused) == 5 and all("NoCheckoutError" in line for line in refused)
    assert (place / "table.md").read_text().startswith("| model")
    assert [path.name for path in place.iterdir()] == ["table.md"]
    assert not list((target / "calib_utils" / "data").rglob("results"))


def _benchmark(name):
    import importlib.util

    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_speed_page_is_the_one_for_the_records():
    page = _benchmark("page")
    assert page.PAGE.read_text() == page.page(), "run python benchmarks/page.py"


def test_the_page_of_mutation_tests_is_the_one_for_its_record():
    mutation = _benchmark("mutation")
    assert mutation.PAGE.read_text() == mutation.page(), "run python benchmarks/mutation.py --page"
    record = json.loads(mutation.RECORD.read_text())
    assert set(record) == set(mutation.MODULES)
    for module, found in record.items():
        told = found["states"].get("killed", 0) + found["states"].get("timeout", 0)
        assert told + len(found["survivors"]) == found["mutants"] > 0, module
        # Of the canaries alone: what they leave is mostly wording, checks and other devices.
        assert told >= 0.8 * found["mutants"], module
