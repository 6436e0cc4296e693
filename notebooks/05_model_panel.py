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
# # All models: does size or training help?
#
# **What the paper claims** (Sec. 4 and 5, Fig. 4, 8, 9). Over 21 checkpoints of four families, 14
# of them post-trained: the area under the precision–recall frontier rises mildly with size, and
# recall at precision 0.8 stays low whatever the size. On four models (of three families; the paper
# says four) the oracle cutoff shows the same two failures, of order and of shape.
#
# **What this page is.** Every model that has results in this checkout, side by side. It reads what
# the other chapters stored and loads no model, so it grows by a row when somebody runs one. A
# model that was not run has no number of ours: the coverage table says which those are, and the
# command that would measure each. What the authors published stands beside ours, drawn open and
# called so.
#
# **What we find.** {glue:text}`models` models have results here, {glue:text}`paper_measured` of
# the paper's {glue:text}`paper_models` checkpoints among them. {glue:text}`headline` Every
# model that can do the tasks has a vote, and so has every task of a model; majorities decide, and
# the table near the end has the counts.
#
# **How to check it** is at the end.

# %% tags=["parameters", "all-results"]
seed = 0  # not used here: nothing is drawn but the bootstrap's resamples, which have their own
results_dir = ""  # where results are read; empty: data/results of this checkout
quick = False  # not used here: reading takes seconds

# %%
import calib_utils as cu
from calib_utils.figures import model_panel as figures
from calib_utils.studies import model_panel as study

figures.use_style()
page = cu.open_page(results_dir=results_dir)
found = study.read(page.store)
when = page.when_measured()

# %% [markdown]
# ## Coverage
#
# The paper's 21 checkpoints and every other model that has results. *Parameters* and *GB* are of
# the language model as it is loaded, weights alone; sizes marked ~ are inferred. First what a run
# takes: `python -m calib_utils forecast --model` and its name.

# %% tags=["nbval-ignore-output"]
covered = cu.coverage(page.store)
page.show(cu.coverage(page.store, for_page=True))

# %% [markdown]
# ## What is read
#
# *Tasks*: of the eight of the chapter on oracle cutoffs. A base model's answers end with the line,
# a chat model's with the end of its turn, as there. *Nodes with labels*: of the chapter on order,
# prompts that a list or a rule decides, and free texts by grammar alone.

# %%
page.show(study.sources(found))

# %%
if len(found.left_out):
    print("left out:")
    print(found.left_out.to_string(index=False))
else:
    print("nothing was left out: all stored rows are of the current convention")

# %% [markdown]
# **What these models can show, and what not.** Models of a laptop's size, most of them in 4 bits.
# Families in two sizes: {glue:text}`size_pairs`. A single pair is no trend, and between families
# size is confounded with everything else. Base models beside their post-trained ones, of the
# {glue:text}`stage_pairs_known` pairs in the paper's panel: {glue:text}`stage_pairs`. Without any,
# nothing is said about training.

# %% [markdown]
# ## Order against size
#
# Area under the precision–recall frontier of the next token, and recall at precision 0.8, one token
# forced. Bars are 95 % intervals over prompts and seeds; fewer than ten prompts have none. The
# black tick is what a {term}`random order` of the same candidates has: where most candidates are
# valid, as among free texts judged by grammar, the area is high without any order. Recall is
# weighted (Def. 4.1); nodes without a valid candidate are in no mean but that of *prevalence_all*;
# *area_gain* is area less that of a random order, *n_runs* counts trees (prompts and seeds). The open
# diamonds are computed from the points that the authors published for two models (one story prompt,
# four prefixes each, ranks to 2,000, their judge): another measurement, beside ours and not
# comparable in height.

# %% mystnb={"figure": {"caption": "Order against size: area under the precision-recall frontier (upper) and recall at precision 0.8 (lower) against parameters, for lists, forms and free texts, with 95 % intervals where ten prompts or more stand behind a mean. Black tick: a random order. Lines join two sizes of one family, or a base model and its post-trained one. Open: the authors' points (compare Fig. 4 and 8 of the paper).", "name": "fig-size"}, "image": {"alt": "Dots with intervals of area and recall against the number of parameters, by family, published points open."}}
order = study.order_table(found)
first = study.sized(order[order.forced == 1], found.models)
pairs = study.size_pairs(found.models) + study.stage_pairs(found.models)
figure = figures.against_size(first, pairs, study.published_order())
_ = figures.source_line(figure.axes[0], page.source, when)

# %%
columns = ["model", "kind", "forced", "depth"]
estimates = order.loc[:, "area":"recall_at_high"].columns
counts = ["n_nodes", "n_undefined", "n_prompts", "n_runs"]
shown = order[[*columns, *estimates, "random_area", "prevalence", "prevalence_all", *counts]]
page.show(page.with_intervals(shown))

# %% [markdown]
# ## Validity and diversity
#
# Every setting of Table 3 and the oracle size. On tasks that a model hardly does, all settings lie
# in the corner, and nothing can be learnt from the order of the curves. The table has the oracle
# size beside the best practical rule. All numbers from here on are exact for the weights: nothing
# is drawn.

# %% mystnb={"figure": {"caption": "Diversity against validity of every setting (dots, by rule) with Pareto frontiers: a row per model, a column per task (compare Fig. 9 of the paper).", "name": "fig-panel-frontiers"}, "image": {"alt": "Grid of scatter plots of diversity against validity, a row per model and a column per task."}}
names = list(dict.fromkeys(found.settings.model))
figure = figures.frontier_panels(found.settings, names, list(study.SHOWN_TASKS))
_ = figures.source_line(figure.axes[0], page.source, when)

# %%
page.show(study.compared(found), digits=2, floor=0.005)

# %% [markdown]
# ## Order, shape and size of the cutoff
#
# Where the loss −ln(Val × Div) of temperature 1 without cutoff lies, in {term}`nats <nat>`, on
# tasks where some setting of the model has a validity of 0.05 or more (chapter *Oracle cutoffs*
# defines the {term}`order part`, the {term}`shape part` and the {term}`size part`).

# %% mystnb={"figure": {"caption": "The loss at temperature 1 without cutoff, in nats, split between order (hatched), shape (plain) and size of the cutoff (dotted), a bar per task and model.", "name": "fig-panel-split"}, "image": {"alt": "Stacked bars of the loss by task and model, split between order, shape and size."}}
splits = study.testable(found, study.split_table(found))
alone = splits[splits.decoder == study.ALONE]
figure = figures.split_of_models(alone)
_ = figures.source_line(figure.axes[0], page.source, when)

# %%
page.show(alone[["task", "model", "validity", "diversity", "total", "order", "shape", "size"]])

# %% [markdown]
# ## Logit shape
#
# The published form fitted to the six queries of App. I (chapter *Logit shape* asks whether it is
# the right one). Above the line ours, below it the 18 published fits, of other models.

# %% mystnb={"figure": {"caption": "R², mean squared error and breakpoint of every model's fits: a dot per query; filled: this book's models; open: as published.", "name": "fig-panel-shape"}, "image": {"alt": "Dots of three measures of fit by model and query, the published ones open."}}
fits = study.shape_table(found)
figure = figures.published_dots(study.beside_published_fits(fits))
_ = figures.source_line(figure.axes[0], page.source, f"{when}; open: arXiv:2605.11128v1")

# %%
page.show(fits[["model", "query", "c", "mse", "r2", "m", "B", "C", "jump"]], digits=3)

# %% [markdown]
# ## Pairs
#
# Differences within pairs: the larger model less the smaller of one family, and the post-trained
# less its base model. Order is paired by prompt and seed, with a bootstrap interval from ten
# prompts on; tasks are paired by task, and counted.

# %%
paired = study.pair_table(found)
of_stages = f"{len(study.stage_pairs(found.models))} of {len(study.pairs())}"
print(f"pairs by size: {len(study.size_pairs(found.models))}; by training: {of_stages}")
page.show(page.with_intervals(paired))

# %% [markdown]
# ## Claims and findings

# %%
claims = study.findings(found)
page.show(claims)

# %% tags=["remove-cell"]
page.glue_verdicts(claims)
page.glue("paper_models", int((covered.panel == "paper").sum()), "{}")
page.glue("paper_measured", int(covered.measured[covered.panel == "paper"].sum()), "{}")
page.glue("models", len(found.models), "{}")
page.glue("size_pairs", len(study.size_pairs(found.models)), "{}")
page.glue("stage_pairs", len(study.stage_pairs(found.models)), "{}")
page.glue("stage_pairs_known", len(study.pairs()), "{}")

# %% [markdown]
# ## Check it yourself
#
# A claim about every model is put to the test by one more. This adds it to every table and figure
# here (`--panel` alone reads the rows again); `forecast` first says what it takes:
#
# ```text
# python -m calib_utils forecast --model Qwen/Qwen3-0.6B
# python -m calib_utils run --model Qwen/Qwen3-0.6B
# ```
#
# *Area rises with size* is refuted where the intervals of most pairs lie below 0, *recall stays
# low* where those of most models lie above one half.
# `python -m calib_utils check --recompute 3` computes three stored tables of each model at hand
# anew, and names what differs by more than two machines may.
#
# ## Summary and provenance
#
# Every row was measured by the chapters of its own model and is stored with the SHA-256 of the
# weights. `python -m calib_utils check` verifies the rows; *Add your model* says how to add one.

# %%
print(f"{len(found.models)} models, none loaded here")
