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
# # Origins: where order and shape come from
#
# **Question.** The paper shows that released models are miscalibrated in order and in shape. Which
# part of their training does that? Nobody can see it in released weights, so this chapter trains
# tiny transformers in a world where every valid answer and its frequency are known.
#
# **Answer.** Shape follows the data: pretraining on equally frequent answers leaves a
# {term}`shape part` of {glue:text}`uniform_shape` {term}`nats <nat>` a question, and on frequencies
# that fall as Zipf's law {glue:text}`zipf_shape`. Order is what pretraining repairs, as far as the
# corpus is right: wrong answers in it raise the {term}`order part` from {glue:text}`zipf_order` to
# {glue:text}`errors_order`. A reward for valid answers then moves order by
# {glue:text}`reward_order` and shape by {glue:text}`reward_shape` nats, so it buys
# {term}`validity` ({glue:text}`reward_validity`) by giving up {term}`diversity`; with an entropy
# term it costs {glue:text}`entropy_shape`. Brackets hold 95 % intervals over
# {glue:text}`n_seeds` seeds.

# %% tags=["parameters", "all-results"]
seed = 0  # not used here: the study has the seeds of its runs
results_dir = ""  # the folder beside which tables are stored; empty: data/results of this checkout
anew = False  # True: train every model again, about half an hour on two cores
quick = False  # one seed and few steps, whose numbers mean nothing

# %%
import calib_utils as cu
from calib_utils.figures import origins as figures
from calib_utils.studies import origins as study

figures.use_style()
page = cu.open_page(results_dir=results_dir)
few = study.world()[::3]  # of a quick run: strings of every length are among them
found = study.train(0, 0.01, few) if quick else study.results(page.store, anew)
seeds = study.by_seed(found["losses"])

# %% mystnb={"figure": {"caption": "Shape part against order part of the loss −ln(validity × diversity) at temperature 1: means over forty questions, a faint dot a seed. Left: medium models along pretraining, from a sixteenth of it to its end (mark), by corpus; the unnamed path is the geometric one. Right: the stages that follow on Zipf data with errors, with arrows from what each was trained from. A calibrated model stands at the origin.", "name": "fig-origins"}, "image": {"alt": "Along pretraining the order part falls by a factor of five or more, and the shape part ends at 0 for uniform data and near half a nat for Zipf data. Every later stage moves far up in shape and little in order, the reward alone farthest."}}
figure = figures.order_and_shape(seeds, study.by_share(found["course"]))
_ = figures.source_line(figure.axes[0], study.SOURCE)

# %% [markdown]
# ## How we know
#
# ### A world in which all is known
#
# Forty questions have closed sets of valid answers: words that share syllables, digits under a
# condition, strings of a small grammar, and strings of one to four letters out of twelve, of which
# four are valid. Answers have several tokens, one a byte, and many begin alike, so the number of
# valid continuations is uneven. A corpus is made of lines such as `w3: dokuri`.

# %%
questions = study.world()
page.fold(study.questions_table(questions), "The forty questions")

# %% [markdown]
# Four corpora differ in how often an answer occurs. In *uniform* all are equally frequent; in *zipf*
# the $r$-th has a frequency proportional to $1/r$; in *zipf with errors* a fifth of the answers
# belong to another question of the same kind; in *geometric* the letters of strings fall by a
# constant factor, the valid ones first, which is what Theorem F.4 of the paper assumes.
#
# ### Every stage of training
#
# The models are Llamas of three sizes, from scratch, saved as the hub has them, so that any command
# of this book reads such a checkpoint. On the corpus with errors the usual stages follow:
# fine-tuning on eight demonstrations a question, preferences (DPO) between the model's own valid and
# invalid answers, and policy gradient with a reward of 1 for a valid answer, alone, with a penalty
# on leaving the fine-tuned model (KL), and with an entropy term.

# %%
page.show(study.overview(seeds))

# %% [markdown]
# What each stage changes within a seed, fine-tuning against pretraining, all others against
# fine-tuning:

# %%
moved = study.changes(seeds)
page.show(study.change_table(moved))

# %% [markdown]
# ### Is the paper's bound tight where its assumptions hold?
#
# Theorem F.4 bounds diversity by validity if valid tokens rank first and every step falls
# geometrically. The strings of the geometric corpus are made so, and what the models learn of them
# stands in {numref}`fig-origins-bound`: for one step the bound is nearly met, with more steps it is
# looser, since one bound on the whole validity is used for every step.

# %% mystnb={"figure": {"caption": "Strings of the geometric corpus: diversity over the most that Theorem F.4 allows at the same validity (0.8 or more), by the number of steps; a dot a seed.", "name": "fig-origins-bound"}, "image": {"alt": "Diversity over its bound by the number of steps, with the bound at 1."}}
ax = figures.tightness(study.tightness(found["strings"]))
_ = figures.source_line(ax, study.SOURCE)

# %% [markdown]
# ### What others measured
#
# Four studies of real models looked at diversity through post-training. Kirk et al.
# {cite:p}`kirk2024understanding` compared fine-tuning with reinforcement learning from human
# feedback on summaries and instructions: the latter generalised better, and its outputs to one
# prompt were less diverse by several measures. O'Mahony et al. {cite:p}`omahony2024attributing`
# kept the diversity of a single next token apart from that of whole outputs, and found that
# fine-tuning and rewards change the two differently. Yue et al. {cite:p}`yue2025does` counted
# solved problems: rewards raise the share solved at one try, but with many tries the base model
# solves more. Razin et al. {cite:p}`razin2025unintentional` showed that DPO can lower the
# probability of the preferred answers themselves, where the two sides of a pair resemble each other.
# None of them knows the whole valid set, so none can say whether order or shape was lost; here both are
# exact, on a far smaller model.
#
# ## Claims and findings
#
# All are tests of our own, decided by intervals over seeds. A world of forty questions is not the
# web: what holds here shows what these stages *can* do by themselves, not what they did to a model
# of a hundred billion weights.

# %%
claims = study.findings(seeds, found["strings"])
page.show_findings(claims)

# %% tags=["remove-cell"]
page.glue_verdicts(claims)
page.glue_each(study.key_numbers(seeds, moved), "{}")

# %% [markdown]
# ## Check it yourself
#
# The whole training is one command, which uses every core. If it was stopped, the same command
# without `-p anew=True` trains the seeds that are missing:
#
# ```text
# python -m calib_utils run --notebook 09_origins -p anew=True --force
# ```
#
# On one machine it gives the same numbers again; on another the intervals should overlap. To change
# the world, edit `world` or `draw` in `calib_utils/studies/origins.py`. To look at
# a checkpoint with other commands, keep it and name its folder as a model:
#
# ```python
# study.train(0, checkpoints="checkpoints")
# ```

# %%
print(study.SOURCE)
