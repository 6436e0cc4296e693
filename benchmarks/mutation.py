"""Which deliberate faults in the numeric modules the canaries do not see.

Copies the project to a scratch folder, lets mutmut change the modules below one place at a time,
and runs the canaries alone (`tests/canaries`) on each change, those that need no model: with a
model each change would take half a minute, and would hardly see
more. Writes `mutation.json` and the book's page of it. `make mutation` runs it.

    python benchmarks/mutation.py [module ...]     run, all modules by default
    python benchmarks/mutation.py --again MODULE   what its record holds without a reason, once more
    python benchmarks/mutation.py --page           the page from the records alone
    --scratch FOLDER   work there instead of in a temporary folder; a killed run goes on from it
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PAGE = ROOT / "book" / "reference" / "mutation.md"
RECORD = HERE / "mutation.json"
SURVIVORS = HERE / "survivors.json"
# Wherever in the package they lie.
MODULES = ("metrics", "split", "rules", "adaptive", "tries", "ranking", "steps", "theory")
NEEDED = ("calib_utils", "data/panel", "data/published", "data/tasks", "_config.yml")
SETUP = """[mutmut]
source_paths=calib_utils
only_mutate={module}
also_copy=
 data
 _config.yml
pytest_add_cli_args_test_selection=
 tests/canaries/test_canaries.py
pytest_add_cli_args=
 -pno:cacheprovider
 -pno:xdist
 -k
 not tiny and not smollm2
process_isolation=forkserver
use_setproctitle=false
"""
OPTIONS = """[pytest]
addopts = --import-mode=importlib
filterwarnings = error
markers =
 models: -
 notebooks: -
"""


def run(module: str, scratch: Path, before: dict | None = None) -> dict:
    """The record of one module: counts by state, and what each survivor changes.

    Args:
        before: an earlier record; only its survivors without a reason are tried again. Tests are
            added, not taken away, so that the rest stands.
    """
    for name in (*NEEDED, "tests/conftest.py", "tests/canaries"):
        target = scratch / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, dirs_exist_ok=True)
        else:
            shutil.copy(ROOT / name, target)
    (path,) = (ROOT / "calib_utils").rglob(f"{module}.py")
    (scratch / "setup.cfg").write_text(SETUP.format(module=path.relative_to(ROOT)))
    (scratch / "pytest.ini").write_text(OPTIONS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)

    def mutmut(*arguments):
        command = [sys.executable, "-m", "mutmut", *arguments]
        return subprocess.run(
            command, cwd=scratch, env=environment, capture_output=True, text=True, check=True
        ).stdout

    known = before["survivors"] if before else []
    reasons = json.loads(SURVIVORS.read_text())
    open_ones = [survivor for survivor in known if why(module, survivor, reasons) is None]
    again = [survivor["name"] for survivor in open_ones]
    if before and not again:  # mutmut would take no name for all
        return before
    mutmut("run", "--max-children", "1", *again)
    lines = [line.strip() for line in mutmut("results", "--all", "true").splitlines()]
    states = dict(line.rsplit(": ", 1) for line in lines if line.startswith("calib_utils."))
    states = {name: state for name, state in states.items() if not again or name in again}
    counts = Counter(states.values())
    if before:
        counts += Counter(before["states"])
        counts.subtract(survivor["state"] for survivor in open_ones)
    survivors = [survivor for survivor in known if survivor not in open_ones] + [
        {
            "name": name,
            "state": state,
            "function": _function(name),
            "change": _change(mutmut("show", name)),
        }
        for name, state in states.items()
        if state not in ("killed", "timeout")
    ]
    return {
        "mutants": counts.total(),
        "states": {state: n for state, n in counts.items() if n},
        "survivors": survivors,
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "mutmut": metadata.version("mutmut"),
    }


def _function(name: str) -> str:
    """`x_validity__mutmut_3` is validity, `xǁTopKǁn_kept__mutmut_1` is TopK.n_kept."""
    mangled = name.split(".")[-1].rsplit("__mutmut_", 1)[0]
    return mangled.removeprefix("x").strip("_").strip("ǁ").replace("ǁ", ".")


def _change(diff: str) -> str:
    """The changed lines of a diff, without its head."""
    lines = [
        line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]
    return "\n".join(line[0] + " " + line[1:].strip() for line in lines)


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def why(module: str, survivor: dict, reasons: list[dict]) -> str | None:
    """The reason given for a survivor, None where there is none."""
    wanted = (module, survivor["function"], survivor["change"])
    found = (r["why"] for r in reasons if (r["module"], r["function"], r["change"]) == wanted)
    return next(found, None)


def page() -> str:
    """The page's Markdown."""
    record, reasons = json.loads(RECORD.read_text()), json.loads(SURVIVORS.read_text())
    lines = [
        "# Mutation tests of the numeric modules",
        "",
        "Written by `python benchmarks/mutation.py` (`make mutation`). mutmut changes the modules",
        "that define the measures one place at a time: a sign, a comparison, a constant, an",
        "argument. Each change is tried against the canaries alone, those without a model: golden",
        "values in `tests/canaries`. A change that none of them notices is listed below with the",
        "reason. mutmut leaves decorated functions, so properties, and constants outside functions",
        "alone.",
        "",
        "| module | changes | noticed | no end in time | not noticed | mutmut | commit | date |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for module, r in record.items():
        killed, late = r["states"].get("killed", 0), r["states"].get("timeout", 0)
        lines.append(
            f"| `{module}` | {r['mutants']} | {killed} | {late} | {len(r['survivors'])} | "
            f"{r['mutmut']} | `{r['commit']}` | {r['date']} |"
        )
    lines += ["", "## Changes that no test notices"]
    for module, r in record.items():
        for survivor in r["survivors"]:
            reason = why(module, survivor, reasons) or "not explained yet"
            lines += ["", f"`{module}.{survivor['function']}`: {reason}", "", "```diff"]
            lines += [survivor["change"], "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the modules asked for, keeps the records of the others, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module", nargs="*", choices=[*MODULES, []])
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--scratch", type=Path)
    options = parser.parse_args()
    for module in [] if options.page else options.module or MODULES:
        record = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
        with tempfile.TemporaryDirectory() as temporary:
            scratch = (options.scratch or Path(temporary)) / module
            scratch.mkdir(parents=True, exist_ok=True)
            found = run(module, scratch, record.get(module) if options.again else None)
        print(module, found["mutants"], found["states"], file=sys.stderr)
        record = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
        record[module] = found
        record = {name: record[name] for name in MODULES if name in record}
        RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
