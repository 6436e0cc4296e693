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
# **Question.** Do the faults of order and shape show outside lists of known answers? The paper says
# yes: asked hundreds of times for a random city, a chat model names one city nearly always (shape,
# the paper's Fig. 11), and of the programs sampled for one problem, those that pass and those that
# fail are mixed by log-probability, while few that pass hold most of the mass (order and shape, the
# paper's Fig. 12).
#
# **Answer.** Of this model's replies to *Name a random city in the world*, the share whose first
# line is a city's name and nothing else is {glue:text}`city_names`, and among these the most
# frequent is {glue:text}`city_top`. On programming problems its pass@1 is {glue:text}`pass_1`, and
# the probability that a program that passes is more probable than one that fails ({term}`order
# (AUC)`) is {glue:text}`program_auc`; 1 would be a perfect order and 0.5 a random one. Of the
# paper's claims below, {glue:text}`reproduced` are reproduced, {glue:text}`not_reproduced` are not,
# {glue:text}`not_decided` are not decided, and {glue:text}`excluded` are about what this model
# cannot do.

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
asked_when = page.when_written([f"repeats-{question.label}" for question in asked])

# %% mystnb={"figure": {"caption": "Replies to \"Name a random city in the world\" at temperature 1: a bar for each of the most frequent, the others together, and (open bar) how many of as many further replies would be new (compare the paper's Fig. 11).", "name": "fig-beyond-city"}, "image": {"alt": "Bars of the most frequent replies to the question for a random city."}}
first = study.summarise(replies.text[replies.question == asked[0].label])
ax = figures.answer_bars(first)
_ = figures.source_line(ax, page.weights, asked_when)

# %% [markdown]
# ## How we know
#
# The paper shows one example of each, of far larger models. Here are five questions and twelve
# small problems; a base model gets two questions and no problem. All numbers are estimates from
# draws. Shares carry a 95 % interval in brackets where there are draws enough. Means over problems
# carry one from ten problems on, and show their points below that.
#
# ### One question, many times
#
# Replies are drawn from the model's own distribution at temperature T without any cutoff, and have
# at most 20 tokens. *random-city* is the paper's question word for word, *random-city-half* the
# same at T = 0.5, and the others ask for a city, a country or a chemical element by name only. A
# chat model gets its own template, a base model the bare text.

# %%
page.show(study.answers_table(replies, asked))

# %% [markdown]
# - *names* is the share of replies that are a listed city, country or element and nothing else.
#   Where it is low, the model writes sentences or leaves the subject, and a count of whole answers
#   says how varied the *wording* is. *top of the names* counts among these replies alone.
# - *effective number* is the {term}`effective number of answers`: the number of equally likely
#   answers that would be as varied, corrected for answers not seen. **Its interval promises too
#   much where answers have a long tail**, because a sample cannot know a tail that it has not
#   touched; the number is then too low. Two spellings count as two answers, such as *USA* and
#   *United States*.
# - *unseen* is the {term}`unseen mass`: how likely the next reply is one that did not come yet.
#   Where it is near 1, all one can say about the number of answers is that it is large.

# %% mystnb={"figure": {"caption": "The same for a question that asks for the name only: a country.", "name": "fig-beyond-country"}, "image": {"alt": "Bars of the most frequent replies to the question for a country."}}
ax = figures.answer_bars(study.summarise(replies.text[replies.question == "country"]))
_ = figures.source_line(ax, page.weights, asked_when)

# %% [markdown]
# With `endpoint_url` and `endpoint_model` this page asks another model the paper's question, on any
# server with an OpenAI-compatible interface, at temperature 1.

# %%
elsewhere = study.ask_endpoint(endpoint_url, endpoint_model, endpoint_replies)
there = [study.Question(endpoint_model, asked[0].prompt, asked[0].kind)]
table = study.answers_table(elsewhere, there if endpoint_url else [])
page.show(table) if endpoint_url else print(study.NOT_ASKED)

# %% [markdown]
# ### Programs
#
# Twelve short problems were written for this project, with 5 to 9 tests each. For every problem we
# draw 20 replies of at most 256 tokens, at temperature 1 without cutoff. The first code block of a
# reply that defines the function runs in a sandbox with limits on time and memory and without
# network or files. A reply *passed* if every answer was right, *failed* if the program ran to its
# end with a wrong answer or an exception, and was an *error* if it did not load.
#
# {term}`pass@k` is the probability that at least one of k draws passes, by the unbiased estimator
# of Chen et al. {cite:p}`chen2021evaluating`. Its interval is over problems like these.

# %%
n_programs = study.QUICK_PROGRAMS if quick else study.N_PROGRAMS
programs = study.draw_programs(page.model, n_programs, seed, quick=quick, results_dir=page.store)
drawn_when = page.when_written(["programs"])
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
# reply, the words around the code included. Replies that the token limit cut off are left out, and
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
# orders by length alone, shortest first. Where it does as well, log-probability says little about
# the program itself.

# %%
order = study.order_table(programs) if len(ranked) else ranked
page.fold(order, "Order by problem") if len(order) else print(why_not)

# %% [markdown]
# ### Shape of programs
#
# How is the mass spread over the programs that pass? Replies that differ in layout, comments and
# docstrings only hold the same program. The table answers in two ways:
#
# - *Among the drawn programs*, as in the paper's figure: the share of their probability that the
#   *top one* and the *top three* hold, and their *effective number*. Log-probabilities of long
#   texts differ by many nats, so a few of a small sample nearly always hold most, which decides
#   nothing.
# - *Of all that pass*: *two are the same* estimates without bias how likely two passing draws hold
#   the same program, and so sees undrawn programs too. *ln of their mass* tells why that matters:
#   where it is far below 0, the drawn replies hold next to nothing of what the model can write.

# %%
shape = study.shape_table(programs)
page.fold(shape, "Shape by problem", digits=3) if len(shape) else print(why_not)

# %% [markdown]
# ## Claims and findings
#
# The claims about answers count the replies that are a name, and exclude questions with fewer than
# 30 of them. A claim is decided where the whole interval lies on one side of the number that
# decides it; of fewer than ten problems, where six or more all lie there. A model of whose programs
# fewer than one in twenty pass is excluded. Tests that the paper does not make are counted apart.

# %%
found = study.findings(replies, asked, programs)
page.show_findings(found)

# %% tags=["remove-cell"]
page.glue_each(study.headline(replies, asked, programs), "{}")
page.glue_verdicts(found)

# %% [markdown]
# ## Check it yourself
#
# Every number about answers should be the same on either half of the replies, up to its interval.
# In a cell of this page:
#
# ```python
# texts = replies.text[replies.question == asked[0].label]
# for half in (texts[::2], texts[1::2]):
#     print(study.summarise(half).top_share)
# ```
#
# Intervals that do not overlap would mean that replies depend on each other. *One name outnumbers
# all others* is refuted where the whole interval lies below one half, for this model and this
# wording. `python -m calib_utils run --model NAME --notebook 07_beyond -p seed=1 --results-dir
# other --book-dir other-pages` draws everything anew, in a quarter to half an hour on one core, and
# `-p endpoint_url=…` asks a larger model.
#
# Every reply is stored with its log-probability and verdict, the hash of the weights and of the
# prompts, and its convention. This page reads them and needs neither a sandbox nor a minute. The
# problems with their tests are in `data/tasks/programs.json`.

# %%
print("numbers from", page.weights)
