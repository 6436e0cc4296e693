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
# **Question.** Sort the logits of a next token from high to low. Do the few highest fall along a
# line (the {term}`head`), and the many others along a logarithm (the {term}`tail`), as the paper
# finds (App. I, the paper's Fig. 13 to 15)? This matters because temperature divides all logits by
# one number. A steep head costs diversity, a slowly falling tail costs validity, and no temperature
# changes one without the other.
#
# **Answer.** On this model the form fits every query with an R² of at least {glue:text}`lowest_r2`,
# and the line ends between ranks {glue:text}`lowest_c` and {glue:text}`highest_c`. But R² says
# little about the head, which is only a few of 2,000 ranks: the fit of
# “{glue:text}`top_miss_query`” has an R² of {glue:text}`top_miss_r2` and misses the logit of the
# most probable token by {glue:text}`top_miss`. On ranks that were left out of the fit, the
# published form predicts {glue:text}`held_out`.

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

# %% mystnb={"figure": {"caption": "Sorted logits of the next token (dots) with the fitted head and tail (lines; dotted: continued beyond the breakpoint c) against rank on a logarithmic axis, a panel per query. The paper's Fig. 13 to 15 have a linear axis, on which the head is hard to see.", "name": "fig-shape"}, "image": {"alt": "Six panels of logits against rank, logarithmic, with a fitted line and logarithm."}}
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
# The queries are the paper's. Two of them come with the beginning of a reply: *In a world where*
# for the story, and *1,* for three integers. We read the logits of the next token. A chat model
# gets the query through its own template (we do not know whether the paper used it); a base model
# gets the text alone, and its reply starts with a space.
#
# With rank k starting at 1, the form is
#
# $$
# f(k) = \begin{cases} m k + b & k \le c, \\ A + B \log(k + C) & k > c. \end{cases}
# $$ (eq-two-part)
#
# It is fitted by least squares, with every breakpoint c from 2 to n − 4 tried and C any number that
# keeps k + C above 0 in the tail. In the table, the breakpoints from `c_low` to `c_high` have a
# squared error within 10 % of the smallest. `top_miss` is the logit of the top token minus that of
# the fit, where 1 is a factor of e in its odds. In the folded table, `jump` says how far the line,
# continued by one rank, lies above the first value of the tail. Four of the 18 published fits have
# c = 2; as any two points lie on a line, these are no evidence for a linear head.

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
# The logits on the paper's demo page are rounded to bfloat16, whose numbers are 1/8 apart between
# 16 and 32. The folded table shows what such rounding does to our fits: the tail becomes a
# staircase, and the error cannot be smaller than its steps.

# %%
page.fold(study.bfloat16_table(curves), "The fits of logits rounded to bfloat16", digits=3)

# %% [markdown]
# ### Is it the right form?
#
# A high R² is easy here, since any falling curve with a bend and six parameters has one. There are
# two cautions. First, the residuals are not noise: in {numref}`fig-shape-residuals` they stay on
# one side of 0 over long ranges of ranks. So 2,000 ranks are far fewer independent data, and a
# criterion that counts every rank, such as the usual BIC (error against number of parameters),
# prefers the form that bends most. Second, the breakpoint may be uncertain:
# {numref}`fig-shape-profiles` shows how much worse other breakpoints are.

# %% mystnb={"figure": {"caption": "Logits minus the fit against rank on a logarithmic axis, a line per query. Long ranges on one side of 0 mean that the errors of neighbouring ranks are not independent.", "name": "fig-shape-residuals"}, "image": {"alt": "Lines of residuals against rank, one for each query."}}
ax = figures.residuals(curves, fits)
_ = figures.source_line(ax, page.weights, when)

# %% mystnb={"figure": {"caption": "The least squared error with the breakpoint at each rank, over that of the best breakpoint (marked), both axes logarithmic, a line per query. A flat valley means that the data hardly determine the breakpoint.", "name": "fig-shape-profiles"}, "image": {"alt": "Lines of relative squared error against breakpoint, one for each query, with the best one marked."}}
ax = figures.breakpoint_profiles(fits)
_ = figures.source_line(ax, page.weights, when)

# %% [markdown]
# The other forms are an exponential (logits linear in the rank, the model of Def. F.1), a power
# law, a power law with shifted ranks (Zipf and Mandelbrot), the published form without its jump
# (one parameter fewer), and the published form with a logarithm as its head (as many parameters).
#
# To compare them, we divide the ranks into 12 blocks of about equal width in log-rank, and predict
# each block from all others. For each block we compare the squared errors of the other form and of
# the published one, by the logarithm of their ratio. Neighbouring blocks share most of their data,
# so the interval over blocks is only approximate. Our tests show that this comparison recovers the
# form that made the data, and that the usual BIC finds a breakpoint where there is none.

# %% tags=["tolerance-0.1"]
held_out = study.held_out_table(curves)
compared = study.comparison(curves, held_out)
pooled = study.pooled_ratios(held_out)

# %% mystnb={"figure": {"caption": "Held-out squared error of each other form, divided by that of the published form, on a logarithmic axis: a dot per query; black: all queries, with the interval over blocks. Right of 1 the published form predicts better.", "name": "fig-shape-held-out"}, "image": {"alt": "Dots and intervals of held-out error ratios by form, with a line at 1."}}
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
# The paper shows its fits and does not compare them with other forms. The comparisons are our
# tests, and are counted separately from the paper's claim. No verdict uses R².

# %% tags=["tolerance-0.1"]
found = study.findings(table, held_out)
page.show_findings(found)

# %% tags=["remove-cell"]
page.glue_verdicts(found)
page.glue_each(study.key_numbers(table, pooled))

# %% [markdown]
# ## Check it yourself
#
# Can the test on held-out ranks fail? Give it a curve without a breakpoint. In a cell of this page:
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
# It should print `shifted_power_law`, the form that made the curve. `study.Query` takes your own
# question. A form whose interval in {numref}`fig-shape-held-out` lies left of 1 predicts better
# than the published one and would refute it for this model. An interval that contains 1 decides
# nothing.
#
# Everything on this page is computed when it runs. The sorted logits are stored for the page about
# all models, except with `quick=True`, which uses two queries only.

# %%
print("numbers from", page.weights)
