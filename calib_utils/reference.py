"""Language models whose every probability is known, with the interface of the real ones.

A law, a task and a tokenizer in, a `Model` out that all of `calib_utils` accepts: controls that
must come out right, or wrong, through the whole chain. Knows torch and tokenizers; no metric.
"""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import torch

from calib_utils import prompts
from calib_utils.errors import InvalidRequestError, whole_number
from calib_utils.laws import Law, node_of
from calib_utils.models import Model
from calib_utils.prompts import Policies, Prompt
from calib_utils.steps import TokenTable
from calib_utils.tasks import Task, get_task

N_FILLERS = 100
_END, _UNKNOWN = "<|end|>", "<|unknown|>"
# The message as it is: a chat template makes answers begin without a space.
_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
_SPACE = "\u2581"  # SentencePiece's, so that `vocabulary` can read the tokens' text


@dataclass(frozen=True)
class ReferenceModel(Model):
    """A model that follows a law on one task. Build it with `reference_model`."""

    law: Law = field(kw_only=True)
    task: Task = field(kw_only=True)
    end: str = field(kw_only=True)
    # In place of what `Model` reads from its folder.
    tokenizer: object = field(kw_only=True, repr=False, compare=False)
    network: torch.nn.Module = field(kw_only=True, repr=False, compare=False)


def reference_model(law: Law, task: Task | str, tokenizer=None, end: str = "eos") -> ReferenceModel:
    """A model that gives every prefix of a task's answers the next-token distribution of a law.

    Its logits are float32, as a real model's: at each step ln p is off by up to 2^-24 |logit| / T
    through the token's own logit, and by the mean of that over all tokens through the sum. Logits
    that float32 holds exactly (`UniformOverG`, a `Geometric` whose decay has few binary digits)
    cost nothing.

    What is no prefix of an answer puts all mass on the end token: an answer is closed after its
    first invalid token, and nothing follows an end. So does a whole answer where `end="none"`.

    Stored rows (`results_dir`) are told apart by law (its `repr`), answers and tokenizer.
    `reproduce` cannot build these models again: `load_model` knows no such name and raises
    UnknownNameError.

    Args:
        law: of `laws` or `ranked`, or your own.
        task: a task, or a name for `get_task`; no other prompt is answered.
        tokenizer: any Hugging Face one, say that of a real model, whose trie is then followed; by
            default `character_tokenizer(task)`.
        end: what closes an answer, as in `evaluate`; evaluate under the same policy.

    Raises:
        InvalidRequestError: the law does not fit the task.
        TokenizationError, ModelFormatError: as for `render_prompt`.
    """
    if not isinstance(law, Law):
        raise InvalidRequestError(f"law={law!r} is no law: take one such as laws.UniformOverV()")
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
    """A tokenizer made for a task: a token per character of its prompt and answers, and no others.

    Besides them: the line break (for `end="line"`), an end token, one for unknown characters, and
    fillers that never occur in a text but hold probability. `len(tokenizer)` counts them all.

    Args:
        n_fillers: how many; they set the size of the vocabulary.

    Raises:
        InvalidRequestError: a number of fillers below 0.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    n_fillers = whole_number("n_fillers", n_fillers, 0)
    task = get_task(task)
    known = sorted(set(task.prompt).union("\n", *task.answers))
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


class _Rows:
    """What a cache of keys is to a real model: the state that each row has reached. [row]"""

    def __init__(self, states: torch.Tensor):
        self.layers: list = []
        self.states = states

    def reorder_cache(self, rows: torch.Tensor) -> None:
        self.states = self.states[rows]


class _Network(torch.nn.Module):
    """Logits by formula behind the calls that `scoring` makes.

    A *state* stands for all that was read: -n with n tokens of the prompt to come, a node of the
    trie, or `n_nodes` once there is no way back into an answer.
    """

    def __init__(self, law: Law, task: Task, prompt: Prompt, stop: int, n_vocab: int):
        super().__init__()
        self.config = SimpleNamespace(model_type="reference")
        # Nothing is looked up in it: `scoring` asks it for the device and the vocabulary's size.
        self._embeddings = torch.nn.Embedding(n_vocab, 1).requires_grad_(False)
        self._law, self._task, self._ids, self._stop = law, task, prompt.ids, stop
        trie = prompt.trie
        self._tokens, self._over = TokenTable(trie), trie.n_nodes
        inner = trie.edge_child >= 0
        steps = zip(trie.edge_node[inner], trie.edge_symbol[inner], strict=True)
        children = trie.edge_child[inner].tolist()
        self._child = {(int(n), int(s)): c for (n, s), c in zip(steps, children, strict=True)}

    def get_input_embeddings(self):
        return self._embeddings

    def get_output_embeddings(self):
        return self._embeddings

    def forward(self, input_ids, past_key_values=None, use_cache=True, logits_to_keep=0):
        """Logits of the last `logits_to_keep` positions (0: of all), [row, position, vocab]."""
        n_rows, n_steps = input_ids.shape
        if past_key_values is None:
            past_key_values = _Rows(torch.full((n_rows,), -len(self._ids)))
        state, states = past_key_values.states.tolist(), []
        for column in input_ids.T.tolist():
            state = [self._after(s, symbol) for s, symbol in zip(state, column, strict=True)]
            states.append(state)
        kept = torch.tensor(states[-logits_to_keep or -n_steps :]).T
        distinct, place = kept.unique(return_inverse=True)
        logits = torch.stack([self._logits(s) for s in distinct.tolist()])[place]
        return SimpleNamespace(logits=logits, past_key_values=_Rows(torch.tensor(state)))

    def _after(self, state: int, symbol: int) -> int:
        if state >= 0:
            return self._child.get((state, symbol), self._over)
        if self._ids[state] != symbol:
            raise InvalidRequestError(
                f"a reference model knows one task, {self._task.name!r} here, and got another "
                "prompt: build one with reference_model(law, task) for that task"
            )
        return state + 1

    def _logits(self, state: int) -> torch.Tensor:
        """Logits in one state, float32 [vocab]; within the prompt its next token is certain."""
        if 0 <= state < self._over:
            node = node_of(self._tokens, state, self._embeddings.num_embeddings)
            return torch.from_numpy(self._law.logits(node)).float()
        only = self._stop if state == self._over else self._ids[state]
        logits = torch.full((self._embeddings.num_embeddings,), -torch.inf)
        logits[only] = 0.0
        return logits
