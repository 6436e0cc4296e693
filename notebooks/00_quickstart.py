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
# **What the paper claims** (Sec. 3 and 5). Ask a language model for two random digits. There are
# exactly 100 right answers, so two questions have exact answers too: how much of its probability
# goes to right answers ({term}`validity`), and how evenly it spreads that part over the 100
# ({term}`diversity`). Temperature and cutoffs buy one with the other.
#
# **What we find.** At temperature 1 this model's validity is {glue:text}`validity` and its
# diversity {glue:text}`diversity`. No sampling, no judge: every valid answer's probability is read
# off the model. Drawing {glue:text}`draws` answers and counting puts validity between
# {glue:text}`drawn_low` and {glue:text}`drawn_high`.
#
# **How to check it** is at the end.

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

# %% [markdown]
# ## What the model sees
#
# One user message in the model's own chat template (a base model gets the bare prompt). An answer
# is its tokens plus what ends it: the token that closes the turn, a line break for a base model.

# %%
cu.show_prompt(page.model, task, end=page.end)

# %% [markdown]
# ## Validity and diversity, exactly
#
# Raising the temperature flattens the distribution. Watch both numbers.

# %%
temperatures = [0.3, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 2.0]
table = cu.evaluate(page.model, task, temperatures=temperatures, end=page.end)
page.show(table[["temperature", "validity", "diversity"]])

# %% mystnb={"figure": {"caption": "Two random digits, no cutoff: validity (circles) and diversity (squares) against temperature. Temperature spreads the mass, over wrong answers as well as over right ones.", "name": "fig-quickstart"}, "image": {"alt": "Line chart of validity and diversity of two random digits against temperature."}}
ax = figures.temperature_response(table)
_ = figures.source_line(ax, page.source, page.live())

# %% [markdown]
# A {term}`cutoff` throws low-ranked tokens away before sampling. Each rule keeps other tokens, so
# each has another price. The {term}`oracle-size cutoff` is told how many tokens are valid, and not
# which.

# %%
rules = [cu.NoCutoff(), cu.TopK(10), cu.TopP(0.9), cu.MinP(0.1), cu.OracleSize()]
cutoffs = cu.evaluate(page.model, task, rules=rules, temperatures=[1.0], end=page.end)
page.show(cutoffs[["rule", "parameter", "validity", "diversity", "sequence_recall"]])

# %% [markdown]
# ## Does it agree with what the model writes?
#
# Draw answers at temperature 1 and count. The exact validity should lie in the 95 % interval of the
# observed share (for one draw in twenty it does not).

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
# Two ways to the same numbers that share no arithmetic with the tables above. In a cell of this
# page:
#
# ```python
# more = cu.sample_answers(page.model, task, n=2000, seed=1, end=page.end)
# print(study.valid_draws(more), len(more), exact.validity)
# cu.evaluate(cu.reference_model(cu.UniformOverV(), task), task)
# ```
#
# The exact validity should lie in the interval of most seeds; if it lay outside for several in a
# row, the exact computation would be wrong. The last line sends a {term}`control`, a model that
# gives every right answer the same probability, through the same functions: anything but 1 and 1
# is a bug of ours.
#
# ## Next
#
# - The whole comparison over lengths and constraints: *Controlled tasks*.
# - Your own model: `python -m calib_utils run --model owner/name`. Your own answers:
#   `cu.Task(name="...", prompt="...", answers=["...", "..."])`.

# %%
print("numbers from", page.source)
