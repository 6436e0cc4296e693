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
# # Controlled tasks: what temperature buys and costs
#
# **What the paper claims** (Sec. 5, Fig. 5 and 10). Where the {term}`valid set` is known exactly,
# a model puts most of its valid mass on few answers. Temperature spreads it, but feeds the invalid
# tail faster; longer answers and a constraint on them make the exchange worse.
#
# **What we find.** At temperature 1 and without a cutoff, {term}`validity` on US states is
# {glue:text}`validity_us-states` and {term}`diversity` {glue:text}`diversity_us-states`.
# {glue:text}`headline` The numbers that decide each claim are in the table near the end. All
# probabilities are exact for the weights named under each figure, so there is no sampling error
# and no interval.
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

# %% [markdown]
# ## The tasks, before any model runs
#
# The paper's constrained prompt says *at most* where its text says *equals*, and it does not give
# the sum; both wordings are here, with 10. Three things are fixed by the answers and the tokenizer
# alone: how many valid answers there are, how many tokens are valid at each step, and how diverse
# a *perfectly ordered* model would be that is uniform over the valid tokens of each step. That
# last number, the {term}`structural ceiling`, is below 1 wherever some tokens lead to more answers
# than others: it is where heat leads a rule that knows only *how many* tokens are valid. A model
# whose probabilities are proportional to the number of continuations, `weighted_by_n`, reaches 1.

# %%
facts = cu.structural_facts(page.model, tasks, end=page.end)
page.show(facts, digits=3)

# %% [markdown]
# ## Validity against diversity under temperature
#
# One forward pass per prefix gives the probability of every valid answer at every temperature. The
# dots in {numref}`fig-val-div` are T = 0.5, 1 and 1.6, growing; the star is where a calibrated
# model would be. Area is what lies under a curve, without interpolation.

# %%
curves = study.temperature_curves(page, tasks)
summary = study.curve_summary(curves)
when = page.when_measured(tasks)
page.show(summary.drop(columns=["family", "length"]), digits=3)

# %% mystnb={"figure": {"caption": "Diversity against validity as temperature rises from 0.01 to 4: digits of length 2, 3 and 4, without (solid) and with (dashed) a bound on their sum. Dots: T = 0.5, 1 and 1.6, growing. Star: a calibrated model. Curves nearer to the axes are worse (compare Fig. 5 left of the paper).", "name": "fig-val-div"}, "image": {"alt": "Curves of diversity against validity under temperature for six digit tasks, with a star at 1 and 1."}}
digits = curves[curves.family.isin(["unconstrained", "sum at most 10"])]
ax = figures.validity_diversity(digits)
_ = figures.source_line(ax, page.source, when)

# %% mystnb={"figure": {"caption": "The same for the tasks that the paper's figure leaves out: a sum that must be equal (dotted), and US states (solid).", "name": "fig-val-div-others"}, "image": {"alt": "Curves of diversity against validity under temperature for sums that must be equal and for US states."}}
others = curves[curves.family.isin(["sum equals 10", "states"])]
ax = figures.validity_diversity(others)
_ = figures.source_line(ax, page.source, when)

# %% [markdown]
# ## Where the mass sits
#
# The valid answers by rank. Under {term}`shape calibration` at every prefix, all would stand at
# the dashed uniform level. What is missing below it has gone to invalid outputs: the tail named
# above each panel.

# %%
answers = study.answer_profiles(page, tasks)

# %% mystnb={"figure": {"caption": "Two random digits: probability of each of the 100 valid answers by rank, on a logarithmic axis, at four temperatures. Dashed: what each would have were all equally likely. The title gives what invalid outputs hold (compare Fig. 5 right and 10 of the paper).", "name": "fig-profile-rng"}, "image": {"alt": "Four panels of answer probabilities by rank with a dashed uniform level, one for each temperature."}}
figure = figures.answer_profiles(answers, "rng-2")
_ = figures.source_line(figure.axes[0], page.source, when)

# %% mystnb={"figure": {"caption": "The same for two random digits with a sum of at most 10.", "name": "fig-profile-sum"}, "image": {"alt": "Four panels of answer probabilities by rank for digits with a bounded sum, one for each temperature."}}
figure = figures.answer_profiles(answers, "rng-2-sum-at-most-10")
_ = figures.source_line(figure.axes[0], page.source, when)

# %% mystnb={"figure": {"caption": "The same for the 50 US states (compare Fig. 10 of the paper).", "name": "fig-profile-states"}, "image": {"alt": "Four panels of the probabilities of the US states by rank, one for each temperature."}}
figure = figures.answer_profiles(answers, "us-states")
_ = figures.source_line(figure.axes[0], page.source, when)

# %% [markdown]
# ## More tasks: closed lists
#
# Digits and states are few tasks, and alike. {glue:text}`lists` closed lists, of {glue:text}`least`
# to {glue:text}`most` answers each, say how far the findings carry: *name a planet*, *name a
# currency*. Means with 95 % intervals over the lists that the model can do.

# %%
list_curves = study.list_curves(page, study.LISTS[:2] if quick else study.LISTS)
by_list = study.list_table(page, list_curves)
page.show(study.over_lists(by_list))

# %% [markdown]
# List by list: *lost* and *won* are what heating from T = 0.5 to 1.6 takes of validity and gives of
# diversity, *both* is the best of min(Val, Div), *half* the share of the answers that hold half of
# the valid mass at T = 1.

# %% tags=["hide-output"]
page.show(by_list.drop(columns="best validity"))

# %% [markdown]
# ## What ends an answer
#
# The paper does not say whether the {term}`end token` is part of a sequence. It is here (`eos`). A
# base model rarely ends a turn, so for one this book takes `line`, which also accepts any token
# that starts with a line break; `none` counts an answer as soon as it is written, whatever follows.

# %%
ends = study.end_policies(page)
page.show(ends[["task", "end", "validity", "diversity"]], digits=3)

# %% [markdown]
# ## Claims and findings
#
# Every task has a vote, the majority decides, and the count is shown. Tasks whose validity stays
# below 0.05 at every temperature are excluded by name: a model that breaks the format asked for
# says nothing about the price of length. Areas compare whole curves, which may cross.

# %%
found = study.findings(curves, answers)
page.show(found)

# %% tags=["remove-cell"]
page.glue_each(study.key_numbers(curves, summary), "{:.2g}")
page.glue_verdicts(found)
page.glue_each(
    {"lists": len(by_list), "least": by_list.answers.min(), "most": by_list.answers.max()}, "{}"
)

# %% [markdown]
# ## Check it yourself
#
# `python -m calib_utils reproduce --model` and this model's name computes everything stored for it
# anew from the weights and prints the largest difference, in nats, beside the one that two
# machines may have; above that a number on this page would be wrong. The claims are about models
# and not about digits, so a task of your own is a fair test. In a cell of this page:
#
# ```python
# names = ["red", "orange", "yellow", "green", "blue", "purple"]
# prompt = "Name a colour of the rainbow. Answer with one lowercase word. Answer:"
# cu.evaluate(page.model, cu.Task("colours", prompt, names), temperatures=[0.3, 0.6, 1.0, 1.6, 2.5])
# ```
#
# Expect validity to fall in the end, and diversity to rise with temperature at first. A task that the model
# does (validity above 0.05) with validity *and* diversity at 0.9 or more at one temperature
# refutes *no temperature reaches both*; one whose valid answers share their mass evenly refutes *a
# few hold most*.
#
# ## Provenance
#
# Rows are stored with the hash of the weights, of the prompt and of the answer tokens, with the
# number format and with the convention that they were computed under; they are reused only where
# all of these match.

# %%
print(study.provenance(page, tasks))
