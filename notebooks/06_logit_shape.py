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
# # Logit shape: a line, then a logarithm?
#
# **What the paper claims** (App. I, Fig. 13 to 15). Sort the logits of a next token: a few top
# ones fall along a line (the {term}`head`), the long rest along a logarithm (the {term}`tail`).
# With k the rank from 1,
#
# $$
# f(k) = \begin{cases} m k + b & k \le c, \\ A + B \log(k + C) & k > c, \end{cases}
# $$ (eq-two-part)
#
# and c found by trying every rank. It matters because temperature divides all logits by one
# number: a steep head costs diversity, a slow tail costs validity, and no temperature treats them
# apart.
#
# **What we find.** The form fits with an R² of {glue:text}`lowest_r2` at least, and breaks between
# ranks {glue:text}`lowest_c` and {glue:text}`highest_c`. R² is no judge of a head, which is a few
# of 2,000 ranks: the fit of “{glue:text}`top_miss_query`” has an R² of {glue:text}`top_miss_r2` and
# misses the logit of the most probable token by {glue:text}`top_miss`. {glue:text}`headline` The
# fits are exact for the weights named under each figure; comparisons on held-out ranks carry an
# interval.
#
# **How to check it** is at the end.

# %% tags=["parameters"]
model = "qwen2.5-coder-0.5b-instruct"  # embedded name, hub id, local folder or .gguf file
revision = ""  # hub commit or tag; empty: the default branch
dtype = "float32"  # of the forward pass
device = "auto"  # cuda, mps or cpu
chat = None  # True, False: with or without the chat template; None: by the model's stage
seed = 0  # not used here: nothing is drawn
results_dir = ""  # where sorted logits are kept; empty: data/results of this checkout
quick = False  # two queries only

# %%
import calib_utils as cu
from calib_utils.figures import logit_shape as figures
from calib_utils.studies import logit_shape as study

figures.use_style()
options = {"revision": revision, "dtype": dtype, "device": device, "chat": chat}
page = cu.open_page(model, results_dir=results_dir, **options)
queries = study.QUICK_QUERIES if quick else study.QUERIES
when = page.live()

# %% [markdown]
# ## Six queries
#
# The paper's, each with the beginning of a reply after which the next token is read: nothing, or
# *In a world where* for the story and *1,* for three integers. They reach the model as every prompt
# of this book does: a chat model's own template, the bare text for a base model, whose reply then
# starts with a space. Whether the paper used a template is not said.

# %%
curves = study.logit_curves(page.model, queries)
if not quick:
    study.keep(curves, page.model, page.store)
page.show(curves.loc[[1, 2, 3, 10, 100, 1000, len(curves)]].reset_index(), digits=3)

# %% [markdown]
# ## The fit
#
# Equation {eq}`eq-two-part` by least squares, every breakpoint from 2 to n − 4 tried, C any number
# that keeps k + C above 0 in the tail (`calib_utils.theory.curves`; tests hold it against a separate
# search at each breakpoint). From c_low to c_high lie the breakpoints that come within 10 % of the
# least squared error, and *jump* is how far the line, carried on by one rank, lies above the
# tail's first value; *top_miss* is the top token's logit less the fit's (1 is a factor of e in its
# odds). Two ranks always lie on a line, so a head of c = 2 is no evidence of one; 4
# of the 18 published fits have it.

# %%
table = study.fit_table(curves)
page.show(table, digits=3)

# %% mystnb={"figure": {"caption": "Sorted logits of the next token (dots) with the fitted head and tail (lines) against rank on a logarithmic axis, a panel per query; the breakpoint c is in the title (compare Fig. 13 to 15 of the paper).", "name": "fig-shape"}, "image": {"alt": "Six panels of logits against rank, logarithmic, with a fitted line and logarithm."}}
fits = study.fits_of(curves)
figure = figures.fit_grid(curves, fits)
_ = figures.source_line(figure.axes[0], page.weights, when)

# %% mystnb={"figure": {"caption": "The same on a linear axis, as in the paper, where the head is a sliver and any curve that bends soon enough looks right.", "name": "fig-shape-linear"}, "image": {"alt": "Six panels of logits against rank, linear, with a fitted line and logarithm."}}
figure = figures.fit_grid(curves, fits, log_rank=False)
_ = figures.source_line(figure.axes[0], page.weights, when)

# %% [markdown]
# ## Beside the published fits
#
# The paper's 18 fits are of other models, so only the ranges compare. Above the line: ours.

# %% mystnb={"figure": {"caption": "R², mean squared error and breakpoint: a dot per query; filled, above the line: this model; open: as published for three larger models.", "name": "fig-shape-published"}, "image": {"alt": "Dots of three measures of fit by query, this model filled, published models open."}}
both = study.beside_published(table, page.model.key)
figure = figures.published_dots(both)
_ = figures.source_line(
    figure.axes[0], f"filled: {page.weights}", f"{when}; open: arXiv:2605.11128v1"
)

# %% [markdown]
# **bfloat16.** Its numbers are 1/8 apart between 16 and 32, 1/16 between 8 and 16. Rounding the
# logits, and nothing before them, leaves fewer different values among 2,000 ranks: where logits are
# that large the tail becomes a staircase, and the error cannot fall below that of the steps. Logits
# on the paper's demo page lie on that grid.

# %%
page.show(study.bfloat16_table(curves), digits=3)

# %% [markdown]
# ## Is it the right form?
#
# A high R² is easy here: any falling curve with a bend and six numbers gets one. Two cares.
#
# *What is left is not noise.* The residuals below go up and down over long stretches of ranks. So
# 2,000 ranks are far fewer independent numbers, and a criterion that counts every rank, like the
# usual BIC, rewards whatever bends most.
#
# *The breakpoint may be loose.* The second figure shows how much worse the other breakpoints are.

# %% mystnb={"figure": {"caption": "Logits less the fit against rank on a logarithmic axis, a line per query. Long stretches on one side of 0: neighbouring ranks miss together.", "name": "fig-shape-residuals"}, "image": {"alt": "Lines of residuals against rank, one for each query."}}
ax = figures.residuals(curves, fits)
_ = figures.source_line(ax, page.weights, when)

# %% mystnb={"figure": {"caption": "The least squared error with the breakpoint at each rank, over that of the best breakpoint (marked), both axes logarithmic, a line per query. A flat valley: the data hardly say where the break is.", "name": "fig-shape-profiles"}, "image": {"alt": "Lines of relative squared error against breakpoint, one for each query, with the best one marked."}}
ax = figures.breakpoint_profiles(fits)
_ = figures.source_line(ax, page.weights, when)

# %% [markdown]
# **Rivals**: an exponential (logits linear in the rank, the model of Def. F.1), a power law, a
# power law with shifted ranks (Zipf and Mandelbrot), the published form without its jump (one
# number fewer), and the published form with a logarithm for a head (as many numbers).
#
# **The test.** Ranks are cut into 12 blocks, equal in log-rank as far as whole ranks allow. Each
# is held out in turn and predicted from all others: inner blocks by interpolation, the first and
# the last by extrapolation. Each block has one vote, the logarithm of a rival's squared error over
# the published form's; the interval is over blocks, of which neighbours share most of their data,
# so it is a guide and not exact. `calib_utils.theory.curves` says why, and its tests show that
# data made by each family are traced back to it, and that the usual BIC sees a breakpoint where
# there is none.

# %% tags=["tolerance-0.1"]
held_out = study.held_out_table(curves)
compared = study.comparison(curves, held_out)
pooled = study.pooled_ratios(held_out)
page.show(study.ratio_table(compared, pooled), digits=2)

# %% [markdown]
# Above: held-out error over that of the published form, a geometric mean over blocks; the last row
# pools the queries, with its interval. Above 1 the published form predicts better.

# %% mystnb={"figure": {"caption": "Held-out squared error of each rival over that of the published form, on a logarithmic axis: a dot per query; black: all queries, with the interval over blocks. Right of 1 the published form predicts better.", "name": "fig-shape-held-out"}, "image": {"alt": "Dots and intervals of held-out error ratios by rival form, with a line at 1."}}
ax = figures.held_out_ratios(compared, pooled)
_ = figures.source_line(ax, page.weights, when)

# %% [markdown]
# For comparison what the BIC puts first and by how much (10 counts as strong): with all ranks
# counted, and with an effective number of them from the residuals' correlation at lag 1.

# %% tags=["tolerance-0.1"]
page.show(study.bic_table(compared), digits=2)

# %% [markdown]
# ## Claims and findings
#
# The paper shows fits and does not compare them with others: those comparisons are tests of ours,
# and are counted apart. An R² decides nothing here.

# %% tags=["tolerance-0.1"]
found = study.findings(table, held_out)
page.show(found)

# %% tags=["remove-cell"]
page.glue_verdicts(found)
page.glue_each(study.key_numbers(table))

# %% [markdown]
# ## Check it yourself
#
# Can the test on held-out ranks say no? Give it a curve that has no breakpoint. In a cell of this
# page:
#
# ```python
# import numpy as np
# from calib_utils.theory import curves as fits
#
# noise = np.random.default_rng(0).normal(0, 0.01, 2000)
# smooth = 30 - 3 * np.log(np.arange(1, 2001) + 5) + noise
# print(fits.preferred(fits.held_out_errors(smooth)))
# ```
#
# It should say `shifted_power_law`, the form the curve was made from. `logit_shape.Query` takes a
# question of your own. The published form would be refuted for this model by a rival whose
# interval in {numref}`fig-shape-held-out` lies left of 1; one that holds 1 leaves the two
# undecided.
#
# ## Summary and provenance
#
# Everything on this page is computed when it runs: a few forward passes, and fits that take a
# fraction of a second each. The sorted logits are kept for the page that shows all models.
# `quick=True` looks at two queries and keeps nothing.

# %%
print("numbers from", page.weights)
