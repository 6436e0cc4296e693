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
# # Levers: what should I change if I want diversity?
#
# **What the paper claims** (Sec. 5, Fig. 6 and 9). A model gives few of the valid answers because of
# the order and the shape of its next-token distribution, and under one prompt neither temperature
# nor any cutoff brings back both validity and diversity. A user cannot retrain the model, and asks
# which knob to turn: the temperature, a cutoff, the words of the prompt, or many prompts instead of
# one. This chapter goes beyond the paper.
#
# **What we find.** On the {glue:text}`able` closed lists that this model can do, with
# {glue:text}`budget` settings tried of each lever and validity of at least 0.8, the largest
# diversity comes from {glue:text}`best_lever`: {glue:text}`best_diversity`, where temperature
# alone gives {glue:text}`temperature_diversity` and the best single sampler
# ({glue:text}`best_sampler`) {glue:text}`sampler_diversity`. At validity 0.95 it is
# {glue:text}`best_lever_95` with {glue:text}`best_diversity_95`. Left as it is, the model has
# validity {glue:text}`alone_validity` and diversity {glue:text}`alone_diversity`.
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
quick = False  # two lists only
end = ""  # what closes an answer: eos, line or none; empty: line for a base model, else eos

# %%
import calib_utils as cu
from calib_utils.figures import levers as figures
from calib_utils.studies import levers as study

figures.use_style()
options = {"revision": revision, "dtype": dtype, "device": device, "chat": chat}
page = cu.open_page(model, results_dir=results_dir, end=end, **options)
tasks = study.QUICK_TASKS if quick else study.TASKS

# %% [markdown]
# ## What is turned
#
# Every task is a closed list: *name a planet*, *name a currency*. All valid answers are known, so
# validity and diversity are exact, of a mixture of prompts too: whoever draws one of several
# prompts at random before each answer samples from the mean of their distributions.
#
# - *wording*: the same request in other words, thirteen of them, the same templates for all lists.
# - *mixture of wordings*, *mixture of seeds*: a prompt drawn anew for each answer, from the
#   wordings, or from the standard one with one of six random strings below it.
# - *temperature*, and the cutoffs of the paper's Table 3, each with its temperatures.
#
# Lists on which none of these settings brings the standard wording to a validity of 0.05 are left
# out: the model cannot do them.
#
# A lever with more settings has more chances. So each is given the same budget, and what counts is
# the expected best of that many of its settings, 0 where none is valid enough.

# %%
table, shipped = study.settings(page, tasks)
able, unable = study.done(table)
found = study.answers(page, able)
settings = study.levers(found, table[table.task.isin(able)])
print(
    f"{len(able)} lists;",
    "left out, validity below 0.05 at every setting:",
    ", ".join(unable) or "none",
)

# %% mystnb={"figure": {"caption": "Diversity at a validity of at least 0.8 (left) and 0.95 (right), mean over the lists that the model can do, with 95 % intervals over lists; five settings tried of each lever.", "name": "fig-levers"}, "image": {"alt": "Dots with intervals of the diversity that each lever reaches at two levels of validity."}}
compared = study.compared(settings)
if len(compared):
    figure = figures.lever_dots(compared)
    _ = figures.source_line(figure.axes[0], page.source)
else:
    print("This model can do none of the lists: there is nothing to compare.")

# %% [markdown]
# *gain*: what a lever adds to temperature alone, list by list.

# %%
page.show(page.with_intervals(compared))

# %% [markdown]
# List by list: from the standard prompt at temperature 1 to the most diverse setting of any lever
# with validity 0.8.

# %% mystnb={"figure": {"caption": "Each list as it is (dots) and at the most diverse setting of any lever with validity 0.8 or more (squares).", "name": "fig-lever-tasks"}, "image": {"alt": "Arrows in the plane of validity and diversity, one per list."}}
before, after = study.before_and_after(settings)
figure = figures.task_arrows(before, after)
_ = figures.source_line(figure.axes[0], page.source)

# %%
page.show(study.choices(before, after))

# %% [markdown]
# ## Sampler cards
#
# Where each sampler stands on these lists: as engines and models ship them, in their own order of
# operations (a repetition penalty left out, since it depends on the whole text), and each family of
# Table 3 at its best setting for a validity. One setting for all lists, as a user has it.

# %%
page.show(study.cards(table, shipped))

# %% tags=["remove-cell"]
page.glue_each(study.headline(compared, settings, len(tasks)), "{}")

# %% [markdown]
# ## Check it yourself
#
# A mixture is a sampler: draw a prompt, then an answer. Drawn frequencies should scatter around the
# exact validity of the mixture.
#
# ```python
# import numpy as np
#
# prompts = [p for name, p in study.prompts_of(tasks[0]).items() if name.startswith("seed")]
# draws = [d for p in prompts for d in cu.sample_answers(page.model, p, 50, end=page.end)]
# np.mean([draw in prompts[0].answers for draw in draws])
# settings.query("lever == 'mixture of seeds' and setting == 'T=1' and task == @tasks[0]")
# ```
#
# Your own list: `cu.Task(name=…, prompt=…, answers=[…])`, and `cu.answer_probabilities` of it under
# each of your prompts.
#
# ## Summary and provenance

# %%
print("numbers from", page.source)
