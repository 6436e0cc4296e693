"""The study of origins: tiny transformers in a world whose valid sets and frequencies are known.

Pretraining, fine-tuning on demonstrations, preferences and rewards, each followed by the exact loss
of validity and diversity between order and shape. Knows the world and the stages; the numbers come
from `results.evaluation`, as for any other model.
"""

import copy
import io
import json
import math
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from calib_utils import files, paths
from calib_utils.core.metrics import DECIDES, cluster_interval
from calib_utils.core.tasks import Task
from calib_utils.errors import ResultsError
from calib_utils.models.loading import Model, load_model
from calib_utils.results import conventions, records
from calib_utils.results.evaluation import adaptive_frontier, evaluate, split
from calib_utils.studies.reporting import NOT_DECIDED, OURS, Finding, decided, mean_text, table_of
from calib_utils.theory.theorems import diversity_bound

# The world

FAMILIES = {
    "w": "words that share syllables",
    "d": "digits under a condition",
    "g": "a small grammar",
    "s": "strings of one length",
}
_PER_FAMILY = 10
_LETTERS = "abcdefghijkl"  # of the strings; the first four of a question's own order are valid
N_VALID = 4
_GEOMETRIC = 0.5  # of the strings' letters in the corpus of that name: P(i) ~ exp(-0.5 i)
ERRORS = 0.2  # share of wrong answers in the corpus with errors


class Question(NamedTuple):
    """A prompt with its valid answers, most frequent first, and how many letters a string has."""

    task: Task
    family: str
    length: int  # 0 where it differs
    letters: str  # of a string, the valid ones first


def world(seed: int = 0) -> list[Question]:
    """Forty questions, ten of each of `FAMILIES`; the order of answers is that of frequencies."""
    rng = np.random.default_rng(seed)
    syllables = [a + b for a, b in product("bdkmrt", "aiou")]
    questions = []
    for family, k in product(FAMILIES, range(_PER_FAMILY)):
        length, letters = 0, ""
        if family == "w":  # two or three of few syllables, so that many begin alike
            few = rng.choice(syllables, 4 + k % 3, replace=False)
            words = ["".join(w) for n in (2, 3) for w in product(few, repeat=n)]
            answers = rng.choice(words, 8 + 3 * k, replace=False)
        elif family == "d":
            numbers = [f"{i:0{2 + k // 5}d}" for i in range(100 if k < 5 else 300)]
            answers = [n for n in numbers if int(n) % (3 + k) == 0 and sum(map(int, n)) <= 8 + k]
        elif family == "g":  # a head, up to three of the middle, a tail
            head, middle, tail = ("".join(rng.permutation(list("pqrstuv"))[:2]) for _ in range(3))
            bodies = ["".join(m) for n in range(2 + k % 2) for m in product(middle, repeat=n)]
            answers = ["".join(parts) for parts in product(head, bodies, tail)]
        else:
            length, letters = 1 + k % 4, "".join(rng.permutation(list(_LETTERS)))
            answers = ["".join(a) for a in product(letters[:N_VALID], repeat=length)]
        ordered = tuple(str(a) for a in (answers if family == "s" else rng.permutation(answers)))
        task = Task(f"origin-{family}{k}", f"{family}{k}:", ordered)
        questions.append(Question(task, FAMILIES[family], length, letters))
    return questions


MAIN = "zipf with errors"
CORPORA = (
    "uniform",  # every answer is as frequent as any other
    "zipf",  # the r-th answer has a frequency of 1/r
    MAIN,  # the same, and a share `ERRORS` are answers to another question
    "geometric",  # letters of strings fall by a constant factor, valid ones first
)


def draw(questions: list[Question], corpus: str, n: int, rng: np.random.Generator) -> list[str]:
    """`n` lines of a corpus: a question, a space, an answer."""
    lines = []
    for at in rng.integers(len(questions), size=n):
        question = questions[at]
        asked = question
        if corpus == MAIN and rng.random() < ERRORS:
            others = [q for q in questions if q.family == question.family and q is not question]
            question = others[rng.integers(len(others))]
        if corpus == "geometric" and question.length:
            p = np.exp(-_GEOMETRIC * np.arange(len(_LETTERS)))
            picked = rng.choice(list(question.letters), question.length, p=p / p.sum())
            answer = "".join(picked)
        else:
            n_answers = len(question.task.answers)
            p = np.ones(n_answers) if corpus == "uniform" else 1 / np.arange(1, n_answers + 1)
            answer = question.task.answers[rng.choice(n_answers, p=p / p.sum())]
        lines.append(f"{asked.task.prompt} {answer}")
    return lines


# Models in the hub's layout, so that any command and chapter reads them

SIZES = {"small": (32, 2), "medium": (64, 2), "large": (96, 3)}  # width, layers
_LONGEST = 11  # bytes of a line and its end
_END = 256  # the token that ends a line
BATCH = 32


def tokenizer():
    """A token per byte, so that any text can be read, and an end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>")


def new_model(scale: str, seed: int):
    """An untrained Llama of `SIZES`: 35,000 to 385,000 weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    width, layers = SIZES[scale]
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=_END,
        pad_token_id=_END,
    )
    return LlamaForCausalLM(config)


def encode(lines: Iterable[str], tokens) -> torch.Tensor:
    """Token ids [line, position] of lines, each closed by ends."""
    closed = [f"{line}{tokens.eos_token}" for line in lines]
    found = tokens(closed, padding="max_length", max_length=_LONGEST, return_tensors="pt")
    return found.input_ids


def labels_of(ids: torch.Tensor) -> torch.Tensor:
    """What is learnt of token ids: a line and its first end; -100 where nothing is."""
    ends = ids == _END
    return ids.where(ends.cumsum(1) - ends.long() == 0, -100)


def log_p(network, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """ln p of every labelled token given those before it, 0 elsewhere: [line, position - 1]."""
    logits = network(ids[:, :-1]).logits.log_softmax(-1)
    wanted = labels[:, 1:]
    return logits.gather(-1, wanted.clamp(min=0)[..., None])[..., 0].where(wanted >= 0, 0.0)


def _train(
    network,
    n_steps: int,
    rate: float,
    loss_of: Callable[[int], torch.Tensor],
    seen: Callable[[int], None] = lambda step: None,
) -> None:
    """Steps of AdamW with a linear warm-up and a cosine's fall; `seen` is told each step done."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.01)
    warm = max(1, n_steps // 20)
    for step in range(n_steps):
        share = min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / n_steps))
        for group in optimiser.param_groups:
            group["lr"] = rate * share
        optimiser.zero_grad()
        loss_of(step).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        seen(step + 1)


def fit(
    network,
    lines: list[str],
    n_steps: int,
    rate: float,
    rng: np.random.Generator,
    seen: Callable[[int], None] = lambda step: None,
) -> None:
    """Next-token prediction on batches of `lines`."""
    ids = encode(lines, tokenizer())
    labels = labels_of(ids)
    n_labels = (labels[:, 1:] >= 0).sum() / len(ids)

    def loss(_: int) -> torch.Tensor:
        rows = torch.from_numpy(rng.integers(len(ids), size=min(BATCH, len(ids))))
        return -log_p(network, ids[rows], labels[rows]).sum() / (len(rows) * n_labels)

    _train(network, n_steps, rate, loss, seen)


# The stages after pretraining

_DEMONSTRATIONS = 8  # valid answers of each question that fine-tuning sees
_SAMPLES = 64  # answers to each question that preferences are made of
_GROUP = 4  # answers to each question in a step of policy gradient
_BETA = {"": 0.1, "held": 0.5}  # of DPO
# Weights of ln(pi / reference) and of ln pi against a reward of 1. Of ln pi, 0.1 is too much: the
# many invalid lines of bytes together then earn more than the valid answers.
_HOLD = {"KL": 0.1, "entropy": 0.02}


# Each with the stage that it goes on from.
STAGES = {
    "pretrained": "",  # next-token prediction on the corpus with errors
    "fine-tuned": "pretrained",  # demonstrations
    "preferences": "fine-tuned",  # DPO on its own valid and invalid answers
    "preferences, held": "fine-tuned",  # the same with a larger beta
    "reward": "fine-tuned",  # policy gradient, 1 for a valid answer
    "reward, KL": "fine-tuned",  # the same less a part of ln(pi / fine-tuned)
    "reward, entropy": "fine-tuned",  # the same less a part of ln pi
}


def sample(
    network, questions: list[Question], n: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`n` lines drawn at temperature 1 to every question, one question after the other.

    Returns:
        Token ids [line, position], and whether each line has a valid answer and ends.
    """
    tokens = tokenizer()
    asked = [question.task for question in questions for _ in range(n)]
    ids = tokens([task.prompt for task in asked], return_tensors="pt").input_ids
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        while ids.shape[1] < _LONGEST:
            p = network(ids).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(p, 1, generator=generator)], dim=1)
    valid = []
    for task, row in zip(asked, ids.tolist(), strict=True):
        line = tokens.decode(row[: row.index(_END)]) if _END in row else ""
        prompt, _, answer = line.partition(" ")
        valid.append(prompt == task.prompt and answer in task.answers)
    return ids, torch.tensor(valid)


def prefer(network, questions: list[Question], seed: int, n_steps: int, hold: str = "") -> None:
    """Direct preference optimisation (DPO) on pairs of the model's own draws to a question.

    `hold`: a key of `_BETA`.
    """
    reference, rng = _copy(network), np.random.default_rng(seed)
    ids, valid = sample(network, questions, _SAMPLES, seed)
    pairs = []
    for own, good in zip(ids.split(_SAMPLES), valid.split(_SAMPLES), strict=True):
        pairs += zip(own[good], own[~good], strict=False)
    if not pairs:
        return  # no valid answer was drawn, so there is nothing to prefer
    sides = [torch.stack(side) for side in zip(*pairs, strict=True)]

    def loss(_: int) -> torch.Tensor:
        rows = torch.from_numpy(rng.integers(len(pairs), size=min(BATCH, len(pairs))))
        gains = []
        for side in sides:
            drawn, labels = side[rows], labels_of(side[rows])
            with torch.no_grad():
                before = log_p(reference, drawn, labels).sum(1)
            gains.append(log_p(network, drawn, labels).sum(1) - before)
        return -torch.nn.functional.logsigmoid(_BETA[hold] * (gains[0] - gains[1])).mean()

    _train(network, n_steps, 1e-4, loss)


def reinforce(network, questions: list[Question], seed: int, n_steps: int, hold: str = "") -> None:
    """Policy gradient with a reward of 1 for a valid answer, less the mean of its question.

    `hold`: "KL" subtracts ln(pi / reference) of the answer, by its weight in `_HOLD`, from the
    reward, "entropy" ln pi.
    """
    reference = _copy(network)

    def loss(step: int) -> torch.Tensor:
        ids, valid = sample(network, questions, _GROUP, seed * 100_000 + step)
        labels = labels_of(ids)
        labels[:, : len(questions[0].task.prompt)] = -100  # the prompt is not the policy's
        own, reward = log_p(network, ids, labels).sum(1), valid.float()
        with torch.no_grad():
            if hold == "KL":
                reward -= _HOLD[hold] * (own - log_p(reference, ids, labels).sum(1))
            elif hold == "entropy":
                reward -= _HOLD[hold] * own
        reward = reward.view(-1, _GROUP)
        return -((reward - reward.mean(1, keepdim=True)).flatten() * own).mean()

    _train(network, n_steps, 5e-4, loss)


def _copy(network):
    return copy.deepcopy(network).requires_grad_(False)


# What is measured, exactly, of every stage

SEEDS = range(10)
_STEPS = {"pretrained": 1600, "fine-tuned": 100, "preferences": 150, "reward": 150}
_TEMPERATURES = (0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.3)
_PRECISION = 0.8
PLACE, RECORD = "origins", "record.json"
TABLES = ("losses", "strings", "course")
_SEEN = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # shares of pretraining that `course` shows


def save(network, folder: Path) -> Path:
    """Weights, configuration and tokenizer as the hub has them: a model for every command."""
    network.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def losses_of(model: Model, questions: list[Question]) -> pd.DataFrame:
    """A row per question at T = 1 without a cutoff: validity, diversity, parts of the loss."""
    columns = ["task", "validity", "diversity", *PARTS, "size", "total"]
    parts = (
        split(model, q.task)[columns].assign(family=q.family, length=q.length) for q in questions
    )
    return pd.concat(parts, ignore_index=True)


def strings_of(model: Model, questions: list[Question]) -> pd.DataFrame:
    """Of strings, where steps are alike: validity and diversity by temperature, beside a bound.

    `bound` is the most diversity that Theorem F.4 allows at that validity; `recall`, the same for
    all temperatures, the best sequence recall at sequence precision `_PRECISION` of adaptive
    cutoffs.
    """
    parts = []
    for question in (q for q in questions if q.length):
        table = evaluate(model, question.task, temperatures=_TEMPERATURES)
        reached = adaptive_frontier(model, question.task)
        recall = reached.sequence_recall[reached.sequence_precision >= _PRECISION].max()
        bound = diversity_bound(table.validity.to_numpy(), [N_VALID] * question.length)
        own = table[["task", "temperature", "validity", "diversity"]]
        parts.append(own.assign(length=question.length, bound=bound, recall=recall))
    return pd.concat(parts, ignore_index=True)


def train(
    seed: int,
    short: float = 1.0,
    questions: list[Question] | None = None,
    checkpoints: str | Path | None = None,
) -> dict[str, pd.DataFrame]:
    """All runs of one seed, minutes on one core: `TABLES`, with corpus, scale, stage, seed.

    Args:
        short: a factor on the number of training steps, for a test that it runs.
        questions: None: `world`.
        checkpoints: a folder that keeps every model, as `<corpus>-<scale>-<stage>-<seed>`.
    """
    torch.set_num_threads(1)  # more are slower at this size, and the numbers stay the same
    questions, found = questions or world(), {name: [] for name in TABLES}
    plan = [(corpus, "medium") for corpus in CORPORA]
    plan += [(MAIN, size) for size in SIZES if size != "medium"]
    for corpus, scale in plan:
        rng = np.random.default_rng([seed, CORPORA.index(corpus)])
        network = new_model(scale, seed)
        n_steps = _n_steps("pretrained", short)
        marks = {round(share * n_steps): share for share in _SEEN} if scale == "medium" else {}

        def seen(step: int, network=network, corpus=corpus, marks=marks) -> None:
            if step in marks:
                losses = _measured(losses_of, network, questions)
                names = {"corpus": corpus, "share": marks[step], "seed": seed}
                found["course"].append(losses.assign(**names))

        lines = draw(questions, corpus, n_steps * BATCH // 2, rng)
        fit(network, lines, n_steps, 4e-3, rng, seen)
        stages = {"pretrained": network}
        if (corpus, scale) == (MAIN, "medium"):
            stages |= _later(network, questions, seed, short)
        for stage, trained in stages.items():
            names = {"corpus": corpus, "scale": scale, "stage": stage, "seed": seed}
            losses = _measured(losses_of, trained, questions)
            found["losses"].append(losses.assign(**names))
            if corpus in ("geometric", MAIN) and stage == "pretrained":
                strings = _measured(strings_of, trained, questions)
                found["strings"].append(strings.assign(**names))
            if checkpoints:
                name = "-".join(map(str, names.values())).replace(" ", "_").replace(",", "")
                save(trained, Path(checkpoints) / name)
    return {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}


def _measured(measure: Callable, network, questions: list[Question]) -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as scratch:
        return measure(load_model(save(network, Path(scratch) / "model")), questions)


def _n_steps(stage: str, short: float) -> int:
    return max(2, round(short * _STEPS[stage]))


def _later(network, questions: list[Question], seed: int, short: float) -> dict:
    """The stages after pretraining, each a model of its own."""
    rng = np.random.default_rng([seed, len(CORPORA)])
    lines = draw(questions, "zipf", _DEMONSTRATIONS * len(questions), rng)
    tuned = _copy(network).requires_grad_(True)
    fit(tuned, lines, _n_steps("fine-tuned", short), 1e-3, rng)
    found = {"fine-tuned": tuned}
    for stage in list(STAGES)[2:]:
        own = found[stage] = _copy(tuned).requires_grad_(True)
        name, _, hold = stage.partition(", ")
        train_on = prefer if name == "preferences" else reinforce
        train_on(own, questions, seed, _n_steps(name, short), hold)
    return found


def _keep(folder: Path, seed: int, short: float) -> None:
    """`train`, kept as a folder of a seed: what a killed run has done stays."""
    with redirect_stderr(io.StringIO()):  # a bar for each of forty tasks of every model
        found = train(seed, short)
    with files.whole_folder(folder / f"seed-{seed}") as draft:
        for name, table in found.items():
            table.to_parquet(draft / f"{name}.parquet", index=False)


def results(
    results_dir: str | Path, anew: bool = False, seeds: Iterable[int] = SEEDS, short: float = 1.0
) -> dict[str, pd.DataFrame]:
    """The stored tables; seeds not stored are trained now, one on each core.

    Args:
        results_dir: the folder `origins` beside it has the tables; where there is none, and `anew`
            is not asked for, those of this checkout are read. They are of no model of a user's.
        anew: remove all tables first. A killed run goes on where it is not asked for again.

    Raises:
        ResultsError: as `stored`; `anew` replaces them.
    """
    folder = Path(results_dir).parent / PLACE
    if not anew and not folder.is_dir():
        own = paths.default_results_dir().parent / PLACE
        folder = own if own.is_dir() else folder
    record = folder / RECORD
    if anew:
        shutil.rmtree(folder, ignore_errors=True)
    if not record.is_file() and not any(folder.glob("seed-*")):
        about = {
            "convention": conventions.CURRENT[conventions.ORIGINS],
            "environment": conventions.environment("cpu"),
        }
        files.keep(record, f"{json.dumps(about, indent=1)}\n".encode())
    paths.note_read(record)
    missing = [seed for seed in seeds if not (folder / f"seed-{seed}").is_dir()]
    if missing:
        from tqdm.auto import tqdm

        _require_current(folder)  # before minutes of training
        spawn = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        with ProcessPoolExecutor(min(os.cpu_count() or 1, len(missing)), spawn) as workers:
            jobs = [workers.submit(_keep, folder, seed, short) for seed in missing]
            for job in tqdm(as_completed(jobs), total=len(jobs), desc="training", unit="seed"):
                job.result()
    return stored(folder, seeds)


_ANEW = "run 09_origins with -p anew=True"


def _require_current(folder: Path) -> None:
    try:
        current = conventions.is_current(conventions.ORIGINS, files.json_of(folder / RECORD))
    except (*records.BROKEN, AttributeError) as error:
        raise _unreadable(folder / RECORD, error) from error
    if not current:
        raise ResultsError(f"{folder} is of an older convention of this study: {_ANEW}")


def _unreadable(path: Path, error: Exception) -> ResultsError:
    return ResultsError(f"{path} cannot be read ({type(error).__name__}: {error}): {_ANEW}")


def stored(folder: Path, seeds: Iterable[int] = SEEDS) -> dict[str, pd.DataFrame]:
    """The tables of these seeds; needs neither model nor training.

    Raises:
        ResultsError: tables of another convention, one that is missing or unreadable, or numbers
            that cannot be.
    """
    _require_current(folder)

    def read(seed: int, name: str) -> pd.DataFrame:
        return records.read_parquet(folder / f"seed-{seed}" / f"{name}.parquet").to_pandas()

    try:
        found = {
            name: pd.concat([read(seed, name) for seed in seeds], ignore_index=True)
            for name in TABLES
        }
        for name, table in found.items():
            shares = table[["validity", "diversity"]]
            if not ((shares >= 0) & (shares <= 1)).all(axis=None):
                raise ValueError(f"{name}: a validity or diversity is no share of 1")
        for name in ("losses", "course"):
            table = found[name]
            left = table[[*PARTS, "size"]].sum(axis=1) - table.total
            if not left.abs().max() <= _ROUNDING:
                raise ValueError(f"{name}: the parts of a loss do not add up")
        return found
    except records.BROKEN as error:
        raise _unreadable(folder, error) from error


# Tables and claims: seeds are the clusters

PARTS = ("order", "shape")
_LITTLE = 0.05  # nats
_ROUNDING = 1e-9  # nats, of a sum in float64
_OF_ALL = ["corpus", "scale", "stage"]


def by_seed(losses: pd.DataFrame) -> pd.DataFrame:
    """Means over questions: a row per corpus, scale, stage and seed."""
    columns = ["validity", "diversity", "order", "shape", "size", "total"]
    return losses.groupby([*_OF_ALL, "seed"], sort=False)[columns].mean().reset_index()


def by_share(course: pd.DataFrame) -> pd.DataFrame:
    """Means over questions and seeds along pretraining: a row per corpus and share of its steps."""
    columns = ["validity", "diversity", "order", "shape"]
    return course.groupby(["corpus", "share"], sort=False)[columns].mean().reset_index()


def overview(seeds: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds with intervals, in words: a row per trained model, by corpus or by stage."""
    names = seeds.corpus.where(seeds.scale == "medium", seeds.corpus + ", " + seeds.scale)
    return _in_words(
        seeds.assign(model=names.where(seeds.stage == "pretrained", seeds.stage)), "model"
    )


def changes(seeds: pd.DataFrame) -> pd.DataFrame:
    """Each stage less the one before it, within a seed: a row per stage, seed, with `after`."""
    at = seeds[(seeds.corpus == MAIN) & (seeds.scale == "medium")].set_index(["stage", "seed"])
    columns = ["validity", "diversity", *PARTS, "total"]
    parts = []
    for stage, after in list(STAGES.items())[1:]:
        moved = at.loc[stage, columns] - at.loc[after, columns]
        parts.append(moved.reset_index().assign(stage=stage, after=after))
    return pd.concat(parts, ignore_index=True)


def change_table(moved: pd.DataFrame) -> pd.DataFrame:
    """`changes` over seeds, with intervals, in words: a row per stage."""
    return _in_words(moved, "stage")


def _in_words(table: pd.DataFrame, by: str) -> pd.DataFrame:
    shown = (*PARTS, "validity", "diversity")
    rows = [
        {by: name, **{value: _told(own, value) for value in shown}}
        for name, own in table.groupby(by, sort=False)
    ]
    return pd.DataFrame(rows)


def tightness(strings: pd.DataFrame) -> pd.DataFrame:
    """Where the hypotheses of Theorem F.4 nearly hold: diversity over its bound, by seed.

    Of the strings of the geometric corpus, at the hottest temperature with validity 0.8: a row per
    seed and length.
    """
    own = strings[(strings.corpus == "geometric") & (strings.validity >= 0.8)]
    hottest = own.loc[own.groupby(["seed", "task"]).temperature.idxmax()]
    hottest = hottest.assign(ratio=hottest.diversity / hottest.bound)
    return hottest.groupby(["seed", "length"])[["validity", "ratio"]].mean().reset_index()


def recall_by_length(strings: pd.DataFrame) -> pd.DataFrame:
    """The best recall at precision 0.8 of strings, in the corpus with errors: per seed, length.

    Of medium models, after pretraining. It depends on ranks alone, so on no temperature.
    """
    own = strings[(strings.corpus == MAIN) & (strings.scale == "medium")]
    return own.groupby(["seed", "length"]).recall.mean().reset_index()


def _told(table: pd.DataFrame, value: str) -> str:
    return mean_text(table, value, "seed")


def findings(seeds: pd.DataFrame, strings: pd.DataFrame) -> pd.DataFrame:
    """The questions of the chapter, each decided by an interval over seeds: tests of ours."""

    def said(claim: str, source: str, values: pd.Series, told: str) -> Finding:
        table = values.rename("value").reset_index()
        found = cluster_interval(table, "value", "seed", None)
        text = f"{told} {_told(table, 'value')}"
        verdict = decided(found.low, found.high, 0.0) if found.n_outer >= DECIDES else NOT_DECIDED
        return Finding(claim, source, text, verdict, OURS)

    first = seeds[seeds.stage == "pretrained"].set_index(["corpus", "scale", "seed"]).sort_index()
    uniform, zipf = first.xs(("uniform", "medium")), first.xs(("zipf", "medium"))
    small, large = first.xs((MAIN, "small")), first.xs((MAIN, "large"))
    gone = {part: 1 - large[part] / small[part] for part in PARTS}
    moved = changes(seeds).drop(columns="after").set_index(["stage", "seed"])
    entropy = moved.loc["reward, entropy"] - moved.loc["reward"]
    lengths = range(1, 5)
    falls = recall_by_length(strings).pivot(index="seed", columns="length", values="recall")
    tight = tightness(strings).pivot(index="seed", columns="length", values="ratio")
    falls, tight = falls.reindex(columns=lengths), tight.reindex(columns=lengths)
    rows = [
        said(
            f"Uniform answers in pretraining leave a shape part below {_LITTLE:g} nats",
            "Sec. 5",
            _LITTLE - uniform["shape"],
            f"{_LITTLE:g} less the shape part:",
        ),
        said(
            "Zipf answers in pretraining cost shape",
            "Sec. 5",
            zipf["shape"] - uniform["shape"],
            "shape part, Zipf less uniform:",
        ),
        said(
            "A larger model repairs more of the order part than of the shape part",
            "Fig. 8",
            gone["order"] - gone["shape"],
            "share of the order part that goes from small to large, less that of the shape part:",
        ),
    ]
    for stage in list(STAGES)[1:]:
        own = moved.loc[stage]
        rows.append(said(f"{stage}: the order part falls", "Fig. 8", -own.order, "it falls by"))
        rows.append(said(f"{stage}: the shape part rises", "Fig. 8", own["shape"], "it rises by"))
    rows += [
        said(
            "With a reward, an entropy term keeps diversity",
            "Fig. 8",
            entropy.diversity,
            f"with it less without: validity {entropy.validity.mean():+.2f}, diversity",
        ),
        said(
            "Recall at precision 0.8 falls with length",
            "Thm 4.2",
            falls[1] - falls[4],
            "strings of one letter less those of four:",
        ),
        said(
            "For one step diversity is within a twentieth of the bound of Theorem F.4",
            "Thm F.4",
            tight[1] - 0.95,
            "diversity over the bound, less 0.95:",
        ),
        said(
            "The bound is looser for four steps than for one",
            "Thm F.4",
            tight[1] - tight[4],
            "diversity over the bound, one step less four:",
        ),
    ]
    return table_of(rows)


SOURCE = "numbers of models trained for this page, tables in data/origins"


def questions_table(questions: list[Question]) -> pd.DataFrame:
    """A row per question: its prompt, family, how many answers, the most frequent ones."""
    rows = [
        (q.task.prompt, q.family, len(q.task.answers), ", ".join(q.task.answers[:4]))
        for q in questions
    ]
    return pd.DataFrame(rows, columns=["prompt", "family", "answers", "most frequent"])


def key_numbers(seeds: pd.DataFrame, moved: pd.DataFrame) -> dict[str, str]:
    """What the prose quotes."""
    first = seeds[(seeds.scale == "medium") & (seeds.stage == "pretrained")]
    own, after = dict(list(first.groupby("corpus"))), dict(list(moved.groupby("stage")))
    return {
        "uniform_shape": _told(own["uniform"], "shape"),
        "zipf_shape": _told(own["zipf"], "shape"),
        "zipf_order": _told(own["zipf"], "order"),
        "errors_order": _told(own[MAIN], "order"),
        "reward_order": _told(after["reward"], "order"),
        "reward_shape": _told(after["reward"], "shape"),
        "reward_validity": _told(after["reward"], "validity"),
        "entropy_shape": _told(after["reward, entropy"], "shape"),
        "n_seeds": str(seeds.seed.nunique()),
    }
