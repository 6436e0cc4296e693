"""A language model as judge: its rubric, how its replies are read, and how far judges agree.

Three criteria as in App. A of the paper, in words of our own. Knows a chat backend only by its
`replies` (`endpoint.Endpoint`, or `LocalChat` here). Knows no sweep and no chapter.
"""

import hashlib
import itertools
import json
import re
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import krippendorff
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from calib_utils import files, paths
from calib_utils.core.prompts import render
from calib_utils.core.tasks import Task
from calib_utils.errors import (
    InvalidRequestError,
    JudgeError,
    RefusedRequestError,
    TokenizationError,
    whole_number,
)
from calib_utils.models.endpoint import Endpoint, Reply
from calib_utils.models.generation import Continuations
from calib_utils.models.loading import Model, load_model
from calib_utils.openended.verifiers import (
    CRITERIA,
    HIGHEST,
    LOWEST,
    Item,
    Verdict,
    check_items,
    label_table,
    plain_text,
)
from calib_utils.results.evaluation import share_interval

# Part of a judge's identity: change it with `data/tasks/judge_question.txt`, the words below or the
# way answers are read.
VERSION = "1"
ASKS = 3  # times that an item is asked until the reply can be read
MAX_REPLY = 20_000  # characters after thinking; a longer reply is not an answer
MAX_REASON = 300
# A field that occurs twice empties its object, which is then no answer.
_DECODER = json.JSONDecoder(
    object_pairs_hook=lambda pairs: dict(pairs) if len(dict(pairs)) == len(pairs) else {}
)
_THINKING = ("think", "thinking", "reasoning")

_CUT = """\
The text was cut off by a length limit. Rate what is there as if it went on well; that it stops in \
the middle of a sentence or a word is no error.
"""
_WHOLE = "The text is complete.\n"
_REMINDER = """

An earlier answer could not be read ({problem}). Give the JSON object alone: a string and three \
whole numbers."""


class UnreadableReplyError(JudgeError):
    """A judge's reply that holds no answer, or more than one."""


def question(item: Item, problem: str | None = None) -> str:
    """The message that asks a judge about an item; `problem` is what was wrong with a first reply.

    The item stands between lines with a mark taken from its hash, which the text cannot hold.
    """
    form = paths.package_data("tasks", "judge_question.txt").read_text("utf-8").removesuffix("\n")
    prompt, text = map(plain_text, (item.prompt, item.text))
    length = _WHOLE if item.ended else _CUT
    asked = form.format(length=length, mark=item.digest[:12], prompt=prompt, text=text)
    return asked + ("" if problem is None else _REMINDER.format(problem=problem))


def read_reply(reply: str, judged: str = "") -> Verdict:
    """The one answer in a judge's reply.

    Thinking before the answer is dropped. Around the JSON object there may be prose or a code
    fence. Objects that stand in the judged text, white space aside, are quotations, not answers.

    Args:
        judged: the text that was judged.

    Raises:
        UnreadableReplyError: no object with exactly the four fields, scores that are not
            integers from 1 to 10, or answers that contradict each other. Nothing is guessed.
    """
    for name in _THINKING:
        reply = reply.rpartition(f"</{name}>")[2]
        # Not behind the first brace, where a reason may quote the text.
        if f"<{name}>" in reply.partition("{")[0]:
            raise UnreadableReplyError("thinking that does not end")
    if len(reply) > MAX_REPLY:
        raise UnreadableReplyError(f"reply of {len(reply):,} characters")
    answers, problem, judged = set(), "no JSON object", "".join(judged.split())
    for source, fields in _objects(reply):
        if "".join(source.split()) not in judged:
            try:
                answers.add(_verdict(fields))
            except UnreadableReplyError as error:
                problem = str(error)
    if len(answers) != 1:
        raise UnreadableReplyError(f"{len(answers)} answers that differ" if answers else problem)
    return answers.pop()


def _objects(text: str) -> Iterator[tuple[str, dict]]:
    """Every outermost JSON object in a text, and how it is written there."""
    start = text.find("{")
    while start >= 0:
        try:
            fields, stop = _DECODER.raw_decode(text, start)
            yield text[start:stop], fields
        # A brace that opens no object, brackets nested too deep, a number too long to read.
        except (ValueError, RecursionError):
            stop = start + 1
        start = text.find("{", stop)


def _verdict(fields: dict) -> Verdict:
    if set(fields) != {"reason", *CRITERIA}:
        raise UnreadableReplyError(f"fields {sorted(fields)}"[:MAX_REASON])
    if not isinstance(fields["reason"], str):
        raise UnreadableReplyError("a reason that is no string")
    for name in CRITERIA:
        score = fields[name]
        # A bool is an int in Python; 9.0 and "9" are not what was asked for.
        if type(score) is not int or not LOWEST <= score <= HIGHEST:
            raise UnreadableReplyError(f"{name}={reprlib.repr(score)}")  # may be a deep nest
    reason = " ".join(plain_text(fields["reason"]).split())[:MAX_REASON]
    return Verdict(*(fields[name] for name in CRITERIA), reason=reason)


class LocalChat:
    """A chat model, loaded or by name, that answers like an endpoint, always greedily.

    Args:
        max_tokens: limit of a reply.
        batch_size: messages completed together.
    """

    def __init__(self, model: Model | str, *, max_tokens: int = 128, batch_size: int = 32):
        self.max_tokens = whole_number("max_tokens", max_tokens)
        self.batch_size = whole_number("batch_size", batch_size)
        self.model = load_model(model)

    @property
    def identity(self) -> dict:
        """What an answer depends on."""
        own = {"weights_sha256": self.model.weights_sha256, "dtype": self.model.dtype}
        return own | {"max_tokens": self.max_tokens}

    def replies(self, messages: Sequence[str]) -> Iterator[tuple[int, Reply]]:
        """Answers to single user messages: (position, reply), messages of similar length together.

        Raises a JudgeError where the model has no chat template.
        """
        tokenizer = self.model.tokenizer
        if not tokenizer.chat_template:
            raise JudgeError(
                f"{self.model.name} is asked without a chat template: a judge must be a chat model"
            )
        rows = {}
        for place, message in enumerate(messages):
            try:  # an answer is asked for by `render`, and not used here
                rows[place] = render(tokenizer, Task("chat", message, ("yes",)))
            except TokenizationError as error:  # special tokens in the text that is judged
                yield place, RefusedRequestError(str(error))
        if not rows:
            return
        asked = {place: row.ids for place, row in rows.items()}
        end_ids = {*next(iter(rows.values())).end_ids, tokenizer.eos_token_id} - {None}
        ends = zip(min(asked.values()), max(asked.values()), strict=False)
        shared = [a for a, b in itertools.takewhile(lambda pair: pair[0] == pair[1], ends)]
        # Reads the rubric once.
        tree = Continuations(self.model, shared, self.batch_size, scored=False)
        order = sorted(asked, key=lambda place: len(asked[place]))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            prefixes = [asked[place][len(shared) :] for place in batch]
            done = tree.complete(prefixes, self.max_tokens, end_ids)
            for place, found in zip(batch, done, strict=True):
                ids = [token for token in found.token_ids if token not in end_ids]
                yield place, Reply(tokenizer.decode(ids, skip_special_tokens=True), found.ended)


class LanguageModelJudge:
    """Scores grammar, semantics and overall quality from 1 to 10 by asking a language model.

    Args:
        backend: an `Endpoint` or a `LocalChat`.
        name: in tables and file names; a JudgeError where it cannot be part of one.
        cache_dir: answers are kept here, so that a run that was killed goes on where it was; by
            default among the user's files, None keeps none.
    """

    criteria = CRITERIA

    def __init__(self, backend, *, name: str, cache_dir: Path | str | None = "default"):
        if not isinstance(name, str) or not files.PLAIN_NAME.fullmatch(name):
            raise JudgeError(
                f"name={name!r}: use letters, digits and . @ = + - (it becomes part of a file name)"
            )
        self.backend, self.name = backend, name
        root = paths.cache_dir() / "judgements" if cache_dir == "default" else cache_dir
        text = json.dumps(self.identity, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._folder = None if root is None else Path(root) / digest

    @property
    def identity(self) -> dict:
        """What a score depends on beside the item."""
        return {"rubric": VERSION, "backend": self.backend.identity}

    def judge(self, items: pd.DataFrame) -> pd.DataFrame:
        """One row of labels per item, in order (see `verifiers.label_table`).

        An item that occurs twice is asked once. A reply that cannot be read is asked for again,
        with what was wrong; after `ASKS` of them the item stays NA, with the reason, as does one
        that the endpoint refuses. Neither is kept on disk: the next run asks again. Where the
        endpoint cannot be used (EndpointError), answers so far are kept.
        """
        rows = check_items(items)
        verdicts = {item: self._kept(item) for item in dict.fromkeys(rows)}
        # The open items, and what was wrong with their last reply.
        problems = {item: None for item, verdict in verdicts.items() if verdict is None}
        refusals = []
        with tqdm(total=len(problems), desc=self.name) as bar:
            for _ in range(ASKS):
                if not (asked := list(problems)):
                    break
                messages = [question(item, problems[item]) for item in asked]
                for position, reply in self.backend.replies(messages):
                    item = asked[position]
                    try:
                        if isinstance(reply, RefusedRequestError):
                            refusals.append(reply)
                            verdicts[item] = Verdict(reason=f"not judged: {reply}")
                        elif reply.ended:
                            verdicts[item] = read_reply(reply.text, item.text)
                            self._keep(item, verdicts[item])
                        else:
                            raise UnreadableReplyError("the reply was cut off at max_tokens")
                    except UnreadableReplyError as error:
                        problems[item] = str(error)
                        continue
                    del problems[item]
                    bar.update()
        if refusals and len(refusals) == bar.total:
            raise refusals[0]  # a request that is wrong for every item is not an item's fault
        for item, problem in problems.items():
            reason = f"not judged: unreadable in {ASKS} replies, at last: {problem}"
            verdicts[item] = Verdict(reason=reason)
        return label_table((verdicts[item] for item in rows), self.criteria)

    def _path(self, item: Item) -> Path:
        return self._folder / item.digest[:2] / f"{item.digest}.json"

    def _kept(self, item: Item) -> Verdict | None:
        """The stored verdict; None where there is none, or none that can be trusted."""
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            if self._folder is not None:
                return _verdict(json.loads(self._path(item).read_text(encoding="utf-8"))["verdict"])
        return None

    def _keep(self, item: Item, verdict: Verdict) -> None:
        """One small file per item, renamed into place: a kill loses at most what was asked."""
        if self._folder is None:
            return
        record = {"judge": self.identity, "item": item.digest, "verdict": asdict(verdict)}
        try:
            with files.whole(self._path(item), parents=True) as draft:
                draft.write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
        except OSError as error:
            raise JudgeError(
                f"cannot keep answers in {self._folder} ({error}): choose a writable cache_dir, "
                "or None"
            ) from error


def endpoint_judge(
    base_url: str, model: str, *, name: str | None = None, cache_dir="default", **settings
) -> LanguageModelJudge:
    """A judge behind an OpenAI-compatible server; `settings` are those of `endpoint.Endpoint`."""
    name = name or re.sub(r"[^\w.@=+-]", "-", model.replace("/", "--")).lstrip(".@=+-")
    backend = Endpoint(base_url, model, **settings)
    return LanguageModelJudge(backend, name=name, cache_dir=cache_dir)


def local_judge(model: Model | str, *, cache_dir="default", **settings) -> LanguageModelJudge:
    """A judge run by this process on a chat model; `settings` are those of `LocalChat`."""
    backend = LocalChat(model, **settings)
    return LanguageModelJudge(backend, name=backend.model.key, cache_dir=cache_dir)


# Agreement of judges (App. A.2). What their errors do to a frontier is in `precision_recall`.

_RESAMPLES = {"f1": 10_000, "alpha": 2_000}


def compare(valid, reference) -> dict[str, float]:
    """One judge's labels against a reference's, on the items that both labelled.

    Args:
        valid, reference: True, False or NA per item, in the same order.

    Returns:
        n (items that both labelled), unreadable (share that the first did not label), says_valid
        and reference_valid (shares), accuracy, f1 and alpha with _low and _high (95 %: Wilson's,
        and percentile bootstraps), always_invalid (accuracy of saying no to all), false_positive
        (share of the reference's invalid items that the first calls valid) and false_negative.
        F1 counts valid as positive. A rate without items to take it over is NaN.

    Raises:
        InvalidRequestError: unequal lengths, or no item that both labelled.
    """
    first, second = (
        pd.array(labels, dtype="boolean").to_numpy(dtype=float, na_value=np.nan)
        for labels in (valid, reference)
    )
    if len(first) != len(second):
        raise InvalidRequestError(f"{len(first)} labels against {len(second)}: give both per item")
    both = ~(np.isnan(first) | np.isnan(second))
    if not both.any():
        raise InvalidRequestError("no item has a label of both judges")
    a, b = first[both] > 0, second[both] > 0
    # Both say valid, only the first, only the second, neither.
    counts = np.array([(a & b).sum(), (a & ~b).sum(), (~a & b).sum(), (~a & ~b).sum()])
    n, hits = len(a), int(counts[0] + counts[3])
    draws = np.random.default_rng(0).multinomial(n, counts / n, size=_RESAMPLES["f1"])
    labels = np.stack([first, second], axis=1)

    def estimate(name: str, value: float, interval: tuple[float, float]) -> dict[str, float]:
        return {name: float(value), f"{name}_low": interval[0], f"{name}_high": interval[1]}

    return {
        "n": n,
        "unreadable": np.isnan(first).mean(),
        "says_valid": a.mean(),
        "reference_valid": b.mean(),
        **estimate("accuracy", hits / n, share_interval(hits, n)),
        "always_invalid": 1 - b.mean(),
        **estimate("f1", _f1(counts[None])[0], _percentiles(_f1(draws))),
        **estimate("alpha", krippendorff_alpha(labels), alpha_interval(labels)),
        "false_positive": a[~b].mean() if (~b).any() else float("nan"),
        "false_negative": (~a[b]).mean() if b.any() else float("nan"),
    }


def _f1(counts: np.ndarray) -> np.ndarray:
    """F1 of rows of (both, first only, second only, neither); NaN where nothing is positive."""
    total = 2 * counts[:, 0] + counts[:, 1] + counts[:, 2]
    return np.divide(2 * counts[:, 0], total, out=np.full(len(counts), np.nan), where=total > 0)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of those that are defined; NaN where none is."""
    low, high = pd.Series(values).quantile([0.025, 0.975])
    return float(low), float(high)


def krippendorff_alpha(labels) -> float:
    """Krippendorff's alpha for nominal labels: 1 is full agreement, 0 what chance gives.

    NaN where all labels are equal or no item has two: there is no disagreement to expect.

    Args:
        labels: [item, judge], any values; NA or None where a judge has no label.

    >>> round(krippendorff_alpha([[1, 1], [0, 0], [1, 0], [1, 1]]), 3)
    0.533
    """
    return _alpha(*_kinds(labels))


def alpha_interval(labels, *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap of alpha over items, of the samples in which it is defined."""
    values, times = _kinds(labels)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(times.sum(), times / times.sum(), size=_RESAMPLES["alpha"])
    return _percentiles(np.array([_alpha(values, draw) for draw in draws]))


def _kinds(labels) -> tuple[np.ndarray, np.ndarray]:
    """The different rows of labels as counts per value [row, value], and how often each occurs."""
    table = pd.DataFrame(labels).astype(object)
    codes, values = pd.factorize(table.to_numpy().ravel())  # -1 where a label is missing
    rows = pd.DataFrame(codes.reshape(table.shape))
    times = rows.groupby(list(rows), sort=False).size()
    kinds = times.index.to_frame().to_numpy()
    return (kinds[:, :, None] == np.arange(len(values))).sum(axis=1), times.to_numpy()


def _alpha(values: np.ndarray, times: np.ndarray) -> float:
    """Alpha of rows of labels [row, value], each so many times; the package divides 0 by 0."""
    counts = np.repeat(values, times, axis=0)
    counts = counts[counts.sum(axis=1) > 1]
    if np.count_nonzero(counts.sum(axis=0)) < 2:
        return float("nan")
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))
