"""A task small enough to do by hand, as a model that the whole chain accepts.

Three two-letter words, a next-letter table written out, and every number of Def. 3.1, 3.2, 4.1 and
D.1 beside the sum one would write down. Knows the public functions; nothing of their insides.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from calib_utils import theory
from calib_utils.evaluation import render_prompt
from calib_utils.laws import Law, Node
from calib_utils.measure import Measurement, measure
from calib_utils.reference import character_tokenizer, reference_model
from calib_utils.rules import NoCutoff, TopK
from calib_utils.tasks import Task
from calib_utils.tries import Trie

WORDS = ("at", "ta", "to")
LETTERS = "aot"
# p(next letter | letters so far), in the order a, o, t.
TABLE = {"": (0.2, 0.3, 0.5), "t": (0.4, 0.4, 0.2), "a": (0.25, 0.25, 0.5)}


@dataclass(frozen=True)
class Written(Law):
    """A law written out as a table.

    Args:
        rows: for each prefix of token ids, the probability of every token.
    """

    rows: tuple[tuple[tuple[int, ...], tuple[float, ...]], ...]

    def logits(self, node: Node) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.log(dict(self.rows)[node.prefix])

    def valid_log_p(self, node: Node, temperature: float = 1.0) -> np.ndarray:
        tempered = self.logits(node) / temperature
        return tempered[node.symbols] - np.logaddexp.reduce(tempered)


@dataclass(frozen=True)
class Example:
    """A pass over the words, without a cutoff and with one that keeps 2, and what symbols mean."""

    found: Measurement
    letters: dict[int, str]

    @property
    def trie(self) -> Trie:
        return self.found.steps.tokens.trie

    @property
    def edge_p(self) -> np.ndarray:
        """Probability of every edge without a cutoff. [edge]"""
        return np.exp(self.found.edge_log_p[:, 0])


def worked_example() -> Example:
    """The three words, their model and one pass over it."""
    task = Task("words", "Write one of the words at, ta, to.", WORDS)
    tokenizer = character_tokenizer(task, n_fillers=0)
    ids = {letter: tokenizer.convert_tokens_to_ids(letter) for letter in LETTERS}
    n_vocab = max(tokenizer.get_vocab().values()) + 1
    rows = []
    for prefix, p in TABLE.items():
        row = np.zeros(n_vocab)
        row[list(ids.values())] = p
        rows.append((tuple(ids[letter] for letter in prefix), tuple(row.tolist())))
    model = reference_model(Written(tuple(rows)), task, tokenizer, end="none")
    prompt = render_prompt(model, task, end="none")
    found = measure(model, prompt, [(NoCutoff(), 1.0), (TopK(2), 1.0)], ranks=True)
    return Example(found, {i: letter for letter, i in ids.items()})


def definitions(example: Example) -> pd.DataFrame:
    """Each quantity, the sum by hand, and the number of the functions the book uses."""
    found, steps, trie = example.found, example.found.steps, example.trie
    share = np.exp(steps.edge_uniform_log_p([1]))[:, 0]
    precision, recall = theory.local_precision(trie, share), theory.local_recall(trie, share)
    factors = theory.factorise(trie, share)
    node = {"".join(example.letters[s] for s in trie.prefix(n)): n for n in range(trie.n_nodes)}
    ordered = theory.order_calibrated(steps)
    error = theory.shape_error(trie, found.edge_log_p[:, 0])
    count, branching = trie.node_count, trie.node_branching
    entries = [
        ("3.1", "Val", ".2·.5 + .5·.4 + .5·.4", found.validity[0]),
        ("3.1", "Div", "exp(H(.2, .4, .4)) / 3", found.diversity[0]),
        ("3.2", "N(t), words that begin with t", "2", count[node["t"]]),
        ("3.2", "|G(start)|, first letters that can be right", "2", branching[0]),
        ("4.1", "local precision at the start, 2 kept (t, o)", "1/2", precision[0]),
        ("4.1", "local recall there", "N(t)/3 = 2/3", recall[0]),
        ("4.1", "local precision after t, 2 kept (a, o)", "2/2", precision[node["t"]]),
        ("4.1", "sequence precision", "1/2 · 1", found.sequence_precision[1]),
        ("4.1", "sequence recall (ta, to)", "2/3", found.sequence_recall[1]),
        ("E.1", "α₁ · α₂", "1/2 · 1", factors.precision),
        ("E.1", "β₁ · β₂", "2/3 · 1", factors.recall),
        ("D.1", "order calibrated at the start (a .2 < o .3)", "no", _yes(ordered[0])),
        ("D.1", "order calibrated after t", "yes", _yes(ordered[node["t"]])),
        ("D.1", "distance to the shape (1/3, 2/3) at the start", ".13 + .17", error[0]),
        ("D.1", "distance to the shape (1/2, 1/2) after t", ".1 + .1", error[node["t"]]),
    ]
    return pd.DataFrame(entries, columns=["definition", "quantity", "by hand", "computed"])


def _yes(holds) -> str:
    return "yes" if holds else "no"
