"""The explorer's data is the step itself, fresh or kept: tokens, counts, partition function."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import calib_utils as cu
from calib_utils import figures, paths
from calib_utils.book import check
from calib_utils.figures import explorer
from calib_utils.models.registry import CORE, DEFAULT_MODEL, EMBEDDED, HEADLINE
from calib_utils.results import conventions, draws, records, storage
from calib_utils.results.storage import KEY
from calib_utils.studies import oracle_cutoffs, reporting

TEMPERATURES = np.geomspace(explorer.MIN_TEMPERATURE, 5, 40)
N_VOCAB = 262_144
STORE = paths.default_results_dir()
SMALL = "smollm2-135m-instruct"
REAL = STORE / SMALL / explorer.STEPS_FOLDER / "us-states.json"


@pytest.fixture(scope="module")
def direct(tiny, small_task):
    """(StepData, gaps [vocab] by rank, N of the valid ones by rank) from a plain forward pass."""

    def get(prefix, chat=True):
        model = tiny("llama", chat=chat)
        prompt = cu.render_prompt(model, small_task)
        ids = model.tokenizer(prompt.text + prompt.lead + prefix).input_ids
        with torch.no_grad():
            logits = model.network(torch.tensor([ids])).logits[0, -1].double().numpy()
        order = np.lexsort((np.arange(len(logits)), -logits))
        gaps = logits.max() - logits[order]
        count = {}
        for tokens in prompt.sequences.symbols:
            if tokens[: len(ids) - len(prompt.ids)] == tuple(ids[len(prompt.ids) :]):
                after = [*tokens, *prompt.end_ids][len(ids) - len(prompt.ids)]
                count[after] = count.get(after, 0) + 1
        answers = {int(np.flatnonzero(order == v)[0]): n for v, n in count.items()}
        steps = explorer.steps_along(model, small_task, {"ab": "abab"}.get(prefix, "1,2,3"))
        # A base model's space is a token of its own here, and leaves no choice at the root.
        shown = prefix or {False: "␣", True: ""}[chat]
        return next(step for step in steps if step.prefix == shown), gaps, answers

    return get


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "base"])
@pytest.mark.parametrize("prefix", ["", "1,", "ab"])
def test_the_data_is_the_step_itself(direct, prefix, chat):
    step, gaps, answers = direct(prefix, chat)
    assert step.n_vocab == len(gaps) and step.n_listed == explorer.N_TOP
    assert {t.rank: t.n_answers for t in step.tokens if t.n_answers} == answers
    ranks = [t.rank for t in step.tokens]
    assert ranks == sorted({*range(explorer.N_TOP), *answers})
    np.testing.assert_allclose([t.gap for t in step.tokens], gaps[ranks], atol=2e-5)
    # Counts are exact where a bin starts, so are ranks.
    starts = explorer.N_TOP + np.cumsum([0, *(part.count for part in step.tail)])
    assert starts[-1] == len(gaps)
    firsts = [part.first for part in step.tail]
    np.testing.assert_allclose(firsts, gaps[starts[:-1]], atol=2e-5)
    assert set(answers) - set(range(explorer.N_TOP)) <= set(starts)
    for temperature in TEMPERATURES:
        exact = np.exp(-gaps / temperature)
        # Two float32 passes, divided by a temperature of 0.1, differ as much as the bins may.
        assert math.exp(step.log_partition(temperature)) == pytest.approx(exact.sum(), rel=2e-4)
        valid = exact[list(answers)].sum() / exact.sum()
        assert step.validity(temperature) == pytest.approx(valid, rel=1e-3)


@pytest.mark.parametrize("shape", ["uniform", "normal", "worst", "tied", "infinite"])
def test_bins_keep_the_partition_function_on_any_logits(shape):
    """Also where all the mass is in the tail, and where every bin is as spread as it can be."""
    draw = np.random.default_rng(0)
    gaps = {
        "uniform": lambda: draw.uniform(0, 40, N_VOCAB),
        "normal": lambda: draw.normal(15, 3, N_VOCAB).clip(0),
        # Half of the tokens at either end of a bin, at the temperature that weighs them most.
        "worst": lambda: np.repeat([1.2476, 1.2499], N_VOCAB // 2),
        "tied": lambda: np.round(draw.uniform(0, 5, N_VOCAB), 1),
        "infinite": lambda: np.append(draw.uniform(0, 9, N_VOCAB), [1e5] * 50),
    }[shape]()
    gaps = np.sort(gaps)
    bins = explorer.tail_bins(gaps, np.array([7, 1000]), len(gaps))
    starts = np.cumsum([0, *(part.count for part in bins)])
    assert {7, 1000} <= set(starts) and starts[-1] == len(gaps)
    assert len(bins) < 3000
    counts, means = np.array([(part.count, part.mean) for part in bins]).T
    for temperature in TEMPERATURES:
        exact = 1 + np.exp(-gaps / temperature).sum()
        found = 1 + counts @ np.exp(-means / temperature)
        assert found == pytest.approx(exact, rel=explorer.MAX_ERROR)


def test_logits_that_are_not_numbers_are_named(fresh_tiny, small_task):
    model = fresh_tiny("llama", chat=True)
    with torch.no_grad():
        model.network.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(cu.CalibUtilsError, match="NaN"):
        explorer.step_data(model, small_task)


def test_any_text_survives_the_page(tiny, small_task):
    step = explorer.step_data(tiny("llama", chat=True), small_task)
    nasty = '</script><!--<script> & " \\ \u2028 \U0001f600'
    tokens = (step.tokens[0]._replace(text=nasty), *step.tokens[1:])
    step = replace(step, tokens=tokens, prompt=nasty, prefix='"><b>')
    page = explorer.explorer(step, "<weights> & more").data
    assert page.count("</script") == page.count("<script") == 1
    assert "<b>" not in page and "&lt;weights&gt;" in page
    data = json.loads(re.search(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)[1])
    assert data["tokens"][0][0] == data["prompt"] == nasty
    assert explorer.StepData.from_json(data) == step
    assert " id=" not in page  # two copies on one page


def test_white_space_and_controls_are_visible(tiny, small_task, monkeypatch):
    monkeypatch.setattr(explorer, "N_TOP", 10**6)  # every token by name
    step = explorer.step_data(tiny("llama", chat=True), small_task)
    texts = {token.text for token in step.tokens}
    assert {"␣", "␣a", "⏎", "⇥", "\\x07", "a", "<|end|>"} <= texts
    assert len(step.tokens) == step.n_vocab and not step.tail
    assert all(text.isprintable() and text for text in texts)


@pytest.fixture(scope="module")
def kept(tiny, tmp_path_factory):
    """(a tiny model, its steps, the results folder)."""
    model, root = tiny("llama", chat=True), tmp_path_factory.mktemp("kept")
    return model, explorer.keep(model, ["rng-2", "rng-4"], "eos", root), root


def test_what_is_kept_is_the_step_itself(kept):
    model, steps, root = kept
    assert list(steps) == ["rng-2"]  # rng-4 is not a task whose steps are kept
    assert [step.prefix for step in steps["rng-2"]] == ["", "4,"]
    assert steps["rng-2"][0] == explorer.step_data(model, "rng-2")
    read, record = explorer.read(explorer.path_of(root, model.key, "rng-2"))
    assert read == steps["rng-2"]
    assert record["weights_sha256"] == model.weights_sha256
    assert (record["task"], record["end"]) == ("rng-2", "eos")
    assert record["convention"] == conventions.CURRENT["steps"]


def test_only_steps_that_leave_a_choice_count(tiny, small_task):
    # A tokenizer that writes a base model's space as a token leaves nothing to choose at the root.
    steps = explorer.steps_along(tiny("llama", chat=False), "rng-2", "4,7", end="line")
    assert [step.prefix for step in steps] == ["␣", "4,"]
    assert explorer.step_data(tiny("llama", chat=False), "rng-2", "line") == steps[0]
    model = tiny("llama", chat=True)
    steps = explorer.steps_along(model, small_task, "1,2,3")
    assert [step.prefix for step in steps] == ["", "1,", "1,2,"]
    for step in steps:
        assert sum(token.n_answers > 0 for token in step.tokens) > 1
        assert sum(token.n_answers for token in step.tokens) > 1
    along = (explorer.steps_along(model, "rng-2", "4,7", end) for end in ("none", "eos"))
    assert next(along) == next(along)
    with pytest.raises(cu.CalibUtilsError, match="'2,2' is no answer of task 'small'"):
        explorer.steps_along(model, small_task, "2,2")


def test_rounding_leaves_a_file_alone_and_other_numbers_do_not(kept, tmp_path):
    model, steps, root = kept
    path = explorer.path_of(tmp_path, model.key, "rng-2")
    path.parent.mkdir(parents=True)
    for by in (1e-4, 0.1):
        content = json.loads(explorer.path_of(root, model.key, "rng-2").read_text("utf-8"))
        for step in content["steps"]:
            step["tokens"] = [[a, r, gap + by * (r > 0), n] for a, r, gap, n in step["tokens"]]
            step["tail"] = [[count, first + by, mean + by] for count, first, mean in step["tail"]]
        path.write_text(json.dumps(content), encoding="utf-8")
        before = path.read_bytes()
        explorer.keep(model, ["rng-2"], "eos", tmp_path)
        assert (path.read_bytes() == before) == (by == 1e-4)
    assert explorer.read(path)[0] == steps["rng-2"]
    assert [path.name for path in path.parent.iterdir()] == ["rng-2.json"]  # no draft stays


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.pop("record"),
        lambda content: content["record"].pop("weights_sha256"),
        lambda content: content["record"].update(task="rng-2"),
        lambda content: content["steps"].clear(),
        lambda content: content["steps"][0].update(more=1),
        lambda content: content["steps"][0]["tail"].pop(),
        lambda content: content["steps"][0]["tokens"][3].__setitem__(1, 2),
        lambda content: content["steps"][0]["tokens"][5].__setitem__(2, 0.0),
        lambda content: content["steps"][0]["tokens"][5].__setitem__(2, "0.5"),
        None,
    ],
)
def test_a_broken_file_names_itself_and_the_remedy(tmp_path, damage):
    path = Path(shutil.copy(REAL, tmp_path))
    explorer.read(path)
    if damage is None:
        path.write_text(path.read_text(encoding="utf-8")[:-100], encoding="utf-8")
    else:
        content = json.loads(path.read_text(encoding="utf-8"))
        damage(content)
        path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(cu.CalibUtilsError, match=r"us-states\.json holds no .*run 03_oracle_cut"):
        explorer.read(path)


@pytest.mark.parametrize(("end", "what"), [("line", "end"), ("eos", "weights_sha256")])
def test_steps_of_another_question_or_model_are_not_replaced(kept, tiny, tmp_path, end, what):
    model, _, root = kept
    shutil.copytree(root, tmp_path / "rows")
    if what == "weights_sha256":
        model = replace(model, weights_sha256="0" * 64)
    with pytest.raises(cu.CalibUtilsError, match=f"differs in {what}.*delete it"):
        explorer.keep(model, ["rng-2"], end, tmp_path / "rows")


def test_a_place_that_cannot_be_written_is_named(kept, tmp_path):
    model = kept[0]
    (tmp_path / model.key).write_text("a file where the folder should be")
    with pytest.raises(cu.CalibUtilsError, match="choose a writable results_dir"):
        explorer.keep(model, ["rng-2"], "eos", tmp_path)


def test_steps_are_looked_at_by_check(tmp_path):
    folder = tmp_path / SMALL / explorer.STEPS_FOLDER
    shutil.copytree(REAL.parent, folder)
    (found,) = check.check(tmp_path)
    assert (found.kind, found.verdict) == ("steps", "ok")

    def findings():
        (found,) = check.check(tmp_path)
        return " ".join(fault.what for fault in found.faults)

    (folder / "notes.txt").write_text("mine")
    assert findings() == "notes.txt is not a file of steps: delete it"
    (folder / "notes.txt").unlink()
    path = folder / "rng-3.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"convention": 1', '"convention": 0'), encoding="utf-8")
    assert "of convention 0 of steps" in findings() and "delete rng-3.json and run" in findings()
    path.write_text(text.replace(EMBEDDED[SMALL].sha256, "1" * 64), encoding="utf-8")
    assert "the weights are not those of" in findings()
    path.write_text(text[:-9], encoding="utf-8")
    assert "rng-3.json holds no steps" in findings()
    path.rename(folder / "rng-4.json")
    assert "rng-4.json" in findings()


@pytest.mark.parametrize("key", CORE)
def test_every_model_of_the_book_has_the_steps_of_its_tasks(key):
    for task, answer in explorer.ANSWERS.items():
        steps, record = explorer.read(explorer.path_of(STORE, key, task))
        assert record["weights_sha256"] == EMBEDDED[key].sha256
        assert len(steps) in (2, 3) and answer in cu.get_task(task).answers
        assert all(answer.startswith(step.prefix.removeprefix("␣")) for step in steps)


@pytest.mark.models
def test_the_committed_steps_are_what_the_weights_give(tmp_path):
    model = cu.load_model(SMALL)
    steps = explorer.keep(model, oracle_cutoffs.TASKS, reporting.end_policy(model, ""), tmp_path)
    for task, own in steps.items():
        stored, _ = explorer.read(explorer.path_of(STORE, SMALL, task))
        assert len(stored) == len(own) and all(map(explorer.alike, stored, own))


# The explorer page: stored rows of every model with results and of none else

ADDED = "Qwen--Qwen3-0.6B"
MOST_BYTES = 500_000  # a script is read when its model is chosen, on a phone too


def scripts(folder):
    """The index, and each model's key and data, as a browser would get them."""
    index = (folder / "index.js").read_text(encoding="ascii")
    index = json.loads(index.removeprefix("globalThis.calibUtilsModels =").removesuffix(";\n"))
    models = {}
    for path in folder.glob("model-*.js"):
        text = path.read_text(encoding="ascii")
        inside = text.removeprefix("calibUtilsModel(").removesuffix(");\n")
        key, data = json.loads(f"[{inside}]")
        models[key] = data
    return index, models


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / explorer.PAGE_FOLDER
    left_out = explorer.write(STORE, folder)
    return folder, left_out


@pytest.fixture
def store(tmp_path):
    """A store of two tasks of one model and the steps of both, to spoil."""
    for name in ("us-states", "rng-2"):
        shutil.copytree(STORE / SMALL / name, tmp_path / "store" / SMALL / name)
        path = explorer.path_of(tmp_path / "store", SMALL, name)
        path.parent.mkdir(exist_ok=True)
        shutil.copy(explorer.path_of(STORE, SMALL, name), path)
    return tmp_path / "store"


def test_every_committed_model_has_a_small_script_and_the_headline_is_first(written):
    folder, left_out = written
    index, models = scripts(folder)
    stored = {path.name for path in STORE.iterdir() if path.is_dir()}
    assert left_out.empty
    assert index["models"][0]["key"] == HEADLINE
    assert {one["key"] for one in index["models"]} == set(models) == stored
    assert all(path.stat().st_size < MOST_BYTES for path in folder.iterdir())


def test_colours_are_those_of_the_figures(written):
    index, _ = scripts(written[0])
    rules = (*oracle_cutoffs.PRACTICAL, "oracle_size")
    wanted = {rule: figures.RULE_COLOURS[rule] for rule in rules}
    wanted |= {cause: colour for cause, (colour, _) in figures.CAUSES.items()}
    assert index["colours"] == wanted
    sheet = (paths.book_dir() / "assets" / "explorer.css").read_text(encoding="utf-8")
    assert f"--cu-valid: {figures.VALID};" in sheet
    assert f"--cu-invalid: {figures.INVALID};" in sheet


def test_the_numbers_are_the_stored_rows(written):
    index, models = scripts(written[0])
    for key, tasks in models.items():
        assert set(tasks) <= set(oracle_cutoffs.TASKS)
        for task, one in tasks.items():
            found = pd.DataFrame(one["rows"], columns=index["columns"])
            found = found.astype({name: float for name in found if name not in ("rule", "draws")})
            suffix = "@end=line" if "end = line" in one["source"] else ""
            stored = storage.read(STORE / key / f"{task}{suffix}")
            assert len(found) == 17 * 12 and not found.duplicated(KEY).any()
            assert stored.record["weights_sha256"][:12] in one["source"]
            assert one["prompt"] == stored.record["prompt"]
            split = oracle_cutoffs.split_table(stored.losses.assign(task=task))
            right = found[KEY].merge(stored.settings, on=KEY).merge(split, on=["task", *KEY])
            for name in explorer.MEASURES:
                np.testing.assert_allclose(found[name], right[name], rtol=1e-7, err_msg=name)
                # What is shown is rounded once more: never to another third digit than the row's.
                pairs = zip(found[name].dropna(), right[name].dropna(), strict=True)
                assert all(f"{a:.3g}" == f"{b:.3g}" for a, b in pairs)
            for name in explorer.PARTS:
                wanted = right[name].where(right.total.notna())
                np.testing.assert_allclose(found[name], wanted, rtol=1e-7, atol=1.001e-6)
            parts = found.order + found["shape"] + found["size"]
            np.testing.assert_allclose(parts, found.total, atol=3e-6, rtol=1e-6)


def test_the_frontier_is_the_one_of_the_chapter(written):
    index, models = scripts(written[0])
    for key, end in ((DEFAULT_MODEL, ""), ("gemma-3-270m", "@end=line")):
        one = models[key]["rng-2"]
        found = pd.DataFrame(one["rows"], columns=index["columns"])
        marked = found[found.on_frontier == 1].astype({"parameter": float})
        table = storage.read(STORE / key / f"rng-2{end}").settings
        asked = found.astype({"parameter": float})[KEY].merge(table, on=KEY)
        best = oracle_cutoffs.frontier_points(asked)
        assert len(marked) == len(best) == len(best.merge(marked, on=KEY))


def test_steps_are_the_kept_ones(written):
    _, models = scripts(written[0])
    for key, tasks in models.items():
        for task, one in tasks.items():
            path = explorer.path_of(STORE, key, task)
            assert bool(one["steps"]) == path.is_file()
            if one["steps"]:
                steps, _ = explorer.read(path)
                assert [explorer.StepData.from_json(step) for step in one["steps"]] == steps


def drawn(one, columns):
    """(rule, parameter, temperature) -> (text, whether it is valid) of each draw, as a page has."""
    place, found = columns.index("draws"), {}
    for row in one["rows"]:
        numbers = row[place] or ()
        found[tuple(row[:3])] = [(one["texts"][n], n < one["n_valid"]) for n in numbers]
    return found


def test_draws_are_the_kept_ones(written):
    index, models = scripts(written[0])
    seen = 0
    for key, tasks in models.items():
        for task, one in tasks.items():
            end = "@end=line" if "end = line" in one["source"] else ""
            path = draws.path_of(STORE / key / f"{task}{end}")
            shown = drawn(one, index["columns"])
            assert path.is_file() == any(shown.values())
            if not path.is_file():
                continue
            seen += 1
            for name, own in draws.read(path)[0].groupby(KEY, dropna=False, sort=False):
                name = tuple(None if pd.isna(part) else part for part in name)
                assert [valid for _, valid in shown[name]] == own.valid.tolist()
                for (text, valid), row in zip(shown[name], own.itertuples(), strict=True):
                    assert not valid or text == row.text
                    assert text.endswith("…") or row.ended
    assert seen


@pytest.mark.parametrize(
    ("text", "ended", "told"),
    [
        ("New York", True, "New York"),
        ("New Yor", False, "New Yor…"),
        (" Ohio ", True, "␣Ohio␣"),
        ("a\nb\x07", False, "a⏎b\\x07…"),
        ("", True, "(nothing)"),
        ("=" * 40, True, "=" * 24 + "…"),
    ],
)
def test_a_drawn_text_is_shown_as_it_is(text, ended, told):
    assert explorer._told(text, ended) == told


def test_draws_of_other_weights_are_left_out_and_named(tmp_path):
    rows = tmp_path / "store" / DEFAULT_MODEL / "us-states"
    shutil.copytree(STORE / DEFAULT_MODEL / "us-states", rows)
    table, record = draws.read(draws.path_of(STORE / DEFAULT_MODEL / "us-states"))
    records.write(draws.path_of(rows), table, record | {"weights_sha256": "0" * 64})
    left_out = explorer.write(tmp_path / "store", tmp_path / "out")
    assert "of another weights than the rows: run 03_oracle_cutoffs" in left_out.why.item()
    index, models = scripts(tmp_path / "out")
    assert not any(drawn(models[DEFAULT_MODEL]["us-states"], index["columns"]).values())


def test_a_new_model_appears_and_one_without_these_rows_does_not(store, tmp_path):
    shutil.copytree(store / SMALL / "us-states", store / ADDED / "us-states")
    shutil.copytree(STORE / SMALL / "rng-2@end=none", store / "other" / "rng-2@end=none")
    (store / ".draft").mkdir()
    left_out = explorer.write(store, tmp_path / "out")
    index, models = scripts(tmp_path / "out")
    assert left_out.empty
    assert {one["key"] for one in index["models"]} == {SMALL, ADDED}
    assert list(models[ADDED]) == ["us-states"]
    assert models[ADDED]["us-states"]["steps"] == []


def test_no_results_at_all_is_a_page_without_models(tmp_path):
    assert explorer.write(tmp_path / "nothing", tmp_path / "out").empty
    assert scripts(tmp_path / "out")[0]["models"] == []


def edited(name, value):
    """Changes what a file of JSON, or its record, says."""

    def change(text):
        content = json.loads(text)
        content.get("record", content)[name] = value
        return json.dumps(content)

    return change


@pytest.mark.parametrize(
    ("file", "change", "why"),
    [
        ("settings.csv", lambda text: text + "x", "is not the file that"),
        (storage.RECORD, edited("convention", 0), "of an older convention"),
        ("steps", lambda text: text[:-9], "holds no steps"),
        ("steps", edited("convention", 0), "of another convention than the rows"),
        ("steps", edited("weights_sha256", "0" * 64), "of another weights than the rows"),
        ("steps", edited("end", "line"), "of another end than the rows"),
    ],
)
def test_what_is_broken_or_stale_is_left_out_and_named(store, tmp_path, file, change, why):
    steps = explorer.path_of(store, SMALL, "us-states")
    path = steps if file == "steps" else store / SMALL / "us-states" / file
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    left_out = explorer.write(store, tmp_path / "out")
    tasks = scripts(tmp_path / "out")[1][SMALL]
    assert len(left_out) == 1 and why in left_out.why[0]
    assert left_out.folder[0].startswith(f"{SMALL}/us-states")
    assert tasks["rng-2"]["steps"]
    if path != steps:
        assert set(tasks) == {"rng-2"}
    else:
        assert len(tasks["us-states"]["rows"]) == 17 * 12 and tasks["us-states"]["steps"] == []
