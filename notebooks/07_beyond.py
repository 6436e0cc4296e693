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
# # Beyond controlled tasks: one question many times, programs by probability
#
# **What the paper claims** (Sec. 6, Fig. 11 and 12). The same two faults show outside lists of
# known answers. Asked hundreds of times for a random city, a chat model names one city nearly
# always (*shape*). Programs sampled for one coding problem, sorted by log-probability, mix those
# that pass with those that fail (*order*), and few of those that pass hold most of their mass
# (*shape*).
#
# **What we find.** Of the replies to *Name a random city in the world*, {glue:text}`city_names`
# have a first line that is a city's name and nothing else, and the most frequent of these is
# {glue:text}`city_top`.
# Programs: pass@1 {glue:text}`pass_1`, {term}`order (AUC)` {glue:text}`program_auc`.
# {glue:text}`headline`
#
# The paper shows one example of each, of far larger models; here are five questions and twelve
# small problems, for a base model two questions and no problem. All numbers are estimates from
# draws; shares carry a 95 % interval in brackets where there are draws enough, means over problems
# one from ten problems on, and their points below that. They are
# of the model file named under each figure, in 4 bits for the models of this book, and not of the
# model's family.
#
# **How to check it** is at the end.

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

# %% [markdown]
# ## One question, many times
#
# Replies are drawn from the model's own distribution at temperature T, without cutoff: the
# embedded files come without sampling settings, so these are their defaults as well. *random-city*
# is the paper's question word for word, *random-city-half* the same at T = 0.5, and the rest ask
# for a city, a country and a chemical element by name only. A chat model gets its own template, a
# base model the bare text, and two of the questions only. A reply has 20 tokens at most.

# %%
asked = study.questions(page.model, quick)
n_replies = study.QUICK_REPLIES if quick else study.N_REPLIES
replies = study.ask_all(page.model, asked, n_replies, seed, page.store)
names = [f"repeats-{question.label}" for question in asked]
asked_when = page.when_written(names)
page.show(study.answers_table(replies, asked))

# %% [markdown]
# - *names*: the share of replies that are a listed city, country or element and nothing else. Where
#   it is low, the model writes sentences or leaves the subject, and counting whole answers says how
#   varied the *wording* is. *top of the names* counts among these replies alone.
# - *effective number* ({term}`effective number of answers`): exp(H), the number of equally likely
#   answers that would be as varied, corrected for answers not seen. **Its interval promises too
#   much where answers have a long tail**: a sample cannot know a tail it has not touched. Then the
#   number is too low and the interval covers the truth less often than 95 %. Two spellings count
#   as two answers, *USA* and *United States* for one.
# - *unseen* ({term}`unseen mass`): how likely the next reply is one that did not come yet. Where
#   it is near 1, nothing can be said about the number of answers, except that it is large.

# %% mystnb={"figure": {"caption": "Replies to \"Name a random city in the world\" at temperature 1: a bar for each of the most frequent, the others together, and (open bar) how many of as many further replies would be new (compare Fig. 11 of the paper).", "name": "fig-beyond-city"}, "image": {"alt": "Bars of the most frequent replies to the question for a random city."}}
first = study.summarise(replies.text[replies.question == asked[0].label])
ax = figures.answer_bars(first)
_ = figures.source_line(ax, page.weights, asked_when)

# %% mystnb={"figure": {"caption": "The same for a question that asks for the name only: a country.", "name": "fig-beyond-country"}, "image": {"alt": "Bars of the most frequent replies to the question for a country."}}
ax = figures.answer_bars(study.summarise(replies.text[replies.question == "country"]))
_ = figures.source_line(ax, page.weights, asked_when)

# %% [markdown]
# **Another model.** With `endpoint_url` and `endpoint_model` this page asks any server with an
# OpenAI-compatible interface the same question, at temperature 1.

# %%
elsewhere = study.ask_endpoint(endpoint_url, endpoint_model, endpoint_replies)
there = [study.Question(endpoint_model, asked[0].prompt, asked[0].kind)]
table = study.answers_table(elsewhere, there if endpoint_url else [])
page.show(table) if endpoint_url else print(study.NOT_ASKED)

# %% [markdown]
# ## Programs
#
# Twelve short problems were written for this project, with 5 to 9 tests each. Per problem 20
# replies are drawn at temperature 1 without cutoff, 256 tokens at most, and the first code
# block of each that defines the function runs in a sandbox: limits on time and memory, no network,
# no files. It passes if every answer is right. *failed* ran to its end with a wrong answer or an exception, *error* did not
# load.
#
# {term}`pass@k` is the probability that k draws hold one that passes, by the unbiased estimator of
# Chen et al. {cite:p}`chen2021evaluating`. Intervals are over problems, for problems like these;
# there are twelve.

# %%
n_programs = study.QUICK_PROGRAMS if quick else study.N_PROGRAMS
options = {"quick": quick, "results_dir": page.store}
programs = study.draw_programs(page.model, n_programs, seed, **options)
drawn_when = page.when_written(["programs"])
why_not = study.why_not(programs)
page.show(study.pass_table(programs)) if len(programs) else print(why_not)

# %% [markdown]
# One that passes and one that fails, as the model wrote them:

# %%
print(study.example_programs(programs) or why_not)

# %% [markdown]
# **Order.** Sorted by the log-probability of the whole reply, its words around the code included.
# Replies that the token limit cut off are left out, and equal replies count once.

# %% mystnb={"figure": {"caption": "Distinct replies to each problem by falling log-probability (vertical, in nats): passed (circles) or failed (crosses), a panel per problem. A good order would put circles left of crosses (compare Fig. 12 of the paper).", "name": "fig-beyond-programs"}, "image": {"alt": "Panels of log-probability by rank of replies to programming problems, passed and failed marked apart."}}
ranked = study.programs.ranked_programs(programs)
if len(ranked):
    figure = figures.program_ranks(ranked)
    _ = figures.source_line(figure.axes[0], page.weights, drawn_when)
else:
    print(why_not)

# %% [markdown]
# *prevalence* is the share that passes, and *auc* the probability that a passing reply is more
# probable than a failing one: 1 is a perfect order, 0.5 a random one. Long replies have low
# probabilities, so the last column orders by length alone, shortest first. Where it is as good,
# log-probability says little about the program itself.

# %%
page.show(study.order_table(programs)) if len(ranked) else print(why_not)

# %% mystnb={"figure": {"caption": "Precision against recall of keeping the replies above each log-probability (line), for the problem whose different complete replies pass nearest to half the time, with a random order (dashed).", "name": "fig-beyond-curve"}, "image": {"alt": "Precision against recall of programs kept by log-probability, with a random order."}}
mixed = study.most_mixed(programs)
if mixed:
    ax = figures.program_curves(*study.curve_of(programs, mixed))
    _ = figures.source_line(ax, f"{mixed}; {page.weights}", drawn_when)
else:
    print(why_not)

# %% [markdown]
# **Shape**, in two ways, for programs that pass. Replies whose code differs in layout, comments and
# docstrings only hold the same program.
#
# - *Among the drawn programs*, as in the paper's figure: the shares of their probability that the
#   top one and the top three hold, and exp of its entropy. Log-probabilities of long texts differ
#   by many nats, so a few of a small sample nearly always hold most, which decides nothing.
# - *Of all that pass*: *two are the same* estimates without bias how likely two passing draws hold
#   the same program. It sees undrawn programs too. *ln of their mass* tells why this matters:
#   where it is far below 0 the drawn replies, top ones included, hold next to nothing of what the
#   model can write.

# %%
shape = study.shape_table(programs)
page.show(shape, digits=3) if len(shape) else print(why_not)

# %% [markdown]
# ## Claims and findings
#
# The claims about answers count the replies that are a name, and exclude questions with fewer than
# 30 of them. A claim is decided where the whole interval lies on one side of the number that
# decides it; of fewer than ten problems, where six or more all do. A model of whose programs fewer
# than one in twenty pass is excluded. Tests that the paper does not make are counted apart.

# %%
found = study.findings(replies, asked, programs)
page.show(found)

# %% tags=["remove-cell"]
for name, text in study.headline(replies, asked, programs).items():
    page.glue(name, text)
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
# wording.
# `python -m calib_utils run --model NAME --notebook 07_beyond -p seed=1 --results-dir other --book-dir other-pages`
# draws everything anew, and `-p endpoint_url=…` asks a larger model.
#
# ## Summary and provenance
#
# Every reply, its log-probability and its verdict is stored with the hash of the weights and of the
# prompts, and with its convention; this page reads them and needs neither a sandbox nor
# a minute. With another `seed` or `results_dir` it draws anew: a quarter to half an hour on one
# core for the programs. The prompts with their tests are in `data/tasks/programs.json`.

# %%
print("numbers from", page.weights)
