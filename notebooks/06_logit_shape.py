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
# **Question.** Sort the logits of a next token from high to low: do a few top ones fall along a
# line (the {term}`head`) and the long rest along a logarithm (the {term}`tail`), as the paper finds
# (App. I, the paper's Fig. 13 to 15)? It matters because temperature divides all logits by one
# number: a steep head costs diversity, a slow tail costs validity, and no temperature treats them
# apart.
#
# **Answer.** On this model the form fits every query with an R² of at least {glue:text}`lowest_r2`,
# and breaks between ranks {glue:text}`lowest_c` and {glue:text}`highest_c`. But R² is no judge of a
# head, which is a few of 2,000 ranks: the fit of “{glue:text}`top_miss_query`” has an R² of
# {glue:text}`top_miss_r2` and misses the logit of the most probable token by
# {glue:text}`top_miss`. On ranks that were held out of the fit, the published form predicts
# {glue:text}`held_out`.

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

# %%
curves = study.logit_curves(page.model, queries)
if not quick:
    study.keep(curves, page.model, page.store)
fits = study.fits_of(curves)

# %% mystnb={"figure": {"caption": "Sorted logits of the next token (dots) with the fitted head and tail (lines; dotted: carried on beyond the breakpoint c) against rank on a logarithmic axis, a panel per query. The paper's Fig. 13 to 15 have a linear axis, on which the head is a sliver.", "name": "fig-shape"}, "image": {"alt": "Six panels of logits against rank, logarithmic, with a fitted line and logarithm."}}
figure = figures.fit_grid(curves, fits)
_ = figures.source_line(figure.axes[0], page.weights, when)

# %% tags=["remove-cell"] mystnb={"figure": {"caption": "The first query alone, for the summary.", "name": "fig-shape-one"}, "image": {"alt": "Sorted logits of one query with the fitted line and logarithm."}}
figure = figures.fit_grid(curves.iloc[:, :1], fits)
_ = figures.source_line(figure.axes[0], page.weights, when)

# %% [markdown]
# ## How we know
#
# ### The six queries and the fit
#
# The queries are the paper's. Each comes with the beginning of a reply, after which the next token
# is read: nothing, *In a world where* for the story, or *1,* for three integers. A chat model gets
# them through its own template, which the paper may or may not have used; a base model gets the
# bare text, and its reply starts with a space.
#
# With k the rank from 1, the form is
#
# $$
# f(k) = \begin{cases} m k + b & k \le c, \\ A + B \log(k + C) & k > c. \end{cases}
# $$ (eq-two-part)
#
# It is fitted by least squares, with every breakpoint c from 2 to n − 4 tried and C any number that
# keeps k + C above 0 in the tail. In the table, the breakpoints from `c_low` to `c_high` come
# within 10 % of the least squared error, and `top_miss` is the top token's logit less the fit's,
# where 1 is a factor of e in its odds. In the folded table, `jump` is how far the line, carried on
# by one rank, lies above the tail's first value. Any two ranks lie on a line, so a head of c = 2,
# which 4 of the 18 published fits have, is no evidence of one.

# %%
table = study.fit_table(curves)
page.show(table[["query", "c", "c_low", "c_high", "r2", "mse", "top_miss"]], digits=3)

# %%
page.fold(table[["query", "m", "b", "A", "B", "C", "jump"]], "The fitted numbers", digits=3)

# %% [markdown]
# ### Beside the published fits
#
# The paper's 18 fits are of other models, so only the ranges can be compared.

# %% mystnb={"figure": {"caption": "R², mean squared error and breakpoint: a dot per query; filled, above the line: this model; open: as published for three larger models.", "name": "fig-shape-published"}, "image": {"alt": "Dots of three measures of fit by query, this model filled, published models open."}}
both = study.beside_published(table, page.model.key)
figure = figures.published_dots(both)
_ = figures.source_line(
    figure.axes[0], f"filled: {page.weights}", f"{when}; open: arXiv:2605.11128v1"
)

# %% [markdown]
# Logits on the paper's demo page lie on the grid of bfloat16, whose numbers are 1/8 apart between
# 16 and 32. The folded table shows what such rounding does here: the tail becomes a staircase, and
# the error cannot fall below that of its steps.

# %%
page.fold(study.bfloat16_table(curves), "The fits of logits rounded to bfloat16", digits=3)

# %% [markdown]
# ### Is it the right form?
#
# A high R² is easy here, since any falling curve with a bend and six numbers gets one. Two cautions
# come first. What the fit misses is not noise: in {numref}`fig-shape-residuals` it stays on one
# side of 0 over long stretches of ranks, so 2,000 ranks are far fewer independent numbers, and a
# criterion that counts every rank, like the usual BIC (error against number of parameters), rewards
# whatever bends most. And the
# breakpoint may be loose: {numref}`fig-shape-profiles` shows how much worse the others are.

# %% mystnb={"figure": {"caption": "Logits less the fit against rank on a logarithmic axis, a line per query. Long stretches on one side of 0: neighbouring ranks miss together.", "name": "fig-shape-residuals"}, "image": {"alt": "Lines of residuals against rank, one for each query."}}
ax = figures.residuals(curves, fits)
_ = figures.source_line(ax, page.weights, when)

# %% mystnb={"figure": {"caption": "The least squared error with the breakpoint at each rank, over that of the best breakpoint (marked), both axes logarithmic, a line per query. A flat valley: the data hardly say where the break is.", "name": "fig-shape-profiles"}, "image": {"alt": "Lines of relative squared error against breakpoint, one for each query, with the best one marked."}}
ax = figures.breakpoint_profiles(fits)
_ = figures.source_line(ax, page.weights, when)

# %% [markdown]
# The rivals are an exponential (logits linear in the rank, the model of Def. F.1), a power law, a
# power law with shifted ranks (Zipf and Mandelbrot), the published form without its jump (one
# number fewer), and the published form with a logarithm for a head (as many numbers).
#
# To compare them, the ranks are cut into 12 blocks, equal in log-rank as far as whole ranks allow,
# and each block is predicted from all others. Each has one vote, the logarithm of a rival's squared
# error over the published form's. Neighbouring blocks share most of their data, so the interval
# over blocks is a guide and not exact. Tests show that data made by each family are traced back to
# it, and that the usual BIC sees a breakpoint where there is none.

# %% tags=["tolerance-0.1"]
held_out = study.held_out_table(curves)
compared = study.comparison(curves, held_out)
pooled = study.pooled_ratios(held_out)

# %% mystnb={"figure": {"caption": "Held-out squared error of each rival over that of the published form, on a logarithmic axis: a dot per query; black: all queries, with the interval over blocks. Right of 1 the published form predicts better.", "name": "fig-shape-held-out"}, "image": {"alt": "Dots and intervals of held-out error ratios by rival form, with a line at 1."}}
ax = figures.held_out_ratios(compared, pooled)
_ = figures.source_line(ax, page.weights, when)

# %% tags=["tolerance-0.1"]
ratios = study.ratio_table(compared, pooled)
page.fold(ratios, "Held-out error over that of the published form, by query", digits=2)

# %% tags=["tolerance-0.1"]
bic = study.bic_table(compared)
page.fold(bic, "What the BIC puts first, by all ranks and by an effective number", digits=2)

# %% [markdown]
# ## Claims and findings
#
# The paper shows its fits and does not compare them with other forms. The comparisons are tests of
# ours, and they are counted apart from the paper's claim. No verdict rests on an R².

# %% tags=["tolerance-0.1"]
found = study.findings(table, held_out)
page.show_findings(found)

# %% tags=["remove-cell"]
page.glue_verdicts(found)
page.glue_each(study.key_numbers(table, pooled))

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
# It should say `shifted_power_law`, the form the curve was made from. `study.Query` takes a
# question of your own. A rival whose interval in {numref}`fig-shape-held-out` lies left of 1 would
# refute the published form for this model; an interval that holds 1 leaves the two undecided.
#
# Everything on this page is computed when it runs. The sorted logits are kept for the page that
# shows all models, unless `quick=True`, which looks at two queries only.

# %%
print("numbers from", page.weights)
