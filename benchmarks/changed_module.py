"""Tries every change of one module against the canaries: `mutation.py` runs it as a test.

Writes a line of JSON per change, and leaves out those that already have one.
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

PATH, STATES = map(Path, json.loads(os.environ["MUTATION"]))
KILLED, SURVIVED = 1, 0
SLOWEST, MEMORY = 20, 12 << 30  # seconds of the processor at least, bytes


def changed_module() -> dict[str, str]:
    """Puts all changes into the module, before anybody imports it: name to what it changes."""
    original = PATH.with_suffix(".original")
    if not original.exists():
        original.write_text(PATH.read_text())
    mutated = mutate_file_contents(str(PATH), original.read_text())
    PATH.write_text(mutated.code)
    lines, spans = mutated.code.splitlines(), mutated.line_span_by_function_name

    def body(name):
        span = spans[name]
        # Without the line of the function's own name.
        return [line for line in lines[span.start - 1 : span.end] if "__mutmut_" not in line]

    found = {}
    for name in mutated.mutant_names:
        before = body(name.rsplit("__mutmut_", 1)[0] + "__mutmut_orig")
        changed = difflib.ndiff(before, body(name))
        kept = [line for line in changed if line[:2] in ("- ", "+ ")]
        found[name] = "\n".join(f"{line[0]} {line[2:].strip()}" for line in kept)
    return found


CHANGES = changed_module()


def test_every_change(request, canaries, changes):
    get = request.getfixturevalue
    chosen = [one for one in canaries.CANARIES.values() if not one.on]
    module = ".".join(PATH.with_suffix("").parts)
    seconds, through = {}, defaultdict(list)
    for one in chosen:
        assert not changes(one, one.compute(get)), f"{one.name} fails without any change"
    for one in chosen:
        hits = set()
        trampoline.record_trampoline_hit = lambda name, caller=None, hits=hits: hits.add(name)
        trampoline.set_mutant_under_test("stats")
        one.compute(get)
        trampoline.set_mutant_under_test("none")
        began = time.process_time()
        one.compute(get)
        seconds[one.name] = time.process_time() - began
        for name in hits:
            through[name].append(one)
    done = (
        {json.loads(line)["name"] for line in STATES.read_text().splitlines()}
        if STATES.exists()
        else set()
    )
    for name, change in CHANGES.items():
        if name in done:
            continue
        function = f"{module}.{name.rsplit('__mutmut_', 1)[0]}"
        tried = sorted(through[function], key=lambda one: seconds[one.name])
        child = os.fork()
        if not child:
            allowed = SLOWEST + 5 * sum(seconds[one.name] for one in tried)
            signal.setitimer(signal.ITIMER_PROF, allowed)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            os._exit(caught(f"{module}.{name}", tried, changes, get))
        _, status = os.waitpid(child, 0)
        state = {KILLED: "killed", SURVIVED: "survived"}.get(
            os.waitstatus_to_exitcode(status), "timeout"
        )
        state = state if tried else "no canary"
        with STATES.open("a") as lines:
            lines.write(
                json.dumps({"name": f"{module}.{name}", "state": state, "change": change}) + "\n"
            )


def caught(name, tried, changes, get) -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    trampoline.set_mutant_under_test(name)
    try:
        for one in tried:
            if changes(one, one.compute(get)):
                return KILLED
    except BaseException:
        return KILLED
    return SURVIVED
