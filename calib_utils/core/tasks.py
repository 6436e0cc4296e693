"""Tasks: a prompt and the complete set of its valid answers, as strings. Knows no tokens.

The paper's (App. C.1), the closed lists of `data/tasks/lists`, and a user's own.
"""

import csv
import itertools
import json
import operator
import re
import reprlib
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from calib_utils import files, paths
from calib_utils.errors import InvalidTaskError, UnknownNameError

ENDS = ("eos", "line", "none")  # what closes an answer, see `prompts.Policies`
_LONGEST_NAME = 100  # it becomes part of file names
# Devices of Windows, and folders that lie beside a model's tables.
_TAKEN = re.compile(
    r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?|draws|framework|labels|levers|logits|steps|texts"
)
# Joiners and variation selectors: part of the spelling after a character beyond Latin, as in
# Persian or in emoji, and in keycaps; invisible elsewhere. Then letters that are blank.
_JOINER = "[\u200c\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef]"
_HIDDEN = re.compile(
    f"(?<![^\\0-\u024f\u0300-\u036f\u1e00-\u1eff]|[\xa9\xae]){_JOINER}(?!\u20e3)"
    "|[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u2800\u3164\uffa0]"
)
# Flags of England, Scotland and their kin: a black flag, and letters that are not seen.
_FLAG = re.compile("\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f")
_SELECTOR = re.compile("[\ufe00-\ufe0f]")
_ODD_SPACE = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f]")
_STATES_PROMPT = "Randomly name a US state with no additional explanation. Answer:"
# What a sum is to be to a number, in words and as a test.
_RELATIONS = {"at-most": ("sum to at most", operator.le), "equals": ("sum to exactly", operator.eq)}
# Of a task file: what it must have, and may have.
_FIELDS, _MORE = ("name", "prompt", "answers"), ("system", "aliases", "end")
_FILES = (".json", ".yaml", ".yml")
# One name a task: no leading zero, and no digits of other scripts, which `int` takes as well.
_NUMBER = "(0|[1-9][0-9]{0,8})"
_RNG_NAME = re.compile(f"rng-{_NUMBER}(?:-sum-(at-most|equals)-{_NUMBER})?")
_PARAPHRASE = re.compile(f"(.+)-paraphrase-{_NUMBER}")
_SHORTEST = re.compile(f"(.+)-shortest-{_NUMBER}")
_WORDING = re.compile(f"(.+)-wording-{_NUMBER}")
NAME_FORMS = (
    *("rng-{n}", "rng-{n}-sum-at-most-{s}", "rng-{n}-sum-equals-{s}", "us-states"),
    *("{task}-paraphrase-{i}", "{task}-shortest-{k}", "{list}", "{list}-wording-{k}"),
)
_HINT = (
    "Or pass the path of a .yaml or .json task file, or build cu.Task(name=, prompt=, answers=)."
)
MAX_ANSWERS = 200_000
MAX_ASKED = 5_000_000  # strings for which a predicate is called
_DIALECT = (
    "use classes, groups, '|' and counts alone, and leave out '^' and '$' (whole answers are "
    "meant), flags and look-around"
)


@dataclass(frozen=True)
class Task:
    """A prompt x and its finite set V of valid responses (Def. 3.1), all equally preferred.

    Args:
        name: short identifier, used in tables and file names (letters, digits, `.`, `_`, `-`).
        prompt: the user's message, exactly as the model is to see it.
        answers: every valid answer, in an order of its own (no set), composed (NFC), without
            surrounding white space and invisible characters. Joiners and variation selectors are
            part of the spelling after a character beyond Latin, as in Persian or in emoji.
        system: a system message before the prompt; only for models with a chat template.
        aliases: other spellings that count as an answer, a list for each answer that has some.
        end: what closes an answer where nobody says otherwise, see `prompts.Policies`.

    Raises:
        InvalidTaskError: no answers, one as above, an empty one, two that are or look the same, a
            name unfit for a file, or an end that does not exist.
        UnknownNameError: aliases of what is no answer.
    """

    name: str
    prompt: str
    answers: tuple[str, ...]
    system: str = ""
    aliases: Mapping[str, Iterable[str]] = ()
    end: str = "eos"

    def __post_init__(self):
        if isinstance(self.answers, str | Mapping | Set) or not isinstance(self.answers, Iterable):
            raise InvalidTaskError(
                f"task {self.name!r}: answers must be a list of strings, not {self.answers!r} "
                "(a set has another order in every process: use sorted(...))"
            )
        object.__setattr__(self, "answers", tuple(self.answers))
        fits = isinstance(self.name, str) and re.fullmatch(r"\w([\w.-]*[\w-])?", self.name)
        if not fits or len(self.name.encode()) > _LONGEST_NAME:
            raise InvalidTaskError(
                f"task name {str(self.name)[:80]!r}: use letters, digits, '.', '_' and '-', at "
                f"most {_LONGEST_NAME} bytes and no dot at the end (it becomes part of a file name)"
            )
        if _TAKEN.fullmatch(self.name):
            raise InvalidTaskError(f"task name {self.name!r} is a reserved word: choose another")
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise InvalidTaskError(f"task {self.name!r}: the prompt is empty")
        _require_whole(self.prompt, f"task {self.name!r}: the prompt")
        if not isinstance(self.system, str) or (self.system and not self.system.strip()):
            raise InvalidTaskError(f"task {self.name!r}: system={self.system!r} is no message")
        if self.end not in ENDS:
            raise InvalidTaskError(f"end={self.end!r} does not exist: choose from {ENDS}")
        _check_answers(self.name, self.answers)
        object.__setattr__(self, "aliases", self._checked_aliases())

    def _checked_aliases(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """As pairs, so that a task can be a key."""
        try:
            given = {answer: tuple(others) for answer, others in dict(self.aliases).items()}
            if any(isinstance(others, str) for others in dict(self.aliases).values()):
                raise TypeError("one text")
        except (TypeError, ValueError) as error:
            raise InvalidTaskError(
                f"task {self.name!r}: aliases={reprlib.repr(self.aliases)}: give a list for every "
                "answer that has some, as in {'USA': ['United States']}"
            ) from error
        if unknown := [answer for answer in given if answer not in self.answers]:
            raise UnknownNameError("answer with aliases", unknown[0], self.answers[:20])
        if given:
            others = (alias for aliases in given.values() for alias in aliases)
            _check_answers(self.name, (*self.answers, *others))
        return tuple(given.items())

    def spellings(self) -> list[tuple[str, ...]]:
        """Each answer with its aliases after it, in the order of the answers."""
        aliases = dict(self.aliases)
        return [(answer, *aliases.get(answer, ())) for answer in self.answers]


@dataclass(frozen=True)
class OpenPrompt:
    """A prompt whose answers are texts of any kind.

    `verifier` names the list or the form by which a program decides an answer; None where a judge
    has to. Whoever decides by it says whether it is known.

    Raises:
        InvalidTaskError: an id unfit for a file, or an empty text.
    """

    id: str
    category: str
    prompt: str
    verifier: str | None = None

    def __post_init__(self):
        if not isinstance(self.id, str) or not re.fullmatch(r"\w[\w.-]*", self.id):
            raise InvalidTaskError(
                f"prompt id {self.id!r}: use letters, digits, '.', '_' and '-' (it becomes part "
                "of a file name)"
            )
        for field in ("category", "prompt"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value.strip():
                raise InvalidTaskError(f"prompt {self.id!r}: the {field} is empty ({value!r})")


def _require_whole(text: str, where: str) -> None:
    if re.search("[\ud800-\udfff]", text):  # JSON may hold one; it cannot be written
        raise InvalidTaskError(f"{where}: has half a surrogate pair; remove it")


def _check_answers(name: str, answers: tuple) -> None:
    if not answers:
        raise InvalidTaskError(f"task {name!r} has no answers: give at least one")
    if len(answers) > MAX_ANSWERS:
        raise InvalidTaskError(
            f"task {name!r} has {len(answers):,} answers, more than the {MAX_ANSWERS:,} that "
            "exact evaluation is meant for: use a smaller task"
        )
    seen = {}
    for position, answer in enumerate(answers):
        shown = ascii(answer) if isinstance(answer, str) else reprlib.repr(answer)
        where = f"task {name!r}, answer {position + 1} of {len(answers)} ({shown})"
        if not isinstance(answer, str):
            raise InvalidTaskError(f"{where}: must be a string; in YAML put it into quotes")
        _require_whole(answer, where)
        if not answer or answer != answer.strip():
            raise InvalidTaskError(
                f"{where}: is empty or has surrounding white space; strip it (the leading space "
                "of base models is added for you)"
            )
        if (plain := _plain(answer)) != answer:
            raise InvalidTaskError(
                f"{where}: has invisible characters, or accents apart from their letters, which "
                f"models hardly ever write; use {plain!a}"
            )
        if (other := seen.setdefault(_SELECTOR.sub("", answer), position)) != position:
            raise InvalidTaskError(
                f"{where}: is a duplicate of answer {other + 1}; every answer must occur once"
            )


def _plain(text: str) -> str:
    """A text in NFC without invisible characters, and with plain spaces for most odd ones."""
    if text.isascii() and text.isprintable():
        return text
    if flag := _FLAG.search(text):
        before, after = _plain(text[: flag.start()] + "x")[:-1], _plain("x" + text[flag.end() :])
        return before + flag[0] + after[1:]
    kept = (
        character
        for character in _ODD_SPACE.sub(" ", _HIDDEN.sub("", text))
        if character.isprintable()
        or re.match(f"[\n\t\u3000]|{_JOINER}", character)
        or unicodedata.category(character) in ("Cn", "Co")  # newer than this Python, or private
    )
    return unicodedata.normalize("NFC", "".join(kept)).strip()


def get_task(name: Task | str | Path) -> Task:
    """A task as it is, by name (see `NAME_FORMS`), or from a `.yaml` or `.json` file of its fields.

    >>> len(get_task("rng-3-sum-equals-10").answers)
    63

    Raises:
        UnknownNameError: no such task; the message lists near matches.
        InvalidTaskError: the parameters admit no answer, or the file is unreadable.
    """
    if isinstance(name, Task):
        return name
    text = str(name)
    if text.endswith(_FILES):
        return _read_task_file(Path(text))
    if len(text) > _LONGEST_NAME:
        raise InvalidTaskError(
            f"task {text[:80]!r}...: a name has at most {_LONGEST_NAME} characters. {_HINT}"
        )
    if match := _PARAPHRASE.fullmatch(text):
        known = {other.name: other for other in paraphrases(match[1])}
        if text not in known:
            raise UnknownNameError("paraphrase", text, known)
        return known[text]
    if match := _SHORTEST.fullmatch(text):
        whole, n = get_task(match[1]), int(match[2])
        if not 1 <= n <= len(whole.answers):
            raise InvalidTaskError(
                f"task {text!r}: {whole.name} has {len(whole.answers)} answers; take from 1 to that"
            )
        few = sorted(whole.answers, key=len)[:n]
        aliases = {answer: more for answer, more in whole.aliases if answer in few}
        return Task(text, whole.prompt, few, whole.system, aliases, whole.end)
    if text == "us-states":
        states = paths.package_data("tasks", "us-states.txt").read_text(encoding="utf-8")
        return Task(text, _STATES_PROMPT, tuple(states.splitlines()))
    if text in (names := _list_tasks()):
        return Task(text, wording(text), tuple(list_table(text)))
    if (match := _WORDING.fullmatch(text)) and match[1] in names:
        known = {f"{match[1]}-wording-{k}": k for k in range(1, len(wordings()))}
        if text not in known:
            raise UnknownNameError("wording", text, known)
        return Task(text, wording(match[1], known[text]), tuple(list_table(match[1])))
    if match := _RNG_NAME.fullmatch(text):
        length, relation, total = match.groups()
        return _random_digits(text, int(length), relation, None if total is None else int(total))
    raise UnknownNameError("task", text, list_tasks(), f"Forms: {', '.join(NAME_FORMS)}. {_HINT}")


def list_tasks() -> list[str]:
    """The names of the book's tasks: the paper's, then the closed lists."""
    sums = [f"rng-{n}-sum-{kind}-10" for kind in _RELATIONS for n in (2, 3, 4)]
    return ["rng-2", "rng-3", "rng-4", *sums, "us-states", *_list_tasks()]


# Closed lists: sets of names that are complete and small, with the words that ask for one.


@cache
def closed_lists() -> dict[str, dict]:
    """What `lists.json` says of each list, by name.

    `noun` with its article, `what` an answer has to be (by default the name), `source`, `licence`,
    `date`, `sha256` of the table, `n` answers, and `task`: whether it is a finite task.
    """
    return json.loads(_list_file("lists.json").read_text("utf-8"))


def list_table(name: str) -> dict[str, list[str]]:
    """Every answer of a closed list with its other names, in the list's order.

    >>> list_table("us-president")["Biden"][0]
    'Joe Biden'

    Raises:
        UnknownNameError: no such list.
    """
    if name not in closed_lists():
        raise UnknownNameError("list", name, closed_lists())
    with open(_list_file(f"{name}.csv"), encoding="utf-8", newline="") as file:
        return {
            row["answer"]: list(filter(None, row["aliases"].split("|")))
            for row in csv.DictReader(file)
        }


@cache
def wordings() -> tuple[str, ...]:
    """The templates that ask for one item of any list; the first is the standard one."""
    return tuple(json.loads(_list_file("wordings.json").read_text("utf-8")))


def wording(name: str, k: int = 0) -> str:
    """The prompt that asks for one item of a list, in the k-th wording.

    >>> wording("us-president")
    'Name a president of the United States. Answer with the surname only.'
    """
    own = closed_lists()[name]
    return wordings()[k].format(noun=own["noun"], what=own.get("what", "name"))


def _list_tasks() -> list[str]:
    return [name for name, own in closed_lists().items() if own["task"]]


def _list_file(name: str) -> Path:
    return paths.package_data("tasks", "lists", name)


def _random_digits(name: str, length: int, relation: str | None, total: int | None) -> Task:
    if not 1 <= length <= 5:
        raise InvalidTaskError(f"task {name!r}: the number of integers must be from 1 to 5")
    if relation and total > 9 * length:
        raise InvalidTaskError(f"task {name!r}: choose a sum from 0 to {9 * length}")
    digits = itertools.product(range(10), repeat=length)
    if relation:
        digits = (some for some in digits if _RELATIONS[relation][1](sum(some), total))
    answers = [",".join(map(str, some)) for some in digits]
    prompt = (
        f"Generate {length} random integers between 0 and 9 (inclusive)"
        f"{_sum_clause(relation, total)}. "
        f"Your response should be {length} integers separated by commas and no white spaces. "
        "Answer:"
    )
    return Task(name, prompt, answers)


def _sum_clause(relation: str | None, total: int | str) -> str:
    return f" that {_RELATIONS[relation][0]} {total}" if relation else ""


def paraphrases(task: Task | str) -> list[Task]:
    """The same task in other words of ours: `{name}-paraphrase-1`, ...; none for other tasks."""
    task = get_task(task)
    prompts = json.loads(paths.package_data("tasks", "paraphrases.json").read_text("utf-8"))
    own, values = prompts.get(task.name, []), {}
    if match := _RNG_NAME.fullmatch(task.name):
        length, relation, total = match.groups()
        own, clause = prompts["rng"], _sum_clause(relation, total)
        values = {"n": length, "start": 0, "end": 9, "clause": clause}
    return [
        Task(f"{task.name}-paraphrase-{number}", prompt.format(**values), task.answers)
        for number, prompt in enumerate(own, start=1)
    ]


def _read_task_file(path: Path) -> Task:
    try:
        record = files.written_by_hand(path)
        given = {key: record[key] for key in _FIELDS}
        if unknown := sorted(map(str, set(record) - {*_FIELDS, *_MORE})):
            raise ValueError(f"unknown keys {unknown}; known: {', '.join((*_FIELDS, *_MORE))}")
        given["answers"] = _answers_of(record["answers"], path.parent)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, InvalidTaskError):
            raise
        raise InvalidTaskError(
            f"task file {str(path)!r} is unreadable ({type(error).__name__}: {error}); it must be "
            'JSON or YAML like {"name": "...", "prompt": "...", "answers": ["...", "..."]}'
        ) from error
    return Task(**given, **{key: record[key] for key in _MORE if key in record})


def _answers_of(given, folder: Path) -> list:
    """The answers that a task file names, in one of the ways of `_WAYS`."""
    if isinstance(given, list):
        return given
    if isinstance(given, str) and given.endswith(".txt"):
        return files.regular(folder / given).read_text(encoding="utf-8").splitlines()
    keys = tuple(sorted(given)) if isinstance(given, dict) else ()
    if keys == ("regex",):
        return regex_answers(str(given["regex"]))
    if keys == ("enumerator",):
        # Never more than one too many: an enumerator may have no end.
        return list(itertools.islice(files.imported(given["enumerator"])(), MAX_ANSWERS + 1))
    if keys == ("alphabet", "lengths", "predicate"):
        wanted, lengths = files.imported(given["predicate"]), given["lengths"]
        lengths = lengths if isinstance(lengths, list) and len(lengths) == 2 else [1, lengths]
        return predicate_answers(wanted, given["alphabet"], tuple(lengths))
    raise TypeError(f"answers must be a list of strings, {_WAYS}, not {reprlib.repr(given)}")


_WAYS = (
    "a .txt file with one a line, {regex: ...}, {enumerator: module:function} or "
    "{predicate: module:function, alphabet: ..., lengths: [least, largest]}"
)


# Answers that need no list: the language of a regular expression, what a predicate is true of.


def regex_answers(pattern: str) -> list[str]:
    r"""Every string that a regular expression matches as a whole, short ones first.

    The dialect is that of `greenery`: classes, groups, alternatives and counts, where `\d` is 0 to
    9; no anchors, flags or look-around.

    >>> regex_answers("(red|blue)-[12]")
    ['red-1', 'red-2', 'blue-1', 'blue-2']

    Raises:
        InvalidTaskError: not such a pattern, or a language that is infinite or too large.
    """
    from greenery import parse  # a fifth of a second

    try:
        matched = re.compile(pattern).fullmatch
        language = parse(pattern)
        n_strings = language.cardinality()
    except OverflowError as error:
        raise InvalidTaskError(
            f"regular expression {pattern!r} matches infinitely many strings: replace '*', '+' and "
            "'{n,}' by counts such as '{1,3}'"
        ) from error
    except Exception as error:  # the parser fails in many ways
        raise InvalidTaskError(
            f"regular expression {pattern!r} cannot be enumerated ({type(error).__name__}: "
            f"{error}): {_DIALECT}"
        ) from error
    if n_strings > MAX_ANSWERS:
        raise InvalidTaskError(
            f"regular expression {pattern!r} matches {n_strings:,} strings, more than the "
            f"{MAX_ANSWERS:,} that exact evaluation is meant for: use a smaller one"
        )
    found = sorted(map(str, language.strings()), key=len)
    if other := [text for text in found if not matched(text)]:
        # Anchors are plain characters to the one and not to the other.
        raise InvalidTaskError(
            f"regular expression {pattern!r}: Python does not match {other[0]!r} by it, which its "
            f"enumeration has: {_DIALECT}"
        )
    return found


def predicate_answers(
    predicate: Callable[[str], bool], alphabet: Iterable[str], lengths: tuple[int, int]
) -> list[str]:
    """Every string over an alphabet, of a length within bounds, for which a predicate is true.

    Args:
        alphabet: the symbols, such as `"abc"` or `["do", "re"]`.
        lengths: the least and the largest number of symbols.

    >>> predicate_answers(lambda text: text == text[::-1], "ab", (2, 3))
    ['aa', 'bb', 'aaa', 'aba', 'bab', 'bbb']

    Raises:
        InvalidTaskError: more strings than `MAX_ASKED`, bounds that are none, or a predicate that
            fails.
    """
    symbols = list(dict.fromkeys(alphabet))
    if not symbols or not all(isinstance(one, str) and one for one in symbols):
        raise InvalidTaskError(f"alphabet {alphabet!r}: give a text, or a list of texts")
    least, most = lengths
    if not all(type(n) is int for n in lengths) or not 1 <= least <= most:
        raise InvalidTaskError(f"lengths {lengths!r}: give the least, from 1, and the largest")
    # The exact size of a large bound would itself take long to write.
    some = range(least, min(most, least + 64) + 1)
    asked = max(most - least + 1, sum(len(symbols) ** min(n, 64) for n in some))
    if asked > MAX_ASKED:
        more = " and more" * (most > 64 and len(symbols) > 1)
        raise InvalidTaskError(
            f"{len(symbols)} symbols at lengths {least} to {most} make {asked:,} strings{more}, "
            f"and at most {MAX_ASKED:,} are tried: bound the length, or name an enumerator"
        )
    found = []
    for n in range(least, most + 1):
        for text in map("".join, itertools.product(symbols, repeat=n)):
            try:
                fits = predicate(text)
            except Exception as error:
                raise InvalidTaskError(
                    f"the predicate fails on {text!r} ({type(error).__name__}: {error}): it is "
                    "called with one string and says whether it is an answer"
                ) from error
            if fits:
                found.append(text)
    return list(dict.fromkeys(found))
