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
# # Oracle cutoffs: is it the order or the shape?
#
# **What the paper claims** (Sec. 5, Fig. 6 and 9). An {term}`oracle-size cutoff`, which knows *how
# many* tokens are valid but not which, shows what is wrong with a ranking. On US states it reaches
# validity and diversity 1, so there only the shape was wrong. On digits with a sum it does not, so
# there the order is wrong too.
#
# **What we find.** The best oracle-size point on US states (largest Val × Div) has {term}`validity`
# {glue:text}`oracle_validity_us-states` and {term}`diversity`
# {glue:text}`oracle_diversity_us-states`, where a perfect order, even over the valid tokens, has
# {glue:text}`ceiling_us-states`. In Fig. 6 and 9 the oracle lies above every sampler. Here, of the
# tasks that this model can do, so many have a practical rule above it: {glue:text}`above_oracle`.
# {glue:text}`headline` All numbers are exact for the weights named
# under each figure: nothing is drawn, and there is no interval.
#
# **How to check it** is at the end.

# %% tags=["parameters"]
model = "qwen2.5-coder-0.5b-instruct"  # embedded name, hub id, local folder or .gguf file
revision = ""  # hub commit or tag; empty: the default branch
dtype = "float32"  # of the forward pass
device = "auto"  # cuda, mps or cpu
chat = None  # True, False: with or without the chat template; None: by the model's stage
seed = 0  # not used here: nothing is drawn
results_dir = ""  # where rows are stored and reused; empty: data/results of this checkout
quick = False  # three small tasks only
end = ""  # what closes an answer: eos, line or none; empty: line for a base model, else eos
level = 0.8  # the validity asked for, in (0, 1]

# %%
import calib_utils as cu
from calib_utils.figures import oracle_cutoffs as figures
from calib_utils.studies import oracle_cutoffs as study

figures.use_style()
options = {"revision": revision, "dtype": dtype, "device": device, "chat": chat}
page = cu.open_page(model, results_dir=results_dir, end=end, **options)
tasks = study.QUICK_TASKS if quick else study.TASKS

# %% [markdown]
# ## One step, to play with
#
# The first token of a state's name. Blue tokens begin a state, orange ones do not. Raise the
# temperature, cut the ranking, and watch validity and diversity of this one step move against each
# other. Every step of an answer loses some of both, and over an answer the losses multiply. The
# book's explorer page has this step and later ones beside the numbers of whole answers.

# %% tags=["nbval-ignore-output"]
figures.first_step(page, tasks, "us-states")

# %% [markdown]
# ## The paper's comparison
#
# Every setting of Table 3 (temperature first, then the cutoff) and the oracle size, which is also
# taken to the limit T → ∞, where it is uniform over what it keeps and its validity is its
# {term}`sequence precision`. All points are kept, each rule's Pareto {term}`frontier` is drawn. The
# dotted line and star are the {term}`structural ceiling`: what a perfectly ordered model, uniform
# over the valid tokens of each step, would reach with an oracle. It lies below 1 where some tokens
# lead to more answers than others, so an oracle below (1, 1) is not by itself a failure of order.
# It is where heat leads a perfect order, and no bound: a model that weighs tokens by their answers
# lies above it, at 1.

# %%
facts = cu.structural_facts(page.model, tasks, end=page.end)
table = study.table3(page, tasks)
when = page.when_measured(tasks)
page.show(study.compared(table))

# %% [markdown]
# The oracle size beside the best practical rule, and which rule that is: the largest diversity of
# any setting that is valid enough, and the largest product. The area under a frontier would also
# credit validities that nobody would accept. Tasks are left out where neither is valid enough.

# %% mystnb={"figure": {"caption": "Diversity against validity of every setting (a dot each), a panel per task; lines: each rule's Pareto frontier. Dotted line and star: the structural ceiling of a perfectly ordered model that is uniform over the valid tokens. The paper attributes to order what the oracle size lacks (compare its Fig. 6 and 9).", "name": "fig-frontiers"}, "image": {"alt": "Grid of scatter plots of diversity against validity by rule, a panel per task, with frontiers and a star."}}
figure = figures.frontier_grid(table, facts, tasks)
_ = figures.source_line(figure.axes[0], page.source, when)

# %% [markdown]
# ## How good is the oracle, and how good could any cutoff be?
#
# Beside the best oracle point (largest Val × Div; none where nothing is valid) stand its ceiling
# and the best that *any* {term}`adaptive cutoff` could do, found by dynamic programming over the
# {term}`prefix tree`: sequence precision and {term}`sequence recall` (Def. 4.1) depend on
# ranks alone. Knowing the number of valid tokens is not the best one can know: keeping one more
# token can raise precision and recall at once. A temperature of ∞ stands for 1,000,000.

# %%
hulls = study.adaptive_frontiers(page, tasks)
points = study.oracle_table(table, facts, hulls)
page.show(points.assign(temperature=study.temperature_text(points)), digits=3)

# %% mystnb={"figure": {"caption": "Two random digits: sequence precision against sequence recall of every setting (dots, by rule), under the frontier over all adaptive rank cutoffs (line). The gap from a dot to the line is what choosing the cutoff at each prefix could gain without changing the ranking.", "name": "fig-adaptive"}, "image": {"alt": "Scatter plot of sequence precision against recall by rule, under the line of the best adaptive cutoff."}}
ax = figures.adaptive(table[table.task == "rng-2"], hulls["rng-2"])
_ = figures.source_line(ax, page.source, when)

# %% [markdown]
# ## Where the diversity went
#
# Two identities hold for every model (item 3 of the [errata](../../errata.md)): −ln Val and −ln
# Div are sums over the steps of an answer, each term the divergence of a next-token distribution
# from what it should be. At the prefix of step $t$ let $p_t$ be the model's distribution,
# $\tilde p_t$ the same given that the answer will be valid, and $n_t$ the one proportional to N.
# With prefixes from $\tilde p$,
#
# $$
# \begin{aligned}
# -\ln \mathrm{Val} &= \sum_t \mathbb{E}\, \mathrm{KL}(\tilde p_t \,\|\, p_t), \\
# -\ln \mathrm{Div} &= \sum_t \mathbb{E}\, \mathrm{KL}(\tilde p_t \,\|\, n_t).
# \end{aligned}
# $$ (eq-identities)
#
# So the lost diversity can be laid out over positions, with nothing left over
# ({numref}`fig-steps`).

# %%
losses = study.table3_losses(page, tasks)
plain = losses[(losses.rule == "none") & (losses.temperature == 1) & (losses.repair == "none")]

# %% mystnb={"figure": {"caption": "Diversity lost at each step of an answer at temperature 1 without cutoff, a bar per task, a shade per step, in nats. The parts add up to −ln diversity exactly.", "name": "fig-steps"}, "image": {"alt": "Stacked bars of lost diversity in nats by task, one shade for each step."}}
ax = figures.step_losses(plain)
_ = figures.source_line(ax, page.source, when)

# %% [markdown]
# **Order, shape and size.** Take a decoder: a rule at a temperature. Its loss is −ln(Val × Div), in
# {term}`nats <nat>`. Two repairs ask what the loss would have been.
#
# - *Order repaired*: at every prefix the same sorted probabilities and the same cutoff, but valid
#   tokens, in their own order, come first.
# - *Shape repaired*: what the valid tokens among the kept ones hold together is shared among them
#   in proportion to the number N of answers behind each.
#
# Each cause gets what its repair saves, averaged over whether it comes first or second (Shapley's
# value), so that the parts add up ({term}`order part`, {term}`shape part`). What remains with both
# repaired is the {term}`size part`: the rule keeps more tokens than are valid, or fewer. With the
# oracle size it is 0. Assumptions: one token sequence an answer; repairs at each prefix
# separately; N counts answers of the task. A model whose valid tokens rank first has order part 0
# under every rank cutoff; a shape-calibrated one (at temperature 1) has both parts 0. Tests hold
# all of this. Two cares in reading: where either repair alone would save a loss, the two causes
# share it; and a part can be negative, since mass moved in proportion to N can land where later
# steps are mostly invalid.

# %%
decoders = study.operating_points(table, losses, level)
shown = decoders.assign(setting=study.setting_text(decoders))
columns = ["task", "decoder", "setting", "validity", "diversity"]
parts = ["total", "order", "shape", "size", "carried by"]
page.show(shown[[*columns, *parts]], floor=1e-6)  # below that is rounding

# %% mystnb={"figure": {"caption": "The loss −ln(Val × Div) of decoders in nats, split between order (hatched), shape (plain) and size of the cutoff (dotted), a bar per task and decoder. A decoder that no setting brings to the validity asked for has no bar. Left of 0 a repair makes things worse.", "name": "fig-split"}, "image": {"alt": "Stacked bars of the loss of each task and decoder, split between order, shape and size."}}
ax = figures.split_bars(decoders)
_ = figures.source_line(ax, page.source, when)

# %% [markdown]
# ## More tasks: closed lists
#
# The same comparisons over the closed lists of the chapter on controlled tasks, those that the
# model can do, with 95 % intervals over lists.

# %%
names = study.LISTS[:2] if quick else study.LISTS
on_lists, parts_of_lists = study.list_rows(page, names), study.list_parts(page, names)
page.show(study.over_lists(on_lists, parts_of_lists))

# %% [markdown]
# ## Every other sampler
#
# The rules that transformers ships beside Table 3, and top-nσ, on the three small tasks: areas
# under the frontiers, that is, the best diversity of any setting at least as valid as v, over all
# v. Any logits processor can be evaluated as well, even one that looks at the prefix; below, a
# penalty on tokens that occurred before. *Bring a sampler* has the ten lines.

# %%
every = study.with_other_rules(page, table)
page.show(study.areas(every), digits=3)

# %%
penalised = study.penalised(page)
page.show(penalised[["rule", "parameter", "validity", "diversity"]])

# %% [markdown]
# **The order of operations.** transformers and vLLM temper first and then cut; llama.cpp cuts first
# and tempers what is left. vLLM takes min-p before top-k and top-p. The same three numbers in the
# three orders:

# %%
recipe = study.engine_orders(page)

# %% mystnb={"figure": {"caption": "US states with top-k 50, top-p 0.95 and min-p 0.02: diversity against validity in the order of three engines, a dot per temperature of Table 3. Lines that lie on each other: there the order does not matter.", "name": "fig-orders"}, "image": {"alt": "Three curves of diversity against validity, one for each engine's order of operations."}}
ax = figures.sampler_curves(recipe, "engine")
_ = figures.source_line(ax, page.source, when)

# %% [markdown]
# ## Equal budgets
#
# A rule with more settings has more chances to look good. So the samplers are compared by how many
# settings one tries: mean and 5–95 % band of the best diversity at the validity asked for, exact
# over all ways to draw that many settings without replacement; 0 where none is valid enough. The
# table has the whole grids, at two levels, and what is left of their lead when each may try as many
# settings as the smallest; samplers that never get there are left out. Where none does, all lines
# lie at 0.

# %%
budget_task = study.task_for_budgets(table, level)
budgets = cu.best_by_budget(table[table.task == budget_task], level)
print(f"figure: {budget_task}, validity at least {level:g}")
whole = study.full_budgets(every, *sorted({0.5, level}))
page.show(whole, digits=3) if len(whole) else print(f"none reaches validity {min(0.5, level):g}")

# %% mystnb={"figure": {"caption": "Best diversity at the validity asked for against the number of settings of Table 3 tried (logarithmic): mean, and band from 5 % to 95 %, by sampler. Compare samplers at one number, not at the ends of their lines.", "name": "fig-budgets"}, "image": {"alt": "Lines with bands of the best diversity against the number of settings tried, by sampler."}}
ax = figures.budgets(budgets)
_ = figures.source_line(ax, page.source, when)

# %% [markdown]
# ## What the choices left open do
#
# Temperature 1 without cutoff, under other conventions: numerical precision, batch size, what ends
# an answer, which segmentations count, the wording of the prompt. The first table has the numbers,
# the second how far each choice moves them at most.

# %%
sensitive = study.sensitivities(page)
page.show(sensitive.drop(columns="against"), digits=2)

# %%
moves = study.largest_moves(sensitive)
page.show(moves, digits=1, floor=1e-4)

# %% [markdown]
# ## Claims and findings
#
# Every task has a vote, the majority decides, and the count is shown. Tasks whose validity stays
# below 0.05 at every setting are excluded by name.

# %%
found = study.findings(table, points)
page.show(found)

# %% tags=["remove-cell"]
page.glue_verdicts(found)
page.glue_each(study.key_numbers(table, points, plain))

# %% [markdown]
# ## Check it yourself
#
# `python -m calib_utils reproduce --model` and this model's name measures the rows anew. What an
# order and a shape part mean can be seen on models of which the answer is known. In a cell of this
# page:
#
# ```python
# shape_only = cu.reference_model(cu.UniformOverG(), cu.get_task("us-states"))  # a perfect order
# own = cu.evaluate(shape_only, "us-states", rules=["oracle_size"], temperatures=[1.0])
# print(own.validity[0], own.diversity[0])
# ```
#
# Expect validity 1 and a diversity that is the structural ceiling of its own tokenizer, below 1.
# An oracle with a {term}`size part`, or a setting above the line of {numref}`fig-adaptive`, would
# refute the reading of this page. That the *paper's* models
# reach (1, 1) on states is not refuted here: other models, and another level, are one parameter
# away (`-p level=0.5` after
# `python -m calib_utils run --model NAME --notebook 03_oracle_cutoffs`).
#
# ## Summary and provenance
#
# Rows are stored with the hash of the weights, of the prompt and of the answer tokens, with the
# number format and with the convention that they were computed under; they are reused only where
# all of these match. Rows of logits processors are computed each time.

# %%
print("numbers from", page.source)
