"""Which deliberate faults in the numeric modules the canaries do not see.

mutmut changes the modules below one place at a time; each change is tried against the canaries
alone (`tests/canaries`), those that run no model: with one, a change would take minutes. One copy
of the project holds all changes, and one process the canaries; it forks for each change
(`changed_module.py`), since a start of pytest takes longer than most canaries do. Writes
`mutation.json` and the book's page of it. `make mutation` runs it.

    python benchmarks/mutation.py [module ...]     run, all modules by default
    python benchmarks/mutation.py --page           the page from the records alone
    --scratch FOLDER   work there, not in a temporary folder; a killed run goes on from it
"""

import argparse
import json
import os
import re
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
MODULES = ("metrics", "split", "rules", "tries", "ranking", "theorems")
NEEDED = ("calib_utils", "data", "_config.yml", "pyproject.toml", "tests/conftest.py")


def run(modules: list[str], scratch: Path) -> dict[str, dict]:
    """The record of each module: counts by state, and what each survivor changes."""
    if not (scratch / "data").exists():
        for name in (*NEEDED, "tests/canaries"):
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, scratch / name)
        shutil.copy(HERE / "changed_module.py", scratch / "tests/canaries/test_changed_module.py")
        (scratch / "setup.cfg").write_text("[mutmut]\nsource_paths=calib_utils\n")
    paths = {module: next((scratch / "calib_utils").rglob(f"{module}.py")) for module in modules}
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(scratch)}
    own["MUTATED"] = " ".join(str(path.relative_to(scratch)) for path in paths.values())
    script = "tests/canaries/test_changed_module.py"
    tests = ["-m", "pytest", "-q", "-pno:cacheprovider", "-pno:xdist", f"--rootdir={scratch}"]
    for arguments in ([script], [*tests, script]):
        if arguments[0] != script or not (scratch / "changes.json").exists():
            command = [sys.executable, *arguments]
            subprocess.run(
                command, cwd=scratch, env=os.environ | own, check=True, stdout=sys.stderr
            )
    found = [json.loads(line) for line in (scratch / "states.jsonl").read_text().splitlines()]
    have = {one["name"].split(".")[-2] for one in found}
    if missing := {*modules} - have:
        sys.exit(f"{scratch} is of {sorted(have)}, not {sorted(missing)}: give another --scratch")
    return {
        module: _record([one for one in found if one["name"].split(".")[-2] == module])
        for module in modules
    }


def _record(found: list[dict]) -> dict:
    survivors = [one for one in found if one["state"] not in ("killed", "timeout")]
    return {
        "mutants": len(found),
        "states": dict(Counter(one["state"] for one in found)),
        "survivors": [one | {"function": _function(one["name"])} for one in survivors],
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "mutmut": metadata.version("mutmut"),
    }


def _function(name: str) -> str:
    """`x_validity__mutmut_3` is validity, `xǁTopKǁn_kept__mutmut_1` is TopK.n_kept."""
    mangled = name.split(".")[-1].rsplit("__mutmut_", 1)[0]
    return mangled.removeprefix("x").strip("_").strip("ǁ").replace("ǁ", ".")


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def why(module: str, survivor: dict, reasons: list[dict]) -> str | None:
    """The reason given for a survivor, None where there is none."""
    wanted = (module, survivor["function"], survivor["change"])
    found = (r["why"] for r in reasons if (r["module"], r["function"], r["change"]) == wanted)
    return next(found, None) or _no_number(survivor["change"])


def _no_number(change: str) -> str | None:
    """Why a change of a kind that no canary is there to see is left alone."""
    before, after = ("".join(c[1:] for c in change.splitlines() if c[0] == sign) for sign in "-+")
    said = before.strip().startswith(('"', 'f"'))  # a line of nothing but text
    if said or "XX" in after or "Error(None)" in after or before.lower() == after.lower():
        return "the words of a message or the name of an option, no number"
    if "np.errstate(" in before:
        return "whether NumPy warns, no number"
    if re.search(r"device=|\"(mps|cpu)\"|torch\.div\(", before):
        return "only on another device than the processor"
    if "strict=True" in before:
        return "a check of lengths that are equal"
    return None


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
        "alone. A record is of the commit in the table; modules may have changed since.",
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
    lines += ["", "## Changes that no canary notices"]
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
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--scratch", type=Path)
    options = parser.parse_args()
    if not options.page:
        with tempfile.TemporaryDirectory() as temporary:
            scratch = options.scratch or Path(temporary)
            scratch.mkdir(parents=True, exist_ok=True)
            found = run(options.module or list(MODULES), scratch)
        record = json.loads(RECORD.read_text()) | found
        RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
