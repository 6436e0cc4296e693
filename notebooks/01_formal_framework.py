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
# distribution of a model that keeps giving the same few answers. Valid tokens do not all rank
# above invalid ones (*order*), so every {term}`cutoff` gives up either precision or recall; and
# the mass on valid tokens does not follow how many answers lie behind them (*shape*), so
# temperature gives up either validity or diversity. Small losses multiply over the steps of an
# answer.
#
# **What we find.** {glue:text}`theorems_hold` of {glue:text}`theorems` theorems and lemmas hold on
# everything we ran them on; the table after *The theorems* says what that was. Whether their
# *hypotheses* hold for a model is another question. For the model of this page:
# {glue:text}`headline` Where a hypothesis fails the theorem does not apply to this model, and
# nothing is said against it. Where the paper's wording needs care is in the
# [errata](../../errata.md).
#
# **How to check it** is at the end. The pass over each task is kept like the rows of the other
# chapters; theorems, controls and the last figure are computed when the notebook runs.

# %% tags=["parameters"]
model = "qwen2.5-coder-0.5b-instruct"  # embedded name, hub id, local folder or .gguf file
revision = ""  # hub commit or tag; empty: the default branch
dtype = "float32"  # of the forward pass
device = "auto"  # cuda, mps or cpu
chat = None  # True, False: with or without the chat template; None: by the model's stage
seed = 0  # not used here: instances of the theorems are fixed
results_dir = ""  # where passes are kept and reused; empty: data/results of this checkout
quick = False  # two small tasks only
end = ""  # what closes an answer: eos, line or none; empty: line for a base model, else eos

# %%
import calib_utils as cu
from calib_utils.figures import formal_framework as figures
from calib_utils.studies import formal_framework as study

figures.use_style()
options = {"revision": revision, "dtype": dtype, "device": device, "chat": chat}
page = cu.open_page(model, results_dir=results_dir, end=end, **options)

# %% [markdown]
# ## The definitions, by hand
#
# A task with three valid answers, *at*, *ta* and *to*, over an alphabet of three letters, and a
# model that is nothing but the table of probabilities in {numref}`fig-words`. What a prefix can
# still become is counted by N, the number of valid answers that begin with it (its
# {term}`continuations`); G is the set of next letters with N above 0, the
# {term}`valid next tokens` (Def. 3.2).

# %% mystnb={"figure": {"caption": "The prefix tree of three words: N answers begin with each prefix, and on each branch the model's probability of that valid letter. At the start, the invalid letter o holds the remaining .3 and ranks second.", "name": "fig-words"}, "image": {"alt": "Tree of the words at, ta and to with N at each prefix and a probability on each branch."}}
example = study.worked_example()
_ = figures.tree(example)

# %% [markdown]
# :::{admonition} Definition 3.1 (validity, diversity)
# :name: def-3-1
# {term}`Validity <validity>` is the mass on valid answers. {term}`Diversity <diversity>` is how
# many answers the model effectively gives when its answer is valid, exp of the entropy, as a share
# of all: equation {eq}`eq-validity`.
# :::
#
# :::{admonition} Definition 4.1 (precision, recall)
# :name: def-4-1
# A {term}`cutoff` keeps a top part of the ranking at every step, the set $S$.
# {term}`local precision` is the share of kept tokens that are valid, {term}`local recall` the
# share of answers whose next token is kept, each valid token counted by its N:
#
# $$
# \begin{aligned}
# \mathrm{Prec} &= |S \cap G| \,/\, |S|, \\
# \mathrm{Rec} &= \sum_{v \in S \cap G} \frac{N(y_{<t} \circ v)}{N(y_{<t})}.
# \end{aligned}
# $$ (eq-local)
#
# {term}`Sequence precision <sequence precision>` is the chance of a valid answer when each token
# is drawn *uniformly* from what is kept, {term}`sequence recall` the share of answers that
# survive.
# :::
#
# :::{admonition} Definition D.1 (order, shape)
# :name: def-d-1
# A prefix has {term}`order calibration` if no invalid token is more probable than a valid one, and
# {term}`shape calibration` if p is proportional to N, so that nothing is on invalid tokens. The
# distance to that shape is the total variation: 0 when calibrated, at most 1.
# :::
#
# The right column is what the functions of this book return for that model.

# %%
page.show(study.definitions(example), digits=4)

# %% [markdown]
# ## The theorems
#
# :::{admonition} Theorem E.1 (factors)
# :name: thm-e-1
# *For any cutoff and any {term}`prefix tree`*,
#
# $$
# \begin{aligned}
# \mathrm{Prec}_{seq} &= \prod_t \alpha_t, \\
# \mathrm{Rec}_{seq} &= \prod_t \beta_t.
# \end{aligned}
# $$ (eq-factors)
#
# Here $\alpha_t$ is the mean local precision at step $t$ when the earlier tokens were drawn
# uniformly from what is kept and were valid, and $\beta_t$ the mean local recall at step $t$ over
# answers drawn uniformly from V whose earlier tokens all were kept. *Why:* both sides are a chain
# of conditional probabilities, of one event (still valid; still kept) under two ways of walking
# down the tree. When nothing is left to condition on, the product is 0.
# :::
#
# :::{admonition} Theorem E.3, in the main text 4.2 (hard steps)
# :name: thm-e-3
# Call a step $(\eta, \rho)$-hard (a {term}`hard step`, Def. E.2) if *every* cutoff that loses at
# most $\eta$ nats of precision there ($-\ln \alpha_t \le \eta$) loses at least $\rho$ nats of
# recall ($-\ln \beta_t \ge \rho$). *If $m$ steps are $(\eta, \rho)$-hard*, a cutoff with sequence
# precision $P$ has recall at most
#
# $$
# \exp\bigl(-\rho\,[\,m - (-\ln P)/\eta\,]_+\bigr).
# $$ (eq-hard)
#
# *Why:* the nats of precision add up to $-\ln P$, so at most $(-\ln P)/\eta$ steps can lose more
# than $\eta$; every other hard step costs $\rho$. The theorem does not say whether there *are*
# hard steps.
# :::
#
# :::{admonition} Lemma F.3 (sharper loses more)
# :name: lem-f-3
# Let $p(i) \propto e^{-a i / v}$ over $i < v$, with entropy $H_v(a)$. The loss
# $\Delta_v(a) = \ln v - H_v(a)$ never falls as $a$ grows: $dH_v/da = -(a/v^2)\,\mathrm{Var}(i)$.
# :::
#
# :::{admonition} Theorem F.4, in the main text 5.2 (the price of validity)
# :name: thm-f-4
# *Suppose* answers have one length; at step $t$ every valid prefix has the same number $v_t$ of
# valid tokens; these hold the first $v_t$ ranks; and the token of rank $i$ has mass
# $(1 - q_t)\, q_t^i$, *with one $q_t$ for all prefixes of the step*, over infinitely many ranks
# and without a cutoff. Then validity at least $1 - \varepsilon$ forces
#
# $$
# \mathrm{Div} \le \exp\Bigl(-\sum_t \Delta_{v_t}(\ln 1/\varepsilon)\Bigr).
# $$ (eq-price)
#
# *Why:* no step can be less valid than the whole, so $q_t^{v_t} \le \varepsilon$. That is a lower
# bound on how sharp the step is, and by Lemma F.3 on what it loses.
# :::
#
# :::{admonition} Corollaries F.5 and F.6 (the least price)
# :name: cor-f-5
# Each step with a choice costs at least $c(\varepsilon) = \Delta_2(\ln 1/\varepsilon)$, so
# diversity is at most $e^{-m\,c(\varepsilon)}$ with $m$ such steps. With $L = \ln 1/\varepsilon$,
# $c = L^2/32 + O(L^4)$ for small $L$, and $c \to \ln 2$ for large.
# :::
#
# Each was run: in exact fractions and on *every* cutoff of small random trees where that is
# possible, on grids and random instances of the model elsewhere. The last column is what the
# largest violation says; a test breaks each theorem on purpose and sees that it shows.

# %%
theorems = study.theorems.checks()
page.show(theorems, floor=1e-12)

# %% mystnb={"figure": {"caption": "The price of validity: the most diversity (vertical) that Theorem F.4 allows at a validity (horizontal), a line for each number of steps; dashed: the geometric model itself with equally sharp steps. Ten valid tokens a step. More steps, less diversity at the same validity.", "name": "fig-price"}, "image": {"alt": "Curves of the largest diversity against validity for one to eight steps, falling to 0 at validity 1."}}
_ = figures.price_of_validity()

# %% [markdown]
# ## Controls: models whose answers are known
#
# Before real models, six whose every probability is given by a formula ({term}`control`): the same
# interface, the same chain of functions, known results ({numref}`fig-controls`). *Uniform over V*
# is what one would wish for: validity and diversity 1. *Uniform over G* is perfectly ordered but
# blind to N. *Leaky shape* puts a tenth of each step on invalid tokens and is right otherwise.
# *Equally sharp* is the geometric law of Def. F.1, *Zipf* has a heavy tail; *displaced* is the
# geometric law with two valid tokens pushed below two invalid ones at every step with a choice.
# `deviation` is the largest difference from what the formulas say, in any of the numbers. Controls
# write a character a token, so their answers have more steps, and other numbers, than a real
# tokenizer's: *uniform over G*, say, is less diverse here than the ceiling of the next chapters.

# %%
control = study.controls_table(study.CONTROL_TASKS[:1] if quick else study.CONTROL_TASKS)
shown = ["task", "law", "validity", "diversity", "precision", "recall", "area"]
page.show(control[[*shown, "order", "shape", "size", "deviation"]], digits=2, floor=1e-5)

# %% mystnb={"figure": {"caption": "A row for each known law on two random digits. Left: probabilities of the first step by rank (valid tokens plain, invalid ones hatched; the number above is what the latter hold). Right: what temperature does to validity and diversity.", "name": "fig-controls"}, "image": {"alt": "Bars of the first step of six known laws, and beside each its validity and diversity against temperature."}}
_ = figures.laws_under_temperature(study.first_steps("rng-2"), study.temperature_curves("rng-2"))

# %% [markdown]
# ## On this model: what compounds over the steps
#
# The factors of Theorem E.1, equation {eq}`eq-factors`, on the model's own prefix trees, for
# cutoffs that keep a fixed number of tokens ({numref}`fig-compounding`). On digits every second
# step is a comma, the only valid token: of ten tokens kept there at most one is valid, which is
# why no fixed number can be right for a whole answer.

# %%
by_task = study.studies(page, study.QUICK_TASKS if quick else study.TASKS)
studies = by_task.values()
when = study.when_measured(studies)
digits = by_task["rng-2" if quick else "rng-3"]
print(f"factors on {digits.task.name}; product against Def. 4.1: equal to 1e-9:", end=" ")
print(study.factor_gap(studies) < 1e-9)
page.show(study.factor_table(digits), digits=3, floor=1e-6, zeros=True)

# %% mystnb={"figure": {"caption": "Three random digits, a fixed number of tokens kept: sequence precision (circles, solid) and recall (squares, dotted) of the answer so far against the steps taken, on a logarithmic axis. Each step multiplies by its factor of Theorem E.1. What falls below 0.0001 is drawn there.", "name": "fig-compounding"}, "image": {"alt": "Line chart, logarithmic: precision and recall of the answer so far against steps taken, for five cutoff sizes."}}
ax = figures.compounding(digits)
_ = figures.source_line(ax, page.source, when)

# %% [markdown]
# ## How hard are the steps?
#
# Hardness quantifies over *all* cutoffs, so it can only be bounded from above by looking at some:
# the settings of Table 3, fixed sizes, and cutoffs that adapt to the prefix at one step. Each
# number is the recall, in nats, that a cutoff must lose at least at a step when it may lose η nats
# of precision there. Next to 0 (below 1e-6): some cutoff loses none, so the step is not hard,
# whatever the others do. *inf*: none of the cutoffs looked at is that precise.

# %%
page.show(study.hardness_tables(studies), digits=2, floor=1e-6)

# %% mystnb={"figure": {"caption": "US states: sequence recall against sequence precision of every setting (a dot each), under the bound of Theorem E.3 (line) with the hardness measured on these settings. The theorem leaves no room above the line, so a dot there would be an error of ours.", "name": "fig-recall-bound"}, "image": {"alt": "Scatter plot of recall against precision of all settings, all on or under a falling staircase."}}
ax = figures.recall_bound(study.recall_bounds(by_task["us-states"]))
_ = figures.source_line(ax, page.source, when)

# %% [markdown]
# ## Calibration, prefix by prefix
#
# Def. D.1 at every prefix of the answers: the share of prefixes that are order calibrated, and the
# distance from shape calibration at T = 1.

# %%
page.show(study.calibration_table(studies), floor=1e-4, zeros=True)

# %% [markdown]
# ## Does the geometric model describe this one?
#
# Theorem F.4, equation {eq}`eq-price`, needs valid tokens on the first ranks, logits that fall
# linearly with rank among them, and one {term}`sharpness` λ·v for all prefixes of a step. The table
# has the steps with a choice; *median miss* is how far the straight line misses a logit at most, in
# nats, which R² hides: ln 2 is a factor of 2 in probability. The figure draws the exact validity
# and diversity under temperature over the bound for steps of ten valid tokens; the bound applies to
# the unconstrained digits, whose branching is fixed (Assumption 5.1).

# %%
page.show(study.hypothesis_table(studies), digits=2)

# %%
prices = study.validity_prices(studies)
price = prices[digits.task.name]
page.show(price[price.temperature.isin((0.3, 0.6, 1.0, 1.4, 2.0, 3.0))], digits=3, floor=1e-6)

# %% mystnb={"figure": {"caption": "This model under temperature (marks, one per temperature), diversity against validity, over the bound of Theorem F.4 (lines) and the equally sharp geometric model (dashed). How far the marks lie below their line is what the theorem does not explain.", "name": "fig-price-model"}, "image": {"alt": "Marks of this model's validity and diversity below the curves of the theorem's bound."}}
ax = figures.price_of_validity(prices)
_ = figures.source_line(ax, page.source, when)

# %% [markdown]
# ## What temperature does to head and tail
#
# Fig. 1 of the paper on a step whose valid tokens are known: the first token of a US state. A
# valid token is *frequent* if it has at least its fair share of the valid mass, N/|V|, at T = 1,
# otherwise *rare*. In the paper the frequent ones hold everything at low temperature; as it rises
# the rare ones gain, and then the invalid tail takes over, because it contains so many tokens. The
# dots are the masses that the authors published for another model, wording and choice of the
# frequent tokens; the table has this model's.

# %%
step = figures.step_data(page.model, "us-states")
masses = figures.group_masses(step, [0.5, 1.0, 2.0, 4.0, 8.0])
page.show(masses, digits=2, floor=1e-4)

# %% mystnb={"figure": {"caption": "One step, the first token of a US state. Upper: tokens by rank, probability on a logarithmic axis. Lower: the mass of each group as temperature rises (lines), with the masses published for Llama-3.1-8B-Instruct (dots). In the paper frequent valid tokens give way first to rare ones, then to the invalid tail (compare its Fig. 1).", "name": "fig-head-tail"}, "image": {"alt": "Bars of token probability by rank in three groups, and the probability of each group against temperature."}}
figure = figures.head_and_tail(step, study.published_masses())
_ = figures.source_line(figure.axes[0], page.source, page.live())

# %% [markdown]
# ## Claims and findings
#
# Four kinds of statements, each with words of its own: a *measured claim* of the paper, a
# *hypothesis* of a theorem, a *theorem check*, which can only fail by an error of ours, and a *test
# of ours*. Every task has a vote, the majority decides, and the count is shown; tasks whose
# validity stays below 0.05 at every temperature are excluded by name.

# %%
found = study.findings(studies)
page.show(found)

# %% tags=["remove-cell"]
page.glue_verdicts(found)
page.glue_each(study.key_numbers(theorems, studies), "{}")

# %% [markdown]
# ## Check it yourself
#
# `python -m pytest tests/theory/test_conformance.py` runs every theorem and then breaks each on purpose:
# a wrong factor, a bound without its remainder. A theorem would be refuted by a violation above
# rounding in the table under *The theorems*; a hypothesis fails wherever the table of claims says
# that its theorem does not apply. On a task of your own, in a cell of this page:
#
# ```python
# own = study.study(page.model, "rng-2-sum-equals-10", page.end)  # or a cu.Task
# bounds = study.recall_bounds(own)
# print(study.factor_gap([own]), (bounds.bound - bounds.recall).min())
# ```
#
# The first number is the distance between the product of Theorem E.1 and Def. 4.1 and should be
# rounding; the second is how far recall stays below the bound of Theorem E.3 and should not be
# negative by more than that.
#
# ## Provenance

# %%
print("numbers from", page.source)
