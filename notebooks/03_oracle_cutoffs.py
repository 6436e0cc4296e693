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
# ones (a wrong *order*), or is the probability spread unevenly over the valid ones (a wrong
# *shape*)? The paper (Sec. 5, the paper's Fig. 6 and 9) uses an {term}`oracle-size cutoff`, which
# knows how many next tokens are valid but not which. With it the paper's models reach
# {term}`validity` and {term}`diversity` 1 on US states, and the paper concludes that only the shape
# was wrong there. On digits with a given sum they do not, and it concludes that the order is wrong
# as well.
#
# **Answer.** On US states this model's best oracle-size setting {glue:text}`oracle_point`, while a
# model with a perfect ranking that is uniform over the valid tokens would reach 1 and
# {glue:text}`ceiling_us-states`. At temperature 1 without a cutoff the model loses
# {glue:text}`total_us-states` {term}`nats <nat>` on the states, measured as −ln(validity ×
# diversity): {glue:text}`order_us-states` through order, {glue:text}`shape_us-states` through
# shape, and {glue:text}`size_us-states` because no cutoff removes the invalid tokens. In the
# paper's figures no sampler beats the oracle. Here, by the largest product of validity and
# diversity, a practical rule does so {glue:text}`beaten`.

# %% tags=["parameters"]
model = "qwen2.5-coder-0.5b-instruct"  # embedded name, hub id, local folder or .gguf file
revision = ""  # hub commit or tag; empty: the default branch
dtype = "float32"  # of the forward pass
device = "auto"  # cuda, mps or cpu
chat = None  # True, False: with or without the chat template; None: by the model's stage
seed = 0  # not used here: the explorer's draws have their own
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

# %% mystnb={"figure": {"caption": "The loss −ln(validity × diversity) in nats, split between order (hatched), shape (plain) and size of the cutoff (dotted), for four samplers on every task. The samplers are temperature 1, and the most diverse setting that has the requested validity: with temperature alone, with any practical rule, and with the oracle size. Where a bar is missing, no setting is that valid. A part left of 0 means that this repair makes things worse.", "name": "fig-split"}, "image": {"alt": "Stacked bars of the loss of each task and sampler, split between order, shape and size."}}
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
# This is the first token of a state's name. Raise the temperature or cut the ranking, and see how
# validity and diversity of this one step change. The [explorer](../../explorer.md) also has later
# steps and whole answers.

# %% tags=["nbval-ignore-output"]
figures.first_step(page, tasks, "us-states")

# %% [markdown]
# ### The paper's comparison
#
# {numref}`fig-frontiers` shows every setting of the paper's Table 3 (temperature first, then a
# cutoff: top-k, top-p, which is also called nucleus sampling, or min-p) and the oracle size. For the
# oracle we add the limit T → ∞, where all kept tokens are equally likely. The dotted line and the star mark the {term}`structural ceiling`: the diversity of
# a model with a perfect order that is uniform over the valid tokens. It is below 1 if some tokens
# lead to more answers than others, so an oracle below (1, 1) does not prove a wrong order. It is no
# upper bound, since a model that gives each token its share of the answers reaches 1.

# %% mystnb={"figure": {"caption": "Diversity against validity, a panel per task: the best settings of each rule (its frontier), and the whole path of temperature alone and of the oracle size, with arrows towards higher temperature. Dotted line and star: the structural ceiling of a perfectly ordered model that is uniform over the valid tokens. The paper attributes the remaining gap of the oracle size to order (compare the paper's Fig. 6 and 9).", "name": "fig-frontiers"}, "image": {"alt": "Grid of plots of diversity against validity, a panel per task, with a frontier per rule and a star."}}
facts = cu.structural_facts(page.model, tasks, end=page.end)
figure = figures.frontier_grid(table, facts, tasks)
_ = figures.source_line(figure.axes[0], page.source, when)

# %%
beside = study.compared(table).rename(columns={"best other": "best practical rule"})
page.fold(beside, "The oracle size beside the best practical rule, by three measures")

# %% [markdown]
# ### How good could any cutoff be?
#
# Keeping as many tokens as are valid is not always best: keeping one more can raise
# {term}`sequence precision` and {term}`sequence recall` together. Both depend only on ranks, so
# dynamic programming over the {term}`prefix tree` finds the best {term}`adaptive cutoff` exactly.

# %% mystnb={"figure": {"caption": "Two random digits: sequence precision against sequence recall of every setting (dots, by rule), under the best that any adaptive cutoff could do (line). The gap between a dot and the line could be gained without changing the ranking, by choosing the cutoff at each prefix.", "name": "fig-adaptive"}, "image": {"alt": "No setting lies above the line of the best adaptive cutoff; the distance to it is what choosing the cutoff at each prefix could gain."}}
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
# distribution proportional to the number of answers that follow each token. With prefixes drawn
# from $\tilde p$,
#
# $$
# \begin{aligned}
# -\ln \mathrm{Val} &= \sum_t \mathbb{E}\, \mathrm{KL}(\tilde p_t \,\|\, p_t), \\
# -\ln \mathrm{Div} &= \sum_t \mathbb{E}\, \mathrm{KL}(\tilde p_t \,\|\, n_t).
# \end{aligned}
# $$ (eq-identities)
#
# So each step has its own part of the lost diversity, and the parts add up exactly
# ({numref}`fig-steps`).

# %%
plain = losses[(losses.rule == "none") & (losses.temperature == 1) & (losses.repair == "none")]

# %% mystnb={"figure": {"caption": "Diversity lost at each step of an answer at temperature 1 without cutoff, a bar per task, a shade per step, in nats. The parts add up to −ln diversity exactly.", "name": "fig-steps"}, "image": {"alt": "Stacked bars of lost diversity in nats by task, one shade for each step."}}
ax = figures.step_losses(plain)
_ = figures.source_line(ax, page.source, when)

# %% [markdown]
# The loss of a sampler, a rule at a temperature, is −ln(Val × Div). {numref}`fig-split` shows what
# two repairs at every prefix would save:
#
# - *Order repaired*: the same sorted probabilities and the same cutoff, but the valid tokens come
#   first, in their own order.
# - *Shape repaired*: the probability of the kept valid tokens is shared among them in proportion to
#   the answers that follow each.
#
# The {term}`order part` and the {term}`shape part` are what each repair saves, averaged over making
# it first or second (the Shapley value). The {term}`size part` remains after both repairs, because
# the rule keeps more tokens than are valid, or fewer. The three parts add up to the loss. A part
# can be negative, because a repair at one step can move probability to prefixes where later steps
# fail.

# %%
shown = decoders.assign(setting=study.setting_text(decoders))
columns = ["task", "decoder", "setting", *("validity", "diversity", "total")]
shown = shown[[*columns, "order", "shape", "size"]]
page.fold(shown, "The loss of each decoder and its parts, in nats", floor=1e-6)

# %% [markdown]
# ### Closed lists
#
# The table repeats the comparisons on those closed lists of the chapter on temperature that the
# model can do, with 95 % intervals over lists.

# %%
names = study.LISTS[:2] if quick else study.LISTS
on_lists, parts_of_lists = study.list_rows(page, names), study.list_parts(page, names)
none_done = "This model does none of the lists at any setting, so they say nothing about it."
page.show(study.over_lists(on_lists, parts_of_lists), empty=none_done)

# %% [markdown]
# ### Other samplers, and other orders of operation
#
# The folded table adds the other rules of the transformers library, and top-nσ, on three small
# tasks. It shows the area under each {term}`frontier`. Engines also apply rules in different
# orders: transformers and vLLM apply the temperature before the cutoffs, llama.cpp after them, and
# vLLM applies min-p before top-k and top-p. {numref}`fig-orders` compares one recipe in all three.

# %%
every = study.with_other_rules(page, table)
page.fold(study.areas(every), "Area under the frontier of every sampler", digits=3)

# %%
recipe = study.engine_orders(page)

# %% mystnb={"figure": {"caption": "US states with top-k 50, top-p 0.95 and min-p 0.02: diversity against validity with the order of operations of three engines, a dot per temperature of the paper's Table 3. Where lines coincide, this order does not matter.", "name": "fig-orders"}, "image": {"alt": "Three curves of diversity against validity, one for each engine's order of operations."}}
ax = figures.sampler_curves(recipe, "engine")
_ = figures.source_line(ax, page.source, when)

# %% [markdown]
# ### Equal budgets
#
# A rule with more settings has more chances to look good, so {numref}`fig-budgets` compares
# samplers at the same number of tried settings. If none of these is valid enough, the diversity
# counts as 0.

# %%
budget_task = study.task_for_budgets(table, level)
budgets = cu.best_by_budget(table[table.task == budget_task], level)
where = f"The figure is for {budget_task} at a validity of {level:g} or more."
enough = (table.validity >= level).any()
print(where if enough else f"No setting of any task has a validity of {level:g}.")

# %% mystnb={"figure": {"caption": "Best diversity at the requested validity against the number of tried settings of the paper's Table 3 (logarithmic): mean, and band from 5 % to 95 %, by sampler, exact over all ways to choose the settings. Compare samplers at one number, not at the ends of their lines.", "name": "fig-budgets"}, "image": {"alt": "Lines with bands of the best diversity against the number of settings tried, by sampler."}}
ax = figures.budgets(budgets)
_ = figures.source_line(ax, page.source, when)

# %% [markdown]
# ### What our own choices do
#
# The paper leaves some choices open: the numerical precision, what ends an answer, which
# tokenisations count, and how the prompt is worded. The table shows the largest change that each
# choice makes, at temperature 1 without a cutoff.

# %%
sensitive = study.sensitivities(page)
page.show(study.largest_moves(sensitive), digits=1, floor=1e-4)

# %%
page.fold(sensitive.drop(columns="choice"), "The numbers under each choice")

# %% [markdown]
# ### Half precision
#
# Models are often run in bfloat16, which has eight significant bits: between 16 and 32, where the
# largest logits often lie, its numbers are 1/8 apart. The table compares it with float32 at *every*
# setting of the paper's Table 3, and shows the largest change. As long as a cutoff keeps the same
# tokens, only their probabilities change. But near the cutoff many tokens become equal or change
# places, and then other tokens are kept, which can move {term}`validity` far more.

# %%
half = study.precision(page)
page.show(study.moves_by(half, "kept"), digits=2, floor=1e-4)

# %%
page.fold(study.moves_by(half, "kept", "rule"), "The same by rule", digits=2, floor=1e-4)

# %% [markdown]
# So compare samplers in one precision, name it beside the numbers, and prefer a setting whose
# neighbours do about as well: a single point that only one precision reaches is luck. Temperature
# alone drops no token, so it has no such jumps. On another device the products differ too, and the
# same comparison with `-p device=cuda` shows how far.

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
page.glue_each(study.key_numbers(table, points, decoders))

# %% [markdown]
# ## Check it yourself
#
# `python -m calib_utils reproduce --model`, followed by this model's name, measures the rows again.
# To see the structural ceiling, take a model whose order is perfect. In a cell of this page:
#
# ```python
# shape_only = cu.reference_model(cu.UniformOverG(), cu.get_task("us-states"))  # a perfect order
# own = cu.evaluate(shape_only, "us-states", rules=["oracle_size"], temperatures=[1.0])
# print(own.validity[0], own.diversity[0])
# ```
#
# Validity should be 1, and diversity should be the structural ceiling for that model's own
# tokenizer, which is below 1. A {term}`size part` of the oracle, or a setting above the line of
# {numref}`fig-adaptive`, would refute this page. Nothing here refutes that the *paper's* models
# reach (1, 1) on states. To try another validity, add `-p level=0.5` to
# `python -m calib_utils run --model NAME --notebook 03_oracle_cutoffs`.

# %%
print("numbers from", page.source)
