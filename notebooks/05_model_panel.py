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
# # Across models: do size and training help?
#
# **Question.** Does a larger or a better trained model put valid tokens first, and spread its
# probability over them? On 21 checkpoints of four families, the paper finds that the area under the
# precision–recall frontier rises only a little with size, and that recall at precision 0.8 stays
# low at any size (the paper's Fig. 4 and 8). It finds the same faults of order and shape in four
# models (the paper's Fig. 9).
#
# **Answer.** The number of models with results here is {glue:text}`models`. Among them,
# {glue:text}`size_pairs` pairs are two sizes of one family, and {glue:text}`stage_pairs` are a base
# model and its post-trained version; of the paper's {glue:text}`paper_models` checkpoints
# {glue:text}`paper_measured` were run. Of the {glue:text}`claims` claims about models
# {glue:text}`reproduced` are reproduced, {glue:text}`not_reproduced` are not, and
# {glue:text}`not_decided` are not decided; the claims about size need several pairs of one family.

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

# %% mystnb={"figure": {"caption": "Order against size: area under the precision-recall frontier of the first token (upper) and recall at precision 0.8 (lower) against parameters, for lists, forms and free texts, with 95 % intervals where ten prompts or more stand behind a mean. Black tick: a random order. Lines join two sizes of one family, or a base model and its post-trained one. Open: the authors' points (compare the paper's Fig. 4 and 8).", "name": "fig-size"}, "image": {"alt": "Dots with intervals of area and recall against the number of parameters, by family, published points open."}}
order = study.order_table(found)
first = study.sized(order[order.forced == 1], found.models)
pairs = study.size_pairs(found.models) + study.stage_pairs(found.models)
figure = figures.against_size(first, pairs, study.published_order())
_ = figures.source_line(figure.axes[0], page.source, when)

# %% [markdown]
# ## How we know
#
# ### What is compared
#
# This page reads what the other chapters stored for every model. Most are 4-bit models that fit on
# a laptop. The first table has all models, and for each one the command that would measure it.
# Sizes marked ~ are inferred.

# %% tags=["nbval-ignore-output"]
covered = cu.coverage(page.store)
page.fold(cu.coverage(page.store, for_page=True), "The paper's models and ours: what is measured")

# %% [markdown]
# *Tasks* counts the measured tasks of the chapter on oracle cutoffs, out of eight. *Nodes with
# labels* counts the steps of the chapter on order.

# %%
page.fold(study.sources(found), "What is read of each model, and the SHA-256 of its weights")

# %%
if len(found.left_out):
    print("left out:")
    print(found.left_out.to_string(index=False))
else:
    print("nothing was left out: all stored rows are of the current convention")

# %% [markdown]
# ### Order against size
#
# In the figure above, the black tick is the area of a {term}`random order` of the same candidates.
# Most free texts pass the grammar checker, so their area is high even for a random order. The open
# diamonds are computed from the points that the authors publish for two models. They have another
# prompt, other ranks and another judge, so their height cannot be compared with ours. The chapter
# on order explains the columns of the table.

# %%
columns = ["model", "kind", "forced", "depth"]
estimates = order.loc[:, "area":"recall_at_high"].columns
counts = ["n_nodes", "n_undefined", "n_prompts", "n_runs"]
shown = order[[*columns, *estimates, "random_area", "prevalence", "prevalence_all", *counts]]
page.fold(page.with_intervals(shown), "Order by model, kind of prompt and step")

# %% [markdown]
# ### Validity and diversity
#
# {numref}`fig-panel-frontiers` shows every setting of the paper's Table 3 and the
# {term}`oracle-size cutoff`. All numbers from here on are exact for the weights, since nothing is
# sampled.

# %% mystnb={"figure": {"caption": "Diversity against validity of every setting (dots, by rule) with Pareto frontiers, a panel per task and model (compare the paper's Fig. 9).", "name": "fig-panel-frontiers"}, "image": {"alt": "Grid of scatter plots of diversity against validity, a panel per task and model."}}
names = list(dict.fromkeys(found.settings.model))
figure = figures.frontier_panels(found.settings, names, list(study.SHOWN_TASKS))
_ = figures.source_line(figure.axes[0], page.source, when)

# %%
beside = study.compared(found)
page.fold(beside, "The oracle size beside the best practical rule", digits=2, floor=0.005)

# %% [markdown]
# ### Order, shape and size of the cutoff
#
# Where does a model lose validity and diversity at temperature 1 without any cutoff? The loss
# −ln(Val × Div), in {term}`nats <nat>`, splits into an {term}`order part`, a {term}`shape part` and
# a {term}`size part`. Tasks on which no setting of the model has a validity of 0.05 are left out.

# %% mystnb={"figure": {"caption": "The loss at temperature 1 without cutoff, in nats, split between order (hatched), shape (plain) and size of the cutoff (dotted), a bar per task and model.", "name": "fig-panel-split"}, "image": {"alt": "Stacked bars of the loss by task and model, split between order, shape and size."}}
splits = study.testable(found, study.split_table(found))
alone = splits[splits.decoder == study.ALONE]
figure = figures.split_of_models(alone)
_ = figures.source_line(figure.axes[0], page.source, when)

# %%
parts = alone[["task", "model", "validity", "diversity", *study.PARTS]]
page.fold(parts, "The loss and its parts, by task and model")

# %% [markdown]
# ### Logit shape
#
# The paper fits a line and then a logarithm to the sorted logits of six queries (its App. I); the
# chapter on logit shape asks whether this is the right form. Below our fits the table has the 18
# that the paper publishes, which are of other models.

# %% mystnb={"figure": {"caption": "R², mean squared error and breakpoint of every model's fits: a dot per query; filled: this book's models; open: as published.", "name": "fig-panel-shape"}, "image": {"alt": "Dots of three measures of fit by model and query, the published ones open."}}
fits = study.shape_table(found)
figure = figures.published_dots(study.logit_shape.beside_published(fits, fits.model))
_ = figures.source_line(figure.axes[0], page.source, f"{when}; open: arXiv:2605.11128v1")

# %%
fitted = fits[["model", "query", "c", "mse", "r2", "m", "B", "C", "jump"]]
page.fold(fitted, "The fitted form, by model and query", digits=3)

# %% [markdown]
# ### Pairs of models
#
# The fairest comparison is within a pair: a larger and a smaller model of one family, or a
# post-trained model and its base model. Order is compared prompt by prompt; for tasks, *over*
# counts those on which the second model's number is larger. The paper has
# {glue:text}`stage_pairs_known` pairs of a base model and its post-trained version; without any of
# them, this page says nothing about training.

# %%
paired = study.pair_table(found)
of_stages = f"{len(study.stage_pairs(found.models))} of {len(study.pairs())}"
print(f"pairs by size: {len(study.size_pairs(found.models))}; by training: {of_stages}")
page.show(page.with_intervals(paired))

# %% [markdown]
# ## Claims and findings
#
# Each model that can do the tasks has one vote, which the majority of its tasks decides. The
# majority of the models decides the claim.

# %%
claims = study.findings(found)
page.show_findings(claims)

# %% tags=["remove-cell"]
page.glue_verdicts(claims)
in_paper = covered[covered.panel == "paper"]
size_pairs, stage_pairs = study.size_pairs(found.models), study.stage_pairs(found.models)
page.glue_each({"models": len(found.models), "paper_models": len(in_paper)}, "{}")
page.glue_each({"size_pairs": len(size_pairs), "stage_pairs": len(stage_pairs)}, "{}")
page.glue("paper_measured", int(in_paper.measured.sum()), "{}")
page.glue("stage_pairs_known", len(study.pairs()), "{}")

# %% [markdown]
# ## Check it yourself
#
# One more model tests the claims about all models. `forecast` says how long it takes, and `run`
# adds it to every table and figure here (`run --panel` reads the stored rows again):
#
# ```text
# python -m calib_utils forecast --model Qwen/Qwen3-0.6B
# python -m calib_utils run --model Qwen/Qwen3-0.6B
# ```
#
# If the intervals of most pairs lie below 0, this refutes the claim that the area rises with size.
# If those of most models lie above one half, this refutes the claim that recall stays low.
# `python -m calib_utils check --recompute 3` computes three stored tables of each available model
# again, and names what differs by more than two machines may.
#
# [Add your model](../add_your_model.md) has the details.

# %%
print(f"{len(found.models)} models, none loaded here")
