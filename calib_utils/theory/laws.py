"""Next-token laws that are known by formula, and models that follow one exactly.

A prefix's valid tokens and their N in (Def. 3.2), logits over a vocabulary out; a law, a task and a
tokenizer in, a `Model` out that all of `calib_utils` accepts. Knows no metric and no stored row.
"""

import hashlib
import itertools
import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from calib_utils.core import prompts
from calib_utils.core.prompts import Policies, Prompt
from calib_utils.core.rules import is_number
from calib_utils.core.split import TokenTable
from calib_utils.core.tasks import Task, get_task
from calib_utils.errors import InvalidRequestError, whole_number
from calib_utils.models.loading import Model


@dataclass(frozen=True)
class Node:
    """One prefix as a law sees it.

    `prefix` holds token ids after the prompt. `symbols` [valid] is G(prefix), `counts` [valid] the
    N of each; where several end tokens close an answer they share its 1 evenly.
    """

    prefix: tuple[int, ...]
    symbols: np.ndarray
    counts: np.ndarray
    n_vocab: int

    @property
    def n_valid(self) -> int:
        return len(self.symbols)

    @property
    def n_invalid(self) -> int:
        return self.n_vocab - len(self.symbols)


class Law(ABC):
    """A distribution over the next token at every prefix that begins an answer.

    A law of your own needs `logits`, and a `repr` that tells it from others: a frozen dataclass
    has one.
    """

    @abstractmethod
    def logits(self, node: Node) -> np.ndarray:
        """ln p of every token up to a constant, -inf for what is impossible: float64 [vocab]."""

    def require_fits(self, node: Node) -> None:
        """Raises InvalidRequestError at a node on which the law is not defined."""
        return


@dataclass(frozen=True)
class UniformOverV(Law):
    """Uniform over the answers: p proportional to N, no invalid mass (shape calibrated, Def. D.1).

    Known: Val = Div = 1 at T = 1. Val = 1 at every T; Div stays 1 where siblings have equal N.
    """

    def logits(self, node: Node) -> np.ndarray:
        return _placed(node, np.log(node.counts / node.counts.max()), -math.inf)


@dataclass(frozen=True)
class UniformOverG(Law):
    """Uniform over the valid next tokens: a perfect order, no invalid mass, N is ignored.

    Known, at every temperature: Val = 1 and Div = the structural ceiling (`structural_facts`),
    which is 1 only where siblings have equal N.
    """

    def logits(self, node: Node) -> np.ndarray:
        return _placed(node, np.zeros(node.n_valid), -math.inf)


@dataclass(frozen=True)
class LeakyShape(Law):
    """The valid tokens hold `local_validity` of the mass, by N; the others the rest, evenly.

    Known at T = 1, for answers of L steps (end included): Val = local_validity^L and Div = 1. With
    lengths L_y that differ, p(y) = local_validity^L_y / |V|. Order calibrated exactly where
    local_validity min N / sum N >= (1 - local_validity) / (number of invalid tokens).
    """

    local_validity: float

    def __post_init__(self):
        if not is_number(self.local_validity) or not 0 < self.local_validity <= 1:
            raise InvalidRequestError(
                f"local_validity={self.local_validity!r}: must be above 0 and at most 1"
            )
        object.__setattr__(self, "local_validity", float(self.local_validity))

    def logits(self, node: Node) -> np.ndarray:
        inside = np.log(self.local_validity * node.counts / node.counts.sum())
        rest = 1 - self.local_validity
        outside = math.log(rest / node.n_invalid) if rest else -math.inf
        return _placed(node, inside - inside.max(), outside - inside.max())

    def require_fits(self, node: Node) -> None:
        if self.local_validity < 1 and not node.n_invalid:
            raise InvalidRequestError(
                f"local_validity={self.local_validity!r}: all {node.n_vocab} tokens are valid "
                f"after {node.prefix}, so none can hold the rest: take 1, or a larger vocabulary"
            )


@dataclass(frozen=True)
class ByStep(Law):
    """A different law at each step of the answer; the last one holds for all later steps."""

    laws: tuple[Law, ...]

    def __post_init__(self):
        object.__setattr__(self, "laws", tuple(self.laws))
        if not self.laws or not all(isinstance(law, Law) for law in self.laws):
            raise InvalidRequestError(f"laws={self.laws!r}: must be one law or more")

    def _at(self, node: Node) -> Law:
        return self.laws[min(len(node.prefix), len(self.laws) - 1)]

    def logits(self, node: Node) -> np.ndarray:
        return self._at(node).logits(node)

    def require_fits(self, node: Node) -> None:
        self._at(node).require_fits(node)


def node_of(tokens: TokenTable, node: int, n_vocab: int) -> Node:
    """A node of a trie as a law sees it, its valid tokens in the order of `tokens`."""
    own, trie = slice(tokens.first[node], tokens.first[node + 1]), tokens.trie
    edge = tokens.edge[own]
    counts = trie.edge_count[edge] / (edge[:, None] == edge).sum(1)
    return Node(tuple(trie.prefix(node)), tokens.symbol[own], counts, n_vocab)


def _placed(node: Node, valid: np.ndarray, elsewhere: float) -> np.ndarray:
    found = np.full(node.n_vocab, elsewhere)
    found[node.symbols] = valid
    return found


# --- Laws that hand out mass by rank: to the right tokens, or by a permutation to wrong ones ---
# The *perfect order* of a prefix, which is order calibrated (Def. D.1): valid tokens by falling N,
# then the invalid ones, ties by token id.


class Ranked(Law):
    """Mass by rank, handed out in the perfect order: order calibrated, and blind to N's size.

    Known, with s(r) the mass of rank r to the power 1/T, S(n) its sum over the first n ranks, and
    v_t valid tokens at every prefix of step t (Assumption 5.1): Val = prod S(v_t) / S(|vocabulary|)
    and Div = prod exp(H_t) / v_t, with H_t the entropy of s over the first v_t ranks.
    """

    @abstractmethod
    def log_mass(self, node: Node, rank: np.ndarray) -> np.ndarray:
        """ln of the mass of a rank from 0, up to a constant of the node's."""

    def ranks(self, node: Node) -> np.ndarray:
        """The rank that each token of the perfect order gets. [vocab]"""
        return np.arange(node.n_vocab)

    def logits(self, node: Node) -> np.ndarray:
        valid = node.symbols[np.lexsort((node.symbols, -node.counts))]
        invalid = np.delete(np.arange(node.n_vocab), valid)
        found = np.empty(node.n_vocab)
        found[np.concatenate([valid, invalid])] = self.log_mass(node, self.ranks(node))
        return found


class _OneNumber(Ranked):
    """A ranked law whose only field is a finite number above 0."""

    def __post_init__(self):
        ((name, value),) = vars(self).items()
        if not is_number(value) or not 0 < value < math.inf:
            raise InvalidRequestError(f"{name}={value!r}: must be a finite number above 0")
        object.__setattr__(self, name, float(value))


@dataclass(frozen=True)
class Geometric(_OneNumber):
    """Def. F.1: mass q^rank with q = exp(-decay / T), normalised over the vocabulary.

    The paper's masses (1 - q) q^rank leave q^|vocabulary| beyond the last rank, which a softmax
    cannot; so here Val = prod (1 - q^v_t) / (1 - q^|vocabulary|). The two agree to 1e-15 where
    decay |vocabulary| / T > 35; well below that Thm F.4 can fail for this law.
    """

    decay: float  # lambda of Def. F.1, nats a rank at T = 1

    def log_mass(self, node: Node, rank: np.ndarray) -> np.ndarray:
        return -self.decay * rank


@dataclass(frozen=True)
class EquallySharp(_OneNumber):
    """Geometric at every prefix, with the decay that makes its sharpness the same everywhere.

    decay = sharpness / |G(prefix)|, so the valid tokens hold 1 - exp(-sharpness / T) however many
    they are (over infinitely many ranks; the rest as for `Geometric`): for answers of L steps
    Val = (1 - exp(-sharpness / T))^L. Thm F.4 asks for one decay a step, which this law has under
    Assumption 5.1 only.
    """

    sharpness: float  # z of Def. F.1 at T = 1

    def log_mass(self, node: Node, rank: np.ndarray) -> np.ndarray:
        return -self.sharpness / node.n_valid * rank


@dataclass(frozen=True)
class Zipf(_OneNumber):
    """A heavy tail: mass (rank + 1)^(-exponent / T), normalised over the vocabulary.

    Val = prod h(v_t) / h(|vocabulary|) with h(n) the sum of i^(-exponent / T) for i = 1 .. n.
    """

    exponent: float

    def log_mass(self, node: Node, rank: np.ndarray) -> np.ndarray:
        return -self.exponent * np.log(rank + 1.0)


@dataclass(frozen=True)
class _Reordered(Ranked):
    """A ranked law whose masses go to the wrong tokens."""

    law: Ranked

    def __post_init__(self):
        if not isinstance(self.law, Ranked):
            raise InvalidRequestError(
                f"law={self.law!r} has no ranks to exchange: take Geometric, Zipf or another Ranked"
            )

    def log_mass(self, node: Node, rank: np.ndarray) -> np.ndarray:
        return self.law.log_mass(node, rank)

    def require_fits(self, node: Node) -> None:
        self.law.require_fits(node)


@dataclass(frozen=True)
class Displaced(_Reordered):
    """A ranked law in which `k` valid tokens and `k` invalid ones have changed ranks.

    Wherever there is a choice (two valid tokens or more) the last k valid tokens of the perfect
    order get the ranks v .. v+k-1 and the first k invalid ones the ranks v-k .. v-1.

    Known under Assumption 5.1: the oracle size has Prec_seq = Rec_seq = prod (v_t - k) / v_t over
    the steps with a choice; Val = prod (S(v_t - k) + S(v_t + k) - S(v_t)) / S(|vocabulary|) there.
    Repairing the order gives back `law`.
    """

    k: int = 1

    def __post_init__(self):
        super().__post_init__()
        whole_number("k", self.k)

    def ranks(self, node: Node) -> np.ndarray:
        ranks, v = self.law.ranks(node).copy(), node.n_valid
        if v > 1:
            last, first = slice(v - self.k, v), slice(v, v + self.k)
            ranks[last], ranks[first] = ranks[first].copy(), ranks[last].copy()
        return ranks

    def require_fits(self, node: Node) -> None:
        super().require_fits(node)
        if node.n_valid > 1 and (most := min(node.n_valid, node.n_invalid)) < self.k:
            raise InvalidRequestError(
                f"k={self.k}: after {node.prefix} there are {node.n_valid} valid and "
                f"{node.n_invalid} invalid tokens to exchange: take at most {most}"
            )


@dataclass(frozen=True)
class Permuted(_Reordered):
    """A ranked law whose first ranks are permuted: rank i of `law` becomes `to[i]` everywhere.

    Known: the oracle size keeps what the permutation sends below |G|.
    """

    to: tuple[int, ...] = (1, 0)

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "to", tuple(self.to))
        if sorted(self.to) != list(range(len(self.to))):
            raise InvalidRequestError(
                f"to={self.to!r}: must hold every rank from 0 to {len(self.to) - 1} once"
            )

    def ranks(self, node: Node) -> np.ndarray:
        to = np.concatenate([self.to, np.arange(len(self.to), node.n_vocab)]).astype(np.int64)
        return to[self.law.ranks(node)]

    def require_fits(self, node: Node) -> None:
        super().require_fits(node)
        if len(self.to) > node.n_vocab:
            raise InvalidRequestError(
                f"to has {len(self.to)} ranks, the vocabulary {node.n_vocab}: permute fewer"
            )


# --- Models that follow a law, with the interface of the real ones ---

N_FILLERS = 100
_END, _UNKNOWN = "<|end|>", "<|unknown|>"
# The message as it is: a chat template makes answers begin without a space.
_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
_SPACE = "\u2581"  # SentencePiece's, so that `prompts.Vocabulary` can read the tokens' text


@dataclass(frozen=True)
class ReferenceModel(Model):
    """A model that follows a law on one task. Build it with `reference_model`."""

    law: Law = field(kw_only=True)
    task: Task = field(kw_only=True)
    end: str = field(kw_only=True)
    # In place of what `Model` reads from its folder.
    tokenizer: object = field(kw_only=True, repr=False, compare=False)
    network: torch.nn.Module = field(kw_only=True, repr=False, compare=False)
    chat_or_why = (True, "a law takes the prompt as it is")


def reference_model(law: Law, task: Task | str, tokenizer=None, end: str = "eos") -> ReferenceModel:
    """A model that gives every prefix of a task's answers the next-token distribution of a law.

    Its logits are float32, as a real model's, so at each step ln p is off by up to about
    2^-23 |logit| / T; not at all where float32 holds the logits exactly, as of `UniformOverG`.

    What is no prefix of an answer puts all mass on the end token: an answer is closed after its
    first invalid token, and nothing follows an end. So does a whole answer where `end="none"`.

    Stored rows (`results_dir`) are told apart by law (its `repr`), answers and tokenizer;
    `reproduce` cannot build these models again.

    Args:
        task: a task, or a name for `get_task`; no other prompt is answered.
        tokenizer: any Hugging Face one, whose trie is followed; else `character_tokenizer(task)`.
        end: what closes an answer, as in `evaluate`; evaluate under the same policy.

    Raises:
        InvalidRequestError: the law does not fit the task.
        TokenizationError, ModelFormatError: as for `render_prompt`.
    """
    if not isinstance(law, Law):
        raise InvalidRequestError(f"law={law!r} is no law: take one such as cu.UniformOverV()")
    task = get_task(task)
    tokenizer = character_tokenizer(task) if tokenizer is None else tokenizer
    prompt = prompts.render(tokenizer, task, Policies(end=end))
    stop = prompts.render(tokenizer, task, Policies(end="eos")).end_ids[0]
    n_vocab = max(tokenizer.get_vocab().values()) + 1
    tokens = TokenTable(prompt.trie)
    for node in range(prompt.trie.n_nodes):
        law.require_fits(node_of(tokens, node, n_vocab))
    content = repr((law, prompt.ids, prompt.sequences.fingerprint(), stop, n_vocab))
    digest = hashlib.sha256(content.encode()).hexdigest()
    return ReferenceModel(
        name=f"reference {law!r}",
        key=f"reference-{re.sub(r'[^0-9A-Za-z.]+', '-', repr(law))[:60].strip('-')}-{digest[:8]}",
        folder=Path(),
        weights_sha256=digest,
        weights_file="none: logits by formula",
        revision=None,
        dtype="float32",
        device="cpu",
        law=law,
        task=task,
        end=end,
        tokenizer=tokenizer,
        network=_Network(law, task, prompt, stop, n_vocab),
    )


def character_tokenizer(task: Task | str, n_fillers: int = N_FILLERS):
    """A tokenizer made for a task: one token for each character of its prompt and answers.

    Besides them: the line break (for `end="line"`), an end token, one for unknown characters, and
    `n_fillers` fillers that never occur in a text but hold probability.

    Raises:
        InvalidRequestError: a number of fillers below 0.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    n_fillers = whole_number("n_fillers", n_fillers, 0)
    task = get_task(task)
    words = itertools.chain(*task.spellings())
    known = sorted(set(task.system + task.prompt).union("\n", *words))
    pieces = [character.replace(" ", _SPACE) for character in known]
    pieces += [f"‹{i + 1}›" for i in range(n_fillers)] + [_UNKNOWN]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordLevel(vocab, unk_token=_UNKNOWN))
    backend.normalizer = normalizers.Replace(" ", _SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.Fuse()])
    backend.add_special_tokens([_END])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=_END, unk_token=_UNKNOWN, chat_template=_TEMPLATE
    )


class _Network(torch.nn.Module):
    """Logits by formula. A *state* stands for all that was read: -n with n tokens of the prompt to
    come, a node of the trie, or `n_nodes` once there is no way back into an answer.
    """

    at_once = 0  # as of `scoring.State`: every row is read from its start

    def __init__(self, law: Law, task: Task, prompt: Prompt, stop: int, n_vocab: int):
        super().__init__()
        self.config = SimpleNamespace(model_type="reference")
        # Nothing is looked up in it: `scoring` asks it for the device and the vocabulary's size.
        self._embeddings = torch.nn.Embedding(n_vocab, 1).requires_grad_(False)
        self._law, self._task, self._ids, self._stop = law, task, prompt.ids, stop
        trie = prompt.trie
        self._tokens, self._over = TokenTable(trie), trie.n_nodes
        edges = np.stack([trie.edge_node, trie.edge_symbol, trie.edge_child], axis=1).tolist()
        self._child = {(node, symbol): child for node, symbol, child in edges if child >= 0}

    def get_input_embeddings(self):
        return self._embeddings

    def forward(self, input_ids, use_cache=False, logits_to_keep=0):
        """Logits of the last `logits_to_keep` positions (0: of all), [row, position, vocab]."""
        states = torch.tensor([self._states(row)[-logits_to_keep:] for row in input_ids.tolist()])
        distinct, place = states.unique(return_inverse=True)
        logits = torch.stack([self._logits(s) for s in distinct.tolist()])[place]
        return SimpleNamespace(logits=logits)

    def _states(self, row: list[int]) -> list[int]:
        """The state after each token."""
        begun = row[: len(self._ids)]
        if begun != list(self._ids[: len(begun)]):
            raise InvalidRequestError(
                f"a reference model knows one task, {self._task.name!r} here, and got another "
                "prompt: build one with reference_model(law, task) for that task"
            )
        states = [i - len(self._ids) for i in range(1, len(begun) + 1)]
        for symbol in row[len(begun) :]:
            states.append(self._child.get((states[-1], symbol), self._over))
        return states

    def _logits(self, state: int) -> torch.Tensor:
        """Logits in one state, float32 [vocab]; within the prompt its next token is certain."""
        if 0 <= state < self._over:
            node = node_of(self._tokens, state, self._embeddings.num_embeddings)
            return torch.from_numpy(self._law.logits(node)).float()
        only = self._stop if state == self._over else self._ids[state]
        logits = torch.full((self._embeddings.num_embeddings,), -torch.inf)
        logits[only] = 0.0
        return logits
