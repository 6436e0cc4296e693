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
# {term}`cutoff` can keep the first and drop the rest? The paper says no: the two kinds are mixed at
# every step (the paper's Fig. 2 to 4), and an oracle that knows the valid tokens of the first two
# steps writes more diverse texts than any cutoff does (the paper's Table 1).
#
# **Answer.** On {glue:text}`lists_asked` prompts that a list decides and {glue:text}`forms_asked`
# that a rule decides, the ranking of the first token has an area under precision and recall of
# {glue:text}`lists_area` and {glue:text}`forms_area`; a perfect order would have 1, and a
# {term}`random order` of the same candidates has {glue:text}`lists_random_area` and
# {glue:text}`forms_random_area`. A cutoff that is right about 80 % of what it keeps finds
# {glue:text}`lists_recall_at` and {glue:text}`forms_recall_at` of the valid tokens (brackets hold
# 95 % intervals over prompts). Of the paper's claims below, {glue:text}`reproduced` are reproduced,
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
# Nobody can list all valid stories, so the paper lets a large language model judge its texts, and
# that judge errs on one text in five. This chapter asks for answers that a program can decide:
#
# - *Lists* ask for a planet, a currency or a constellation. A text is valid if the whole of it is
#   one of the names of a closed set, in any common form.
# - *Forms* ask for a date of a given year, an expression that equals 24 or a legal first move in
#   chess. A parser or a rule decides.
#
# The model is told neither the list nor the rule. A {term}`sweep` forces one candidate after
# another as the next token, lets the model finish the text greedily, that is with its most probable
# tokens, and labels the candidate by the text. Candidates for the first token are every tenth rank
# up to rank 1,000, as in the paper; trees of two or three forced tokens have 8 or 4 ranks a step.
# So recall is always relative to the ranks that were tried, and never to the whole vocabulary.

# %%
page.fold(study.sizes(run), "What was tried and found valid, and the paper's own size", digits=3)

# %% [markdown]
# ### One token of one prompt
#
# {numref}`fig-one-step` walks down the ranking of a single next token. {term}`Local precision
# <local precision>` is the share of the kept candidates that is valid, and {term}`local recall` the
# share of all valid candidates that is kept.

# %% mystnb={"figure": {"caption": "One next token: precision (solid) and recall (dashed) against the number of tokens kept, on a logarithmic axis, with prevalence (dotted). A perfect order would hold precision at 1 until recall reaches 1 (compare the paper's Fig. 3). Labels by a list.", "name": "fig-one-step"}, "image": {"alt": "Precision falling and recall rising as the cutoff moves down the ranking of one next token."}}
shown = study.SHOWN
city = run.candidates[plan.trees[lists][0].name].query("prompt_id == @shown")
ax = figures.cutoff_curves(study.precision_recall.local_curves(city))
_ = figures.source_line(ax, page.source, when)

# %% [markdown]
# These are the texts behind it: the highest candidates that turn out valid, and the highest that do
# not (compare the paper's App. B). The probability of a candidate (*p*) is not what makes it valid.

# %%
page.show(study.examples(run, plan.trees[lists][0].name, shown))

# %% [markdown]
# ### All prompts
#
# The precision and recall of every possible cutoff trace a {term}`frontier`, and the area under it
# says how good the ranking is. Even a random order has more area than {term}`prevalence`, because
# the best cutoff is picked after the fact. So the number to look at is *area_gain*, the area beyond
# that of a random order, and *past_half*, by how much it exceeds half of what a perfect order would
# gain.
#
# The table has means with 95 % bootstrap intervals over prompts {cite:p}`hesterberg2015bootstrap`,
# by the number of *forced* tokens and the step (*depth*). Recall weighs a candidate by the valid
# texts below it (the paper's Def. 4.1). Nodes without a valid candidate count in *prevalence_all*
# alone, and *n_runs* counts trees.

# %%
depths = study.depth_table(measured)
exact = depths[depths.kind.isin(study.EXACT)]
exact = page.with_intervals(exact.drop(columns="recall"))
page.fold(exact, "Area, recall and prevalence by the number of forced tokens and the step")

# %% [markdown]
# ### Deeper into the answer
#
# Does the ranking get worse with each further token? The paper calls a candidate valid if *some*
# text below it is. A token near the root has more texts below it, so prevalence falls with depth
# **by definition**, and precision with it; and of the nodes deep in a tree only the easy ones have
# any valid candidate, and so a frontier. We therefore compare steps within the same trees, by their
# area and by what it exceeds a random order by.

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
# The paper completes every candidate once, greedily, and shows that ten drawn completions would say
# the same (the paper's Fig. 7). Here are both labels for the same candidates. The paper does not
# say how many of the ten have to be valid, so we try two readings.

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
# small language model the same task: it marks grammar, semantics and overall quality from 1 to 10,
# and calls a text valid from 9 on all three. Half of its texts are valid where there are enough, so
# an accuracy of 0.5 is chance.

# %%
judge = study.judge_by_name(judge_model if plan.judged else "", judge_url)
samples, judged = study.ask(run, judge, seed, page.store, page.model.key)
agreements = study.agreement_table(samples, judged, run)
print("judge:", judge.name if judge else "none in this run")
page.fold(page.with_intervals(agreements), "The judge against the lists and the grammar checker")

# %% [markdown]
# Such errors set a {term}`noise floor`: even a **perfect** ranking of 1,000 candidates would seem
# as poor as the next table says. The points that the authors publish show the other half of the
# problem: their areas lie only {glue:text}`published_gain` above those of a random order, because
# most of their candidates are valid. [What a judged curve can show](../../noise_floor.md) lets you
# move both by hand.

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
# valid, and then the model goes on as usual. The other strategies cut every step. Of each of them
# we draw four settings from its grid in the paper's Table 3, and each setting writes 12 texts for
# every list prompt. What counts is the most diverse setting whose validity is 0.8 or more.
#
# {term}`Embedding diversity <embedding diversity>` is high where texts differ in meaning, and
# {term}`self-BLEU` where they repeat each other's words. The latter is taken over all texts and
# over groups of four, since the paper's "n = 4" can mean either.

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
# and *held_out* chooses the setting of a prompt on the other prompts.

# %%
page.fold(page.with_intervals(study.compact(compared)), "Every strategy, on lists and free texts")

# %%
page.fold(page.with_intervals(apart), "The oracle less each strategy, prompt by prompt")

# %% [markdown]
# ### Free texts, judged by their grammar alone
#
# The model was also asked for a story, a joke, a poem and a plot. An offline checker of spelling
# and grammar (*harper*) labels these texts, so "valid" means **free of the errors that it finds**:
# it knows no meaning, and does not punish a text that was cut off. The numbers say how often the
# model goes on without a slip after a forced token, and they decide no claim.

# %%
of_texts = page.with_intervals(depths[depths.kind == texts].drop(columns="recall"))
page.fold(of_texts, "Free texts: area, recall and prevalence, by grammar alone")

# %% [markdown]
# ## Claims and findings
#
# A model whose greedy answer is valid on fewer than ten of the lists, or of the forms, cannot do
# what the claims about them are about, and is excluded; this model's is valid on
# {glue:text}`lists_answered` lists and {glue:text}`forms_answered` forms. In all other cases the
# interval decides. A claim is not decided where the interval holds both answers, or where the
# oracle's own texts are valid less often than 0.8. The tests of the ranking are ours, and are
# counted apart.

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
# What the ranking knows is the area beyond a random order. Destroy the order and that area should
# go. In a cell of this page:
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
# Shuffled, the area scatters around the random one. If it kept the height of the last line, the
# area would not be about order. Where the last line itself lies within that scatter, this model's
# ranking knows nothing about this step.
#
# This draws other trees, texts and settings, and keeps them apart from these:
#
# ```text
# python -m calib_utils run --model NAME --notebook 04_order_calibration -p seed=1 \
#   --results-dir other --book-dir other-pages
# ```
#
# The prompts are the same, so the intervals should overlap with those above; a verdict that changes
# says that the sample was too small for it.
#
# This writes a sheet with 50 texts of either kind for a person to label, and reads it back:
#
# ```python
# items = study.to_annotate(run, 50)
# cu.openended.verifiers.write_sheet("label-me.csv", items)
# cu.openended.verifiers.read_sheets(items, "label-me.csv")
# ```
#
# Every text is stored with its tokens, ranks, log-probabilities and label, and a run that was
# stopped goes on where it was. On a graphics card the same functions do the paper's own size
# (`study.paper`).

# %%
print("numbers from", page.source)
