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
# # Temperature: what heat buys and costs
#
# **Question.** Raising the temperature makes a model's answers more varied. How many right answers
# does that cost, and is there a temperature that gives both? The paper claims (Sec. 5, the paper's
# Fig. 5 and 10) that a higher temperature gives probability to invalid answers faster than it
# spreads the valid ones, and that this exchange is worse for longer answers and for answers with a
# constraint.
#
# **Answer.** Asked for a random US state at temperature 1, without a cutoff, this model gives a
# valid answer with probability {glue:text}`validity_us-states`, and its valid answers are as varied
# as about {glue:text}`states_alike` equally likely states out of 50. Raising its temperature from T
# = 0.5 to 1.6 changes its {term}`validity` on the states from {glue:text}`cool_validity` to
# {glue:text}`hot_validity`, and its {term}`diversity` from {glue:text}`cool_diversity` to
# {glue:text}`hot_diversity`. Validity and diversity reach 0.9 at the same temperature
# {glue:text}`reached_both`; of the paper's claims below, {glue:text}`reproduced` are reproduced,
# {glue:text}`not_reproduced` are not, {glue:text}`not_decided` are not decided, and
# {glue:text}`excluded` are about tasks that this model cannot do.

# %% tags=["parameters"]
model = "qwen2.5-coder-0.5b-instruct"  # embedded name, hub id, local folder or .gguf file
revision = ""  # hub commit or tag; empty: the default branch
dtype = "float32"  # of the forward pass
device = "auto"  # cuda, mps or cpu
chat = None  # True, False: with or without the chat template; None: by the model's stage
seed = 0  # not used here: nothing is drawn
results_dir = ""  # where rows are stored and reused; empty: data/results of this checkout
quick = False  # two digits only
end = ""  # what closes an answer: eos, line or none; empty: line for a base model, else eos

# %%
import calib_utils as cu
from calib_utils.figures import controlled_tasks as figures
from calib_utils.studies import controlled_tasks as study

figures.use_style()
options = {"revision": revision, "dtype": dtype, "device": device, "chat": chat}
page = cu.open_page(model, results_dir=results_dir, end=end, **options)
tasks = study.task_names(lengths=(2,) if quick else (2, 3, 4))

# %%
curves = study.temperature_curves(page, tasks)
when = page.when_measured(tasks)

# %% mystnb={"figure": {"caption": "Diversity against validity as temperature rises from 0.01 to 4: random digits of length 2, 3 and 4, without (solid) and with (dashed) a bound on their sum. Dots, from small to large: T = 0.5, 1 and 1.6. Star: a perfect model. Curves nearer to the axes are worse (compare the paper's Fig. 5, left).", "name": "fig-val-div"}, "image": {"alt": "Curves of diversity against validity under temperature for six digit tasks, with a star at 1 and 1."}}
digits = curves[curves.family.isin(["unconstrained", "sum at most 10"])]
ax = figures.validity_diversity(digits)
_ = figures.source_line(ax, page.source, when)

# %% [markdown]
# ## How we know
#
# ### The tasks
#
# The {term}`valid set` of every task is known exactly: two to four random digits, free or with a
# constraint on their sum, and the 50 US states. One forward pass per prefix gives the probability
# of every valid answer at every temperature. Nothing is sampled, so these numbers have no interval.
#
# In tables, `rng-3` means three random digits; `cu.evaluate` takes the same names.
#
# The paper's constrained prompt asks for a sum of *at most* some number, while its text says
# *equals*, and the number is not given. We measured both wordings with a sum of 10.
#
# The table below needs no model. It shows how many answers are valid, and how many tokens are valid
# at each step. Its last columns are the diversity of two models that never err. The first is
# uniform over the valid tokens of each step (`uniform_over_g`); its diversity, the
# {term}`structural ceiling`, is below 1 if some tokens lead to more answers than others. The second
# gives each token its share of the answers and reaches 1 (`weighted_by_n`).

# %%
facts = cu.structural_facts(page.model, tasks, end=page.end)
page.fold(facts, "Answers, valid tokens and ceiling of each task", digits=3)

# %% [markdown]
# ### Every task along its temperatures
#
# {numref}`fig-val-div` has the tasks of the paper's figure, and {numref}`fig-val-div-others` the
# others. The *area* under a curve sums it up in one number: it is the best diversity at a validity
# of at least v, averaged over all v.

# %% mystnb={"figure": {"caption": "The same for tasks that are not in the paper's figure: digits whose sum must equal 10 (dotted), and US states (solid).", "name": "fig-val-div-others"}, "image": {"alt": "Curves of diversity against validity under temperature for sums that must be equal and for US states."}}
others = curves[curves.family.isin(["sum equals 10", "states"])]
ax = figures.validity_diversity(others)
_ = figures.source_line(ax, page.source, when)

# %%
summary = study.curve_summary(curves)
shown = summary.drop(columns=["family", "length"])
page.fold(shown, "Best validity of each task, and the area under its curve", digits=3)

# %% [markdown]
# ### Where the probability goes
#
# The two figures sort the valid answers by probability. With {term}`shape calibration` at every
# prefix all answers would lie on the dashed line.

# %%
answers = study.answer_profiles(page, tasks)

# %% mystnb={"figure": {"caption": "Two random digits: probability of each of the 100 valid answers by rank, on a logarithmic axis, at four temperatures. Dashed: the probability of each answer if all were equally likely. Each title gives the probability of all invalid answers (compare the paper's Fig. 5, right, and Fig. 10).", "name": "fig-profile-rng"}, "image": {"alt": "Four panels of answer probabilities by rank with a dashed uniform level, one for each temperature."}}
figure = figures.answer_profiles(answers, "rng-2")
_ = figures.source_line(figure.axes[0], page.source, when)

# %% mystnb={"figure": {"caption": "The same for the 50 US states (compare the paper's Fig. 10).", "name": "fig-profile-states"}, "image": {"alt": "Four panels of the probabilities of the US states by rank, one for each temperature."}}
figure = figures.answer_profiles(answers, "us-states")
_ = figures.source_line(figure.axes[0], page.source, when)

# %% tags=["remove-cell"] mystnb={"figure": {"caption": "US states at temperature 1 alone, for the summary.", "name": "fig-profile-one"}, "image": {"alt": "Probabilities of the US states by rank at temperature 1, beside a uniform level."}}
figure = figures.answer_profiles(answers, "us-states", [1.0])
_ = figures.source_line(figure.axes[0], page.source, when)

# %% [markdown]
# ### Closed lists
#
# Digits and states are only a few tasks. Do the findings hold for others? Each of
# {glue:text}`lists` more tasks asks for one entry of a closed list, such as *name a planet*, with
# {glue:text}`least` to {glue:text}`most` answers. A list counts if the model can do it, which means
# a validity of 0.05 or more at some temperature. Means have a 95 % interval over lists.

# %%
list_curves = study.list_curves(page, study.LISTS[:2] if quick else study.LISTS)
by_list = study.list_table(page, list_curves)
none_done = "This model does none of the lists at any temperature, so they say nothing about it."
page.show(study.over_lists(by_list), empty=none_done)

# %%
page.fold(by_list.drop(columns="best validity"), "The same, list by list")

# %% [markdown]
# ### What ends an answer
#
# The paper does not say whether the {term}`end token` belongs to an answer. In this book it does
# (`eos`). A base model rarely ends its text, so for base models we also accept any token that
# starts with a line break (`line`). The chapter on oracle cutoffs measures how much this choice
# changes the numbers.
#
# ## Claims and findings
#
# Every task has one vote, the majority decides, and the count is shown. A task whose validity stays
# below 0.05 at every temperature is excluded by name, because a model that does not keep to the
# format says nothing about the effect of length. Areas compare whole curves; the curves themselves
# may cross.

# %%
found = study.findings(curves, answers)
page.show_findings(found)

# %% tags=["remove-cell"]
page.glue_each(study.key_numbers(curves, summary), "{:.2g}")
page.glue_verdicts(found)
page.glue_each(
    {"lists": len(by_list), "least": by_list.answers.min(), "most": by_list.answers.max()}, "{}"
)

# %% [markdown]
# ## Check it yourself
#
# `python -m calib_utils reproduce --model`, followed by this model's name, computes all stored
# numbers of this model again from the weights. It prints the largest difference, and the difference
# that two machines may have; if the first is larger, a number on this page is wrong. You can also
# test a task of your own. Put this into a cell of this page:
#
# ```python
# names = ["red", "orange", "yellow", "green", "blue", "purple"]
# prompt = "Name a colour of the rainbow. Answer with one lowercase word. Answer:"
# cu.evaluate(page.model, cu.Task("colours", prompt, names), temperatures=[0.3, 0.6, 1.0, 1.6, 2.5])
# ```
#
# Validity should fall at high temperatures, and diversity should rise at first. A task with
# validity *and* diversity of 0.9 or more at one temperature would refute the claim that no
# temperature reaches both. A task whose valid answers are about equally likely would refute the
# claim that a few answers have most of the probability.
#
# Stored rows are reused only if the weights, the prompt, the answer tokens, the number format and
# the convention are the same.

# %%
print("numbers from", page.source)
