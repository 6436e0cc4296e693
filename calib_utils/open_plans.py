"""What the chapter on order calibration runs: at a laptop's size, at the smoke test's, the paper's.

Knows prompts and sweeps. Runs nothing.
"""

from dataclasses import dataclass

from calib_utils.openset import open_prompts
from calib_utils.sweeps import Sweep, log_ranks
from calib_utils.tasks import OpenPrompt

_ITEM_PROMPTS = tuple(prompt.id for prompt in open_prompts(["item"]))
_TEXT_PROMPTS = ("story-robot", "joke-cat", "poem-autumn", "plot-heist")
_ITEM_TOKENS, _TEXT_TOKENS = 12, 24


@dataclass(frozen=True)
class Plan:
    """Sweeps by their use, and the size of what is drawn for Table 1.

    `items` and `texts` hold one sweep per depth from 1; lists decide the former, a checker of
    grammar the latter. `drawn` completes the candidates of `greedy` by drawing (Fig. 7). The last
    sweeps of `oracle` give the valid first two tokens of Table 1.
    """

    items: tuple[Sweep, ...]
    texts: tuple[Sweep, ...]
    greedy: Sweep
    drawn: Sweep
    oracle: tuple[Sweep, ...]
    n_texts: int
    budget: int | None
    judged: int  # texts that the language model judges, of each kind

    @property
    def sweeps(self) -> list[Sweep]:
        """Each once, in the order in which they run."""
        every = [*self.items, *self.texts, self.greedy, self.drawn, *self.oracle]
        return list({sweep.name: sweep for sweep in every}.values())


def laptop(seed: int = 0, end: str = "eos") -> Plan:
    """A quarter of an hour on two cores for a model of half a billion parameters.

    Candidates at depth 1 are every tenth rank to 1,000 as in the paper. Deeper trees take ranks
    that are evenly spaced in their logarithm, so recall there is relative to those ranks. Trees
    start at the first token, for free texts also after 1 to 12 written ones.
    """
    items = {"seeds": (seed,), "max_tokens": _ITEM_TOKENS, "end": end}
    texts = {"max_tokens": _TEXT_TOKENS, "end": end}
    several = (2 * seed, 2 * seed + 1)  # disjoint for every seed
    many = {"ranks": log_ranks(48, 1000)}
    two = {"depth": 2, "ranks": log_ranks(12, 1000)}
    three = {"depth": 3, "ranks": log_ranks(5, 1000)}
    inside = {"position": (1, 12)}
    tag = "" if seed == 0 else f"-seed{seed}"
    one = Sweep(_ITEM_PROMPTS, name=f"items-1{tag}", **items)
    pairs = Sweep(_ITEM_PROMPTS, name=f"items-2{tag}", **items, **two)
    openings = Sweep(_TEXT_PROMPTS, (seed,), name=f"openings-2{tag}", **texts, **two)
    return Plan(
        items=(one, pairs, Sweep(_ITEM_PROMPTS, name=f"items-3{tag}", **items, **three)),
        texts=(
            Sweep(_TEXT_PROMPTS, several, f"texts-1{tag}", **inside, **texts, **many),
            openings,
            Sweep(_TEXT_PROMPTS, (seed,), f"texts-3{tag}", **inside, **texts, **three),
        ),
        greedy=one,
        drawn=Sweep(_ITEM_PROMPTS, name=f"items-drawn{tag}", stride=40, n_samples=10, **items),
        oracle=(pairs, openings),
        n_texts=12,
        budget=4,
        judged=30,
    )


def quick(seed: int = 0, end: str = "eos") -> Plan:
    """The same parts in seconds, for smoke runs: no number of it means anything."""
    tag = f"-quick{seed or ''}"
    few = {"seeds": (seed,), "ranks": (0, 1, 8), "max_tokens": 4, "end": end}
    some, others = _ITEM_PROMPTS[:2], _TEXT_PROMPTS[:2]
    items = Sweep(some, name=f"items-2{tag}", depth=2, **few)
    texts = Sweep(others, name=f"openings-2{tag}", depth=2, **few)
    one = Sweep(some, name=f"items-1{tag}", **few)
    story = Sweep(others, name=f"texts-1{tag}", **few)
    drawn = Sweep(some, name=f"items-drawn{tag}", n_samples=2, **few)
    return Plan((one, items), (story, texts), one, drawn, (items, texts), 4, 1, 0)


def paper(prompts: tuple[OpenPrompt, ...], n_seeds: int = 10, max_tokens: int = 64) -> Sweep:
    """The paper's own sweep: depth 3, every tenth of 1,000 ranks, a million leaves a tree.

    The length of its completions is not given.
    """
    chosen = tuple(prompts[i % len(prompts)] for i in range(n_seeds))
    distinct = tuple(dict.fromkeys(chosen))
    seeds = tuple(range(-(-n_seeds // len(distinct))))
    return Sweep(distinct, seeds, "paper", position=(1, 32), depth=3, max_tokens=max_tokens)
