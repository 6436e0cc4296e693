"""A language model as a judge: items asked, answers read, each kept on disk as soon as it is there.

Knows the rubric and a chat backend (`endpoint.Endpoint` or `chat.LocalChat`). What a backend does
to get a reply is its own affair.
"""

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from calib_utils import files, paths
from calib_utils.endpoint import Endpoint
from calib_utils.errors import JudgeError, RefusedRequestError
from calib_utils.labels import (
    CRITERIA,
    HIGHEST,
    LOWEST,
    THRESHOLD,
    Item,
    Verdict,
    check_items,
    check_threshold,
    label_table,
)
from calib_utils.models import Model
from calib_utils.rubric import VERSION, UnreadableReplyError, question, read_reply


class LanguageModelJudge:
    """Scores grammar, semantics and overall quality from 1 to 10 by asking a language model.

    Args:
        backend: an `Endpoint` or a `LocalChat`.
        name: in tables and file names.
        threshold: valid where all three scores reach it; 9 in the paper.
        asks: how often an item is asked until the reply can be read.
        cache_dir: answers are kept here under a hash of judge, rubric and item, so that a run that
            was killed goes on where it was; by default among the user's cached files, None keeps
            none.

    Raises:
        JudgeError: an argument out of range.
    """

    criteria = CRITERIA

    def __init__(
        self,
        backend,
        *,
        name: str,
        threshold: int = THRESHOLD,
        asks: int = 3,
        cache_dir: Path | str | None = "default",
    ):
        if type(asks) is not int or asks < 1:
            raise JudgeError(f"asks={asks!r}: an item must be asked at least once")
        if not isinstance(name, str) or not files.PLAIN_NAME.fullmatch(name):
            raise JudgeError(
                f"name={name!r}: use letters, digits and . @ = + - (it becomes part of a file name)"
            )
        self.backend, self.name, self.asks = backend, name, asks
        self.threshold = check_threshold(threshold)
        root = paths.judgement_cache_dir() if cache_dir == "default" else cache_dir
        text = json.dumps(self.identity, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._folder = None if root is None else Path(root) / digest

    @property
    def identity(self) -> dict:
        """What a score depends on beside the item. The threshold is not: it comes afterwards."""
        return {"rubric": VERSION, "backend": self.backend.identity}

    def judge(self, items: pd.DataFrame, *, progress: bool = True) -> pd.DataFrame:
        """One row of labels per item, in order (see `labels.label_table`).

        An item that occurs twice is asked once. A reply that cannot be read is asked for again,
        with what was wrong; after `asks` of them the item stays NA, with the reason, as does one
        that the endpoint refuses. Neither is kept on disk: the next run asks again.

        Raises:
            JudgeError: not a table of items.
            EndpointError: the endpoint cannot be used; answers so far are kept on disk.
        """
        rows = check_items(items)
        verdicts = {item: self._kept(item) for item in dict.fromkeys(rows)}
        open_items = {item: None for item, verdict in verdicts.items() if verdict is None}
        # Passed as False, `disable` would outweigh TQDM_DISABLE, and bars would stand on pages.
        quiet = {} if progress else {"disable": True}
        with tqdm(total=len(open_items), desc=self.name, **quiet) as bar:
            self._ask(open_items, verdicts, bar)
        return label_table((verdicts[item] for item in rows), self.criteria, self.threshold)

    def _ask(self, problems: dict[Item, str | None], verdicts: dict[Item, Verdict], bar) -> None:
        """Fills `verdicts`; `problems` holds the open items and what was wrong last."""
        refusals = []
        for _ in range(self.asks):
            asked = list(problems)
            messages = [question(item, problems[item]) for item in asked]
            for position, reply in self.backend.replies(messages):
                item = asked[position]
                if isinstance(reply, RefusedRequestError):
                    refusals.append(reply)
                    verdicts[item] = Verdict(reason=f"not judged: {reply}")
                else:
                    try:
                        if not reply.ended:
                            raise UnreadableReplyError("the reply was cut off at max_tokens")
                        verdicts[item] = read_reply(reply.text, item.text)
                    except UnreadableReplyError as error:
                        problems[item] = str(error)
                        continue
                    self._keep(item, verdicts[item])
                del problems[item]
                bar.update()
        if refusals and len(refusals) == bar.total:
            raise refusals[0]  # a request that is wrong for every item is not an item's fault
        for item, problem in problems.items():
            reason = f"not judged: unreadable in {self.asks} replies, at last: {problem}"
            verdicts[item] = Verdict(reason=reason)

    def _path(self, item: Item) -> Path:
        return self._folder / item.digest[:2] / f"{item.digest}.json"

    def _kept(self, item: Item) -> Verdict | None:
        """The stored verdict; None where there is none, or none that can be trusted."""
        if self._folder is None:
            return None
        try:
            record = json.loads(self._path(item).read_text(encoding="utf-8"))
            verdict = Verdict(**record["verdict"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        scores = [getattr(verdict, name) for name in CRITERIA]
        whole = all(type(score) is int and LOWEST <= score <= HIGHEST for score in scores)
        return verdict if whole and isinstance(verdict.reason, str) else None

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


def endpoint_judge(base_url: str, model: str, *, name: str | None = None, **settings):
    """A judge behind an OpenAI-compatible server.

    Args:
        settings: of `LanguageModelJudge` and of `endpoint.Endpoint`.
    """
    own = _taken_from(settings)
    name = name or re.sub(r"[^\w.@=+-]", "-", model.replace("/", "--")).lstrip(".@=+-")
    return LanguageModelJudge(Endpoint(base_url, model, **settings), name=name, **own)


def local_judge(model: Model | str, *, name: str | None = None, **settings):
    """A judge run by this process on a chat model that `load_model` knows.

    Args:
        settings: of `LanguageModelJudge` and of `chat.LocalChat`.
    """
    from calib_utils.chat import LocalChat

    own, backend = _taken_from(settings), LocalChat(model, **settings)
    return LanguageModelJudge(backend, name=name or backend.model.key, **own)


def _taken_from(settings: dict) -> dict:
    """The settings of a judge, which are left out of its backend's."""
    names = {"threshold", "asks", "cache_dir"} & set(settings)
    return {name: settings.pop(name) for name in names}
