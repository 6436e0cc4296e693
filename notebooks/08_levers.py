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
# # Levers: what to change for more diversity
#
# **Question.** The paper shows that with one prompt neither temperature nor a cutoff gives both
# validity and diversity (the paper's Fig. 6 and 9). What should a user change who cannot retrain
# the model: the temperature, the cutoff, the wording of the prompt, or should many prompts replace
# one? We call these changes levers.
#
# **Answer.** This model can do {glue:text}`able` closed lists. Without any change, at temperature
# 1, its validity on them is {glue:text}`alone_validity` and its diversity
# {glue:text}`alone_diversity`. With {glue:text}`budget` settings tried of each lever and a validity
# of at least 0.8, the largest diversity comes from {glue:text}`best_lever`:
# {glue:text}`best_diversity`; temperature alone gives {glue:text}`temperature_diversity`, and the
# best cutoff ({glue:text}`best_sampler`) {glue:text}`sampler_diversity`. At a validity of at least
# 0.95 it comes from {glue:text}`best_lever_95`: {glue:text}`best_diversity_95` (95 % intervals over
# lists in brackets).

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

# %%
table, shipped = study.settings(page, tasks)
able, unable = study.done(table)
found = study.answers(page, able)
settings = study.levers(found, table[table.task.isin(able)])
compared = study.compared(settings)

# %% mystnb={"figure": {"caption": "Diversity at a validity of at least 0.8 (left) and 0.95 (right), mean over the lists that the model can do, with 95 % intervals over lists; five settings tried of each lever.", "name": "fig-levers"}, "image": {"alt": "Dots with intervals of the diversity that each lever reaches at two levels of validity."}}
if len(compared):
    figure = figures.lever_dots(compared)
    _ = figures.source_line(figure.axes[0], page.source)
else:
    print(study.NOTHING)

# %% [markdown]
# ## How we know
#
# ### The levers
#
# Every task is a closed list: *name a planet*, *name a currency*. All valid answers are known, so
# validity and diversity are exact. This also holds for a mixture of prompts: if one of several
# prompts is drawn at random before each answer, the answers have the mean of their distributions.
# These are the levers:
#
# - *wording* asks the same question in other words, with thirteen templates that are the same for
#   all lists;
# - *mixture of wordings* draws a new wording for each answer, and *mixture of seeds* draws one of
#   six random strings that are written below the standard wording;
# - *temperature*, and the {term}`cutoffs <cutoff>` of the paper's Table 3 (top-k, top-p or nucleus
#   sampling, min-p), each with its temperatures.
#
# A lever with more settings has more chances to look good. So each has the same budget: we compare
# the expected best of that many settings, where a setting that is not valid enough counts as 0. A
# list is left out if no temperature and no cutoff reaches a validity of 0.05 with the standard
# wording, because the model cannot do it.

# %%
print(len(able), "lists; left out:", ", ".join(unable) or "none")

# %% [markdown]
# In the table, *gain* is the diversity of a lever minus that of temperature alone, list by list.

# %%
page.fold(page.with_intervals(compared), "Every lever at both levels of validity")

# %% [markdown]
# ### List by list
#
# How much is possible on a single list? The arrows go from the standard prompt at temperature 1 to
# the most diverse setting of any lever with a validity of at least 0.8.

# %% mystnb={"figure": {"caption": "Each list as it is (dots) and at the most diverse setting of any lever with validity 0.8 or more (squares).", "name": "fig-lever-tasks"}, "image": {"alt": "Arrows in the plane of validity and diversity, one per list."}}
before, after = study.before_and_after(settings)
if len(after):
    figure = figures.task_arrows(before, after)
    _ = figures.source_line(figure.axes[0], page.source)
else:
    print(study.NOTHING)

# %%
page.fold(study.choices(before, after), "The most diverse setting of each list")

# %% [markdown]
# ### One setting for all lists
#
# In practice one setting is used for all lists. The table first shows the default samplers of
# engines and models, in their own order of operations. Then it shows each kind of cutoff of the
# paper's Table 3, at its most diverse setting that is valid enough on most lists. Repetition
# penalties are left out, since they depend on the whole text.

# %%
cards = study.cards(table, shipped)
page.show(cards) if len(cards) else print(study.NOTHING)

# %% [markdown]
# ## Claims and findings
#
# This chapter goes beyond the paper and decides none of its claims. A lever helps this model if the
# interval of its *gain* in the folded table lies above 0.

# %% tags=["remove-cell"]
page.glue_each(study.headline(compared, settings, len(tasks)), "{}")

# %% [markdown]
# ## Check it yourself
#
# A mixture is a sampler: draw a prompt, then an answer. The share of valid draws should scatter
# around the exact validity of the mixture.
#
# ```python
# prompts = [p for name, p in study.prompts_of(tasks[0]).items() if name.startswith("seed")]
# draws = [cu.sample_answers(page.model, p, 50, end=page.end) for p in prompts]
# print(sum(own.answer.notna().mean() for own in draws) / len(draws))
# settings.query("lever == 'mixture of seeds' and setting == 'T=1' and task == @tasks[0]")
# ```
#
# For your own list, make a `cu.Task(name=…, prompt=…, answers=[…])` for each of your prompts, and
# compare their `cu.answer_probabilities`.

# %%
print("numbers from", page.source)
