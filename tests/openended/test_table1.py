"""Table 1's comparison on made texts and scores: choice, budgets, pairs, plans and oracle paths."""

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calib_utils.core import metrics
from calib_utils.core.processors import parse_rule
from calib_utils.core.tasks import OpenPrompt
from calib_utils.errors import InvalidRequestError
from calib_utils.models import generation
from calib_utils.openended import table1
from calib_utils.openended.table1 import embedding_diversity, self_bleu

NAN = math.nan
WORDS = ["sea", "town", "ship", "baker", "clock", "hill", "moon", "cat", "rain", "door", "song"]
PROMPTS = ("p", "q", "r")


def letters(texts):
    """An embedding anyone can compute: how often each letter occurs."""
    counts = [[text.count(c) + 0.01 for c in "abcdefghijklmnopqrstuvwxyz"] for text in texts]
    return np.array(counts)


def texts_of(variety, n=12, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS[:variety], 5)) for _ in range(n)]


def generated(cells, n=12):
    """Rows of texts from (prompt, strategy, parameter, temperature, variety, share valid)."""
    parts = []
    for number, (prompt, strategy, parameter, temperature, variety, share) in enumerate(cells):
        own = {"prompt_id": prompt, "strategy": strategy, "parameter": parameter}
        own |= {"temperature": temperature, "sample": range(n)}
        own |= {"text": texts_of(variety, n, number), "valid": np.arange(n) < round(share * n)}
        parts.append(pd.DataFrame(own))
    return pd.concat(parts, ignore_index=True)


def scored(rows, prompts=PROMPTS):
    """Scores from (strategy, parameter, temperature, validities, diversities)."""
    table = [
        (prompt, *setting, v, d, 1 - d, (1 - d) / 2)
        for *setting, validities, diversities in rows
        for prompt, v, d in zip(prompts, validities, diversities, strict=True)
    ]
    columns = ["prompt_id", *table1.SETTING, "validity", *table1.MEASURES]
    return pd.DataFrame(table, columns=columns).sample(frac=1, random_state=3)


SCORES = [
    ("oracle", NAN, 1.0, (0.9, 0.8, 0.9), (0.5, 0.4, 0.6)),
    ("top_k", 10.0, 1.0, (1.0, 0.9, 0.9), (0.2, 0.2, 0.3)),
    ("top_k", 50.0, 1.0, (0.8, 0.8, 0.8), (0.3, 0.5, 0.4)),
    ("top_k", 50.0, 2.0, (0.7, 0.8, 0.8), (0.9, 0.9, 0.9)),
    ("none", NAN, 0.5, (1.0, 1.0, 1.0), (0.1, 0.1, 0.1)),
    ("none", NAN, 1.0, (0.5, 0.1, 0.1), (0.6, 0.6, 0.6)),
    ("top_p", 0.9, 3.0, (0.1, 0.1, 0.1), (0.8, 0.8, 0.8)),
]


# Scores


def test_scores_are_those_of_the_texts():
    cells = [(p, s, NAN, 1.0, 6, 0.75) for p in PROMPTS for s in ("oracle", "none")]
    rows = generated(cells).sample(frac=1, random_state=0)
    found = table1.setting_scores(rows, letters).set_index(["prompt_id", "strategy"])
    for (prompt, strategy), own in rows.groupby(["prompt_id", "strategy"]):
        row = found.loc[(prompt, strategy)]
        assert row.validity == 0.75 and row.n_texts == row.n_generated == 12
        assert row.embedding_diversity == pytest.approx(embedding_diversity(letters(own.text)))
        assert row.self_bleu == pytest.approx(self_bleu(own.text.tolist()))
        assert row.self_bleu_in_groups < row.self_bleu


def test_every_setting_is_scored_on_equally_many_texts():
    rows = generated([("p", "none", NAN, 1.0, 3, 1.0), ("p", "oracle", NAN, 1.0, 3, 1.0)])
    fewer = rows.drop(rows.index[rows.strategy == "none"][5:])
    found = table1.setting_scores(fewer, letters)
    assert found.n_texts.tolist() == [5, 5] and found.n_generated.tolist() == [5, 12]
    again = table1.setting_scores(fewer, letters)
    pd.testing.assert_frame_equal(found, again)
    other = table1.setting_scores(fewer, letters, seed=1)
    assert other.self_bleu[1] != found.self_bleu[1]


# Choice and comparison


def test_the_most_diverse_setting_that_is_valid_enough_is_chosen():
    found = table1.settings_table(scored(SCORES))
    chosen = found[found.chosen].set_index("strategy")
    assert chosen.temperature.to_dict() == {"oracle": 1.0, "top_k": 1.0, "none": 0.5}
    assert chosen.parameter["top_k"] == 50
    assert found.valid_enough.sum() == 4  # a mean validity of .8 is enough, one of .77 is not


def test_the_comparison_by_hand():
    found = table1.comparison(scored(SCORES)).set_index("strategy")
    assert found.tried.to_dict() == {"oracle": 1, "top_k": 3, "none": 2, "top_p": 1}
    assert found.usable.to_dict() == {"oracle": 1, "top_k": 2, "none": 1, "top_p": 0}
    assert found.embedding_diversity["top_k"] == pytest.approx(0.4)
    assert found.embedding_diversity_sd["top_k"] == pytest.approx(0.1)
    assert 0.3 <= found.embedding_diversity_low["top_k"] < 0.4
    assert found.self_bleu["oracle"] == pytest.approx(0.5)
    assert found.validity["top_k"] == pytest.approx(0.8)
    assert found.loc["top_p", ["parameter", "embedding_diversity", "held_out"]].isna().all()
    assert found.n_prompts.to_dict() == {"oracle": 3, "top_k": 3, "none": 3, "top_p": 0}


def test_budgets_are_equal_and_exact():
    table = scored(SCORES[:-1])  # the smallest grid beside the oracle's has two settings
    found = table1.comparison(table).set_index("strategy")
    assert (found.budget == 2).all()
    usable = [0.7 / 3, 0.4, 0.0]  # top-k's settings; the third is not valid enough
    best = [max(two) for two in combinations(usable, 2)]
    assert found.best_of["top_k"] == pytest.approx(np.mean(best))
    assert found.best_of["none"] == pytest.approx(0.1)
    assert np.isnan(found.best_of["oracle"])
    whole = table1.comparison(table[table.strategy != "none"]).set_index("strategy")
    assert whole.best_of["top_k"] == pytest.approx(whole.embedding_diversity["top_k"])


@settings(max_examples=30)
@given(st.integers(0, 9999), st.integers(2, 5), st.integers(1, 4), st.booleans())
def test_held_out_is_a_loop_over_prompts(seed, n_prompts, n_settings, oracle):
    rng = np.random.default_rng(seed)
    strategy = "oracle" if oracle else "top_k"
    rows = [
        (strategy, float(k), 1.0, rng.uniform(0.6, 1, n_prompts), rng.random(n_prompts))
        for k in range(n_settings)
    ]
    table = scored(rows, range(n_prompts))
    values = []
    for prompt in range(n_prompts):
        rest = table1.settings_table(table[table.prompt_id != prompt])
        chosen = rest.parameter[rest.chosen]
        own = table[(table.prompt_id == prompt) & table.parameter.isin(chosen)]
        values.append(own.embedding_diversity.iloc[0] if len(own) else NAN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "N_RESAMPLES", 1)
        found = table1.comparison(table).held_out[0]
    assert found == pytest.approx(np.mean(values), nan_ok=True)


def test_an_oracle_below_the_level_is_shown_and_marked():
    low = [("oracle", NAN, t, (v,) * 3, (0.5,) * 3) for t, v in ((1.0, 0.6), (2.0, 0.3))]
    found = table1.settings_table(scored([*low, *SCORES[1:]]))
    row = found[found.chosen & (found.strategy == "oracle")].iloc[0]
    assert (row.temperature, row.valid_enough) == (1.0, False)
    compared = table1.comparison(scored([*low, *SCORES[1:]])).set_index("strategy")
    assert compared.usable["oracle"] == 0 and compared.embedding_diversity["oracle"] == 0.5


def test_prompts_that_differ_between_settings_are_refused():
    table = scored(SCORES)
    part = table[(table.prompt_id != "q") | (table.strategy != "none")]
    with pytest.raises(InvalidRequestError, match="each prompt once"):
        table1.comparison(part)
    with pytest.raises(InvalidRequestError, match="each prompt once"):
        table1.comparison(pd.concat([table, table]))


def test_an_undefined_diversity_is_not_averaged_away():
    rows = [("top_k", 1.0, 1.0, (0.9,) * 3, (NAN, 0.9, 0.9)), *SCORES[1:2]]
    found = table1.settings_table(scored(rows))
    assert found.parameter[found.chosen].tolist() == [10.0]


def test_differences_are_paired_by_prompt():
    found = table1.paired_differences(scored(SCORES)).set_index(["strategy", "measure"])
    row = found.loc[("top_k", "embedding_diversity")]
    apart = np.array([0.2, -0.1, 0.2])
    assert row.difference == pytest.approx(apart.mean())
    assert (row.n_prompts, row.in_favour) == (3, 2)
    assert row.low == pytest.approx(-0.1) and row.high == pytest.approx(0.2)
    assert found.in_favour[("top_k", "self_bleu")] == 2
    assert found.n_prompts[("top_p", "self_bleu")] == 0


def test_an_interval_on_one_prompt_is_none():
    rows = [(s, p, t, v[:1], d[:1]) for s, p, t, v, d in SCORES]
    found = table1.comparison(scored(rows, ["p"])).set_index("strategy")
    assert found.embedding_diversity["oracle"] == 0.5
    columns = ["embedding_diversity_low", "embedding_diversity_sd", "held_out"]
    assert found.loc["oracle", columns].isna().all()


def test_the_published_table():
    found = table1.published_table1().set_index("strategy")
    assert found.embedding_diversity["oracle"] == 0.40 and found.self_bleu["min_p"] == 0.80
    whole = table1.plan_generations(["p"], 1000, budget=None)
    counts = whole.groupby("strategy").size().drop("oracle")
    assert counts.to_dict() == found.settings.dropna().to_dict()
    assert found.source.str.startswith("arXiv:2605.11128v1").all()


# Plans


def test_a_laptop_plan_has_equal_budgets_and_rules_that_parse():
    plan = table1.plan_generations(["p", "q"])
    counts = plan.groupby(["prompt_id", "strategy"]).size().unstack()
    assert set(counts.drop(columns="oracle").to_numpy().ravel()) == {4}
    assert counts.oracle.tolist() == [1, 1]
    for row in plan.itertuples():
        rule = parse_rule(row.rule)
        assert rule.name == ("none" if row.strategy == "oracle" else row.strategy)
        assert rule.parameter == row.parameter or math.isnan(row.parameter)
    assert plan.seed.is_unique
    setting = ["strategy", "rule", "temperature"]
    p, q = (plan.loc[plan.prompt_id == name, setting].to_numpy().tolist() for name in "pq")
    assert p == q
    assert not plan.duplicated(["prompt_id", *setting]).any()


def test_plans_follow_their_seed_and_grow_without_changing():
    one, same = (table1.plan_generations(["p"]) for _ in range(2))
    pd.testing.assert_frame_equal(one, same)
    other = table1.plan_generations(["p"], seed=1)
    assert other.rule.tolist() != one.rule.tolist()
    more = table1.plan_generations(["q", "p"])
    assert set(one.seed) < set(more.seed)


# The oracle's first two tokens


def candidates(first, second=None, prompt="p"):
    """Candidates from valid flags by rank at depth 1, and after each first rank at depth 2."""
    sweeps = [(1, (), first), *((2, (rank,), flags) for rank, flags in (second or {}).items())]
    rows = [
        (prompt, "story", 0, depth, node, 10 * i, bool(valid), 100 * depth + i)
        for depth, node, flags in sweeps
        for i, valid in enumerate(flags)
    ]
    columns = ["prompt_id", "category", "seed", "depth", "node", "rank", "valid", "token_id"]
    return pd.DataFrame(rows, columns=columns)


def test_forced_tokens_are_valid_and_uniform_step_by_step():
    table = candidates([1, 1, 0, 1], {0: [1, 1, 0], 10: [0, 0, 1], 30: [0, 0, 0]})
    found = table1.forced_tokens(table, 4000)["p"]
    share = {pair: count / 4000 for pair, count in Counter(found).items()}
    assert share == pytest.approx({(100, 200): 0.25, (100, 201): 0.25, (101, 202): 0.5}, abs=0.03)
    nothing = candidates([1, 0], {0: [0, 0]}, prompt="q")
    assert table1.forced_tokens(pd.concat([nothing, table]), 4000) == {"p": found}


# Drawing

SAY = OpenPrompt("say", "story", "Say something.")


def test_settings_drawn_together_write_what_each_writes_alone(tiny):
    model = tiny("qwen3", chat=True)
    start, first = generation.start_of(model, SAY), [()] * 34  # more than fit into one pass
    settings = [{"temperature": 1.0}, {"temperature": 1.5, "top_k": 5}]
    settings += [{"temperature": 0.7, "top_p": 0.9}, {"temperature": 2.0, "min_p": 0.05}]
    state = torch.random.get_rng_state()
    found = table1.draw_texts(model, start, settings, range(5, 9), first, 4)
    assert torch.equal(state, torch.random.get_rng_state())
    for own, texts, seed in zip(settings, found, range(5, 9), strict=True):
        assert table1.draw_texts(model, start, [own], [seed], first, 4) == [texts]
        assert len(texts) == 34 and len(set(texts)) > 5
    assert len({*map(tuple, found)}) == len(settings)


def test_gaps_in_settings_are_not_filled_with_a_hidden_cutoff(fresh_tiny):
    """Without neutral values transformers would keep the 50 most probable tokens."""
    model = fresh_tiny("llama", chat=True)
    start = generation.start_of(model, SAY)
    logits = model.network(torch.tensor([start.ids])).logits[0, -1].detach()
    inside = [model.tokenizer.decode([t]) for t in logits.argsort(descending=True)[:50]]
    # A flat model, so that most draws lie beyond rank 50 of some 260.
    model.network.get_output_embeddings().weight.data *= 1e-3
    (texts,) = table1.draw_texts(model, start, [{}], [0], [()] * 64, 1)
    assert sum(text not in inside for text, _ in texts) > 20
