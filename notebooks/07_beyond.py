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
# # Beyond lists: repeated questions and programs
#
# **Question.** Do the faults of order and shape also appear where right answers cannot be listed?
# The paper says yes. Asked hundreds of times for a random city, a chat model nearly always names
# the same one (shape, the paper's Fig. 11). Among programs sampled for one problem, passing and
# failing ones are mixed when sorted by log-probability (order), and a few passing programs have
# most of the probability (shape, the paper's Fig. 12).
#
# **Answer.** We asked this model to *Name a random city in the world*. The share of replies whose
# first line is a city's name and nothing else is {glue:text}`city_names`; the most frequent name
# and its share of these is {glue:text}`city_top`. On programming problems one program passes with
# probability {glue:text}`pass_1` (pass@1), and a passing program is more probable than a failing
# one with probability {glue:text}`program_auc` ({term}`order (AUC)`, 1 for a perfect order and 0.5
# for a random one). Of the paper's claims below, {glue:text}`reproduced` are reproduced,
# {glue:text}`not_reproduced` are not, {glue:text}`not_decided` are not decided, and
# {glue:text}`excluded` are about things that this model cannot do.

# %% tags=["parameters"]
model = "qwen2.5-coder-0.5b-instruct"  # embedded name, hub id, local folder or .gguf file
revision = ""  # hub commit or tag; empty: the default branch
dtype = "float32"  # of the forward pass
device = "auto"  # cuda, mps or cpu
chat = None  # True, False: with or without the chat template; None: by the model's stage
seed = 0  # of all draws
results_dir = ""  # where texts are stored and reused; empty: data/results of this checkout
quick = False  # two questions, one problem, few draws, nothing stored unless results_dir is given
endpoint_url = ""  # an OpenAI-compatible server up to /v1, to ask Fig. 11's question there too
endpoint_model = ""  # the name under which it knows the model; the key is only in the environment
endpoint_replies = 100  # each may cost money, and none is stored

# %%
import calib_utils as cu
from calib_utils.figures import beyond as figures
from calib_utils.studies import beyond as study

figures.use_style()
store = None if quick and not results_dir else results_dir
options = {"revision": revision, "dtype": dtype, "device": device, "chat": chat}
page = cu.open_page(model, results_dir=store, **options)

# %%
asked = study.questions(page.model, quick)
n_replies = study.QUICK_REPLIES if quick else study.N_REPLIES
replies = study.ask_all(page.model, asked, n_replies, seed, page.store)
kept = [study.kept_as(f"repeats-{q.label}", n_replies, study.N_REPLIES, seed) for q in asked]
asked_when = page.when_written(kept)

# %% mystnb={"figure": {"caption": "Replies to \"Name a random city in the world\" at temperature 1: a bar for each of the most frequent, the others together, and (open bar) how many of the same number of further replies would be new (compare the paper's Fig. 11).", "name": "fig-beyond-city"}, "image": {"alt": "Bars of the most frequent replies to the question for a random city."}}
first = study.summarise(replies.text[replies.question == asked[0].label])
ax = figures.answer_bars(first)
_ = figures.source_line(ax, page.weights, asked_when)

# %% [markdown]
# ## How we know
#
# The paper shows one example of each, from far larger models. We use five questions and twelve
# small programming problems; a base model gets two questions and no problem. All numbers are
# estimates from random replies, with a 95 % interval in brackets. Means over fewer than ten
# problems show single values instead.
#
# ### One question, many times
#
# Replies are sampled at temperature T without a cutoff, and have at most 20 tokens. *random-city*
# is the paper's question word for word, and *random-city-half* is the same at T = 0.5. The others
# ask only for the name of a city, a country or a chemical element.

# %%
page.show(study.answers_table(replies, asked))

# %% [markdown]
# - *names* is the share of replies that are a listed city, country or element and nothing else. If
#   it is low, the model writes sentences or changes the subject, and then the count of different
#   answers is about *wording*. *top of the names* is the most frequent answer among the names.
# - *effective number* is the {term}`effective number of answers`: the number of equally likely
#   answers that would be as varied, corrected for answers not seen. **If there are many rare
#   answers, this number is too low and its interval too narrow**, because the sample has not seen
#   them. Two spellings, such as *USA* and *United States*, count as two answers.
# - *unseen* is the {term}`unseen mass`: the probability that the next reply is a new answer. If it
#   is near 1, we only know that the number of answers is large.

# %% mystnb={"figure": {"caption": "The same for a question that asks for the name only: a country.", "name": "fig-beyond-country"}, "image": {"alt": "Bars of the most frequent replies to the question for a country."}}
ax = figures.answer_bars(study.summarise(replies.text[replies.question == "country"]))
_ = figures.source_line(ax, page.weights, asked_when)

# %% [markdown]
# The parameters `endpoint_url` and `endpoint_model` let this page ask another model the paper's
# question at temperature 1, on any server with an OpenAI-compatible interface.

# %%
elsewhere = study.ask_endpoint(endpoint_url, endpoint_model, endpoint_replies)
there = [study.Question(endpoint_model, asked[0].prompt, asked[0].kind)]
table = study.answers_table(elsewhere, there if endpoint_url else [])
page.show(table) if endpoint_url else print(study.NOT_ASKED)

# %% [markdown]
# ### Programs
#
# Twelve short problems were written for this project, with 5 to 9 tests each. For every problem we
# sample 20 replies of at most 256 tokens, at temperature 1 without a cutoff. The first code block
# that defines the function runs in a sandbox with limits on time and memory, and without network or
# files. A reply *passed* if every answer was right, *failed* if the program ran to its end with a
# wrong answer or an exception, and was an *error* if it did not load.
#
# {term}`pass@k` is the probability that at least one of k programs passes, with the unbiased
# estimator of Chen et al. {cite:p}`chen2021evaluating`. Its interval is over problems.

# %%
n_programs = study.QUICK_PROGRAMS if quick else study.N_PROGRAMS
programs = study.draw_programs(page.model, n_programs, seed, quick=quick, results_dir=page.store)
kept = study.kept_as("programs-quick" if quick else "programs", n_programs, study.N_PROGRAMS, seed)
drawn_when = page.when_written([kept])
why_not = study.why_not(programs)
page.show(study.pass_table(programs)) if len(programs) else print(why_not)

# %% [markdown]
# Here is one program that passes and one that fails, as the model wrote them:

# %%
print(study.example_programs(programs) or why_not)

# %% [markdown]
# ### Order of programs
#
# Do more probable programs pass more often? Replies are sorted by the log-probability of the whole
# reply, including the words around the code. Replies that reached the token limit are left out, and
# equal replies count once.

# %% mystnb={"figure": {"caption": "Distinct replies to each problem by falling log-probability (vertical, in nats): passed (circles) or failed (crosses), a panel per problem. A good order would put circles left of crosses (compare the paper's Fig. 12).", "name": "fig-beyond-programs"}, "image": {"alt": "Panels of log-probability by rank of replies to programming problems, passed and failed marked apart."}}
ranked = study.programs.ranked_programs(programs)
if len(ranked):
    figure = figures.program_ranks(ranked)
    _ = figures.source_line(figure.axes[0], page.weights, drawn_when)
else:
    print(why_not)

# %% [markdown]
# In the table, *prevalence* is the share that passes, and *auc* the probability that a passing
# reply is more probable than a failing one. Long replies have low probabilities, so the last column
# sorts by length alone, shortest first. If this does as well, log-probability says little about the
# program itself.

# %%
order = study.order_table(programs) if len(ranked) else ranked
page.fold(order, "Order by problem") if len(order) else print(why_not)

# %% [markdown]
# ### Shape of programs
#
# How is the probability spread over the programs that pass? Replies that differ only in layout,
# comments and docstrings count as the same program. The table answers in two ways:
#
# - *Among the sampled programs*, as in the paper's figure: the share of their probability that the
#   *top one* and the *top three* have, and their *effective number*. This decides nothing, because
#   log-probabilities of long texts differ so much that a few of a small sample nearly always have
#   most of its probability.
# - *Of all that pass*: *two are the same* is an unbiased estimate of the probability that two
#   passing replies contain the same program, so it also takes programs into account that were not
#   sampled. *ln of their mass* shows why this matters: if it is far below 0, the sampled replies
#   have almost none of the model's total probability.

# %%
shape = study.shape_table(programs)
page.fold(shape, "Shape by problem", digits=3) if len(shape) else print(why_not)

# %% [markdown]
# ## Claims and findings
#
# The claims about answers count only replies that are a name, and exclude questions with fewer than
# 30 of them. A claim is decided if the whole interval lies on one side of the threshold. With fewer
# than ten problems there is no interval; then at least six single values must all lie on one side.
# The claims about programs exclude a model if fewer than one in twenty of its programs pass. Tests
# of ours are counted separately.

# %%
found = study.findings(replies, asked, programs)
page.show_findings(found)

# %% tags=["remove-cell"]
page.glue_each(study.headline(replies, asked, programs), "{}")
page.glue_verdicts(found)

# %% [markdown]
# ## Check it yourself
#
# Every number about answers should be the same for both halves of the replies, up to its interval.
# In a cell of this page:
#
# ```python
# texts = replies.text[replies.question == asked[0].label]
# for half in (texts[::2], texts[1::2]):
#     print(study.summarise(half).top_share)
# ```
#
# Intervals that do not overlap would mean that the replies depend on each other. The claim that one
# name outnumbers all others is refuted, for this model and this wording, if the whole interval lies
# below one half.
# `python -m calib_utils run --model NAME --notebook 07_beyond -p seed=1 --results-dir other --book-dir other-pages`
# samples everything again, and `-p endpoint_url=…` asks a larger model.
#
# This page reads stored replies. Each has its log-probability, its result, the hashes of the
# weights and of the prompts, and its convention. The problems with their tests are in
# `data/tasks/programs.json`.

# %%
print("numbers from", page.weights)
