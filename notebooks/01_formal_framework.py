# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The formal framework
#
# **What the paper claims** (Sec. 3 to 5, App. D to F). Two things are wrong with the next-token
# distribution of a model that keeps giving the same few answers. Valid tokens do not all rank above
# invalid ones (*order*), so every cutoff gives up either precision or recall; and the mass on valid
# tokens does not follow how many answers lie behind them (*shape*), so temperature gives up either
# validity or diversity. Small losses multiply over the steps of an answer.
#
# **What we find.** Every theorem holds, on everything we ran it on; the table after *The theorems*
# says what that was. Whether the *hypotheses* hold for a model is another question, and for the
# model of this page the table of claims at the end answers it. Where the paper's wording needs care
# is in the [errata](../../errata.md).
#
# **How to check.** Every number on this page is computed when the notebook runs. The functions are
# in `calib_utils.theory` and `calib_utils.geometric`, and tests compare them with enumeration.

# %% tags=["parameters"]
model = "qwen2.5-coder-0.5b-instruct"  # embedded name, hub id, local folder or .gguf file
revision = ""  # hub commit or tag; empty: the default branch
dtype = "float32"  # of the forward pass
device = "auto"  # cuda, mps or cpu
seed = 0  # not used here: instances of the theorems are fixed
results_dir = ""  # not used here: nothing is stored
quick = False  # two small tasks only
end = ""  # what closes an answer: eos, line or none; empty: line for a base model, else eos

# %%
import numpy as np
import pandas as pd

import calib_utils as cu
from calib_utils import (
    conformance,
    controls,
    controls_figures,
    cutoffs,
    errata,
    errata_readings,
    errata_theory,
    examples,
    figures,
    framework,
    paths,
    reporting,
    theory_figures,
)
from calib_utils.explorer import step_data

figures.use_style()
language_model = cu.load_model(model, revision=revision or None, dtype=dtype, device=device)
policy = cutoffs.end_policy(language_model, end)
source = f"{reporting.source_of(language_model)}, end = {policy}"

# %% [markdown]
# ## The definitions, by hand
#
# A task with three valid answers, *at*, *ta* and *to*, over an alphabet of three letters, and a
# model that is nothing but the table of probabilities in the figure. What a prefix can still become
# is counted by N, the number of valid answers that begin with it; G is the set of next letters with
# N above 0 (Def. 3.2).

# %% mystnb={"figure": {"caption": "The prefix tree of three words: N answers begin with each prefix, and the model's probability of each valid letter. At the start, the invalid letter o holds the remaining .3 and ranks second.", "name": "fig-words"}}
example = examples.worked_example()
_ = theory_figures.tree(example.trie, example.letters, example.edge_p)

# %% [markdown]
# - **Validity** (Def. 3.1) is the mass on valid answers. **Diversity** is how many answers the model
#   effectively gives when its answer is valid, exp of the entropy, as a share of all.
# - A **cutoff** keeps a top part of the ranking at every step. **Local precision** is the share of
#   kept tokens that are valid, **local recall** the share of answers whose next token is kept (each
#   valid token counts by its N). **Sequence precision** is the chance of a valid answer when each
#   token is drawn *uniformly* from what is kept, **sequence recall** the share of answers that
#   survive (Def. 4.1).
# - A prefix is **order calibrated** if no invalid token is more probable than a valid one, and
#   **shape calibrated** if p is proportional to N, so that nothing is on invalid tokens (Def. D.1).
#   The distance to that shape is the total variation: 0 when calibrated, at most 1.
#
# The right column is what the functions of this book return for that model.

# %%
reporting.show(examples.definitions(example), digits=4)

# %% [markdown]
# ## The theorems
#
# **Theorem E.1, factors.** *For any cutoff and any prefix tree*,
# $\mathrm{Prec}_{seq} = \prod_t \alpha_t$ and $\mathrm{Rec}_{seq} = \prod_t \beta_t$. Here $\alpha_t$
# is the mean local precision at step $t$ when the earlier tokens were drawn uniformly from what is
# kept and were valid, and $\beta_t$ the mean local recall at step $t$ over answers drawn uniformly
# from V whose earlier tokens all were kept. *Why:* both sides are a chain of conditional
# probabilities, of one event (still valid; still kept) under two ways of walking down the tree. When
# nothing is left to condition on, the product is 0.
#
# **Theorem E.3 (4.2), hard steps.** Call a step $(\eta, \rho)$-hard if *every* cutoff that loses at
# most $\eta$ nats of precision there ($-\ln \alpha_t \le \eta$) loses at least $\rho$ nats of recall
# ($-\ln \beta_t \ge \rho$). *If $m$ steps are $(\eta, \rho)$-hard*, a cutoff with sequence precision
# $P$ has recall at most
#
# $$\exp\bigl(-\rho\,[\,m - (-\ln P)/\eta\,]_+\bigr).$$
#
# *Why:* the nats of precision add up to $-\ln P$, so at most $(-\ln P)/\eta$ steps can lose more than
# $\eta$; every other hard step costs $\rho$. The theorem does not say whether there *are* hard steps.
#
# **Lemma F.3.** Let $p(i) \propto e^{-a i / v}$ over $i < v$, with entropy $H_v(a)$. The loss
# $\Delta_v(a) = \ln v - H_v(a)$ never falls as $a$ grows: $dH_v/da = -(a/v^2)\,\mathrm{Var}(i)$.
#
# **Theorem F.4 (5.2), the price of validity.** *Suppose* answers have one length; at step $t$ every
# valid prefix has the same number $v_t$ of valid tokens; these hold the first $v_t$ ranks; and the
# token of rank $i$ has mass $(1 - q_t)\, q_t^i$, *with one $q_t$ for all prefixes of the step*, over
# infinitely many ranks and without a cutoff. Then validity at least $1 - \varepsilon$ forces
#
# $$\mathrm{Div} \le \exp\Bigl(-\sum_t \Delta_{v_t}(\ln 1/\varepsilon)\Bigr).$$
#
# *Why:* no step can be less valid than the whole, so $q_t^{v_t} \le \varepsilon$. That is a lower
# bound on how sharp the step is, and by Lemma F.3 on what it loses.
#
# **Corollaries F.5 and F.6.** Each step with a choice costs at least
# $c(\varepsilon) = \Delta_2(\ln 1/\varepsilon)$, so diversity is at most $e^{-m\,c(\varepsilon)}$ with
# $m$ such steps. With $L = \ln 1/\varepsilon$, $c = L^2/32 + O(L^4)$ for small $L$, and $c \to \ln 2$
# for large.
#
# Each was run: in exact fractions and on *every* cutoff of small random trees where that is
# possible, on grids and random instances of the model elsewhere. The last column is what the largest
# violation says; a test breaks each theorem on purpose and sees that it shows.

# %%
theorems = conformance.checks()
reporting.show(theorems, floor=1e-12)

# %% mystnb={"figure": {"caption": "The price of validity: the most diversity that Theorem F.4 allows at a validity (lines) and the geometric model itself with equally sharp steps (dashed), for ten valid tokens a step.", "name": "fig-price"}}
_ = theory_figures.price_of_validity()

# %% [markdown]
# ## Controls: models whose answers are known
#
# Before real models, six whose every probability is given by a formula: the same interface, the same
# chain of functions, known results. *Uniform over V* is what one would wish for: validity and
# diversity 1. *Uniform over G* is perfectly ordered but blind to N. *Leaky shape* puts a tenth of
# each step on invalid tokens and is right otherwise. *Equally sharp* is the geometric law of Def. F.1,
# *Zipf* has a heavy tail; *displaced* is the geometric law with two valid tokens pushed below two
# invalid ones at every step with a choice. `deviation` is the largest difference from what the
# formulas say, in any of the numbers.

# %%
control = controls.controls_table(controls.TASKS[:1] if quick else controls.TASKS)
shown = ["task", "law", "validity", "diversity", "precision", "recall", "area"]
reporting.show(control[[*shown, "order", "shape", "size", "deviation"]], digits=2, floor=1e-5)

# %% mystnb={"figure": {"caption": "The first step of each known law on two random digits (valid tokens blue, invalid orange), and what temperature does to its validity and diversity.", "name": "fig-controls"}}
_ = controls_figures.laws_under_temperature(
    controls.first_steps("rng-2"), controls.temperature_curves("rng-2")
)

# %% [markdown]
# ## On this model: what compounds over the steps
#
# The factors of Theorem E.1 on the model's own prefix trees, for cutoffs that keep a fixed number of
# tokens. On digits every second step is a comma: keeping ten tokens there leaves one valid in ten,
# which is why no fixed number can be right for a whole answer.

# %%
studies = [
    framework.study(language_model, task, policy)
    for task in (framework.QUICK_TASKS if quick else framework.TASKS)
]
by_task = {one.task.name: one for one in studies}
digits = by_task.get("rng-3", studies[-1])
print(f"factors on {digits.task.name}; product against Def. 4.1: equal to 1e-9:", end=" ")
print(all(framework.factor_gap(one) < 1e-9 for one in studies))
reporting.show(framework.factor_table(digits), digits=3, floor=1e-6)

# %% mystnb={"figure": {"caption": "Sequence precision and recall of the answer so far, step by step, when a fixed number of tokens is kept. What falls below 0.0001 is drawn there.", "name": "fig-compounding"}}
ax = theory_figures.compounding(digits)
_ = figures.source_line(ax, source)

# %% [markdown]
# ## How hard are the steps?
#
# Hardness quantifies over *all* cutoffs, so it can only be bounded from above by looking at some:
# the settings of Table 3, fixed sizes, and cutoffs that adapt to the prefix at one step. Each
# number is the recall, in nats, that a cutoff must lose at least at a step when it may lose η nats
# of precision there. Next to 0 (below 1e-6): some cutoff loses none, so the step is not hard,
# whatever the others do. *inf*: none of the cutoffs looked at is that precise.

# %%
reporting.show(framework.hardness_tables(studies), digits=2, floor=1e-6)

# %% mystnb={"figure": {"caption": "US states: sequence precision and recall of every setting, under the bound of Theorem E.3 with the hardness measured on these settings.", "name": "fig-recall-bound"}}
states = by_task["us-states"]
ax = theory_figures.recall_bound(framework.recall_bounds(states))
_ = figures.source_line(ax, source)

# %% [markdown]
# ## Calibration, prefix by prefix
#
# Def. D.1 at every prefix of the answers: the share of prefixes that are order calibrated, and the
# distance from shape calibration at T = 1.

# %%
reporting.show(framework.calibration_table(studies), digits=2, floor=1e-4)

# %% [markdown]
# ## Does the geometric model describe this one?
#
# Theorem F.4 needs valid tokens on the first ranks, logits that fall linearly with rank among them,
# and one sharpness λ·v for all prefixes of a step. The table has the steps with a choice. The figure
# draws the exact validity and diversity under temperature over the bound for steps of ten valid
# tokens; the bound applies to the unconstrained digits, whose branching is fixed (Assumption 5.1).

# %%
reporting.show(framework.hypothesis_table(studies), digits=2)

# %%
prices = {one.task.name: framework.validity_price(one) for one in studies}
price = prices[digits.task.name]
reporting.show(price[price.temperature.isin((0.3, 0.6, 1.0, 1.4, 2.0, 3.0))], digits=3, floor=1e-6)

# %% mystnb={"figure": {"caption": "This model under temperature (marks), over the bound of Theorem F.4 (lines) and the equally sharp geometric model (dashed).", "name": "fig-price-model"}}
ax = theory_figures.price_of_validity(
    {name: table for name, table in prices.items() if table.bound.notna().any()}
)
_ = figures.source_line(ax, source)

# %% [markdown]
# ## What temperature does to head and tail
#
# Fig. 1 of the paper on a step whose valid tokens are known: the first token of a US state. A valid
# token is *frequent* if it has at least its fair share of the valid mass, N/|V|, at T = 1, otherwise
# *rare*. At low temperature the frequent ones hold everything; as it rises the rare ones gain, and
# then the invalid tail takes over, because there are so many of it. The dots are the masses that the
# authors published for another model, wording and choice of the frequent tokens.

# %%
step = step_data(language_model, "us-states")
published = pd.read_csv(paths.package_data("published", "temperature_rates.csv"))
masses = theory_figures.group_masses(step, np.array([0.5, 1.0, 2.0, 4.0, 8.0]))
reporting.show(masses, digits=2, floor=1e-4)

# %% mystnb={"figure": {"caption": "One step, the first token of a US state: tokens by rank (upper) and the mass of each group as temperature rises (lower; dots: published for Llama-3.1-8B-Instruct).", "name": "fig-head-tail"}}
figure = theory_figures.head_and_tail(step, published)
_ = figures.source_line(figure.axes[0], source)

# %% [markdown]
# ## Claims and findings
#
# *Not reproduced* for a hypothesis means that the theorem's premise fails for this model; the theorem
# itself is not touched by it.

# %%
found = framework.findings(studies)
reporting.show(found)

# %% tags=["remove-cell"]
reporting.glue_verdicts(found)
reporting.glue_number("theorems_hold", int((theorems.verdict == "holds").sum()), "{}")
reporting.glue_number("theorems", len(theorems), "{}")
for item in errata.items_of(errata_theory, errata_readings):
    reporting.glue_number(f"errata_{item.number}", item.found)

# %%
print("numbers from", source)
