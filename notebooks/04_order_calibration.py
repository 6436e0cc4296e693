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
# # Order: are valid tokens ranked first?
#
# **Question.** Does a model rank the valid next tokens above the invalid ones, so that a
# {term}`cutoff` can keep the first and drop the rest? The paper says no: valid and invalid tokens
# are mixed at every step (the paper's Fig. 2 to 4). An oracle that knows the valid tokens of the
# first two steps writes more diverse texts than any cutoff (the paper's Table 1).
#
# **Answer.** We use {glue:text}`lists_asked` prompts whose answers a list decides, and
# {glue:text}`forms_asked` whose answers a rule decides. For the first token, the area under the
# precision–recall curve is {glue:text}`lists_area` and {glue:text}`forms_area`; a perfect order has
# 1, and a {term}`random order` of the same candidates has {glue:text}`lists_random_area` and
# {glue:text}`forms_random_area`. A cutoff whose kept tokens are 80 % valid keeps
# {glue:text}`lists_recall_at` and {glue:text}`forms_recall_at` of the valid tokens (95 % intervals
# over prompts in brackets). Of the paper's claims below, {glue:text}`reproduced` are reproduced,
# {glue:text}`not_reproduced` are not, {glue:text}`not_decided` are not decided, and
# {glue:text}`excluded` are about prompts that this model cannot answer.

# %% tags=["parameters"]
model = "qwen2.5-coder-0.5b-instruct"  # embedded name, hub id, local folder or .gguf file
revision = ""  # hub commit or tag; empty: the default branch
dtype = "float32"  # of the forward pass
device = "auto"  # cuda, mps or cpu
chat = None  # True, False: with or without the chat template; None: by the model's stage
seed = 0  # of the trees, the draws and the sampled settings; each has its own stored texts
results_dir = ""  # where texts and labels are stored and reused; empty: data/results
quick = False  # the same parts with a handful of texts, whose numbers mean nothing
end = ""  # what closes a text: eos or line; empty: line for a base model, else eos
judge_model = "qwen2.5-coder-0.5b-instruct"  # the language model as judge; empty: none
judge_url = ""  # an OpenAI-compatible server that runs it, key from CALIB_UTILS_JUDGE_KEY
embedder = "all-MiniLM-L6-v2"  # of the embedding diversity: embedded name, hub id or folder

# %%
import calib_utils as cu
from calib_utils.figures import order_calibration as figures
from calib_utils.studies import order_calibration as study

figures.use_style()
options = {"revision": revision, "dtype": dtype, "device": device, "chat": chat}
page = cu.open_page(model, results_dir=results_dir, end=end, **options)
plan = (study.quick if quick else study.laptop)(seed, page.end)
lists, _, texts = study.JUDGES

# %%
run = study.run(page.model, plan, page.store)
when = page.when_written([sweep.name for sweep in plan.sweeps])
measured = study.measures(run)

# %% mystnb={"figure": {"caption": "One dot a prompt, first token of the answer. Left: area under the precision-recall frontier against that of a random order of the same candidates; on the diagonal the ranking knows nothing, at the top it is perfect. Right: recall at precision 0.8 against prevalence, the share of the candidates that is valid (compare the paper's Fig. 4). Labels by lists and rules.", "name": "fig-prompts"}, "image": {"alt": "Two scatter plots with a dot per prompt: area against a random order's, and recall at precision 0.8 against prevalence."}}
figure = figures.prompt_points(measured[measured.kind.isin(study.EXACT) & (measured.forced == 1)])
_ = figures.source_line(figure.axes[0], page.source, when)

# %% [markdown]
# ## How we know
#
# ### Prompts that a program can decide
#
# Nobody can list all valid stories, so in the paper a large language model judges the texts, and it
# disagrees with people on one text in five. This chapter asks for answers that a program can check:
#
# - *Lists* ask for a planet, a currency or a constellation. A text is valid if it is one of the
#   names of a closed set, in any common form, and nothing else.
# - *Forms* ask for a date of a given year, an expression that equals 24 or a legal first move in
#   chess. A parser or a rule decides.
#
# The model is told neither the list nor the rule. A {term}`sweep` forces one candidate after
# another as the next token, lets the model finish the text with its most probable tokens
# (greedily), and labels the candidate valid if the text is. Candidates for the first token are
# every tenth rank up to rank 1,000, as in the paper. When two or three tokens are forced, we try 8
# or 4 ranks at each step. So recall is the share of the valid tokens *tried*, and not of the whole
# vocabulary.

# %%
page.fold(study.sizes(run), "What was tried and found valid, and the paper's own size", digits=3)

# %% [markdown]
# ### One token of one prompt
#
# {numref}`fig-one-step` shows what happens as more of one ranking is kept.
# {term}`Local precision <local precision>` is the share of the kept candidates that are valid, and
# {term}`local recall` the share of all valid candidates that are kept.

# %% mystnb={"figure": {"caption": "One next token: precision (solid) and recall (dashed) against the number of tokens kept, on a logarithmic axis, with prevalence (dotted). A perfect order would hold precision at 1 until recall reaches 1 (compare the paper's Fig. 3). Labels by a list.", "name": "fig-one-step"}, "image": {"alt": "Precision falling and recall rising as the cutoff moves down the ranking of one next token."}}
shown = study.SHOWN
city = run.candidates[plan.trees[lists][0].name].query("prompt_id == @shown")
ax = figures.cutoff_curves(study.precision_recall.local_curves(city))
_ = figures.source_line(ax, page.source, when)

# %% [markdown]
# These are the texts behind it: the highest-ranked valid candidates and the highest-ranked invalid
# ones (compare the paper's App. B), with the probability *p* of each candidate.

# %%
page.show(study.examples(run, plan.trees[lists][0].name, shown))

# %% [markdown]
# ### All prompts
#
# The precision and recall of every possible cutoff trace a {term}`frontier`, and the area under it
# says how good the ranking is. Even a random order has more area than {term}`prevalence`, the share
# of valid candidates, because the best cutoffs are picked after the labels are known. So look at
# *area_gain*, the area minus that of a random order. *past_half* is this gain minus half of what a
# perfect order would gain.
#
# The table has means with 95 % bootstrap intervals over prompts {cite:p}`hesterberg2015bootstrap`,
# by the number of *forced* tokens and the step (*depth*). Recall weighs a candidate by the valid
# texts that follow it (the paper's Def. 4.1). Steps without a valid candidate count only in
# *prevalence_all*, and *n_runs* counts trees.

# %%
depths = study.depth_table(measured)
exact = depths[depths.kind.isin(study.EXACT)]
exact = page.with_intervals(exact.drop(columns="recall"))
page.fold(exact, "Area, recall and prevalence by the number of forced tokens and the step")

# %% [markdown]
# ### Deeper into the answer
#
# Does the ranking get worse with each further token? The paper calls a candidate valid if *some*
# text that begins with it is valid. An early token begins more texts than a late one, so prevalence
# and precision fall with depth **by definition**. Moreover, late in a tree only the easy steps have
# a valid candidate at all. We therefore compare steps of the same trees, by their area and by the
# gain over a random order.

# %% mystnb={"figure": {"caption": "Lists: precision against recall on the frontier of all cutoffs, a panel per step of the same trees: mean and extremes over nodes, with prevalence and the mean height of a random order. What the ranking knows is the distance from the mean to the random order (compare the paper's Fig. 2, right).", "name": "fig-depth-lists"}, "image": {"alt": "Panels of precision-recall frontiers by depth for lists, with prevalence and a random order."}}
figure = figures.depth_frontiers(*study.deepest(run, depths, lists))
_ = figures.source_line(figure.axes[0], page.source, when)

# %%
changes = study.depth_changes(measured)
of_exact = page.with_intervals(changes[changes.kind.isin(study.EXACT)])
page.fold(of_exact, "A later step less an earlier one of the same trees, lists and forms")

# %% [markdown]
# ### Is one completion enough to label a candidate?
#
# The paper completes every candidate once, greedily, and shows that ten random completions give the
# same curve (the paper's Fig. 7). We label the same candidates both ways. The paper does not say
# how many of the ten have to be valid, so we try two readings.

# %% mystnb={"figure": {"caption": "Lists: mean precision-recall frontiers of the same candidates under three ways to label them; thin: lowest and highest node. Lines that lie close say that one greedy completion is enough (compare the paper's Fig. 7).", "name": "fig-greedy-drawn"}, "image": {"alt": "Precision-recall frontiers of the same candidates under three ways to label them."}}
grid, sources = study.greedy_and_drawn(run)
ax = figures.compared_frontiers(
    study.precision_recall.frontiers_by_depth(grid, by="labels"), by="labels"
)
_ = figures.source_line(ax, page.source, when)

# %%
summary = study.precision_recall.depth_summary(sources, by="labels").drop(columns="recall")
page.fold(page.with_intervals(summary), "The same candidates under three ways to label them")

# %% [markdown]
# ### Why no language model judges here
#
# The paper's judge has 35 billion parameters and agrees with people on 81 % of texts. We gave a
# small language model the same task: it gives marks from 1 to 10 for grammar, semantics and overall
# quality, and a text is valid if all three are 9 or more. Where possible, half of the texts are
# valid, so an accuracy of 0.5 is chance.

# %%
judge = study.judge_by_name(judge_model if plan.judged else "", judge_url)
samples, judged = study.ask(run, judge, seed, page.store, page.model.key)
agreements = study.agreement_table(samples, judged, run)
print("judge:", judge.name if judge else "none in this run")
page.fold(page.with_intervals(agreements), "The judge against the lists and the grammar checker")

# %% [markdown]
# Such errors make even a **perfect** ranking of 1,000 candidates look as poor as the next table
# says (the {term}`noise floor`). The share of valid candidates matters too. In the authors'
# published points most candidates are valid, and the areas are only {glue:text}`published_gain`
# above those of a random order. On [What a judged curve can show](../../noise_floor.md) you can
# change both.

# %%
first = depths[(depths.kind == lists) & (depths.forced == 1)].iloc[0]
noise = study.noise_table(agreements, first.prevalence_all)
page.fold(noise, "A perfect ranking under a noisy judge")

# %%
published = study.precision_recall.from_published().drop(columns="recall")
page.fold(published, "The authors' published points, by model and beginning of a story")

# %% [markdown]
# ### What knowing two steps would buy
#
# In the paper's Table 1 an *oracle* draws its first two tokens uniformly from those that were found
# valid, and then the model goes on as usual. The other strategies apply a cutoff at every step. For
# each of them we choose four settings at random from its grid in the paper's Table 3, and each
# setting writes 12 texts for every list prompt. We compare the most diverse setting whose validity
# is 0.8 or more.
#
# {term}`Embedding diversity <embedding diversity>` is high if texts differ in meaning.
# {term}`self-BLEU` is high if they repeat each other's words; we compute it over all texts and over
# groups of four, since the paper's "n = 4" can mean either.

# %%
drawn = study.texts_of(page.model, run, seed, page.store)
embed = study.load_embedder(embedder).embed
scores = {kind: study.table1.setting_scores(own, embed, seed=seed) for kind, own in drawn.items()}
compared = study.of_each_kind(scores, study.table1.comparison)
apart = study.of_each_kind(scores, study.table1.paired_differences)
table1_when = page.when_written([f"table1-{sweep.name}" for sweep in plan.oracle.values()])

# %% mystnb={"figure": {"caption": "Lists: the strategies of the paper's Table 1 on this model, a row each. Left: embedding diversity, more is better; middle and right: self-BLEU, less is better. Dots with 95 % intervals over prompts; hollow: the paper's numbers, of other models, prompts and judge.", "name": "fig-table1-lists"}, "image": {"alt": "Dots with intervals of embedding diversity and self-BLEU by strategy for lists, the paper's numbers hollow."}}
if lists in scores:
    own = compared[compared.kind == lists]
    figure = figures.strategy_dots(own, study.table1.published_table1())
    _ = figures.source_line(figure.axes[0], page.source, table1_when)
else:
    print(study.NO_OPENING)

# %% [markdown]
# In the first table, *best_of* is the expected best of as many settings as the smallest grid has,
# and *held_out* is the diversity if the setting for each prompt is chosen on the other prompts.

# %%
page.fold(page.with_intervals(study.compact(compared)), "Every strategy, on lists and free texts")

# %%
page.fold(page.with_intervals(apart), "The oracle less each strategy, prompt by prompt")

# %% [markdown]
# ### Free texts, judged by their grammar alone
#
# The model was also asked for a story, a joke, a poem and a plot. A checker of spelling and grammar
# (*harper*) labels these texts, so "valid" means only **free of the errors that it finds**. It does
# not look at meaning, and it accepts a text that was cut off. These numbers decide no claim.

# %%
of_texts = page.with_intervals(depths[depths.kind == texts].drop(columns="recall"))
page.fold(of_texts, "Free texts: area, recall and prevalence, by grammar alone")

# %% [markdown]
# ## Claims and findings
#
# Claims about lists exclude a model whose greedy answer is valid on fewer than ten lists, and
# claims about forms likewise. This model's greedy answer is valid on {glue:text}`lists_answered`
# lists and {glue:text}`forms_answered` forms. Otherwise the interval decides. A claim is not
# decided if its interval contains both answers, or if the oracle's own texts have a validity below
# 0.8. The tests of the ranking are ours, and are counted separately.

# %%
can = study.answered(measured)
found = study.findings(depths, changes, sources, compared, apart, can)
page.show_findings(found)

# %% tags=["remove-cell"]
page.glue_verdicts(found)
page.glue_each(study.headline(depths, measured), "{}")
page.glue_each({f"{kind}_answered": f"{n} of {asked}" for kind, (n, asked) in can.items()}, "{}")

# %% [markdown]
# ## Check it yourself
#
# The gain over a random order should disappear when the ranking is shuffled. In a cell of this
# page:
#
# ```python
# import numpy as np
#
# for seed in range(5):
#     ranks = np.random.default_rng(seed).permutation(city["rank"].to_numpy())
#     shuffled = study.precision_recall.local_curves(city.assign(rank=ranks))
#     print(study.precision_recall.node_measures(shuffled)[["random_area", "area"]])
# study.precision_recall.node_measures(study.precision_recall.local_curves(city))[["random_area", "area"]]
# ```
#
# The shuffled areas should scatter around the random one. If they were as large as the area in the
# last line, the area would not measure order. If the last line lies within the scatter, this
# model's ranking is no better than a random one at this step.
#
# This command draws other trees, texts and settings, and stores them elsewhere:
#
# ```text
# python -m calib_utils run --model NAME --notebook 04_order_calibration -p seed=1 \
#   --results-dir other --book-dir other-pages
# ```
#
# The prompts are the same, so the intervals should overlap with those above. If a verdict changes,
# the sample was too small for it.
#
# This code writes a sheet with 50 texts of each kind for a person to label, and reads it back:
#
# ```python
# items = study.to_annotate(run, 50)
# cu.openended.verifiers.write_sheet("label-me.csv", items)
# cu.openended.verifiers.read_sheets(items, "label-me.csv")
# ```
#
# Every text is stored with its tokens, ranks, log-probabilities and label, and an interrupted run
# continues where it stopped. On a GPU the same functions can run a sweep of the paper's size
# (`study.paper`).

# %%
print("numbers from", page.source)
