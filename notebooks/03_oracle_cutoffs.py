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
# **Question.** When a model gives too few of the valid answers, do invalid tokens rank above valid
# ones (a wrong *order*), or do the valid ones share their mass badly (a wrong *shape*)? The paper
# (Sec. 5, the paper's Fig. 6 and 9) asks an {term}`oracle-size cutoff`, which knows how many next
# tokens are valid but not which. With it the paper's models reach {term}`validity` and
# {term}`diversity` 1 on US states, so only the shape was wrong there; on digits with a sum they do
# not, so the order is wrong as well.
#
# **Answer.** On US states this model's best oracle-size setting {glue:text}`oracle_point`, where a
# model that ranks perfectly and is even over the valid tokens would reach 1 and
# {glue:text}`ceiling_us-states`. At temperature 1 without a cutoff its loss on the states,
# −ln(validity × diversity), is {glue:text}`total_us-states` {term}`nats <nat>`:
# {glue:text}`order_us-states` from order, {glue:text}`shape_us-states` from shape, and
# {glue:text}`size_us-states` from invalid tokens that no cutoff removes. In the paper's figures no
# sampler beats the oracle; here, by the largest product of validity and diversity, a practical rule
# does {glue:text}`beaten`.

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

# %%
table = study.table3(page, tasks)
losses = study.table3_losses(page, tasks)
decoders = study.operating_points(table, losses, level)
when = page.when_measured(tasks)

# %% mystnb={"figure": {"caption": "The loss −ln(validity × diversity) in nats, split between order (hatched), shape (plain) and size of the cutoff (dotted), for four decoders on every task: temperature 1, and the most diverse setting of at least the requested validity by temperature alone, by any practical rule, and by the oracle size. Without a bar, no setting is that valid. Left of 0 a repair makes things worse.", "name": "fig-split"}, "image": {"alt": "Stacked bars of the loss of each task and decoder, split between order, shape and size."}}
ax = figures.split_bars(decoders)
_ = figures.source_line(ax, page.source, when)

# %% tags=["remove-cell"] mystnb={"figure": {"caption": "Two of the tasks, for the summary.", "name": "fig-split-two"}, "image": {"alt": "The loss of each decoder on US states and three digits, split between order, shape and size."}}
ax = figures.split_bars(decoders[decoders.task.isin(["us-states", "rng-3"])])
_ = figures.source_line(ax, page.source, when)

# %% [markdown]
# ## How we know
#
# ### One step to play with
#
# This is the first token of a state's name. Raise the temperature, cut the ranking, and watch
# validity and diversity of this one step move against each other. Over the steps of an answer the
# losses multiply. The explorer page of this book has later steps and whole answers.

# %% tags=["nbval-ignore-output"]
figures.first_step(page, tasks, "us-states")

# %% [markdown]
# ### The paper's comparison
#
# {numref}`fig-frontiers` shows every setting of the paper's Table 3 (temperature first, then the
# cutoff) and the oracle size, which is also taken to the limit T → ∞, where it draws evenly from
# what it keeps. Dotted line and star mark the {term}`structural ceiling`: the diversity of a
# perfect order that is even over the valid tokens. Where some tokens lead to more answers than
# others it lies below 1, so an oracle below (1, 1) alone proves no failure of order. It is no upper
# bound: a model that gives each token its share of the answers reaches 1.

# %% mystnb={"figure": {"caption": "Diversity against validity, a panel per task: the Pareto frontier of each rule, and the whole path of temperature alone and of the oracle size, with arrows where the temperature rises. Dotted line and star: the structural ceiling of a perfectly ordered model that is uniform over the valid tokens. The paper attributes the remaining gap of the oracle size to order (compare the paper's Fig. 6 and 9).", "name": "fig-frontiers"}, "image": {"alt": "Grid of plots of diversity against validity, a panel per task, with a frontier per rule and a star."}}
facts = cu.structural_facts(page.model, tasks, end=page.end)
figure = figures.frontier_grid(table, facts, tasks)
_ = figures.source_line(figure.axes[0], page.source, when)

# %%
beside = study.compared(table).rename(columns={"best other": "best practical rule"})
page.fold(beside, "The oracle size beside the best practical rule, by three measures")

# %% [markdown]
# ### How good could any cutoff be?
#
# Knowing how many tokens are valid is not the best one can know: keeping one more token can raise
# {term}`sequence precision` and {term}`sequence recall` at once. Both depend on ranks alone, so
# dynamic programming over the {term}`prefix tree` finds the best {term}`adaptive cutoff` exactly.

# %% mystnb={"figure": {"caption": "Two random digits: sequence precision against sequence recall of every setting (dots, by rule), under the frontier over all adaptive rank cutoffs (line). The gap from a dot to the line is what choosing the cutoff at each prefix could gain without changing the ranking.", "name": "fig-adaptive"}, "image": {"alt": "No setting lies above the line of the best adaptive cutoff; the distance to it is what choosing the cutoff at each prefix could gain."}}
hulls = study.adaptive_frontiers(page, tasks)
ax = figures.adaptive(table[table.task == "rng-2"], hulls["rng-2"])
_ = figures.source_line(ax, page.source, when)

# %%
points = study.oracle_table(table, facts, hulls)
shown = points.assign(temperature=study.temperature_text(points))
page.fold(shown, "The best oracle point of each task, its ceiling, and the best cutoff", digits=3)

# %% [markdown]
# ### Where the loss is
#
# The logarithms of validity (Val) and diversity (Div) are sums over the steps of an answer, for
# every model (item 3 of the [errata](../../errata.md)). Each term is a Kullback–Leibler divergence
# (KL), which is 0 where two distributions agree. At the prefix of step $t$ let $p_t$ be the model's
# distribution, $\tilde p_t$ the same given that the answer will be valid, and $n_t$ the
# distribution proportional to the number of answers behind each token. With prefixes from
# $\tilde p$,
#
# $$
# \begin{aligned}
# -\ln \mathrm{Val} &= \sum_t \mathbb{E}\, \mathrm{KL}(\tilde p_t \,\|\, p_t), \\
# -\ln \mathrm{Div} &= \sum_t \mathbb{E}\, \mathrm{KL}(\tilde p_t \,\|\, n_t).
# \end{aligned}
# $$ (eq-identities)
#
# So the lost diversity can be laid out over the steps with nothing left over
# ({numref}`fig-steps`).

# %%
plain = losses[(losses.rule == "none") & (losses.temperature == 1) & (losses.repair == "none")]

# %% mystnb={"figure": {"caption": "Diversity lost at each step of an answer at temperature 1 without cutoff, a bar per task, a shade per step, in nats. The parts add up to −ln diversity exactly.", "name": "fig-steps"}, "image": {"alt": "Stacked bars of lost diversity in nats by task, one shade for each step."}}
ax = figures.step_losses(plain)
_ = figures.source_line(ax, page.source, when)

# %% [markdown]
# A decoder is a rule at a temperature, and its loss is −ln(Val × Div). {numref}`fig-split` asks
# what two repairs at every prefix would save:
#
# - *Order repaired*: the same sorted probabilities and the same cutoff, but the valid tokens come
#   first, in their own order.
# - *Shape repaired*: the mass of the valid tokens that are kept is shared among them in proportion
#   to the answers behind each.
#
# Each cause is credited with what its repair saves, averaged over making it first or second
# (Shapley's value), so the parts add up: {term}`order part`, {term}`shape part`, and the
# {term}`size part`, which remains with both repaired because the rule keeps more tokens than are
# valid, or fewer. A loss that either repair alone would save is shared between the two, and a part
# can be negative, since mass moved in proportion to the answers may land where later steps fail.

# %%
shown = decoders.assign(setting=study.setting_text(decoders))
columns = ["task", "decoder", "setting", *("validity", "diversity", "total")]
shown = shown[[*columns, "order", "shape", "size"]]
page.fold(shown, "The loss of each decoder and its parts, in nats", floor=1e-6)

# %% [markdown]
# ### Closed lists
#
# The table repeats the comparisons on the closed lists of the chapter on temperature, as far as the
# model can do them, with 95 % intervals over lists.

# %%
names = study.LISTS[:2] if quick else study.LISTS
on_lists, parts_of_lists = study.list_rows(page, names), study.list_parts(page, names)
none_done = "This model does none of the lists at any setting, so they say nothing about it."
page.show(study.over_lists(on_lists, parts_of_lists), empty=none_done)

# %% [markdown]
# ### Other samplers, and other orders of operation
#
# The folded table adds the other rules of transformers, and top-nσ, on the three small tasks, by
# the area under each {term}`frontier`. Engines also apply rules in different orders: transformers
# and vLLM temper first and then cut, llama.cpp cuts first, and vLLM takes min-p before top-k and
# top-p. {numref}`fig-orders` has the same recipe in all three.

# %%
every = study.with_other_rules(page, table)
page.fold(study.areas(every), "Area under the frontier of every sampler", digits=3)

# %%
recipe = study.engine_orders(page)

# %% mystnb={"figure": {"caption": "US states with top-k 50, top-p 0.95 and min-p 0.02: diversity against validity in the order of three engines, a dot per temperature of Table 3. Where lines lie on each other, the order does not matter.", "name": "fig-orders"}, "image": {"alt": "Three curves of diversity against validity, one for each engine's order of operations."}}
ax = figures.sampler_curves(recipe, "engine")
_ = figures.source_line(ax, page.source, when)

# %% [markdown]
# ### Equal budgets
#
# A rule with more settings has more chances to look good, so {numref}`fig-budgets` compares
# samplers by how many settings one tries. It counts 0 where none of them is valid enough, so all
# lines lie at 0 for a model that has no such setting.

# %%
budget_task = study.task_for_budgets(table, level)
budgets = cu.best_by_budget(table[table.task == budget_task], level)
where = f"The figure is for {budget_task} at a validity of {level:g} or more."
enough = (table.validity >= level).any()
print(where if enough else f"No setting of any task has a validity of {level:g}.")

# %% mystnb={"figure": {"caption": "Best diversity at the requested validity against the number of settings of Table 3 tried (logarithmic): mean, and band from 5 % to 95 %, by sampler, exact over all ways to draw the settings. Compare samplers at one number, not at the ends of their lines.", "name": "fig-budgets"}, "image": {"alt": "Lines with bands of the best diversity against the number of settings tried, by sampler."}}
ax = figures.budgets(budgets)
_ = figures.source_line(ax, page.source, when)

# %% [markdown]
# ### What our own choices do
#
# The paper leaves some choices open: numerical precision, what ends an answer, which tokenisations
# count, how the prompt is worded. The table says by how much each moves a number at most, at
# temperature 1 without a cutoff.

# %%
sensitive = study.sensitivities(page)
page.show(study.largest_moves(sensitive), digits=1, floor=1e-4)

# %%
page.fold(sensitive.drop(columns="choice"), "The numbers under each choice")

# %% [markdown]
# ## Claims and findings
#
# Every task has one vote, the majority decides, and the count is shown. Tasks whose validity stays
# below 0.05 at every setting are excluded by name.

# %%
found = study.findings(table, points)
page.show_findings(found)

# %% tags=["remove-cell"]
page.glue_verdicts(found)
page.glue_each(study.key_numbers(table, points, plain, decoders))

# %% [markdown]
# ## Check it yourself
#
# `python -m calib_utils reproduce --model`, followed by this model's name, measures the rows anew.
# What an order part and a shape part mean can be seen on models whose answer is known. In a cell of
# this page:
#
# ```python
# shape_only = cu.reference_model(cu.UniformOverG(), cu.get_task("us-states"))  # a perfect order
# own = cu.evaluate(shape_only, "us-states", rules=["oracle_size"], temperatures=[1.0])
# print(own.validity[0], own.diversity[0])
# ```
#
# Expect validity 1, and as diversity the structural ceiling of that model's own tokenizer, which is
# below 1. An oracle with a {term}`size part`, or a setting above the line of
# {numref}`fig-adaptive`, would refute the reading of this page. Nothing here refutes that the
# *paper's* models reach (1, 1) on states. Another model or another level of validity is one
# parameter away: `-p level=0.5` after
# `python -m calib_utils run --model NAME --notebook 03_oracle_cutoffs`.

# %%
print("numbers from", page.source)
