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
# spreads this probability over the 100 ({term}`diversity`). The paper claims that temperature and
# cutoffs only trade one for the other (the paper's Fig. 5 and 6).
#
# **Answer.** At temperature 1 this model's validity is {glue:text}`validity` and its diversity
# {glue:text}`diversity`, where 1 would be perfect. Both are exact: the model gives the probability
# of every right answer, so nothing is sampled and no judge is needed. As a check we also drew
# {glue:text}`draws` answers and counted the right ones; the 95 % interval for validity is
# {glue:text}`drawn_low` to {glue:text}`drawn_high`.

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

# %% mystnb={"figure": {"caption": "Two random digits, no cutoff: validity (circles) and diversity (squares) against temperature. A higher temperature spreads the probability over wrong answers as well as over right ones.", "name": "fig-quickstart"}, "image": {"alt": "Line chart of validity and diversity of two random digits against temperature."}}
ax = figures.temperature_response(table)
_ = figures.source_line(ax, page.source, page.live())

# %% [markdown]
# ## How we know
#
# ### What the model sees
#
# The model gets one user message in its own chat template; a base model gets the prompt alone. An
# answer includes the token that ends it: the token that closes the turn, or a line break for a base
# model.

# %%
cu.show_prompt(page.model, task, end=page.end)

# %% [markdown]
# ### What temperature does
#
# A higher temperature flattens the distribution of the next token. Compare the two columns.

# %%
page.show(table[["temperature", "validity", "diversity"]])

# %% [markdown]
# ### What a cutoff does
#
# A {term}`cutoff` throws low-ranked tokens away before sampling. Each rule keeps different tokens
# and so loses different answers. *Sequence recall* is the share of the 100 answers that can still
# be given. The {term}`oracle-size cutoff` is told how many tokens are valid, but not which.

# %%
rules = [cu.NoCutoff(), cu.TopK(10), cu.TopP(0.9), cu.MinP(0.1), cu.OracleSize()]
cutoffs = cu.evaluate(page.model, task, rules=rules, temperatures=[1.0], end=page.end)
page.show(cutoffs[["rule", "parameter", "validity", "diversity", "sequence_recall"]])

# %% [markdown]
# ## Claims and findings
#
# This page tests no claim of the paper. It checks itself: is the exact validity what the model does
# when it writes? We draw answers at temperature 1 and count the right ones. The exact validity
# should lie in the 95 % interval of the observed share, except for about one seed in twenty.

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
# Here are two independent ways to the same numbers. Put this into a cell of this page:
#
# ```python
# more = cu.sample_answers(page.model, task, n=2000, seed=1, end=page.end)
# print(study.valid_draws(more), len(more), exact.validity)
# cu.evaluate(cu.reference_model(cu.UniformOverV(), task), task)
# ```
#
# The exact validity should lie in the interval for most seeds. If it lay outside for several seeds
# in a row, the exact computation would be wrong. The last line evaluates a {term}`control`, a model
# that gives every right answer the same probability. Its validity and diversity should both be 1;
# anything else is our bug.
#
# To use your own model, run `python -m calib_utils run --model owner/name`. To use your own
# answers, write `cu.Task(name="...", prompt="...", answers=["...", "..."])`. The chapter on
# temperature compares lengths and constraints.

# %%
print("numbers from", page.source)
