"""All changes of some modules in one copy of them, and each of them against the canaries.

`mutation.py` runs it in a scratch folder: first as a script, before anybody imports the modules,
then as a test of pytest's, which has the fixtures. It writes a line of JSON per change, and leaves
out the changes that have one.
"""

import difflib
import json
import os
import resource
import signal
import time
from collections import defaultdict
from pathlib import Path

from mutmut.mutation import trampoline
from mutmut.mutation.file_mutation import mutate_file_contents

PATHS = [Path(name) for name in os.environ["MUTATED"].split()]
CHANGES, STATES = Path("changes.json"), Path("states.jsonl")
KINDS = ("rows", "framework")  # the others hardly go through these modules
KILLED, SURVIVED = 1, 0
SLOWEST, MEMORY = 5, 8 << 30  # seconds of the processor at least; bytes


def change_module(path: Path) -> dict[str, str]:
    """Puts all changes into a module: their names, and what each of them changes."""
    module = ".".join(path.with_suffix("").parts)
    mutated = mutate_file_contents(str(path), path.read_text())
    lines, spans = mutated.code.splitlines(), mutated.line_span_by_function_name

    def body(name):
        span = spans[name]
        # Without the line of the function's own name.
        return [line for line in lines[span.start - 1 : span.end] if "__mutmut_" not in line]

    found = {}
    for name in mutated.mutant_names:
        before = body(name.rsplit("__mutmut_", 1)[0] + "__mutmut_orig")
        compared = difflib.ndiff(before, body(name))
        changed = [line for line in compared if line[:2] in ("- ", "+ ")]
        found[f"{module}.{name}"] = "\n".join(f"{line[0]} {line[2:].strip()}" for line in changed)
    path.write_text(mutated.code)
    return found


def test_every_change(request, canaries, changes):
    get = request.getfixturevalue
    chosen = [one for one in canaries.CANARIES.values() if not one.on and one.kind in KINDS]
    seconds, through = {}, defaultdict(list)
    for one in chosen:
        assert not changes(one, one.compute(get)), f"{one.name} fails without any change"
        hits: set[str] = set()
        trampoline.record_trampoline_hit = lambda name, caller=None, hits=hits: hits.add(name)
        trampoline.set_mutant_under_test("stats")
        began = time.process_time()
        one.compute(get)
        seconds[one.name] = time.process_time() - began
        trampoline.set_mutant_under_test("none")
        for name in hits:
            through[name].append(one)
    assert through, "no canary goes through these modules"
    STATES.touch()
    done = {json.loads(line)["name"] for line in STATES.read_text().splitlines()}
    for name, change in json.loads(CHANGES.read_text()).items():
        if name in done:
            continue
        tried = sorted(through[name.rsplit("__mutmut_", 1)[0]], key=lambda one: seconds[one.name])
        child = os.fork()
        if not child:
            allowed = SLOWEST + 2 * sum(seconds[one.name] for one in tried)
            signal.setitimer(signal.ITIMER_PROF, allowed)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            os._exit(outcome(name, tried, changes, get))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        state = {KILLED: "killed", SURVIVED: "survived"}.get(code, "timeout")
        line = {"name": name, "state": state if tried else "no canary", "change": change}
        with STATES.open("a") as lines:
            lines.write(json.dumps(line) + "\n")


def outcome(name, tried, changes, get) -> int:
    trampoline.set_mutant_under_test(name)
    try:
        for one in tried:
            if changes(one, one.compute(get)):
                return KILLED
    except BaseException:
        return KILLED
    return SURVIVED


if __name__ == "__main__":
    changes_of_all = [change_module(path) for path in PATHS]
    CHANGES.write_text(json.dumps({k: v for one in changes_of_all for k, v in one.items()}))
