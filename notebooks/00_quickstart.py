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
# # Quickstart: one prompt, two numbers
#
# **Question.** Ask a language model for two random digits. There are exactly 100 right answers, so
# we can ask how much of its probability goes to right answers ({term}`validity`), and how evenly it
# spreads that part over the 100 ({term}`diversity`). The paper claims that temperature and cutoffs
# trade one for the other and bring no model to both (the paper's Fig. 5 and 6).
#
# **Answer.** At temperature 1 this model's validity is {glue:text}`validity` and its diversity
# {glue:text}`diversity`, where 1 would be perfect for both. Neither number needs sampling or a
# judge, because the probability of every right answer is read off the model. Drawing
# {glue:text}`draws` answers and counting the right ones puts validity between
# {glue:text}`drawn_low` and {glue:text}`drawn_high`.

# %% tags=["parameters"]
model = "qwen2.5-coder-0.5b-instruct"  # embedded name, hub id, local folder or .gguf file
revision = ""  # hub commit or tag; empty: the default branch
dtype = "float32"  # of the forward pass
device = "auto"  # cuda, mps or cpu
chat = None  # True, False: with or without the chat template; None: by the model's stage
seed = 0  # of the draws in the cross-check
results_dir = ""  # not used here: this page always computes live
quick = False  # fewer draws
end = ""  # what closes an answer: eos, line or none; empty: line for a base model, else eos

# %%
import calib_utils as cu
from calib_utils.figures import controlled_tasks as figures
from calib_utils.studies import controlled_tasks as study

figures.use_style()
options = {"revision": revision, "dtype": dtype, "device": device, "chat": chat}
page = cu.open_page(model, results_dir=results_dir, end=end, **options)
task = cu.get_task("rng-2")

# %%
temperatures = [0.3, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 2.0]
table = cu.evaluate(page.model, task, temperatures=temperatures, end=page.end)

# %% mystnb={"figure": {"caption": "Two random digits, no cutoff: validity (circles) and diversity (squares) against temperature. Temperature spreads the probability, over wrong answers as well as over right ones.", "name": "fig-quickstart"}, "image": {"alt": "Line chart of validity and diversity of two random digits against temperature."}}
ax = figures.temperature_response(table)
_ = figures.source_line(ax, page.source, page.live())

# %% [markdown]
# ## How we know
#
# ### What the model sees
#
# The model gets one user message in its own chat template; a base model gets the bare prompt. An
# answer is its tokens plus what ends it: the token that closes the turn, or a line break for a base
# model.

# %%
cu.show_prompt(page.model, task, end=page.end)

# %% [markdown]
# ### What temperature does
#
# Raising the temperature flattens the distribution of the next token. Watch both numbers.

# %%
page.show(table[["temperature", "validity", "diversity"]])

# %% [markdown]
# ### What a cutoff does
#
# A {term}`cutoff` throws low-ranked tokens away before sampling. Every rule keeps other tokens, so
# every rule has another price. *Sequence recall* is the share of the 100 answers that survive it.
# The {term}`oracle-size cutoff` is told how many tokens are valid, but not which.

# %%
rules = [cu.NoCutoff(), cu.TopK(10), cu.TopP(0.9), cu.MinP(0.1), cu.OracleSize()]
cutoffs = cu.evaluate(page.model, task, rules=rules, temperatures=[1.0], end=page.end)
page.show(cutoffs[["rule", "parameter", "validity", "diversity", "sequence_recall"]])

# %% [markdown]
# ## Claims and findings
#
# This page tests no claim of the paper, but it can be wrong in one way: the exact validity might
# not be what the model does when it writes. So we draw answers at temperature 1 and count. The
# exact validity should lie in the 95 % interval of the observed share (for one draw in twenty it
# does not).

# %% tags=["nbval-ignore-output"]
n = 100 if quick else 400
draws = cu.sample_answers(page.model, task, n=n, seed=seed, end=page.end)
valid, low, high = study.valid_draws(draws)
exact = table.loc[table.temperature == 1.0].iloc[0]
print(f"drawn: {valid} of {len(draws)} valid, 95 % interval {low:.2f} to {high:.2f}")
print(f"exact: validity {exact.validity:.2g}, diversity {exact.diversity:.2g}")
print("first draws:", list(draws.text[:6]))

# %% tags=["remove-cell"]
page.glue("validity", exact.validity, "{:.2g}")
page.glue("diversity", exact.diversity, "{:.2g}")

# %% tags=["remove-cell", "nbval-ignore-output"]
page.glue("drawn_low", low)
page.glue("drawn_high", high)
page.glue("draws", len(draws), "{}")

# %% [markdown]
# ## Check it yourself
#
# Here are two ways to the same numbers that share no arithmetic with the tables above. In a cell of
# this page:
#
# ```python
# more = cu.sample_answers(page.model, task, n=2000, seed=1, end=page.end)
# print(study.valid_draws(more), len(more), exact.validity)
# cu.evaluate(cu.reference_model(cu.UniformOverV(), task), task)
# ```
#
# The exact validity should lie in the interval of most seeds. If it lay outside for several in a
# row, the exact computation would be wrong. The last line sends a {term}`control`, a model that
# gives every right answer the same probability, through the same functions: anything but 1 and 1
# is a bug of ours.
#
# Your own model: `python -m calib_utils run --model owner/name`. Your own answers:
# `cu.Task(name="...", prompt="...", answers=["...", "..."])`. The whole comparison over lengths and
# constraints is the chapter on temperature.

# %%
print("numbers from", page.source)
