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
# # Order calibration: are valid tokens ranked first?
#
# **What the paper claims** (Sec. 4, App. A and B, Fig. 2, 3, 4, 7, Table 1). In open-ended writing
# nobody can list the valid answers, but a candidate for the next token can be tried: force it, let
# the model finish, and judge the text. Ranked by probability, valid and invalid candidates turn out
# to be mixed, so every rank cutoff gives up recall or precision; it gets worse with each further
# token; and whoever knew which tokens are valid, for two steps only, would write more diverse texts
# than any cutoff does.
#
# **What we find.** On {glue:text}`lists_asked` prompts that a list decides and
# {glue:text}`forms_asked` that a rule decides, with one token forced: area under the
# precision-recall {term}`frontier` {glue:text}`lists_area` and {glue:text}`forms_area`, where a
# {term}`random order` has {glue:text}`lists_random_area` and {glue:text}`forms_random_area`; recall
# at precision 0.8 {glue:text}`lists_recall_at` and {glue:text}`forms_recall_at`. The greedy answer is
# valid on {glue:text}`lists_answered` and {glue:text}`forms_answered` of them.
# {glue:text}`headline` The table near the end has the interval that decides each.
#
# **How to check it** is at the end.

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
lists, forms, texts = study.JUDGES

# %% [markdown]
# ## What was tried, and who decides
#
# A judge of stories that fits on a laptop is no good reader, and the paper's own errs in a fifth of
# the texts. So the prompts here are such that a program decides, and no judge is needed:
#
# - *lists*: name a planet, a currency, a constellation. A text is valid where the whole of it is
#   one of the names of a closed set, in any common form and spelling that the list has. What a list
#   leaves open is not counted.
# - *forms*: write a date of a given year, an expression that equals 24, a legal first move in
#   chess. A parser or a rule decides.
#
# The model is told neither the list nor the rule. Free texts, which only a checker of grammar
# labels here, are in the appendix at the end.
#
# Candidates form a {term}`sweep`: at depth 1 every tenth rank up to 1,000, as in the paper; trees of
# two or three forced tokens have 8 or 4 ranks a step, spaced evenly in their logarithm. So recall
# is relative to the ranks tried, never to the whole vocabulary.

# %%
run = study.run(page.model, plan, page.store)
when = page.when_written([sweep.name for sweep in plan.sweeps])

# %%
page.show(study.label_counts(run))

# %% [markdown]
# ## One step
#
# The first token of an answer ({numref}`fig-one-step`). Walking down the ranking, precision is the
# share of valid candidates so far, recall the share of all valid ones found so far
# ({term}`local precision` and {term}`local recall`, Def. 4.1).

# %% mystnb={"figure": {"caption": "One next token: precision (solid) and recall (dashed) against the number of tokens kept, on a logarithmic axis, with prevalence (dotted). A perfect order would hold precision at 1 until recall reaches 1 (compare Fig. 3 of the paper). Labels by a list.", "name": "fig-one-step"}, "image": {"alt": "Precision falling and recall rising as the cutoff moves down the ranking of one next token."}}
shown = study.SHOWN
city = run.candidates[plan.trees[lists][0].name].query("prompt_id == @shown")
ax = figures.cutoff_curves(study.precision_recall.local_curves(city))
_ = figures.source_line(ax, page.source, when)

# %% [markdown]
# The texts behind it: the highest candidates that turn out valid, and those that do not (compare
# App. B). A candidate's probability is not what makes it valid.

# %%
page.show(study.examples(run, plan.trees[lists][0].name, shown))

# %% [markdown]
# ## Every prompt
#
# One dot a prompt ({numref}`fig-prompts`). A random order's frontier lies above
# {term}`prevalence`, since the best cutoff is picked after the fact: what the ranking knows is the
# height above the diagonal.

# %% mystnb={"figure": {"caption": "Left: area under the frontier of each prompt against that of a random order of the same candidates; on the diagonal the ranking knows nothing, at the top it is perfect. Right: recall at precision 0.8 against prevalence (compare Fig. 4 of the paper). One forced token; labels by lists and rules.", "name": "fig-prompts"}, "image": {"alt": "Two scatter plots with a dot per prompt: area against a random order's, and recall at precision 0.8 against prevalence."}}
measured = study.measures(run)
figure = figures.prompt_points(measured[measured.kind.isin(study.EXACT) & (measured.forced == 1)])
_ = figures.source_line(figure.axes[0], page.source, when)

# %% [markdown]
# Means over prompts, with 95 % bootstrap intervals over prompts {cite:p}`hesterberg2015bootstrap`,
# and the deeper trees below them. *Forced* is how deep the tree is, *depth* the step in it. Recall
# is weighted by the valid texts below a candidate (Def. 4.1); prompts without a valid candidate
# have none.
#
# - *area_gain*: area less that of a random order; *past_half*: what it is above half of the gain of
#   a perfect order, which reaches 1.
# - *prevalence*: of valid candidates, over the nodes that have one; *prevalence_all*: over all.
# - *n_runs*: trees with a valid candidate.

# %%
depths = study.depth_table(measured)
exact = depths[depths.kind.isin(study.EXACT)]
page.show(page.with_intervals(exact.drop(columns="recall")))

# %% [markdown]
# ## Deeper trees
#
# A candidate is valid if *some* text below it is (the paper's rule). So a token near the root,
# with more texts below it, is valid more easily: over all nodes prevalence falls with depth **by
# definition** (*prevalence_all*), and precision with it. A node without any valid candidate has no
# frontier: deep down only nodes where the model is still on its way to a valid text are left, which
# are the easy ones. So steps are compared within the same trees, by their area and by what it is
# beyond a random order's.

# %% mystnb={"figure": {"caption": "Lists: precision against recall on the frontier of all cutoffs, a panel per step of the same trees: mean (line) and extremes (band) over nodes. Dotted: prevalence; dash-dotted: the mean height of a random order. What the ranking knows is the distance to the dash-dotted line (compare Fig. 2 right of the paper).", "name": "fig-depth-lists"}, "image": {"alt": "Panels of precision-recall frontiers by depth for lists, with prevalence and a random order."}}
figure = figures.depth_frontiers(*study.deepest(run, depths, lists))
_ = figures.source_line(figure.axes[0], page.source, when)

# %% mystnb={"figure": {"caption": "Forms: the same.", "name": "fig-depth-forms"}, "image": {"alt": "Panels of precision-recall frontiers by depth for forms, with prevalence and a random order."}}
figure = figures.depth_frontiers(*study.deepest(run, depths, forms))
_ = figures.source_line(figure.axes[0], page.source, when)

# %% [markdown]
# The later step less the earlier one, within the same tree:

# %%
changes = study.depth_changes(measured)
page.show(page.with_intervals(changes[changes.kind.isin(study.EXACT)]))

# %% [markdown]
# ## The authors' own points
#
# The paper's demo page gives points for two models and four beginnings of a story, labelled by its
# judge. Most of the area there is prevalence.

# %% mystnb={"figure": {"caption": "The authors' published points of two larger models: precision against recall, a line per prefix, with prevalence (dotted). Most of the area is prevalence.", "name": "fig-published-points"}, "image": {"alt": "Precision against recall of two published models, a line per prefix, with prevalence."}}
published = study.precision_recall.from_published()
figure = figures.published_frontiers(study.precision_recall.published_points(), published)
_ = figures.source_line(figure.axes[0], "points published with arXiv:2605.11128v1")

# %%
page.show(published.drop(columns="recall"))

# %% [markdown]
# ## Is one greedy completion enough?
#
# Candidates of lists, labelled by their greedy completion and by ten drawn ones (compare
# Fig. 7). How many of ten have to be valid is not said, so both readings are shown.

# %% mystnb={"figure": {"caption": "Lists: mean precision-recall frontiers of the same candidates under three ways to label them; thin: lowest and highest node. Lines that lie close say that one greedy completion is enough (compare Fig. 7 of the paper).", "name": "fig-greedy-drawn"}, "image": {"alt": "Precision-recall frontiers of the same candidates under three ways to label them."}}
grid, sources = study.greedy_and_drawn(run)
ax = figures.compared_frontiers(
    study.precision_recall.frontiers_by_depth(grid, by="labels"), by="labels"
)
_ = figures.source_line(ax, page.source, when)

# %%
summary = study.precision_recall.depth_summary(sources, by="labels").drop(columns="recall")
page.show(page.with_intervals(summary))

# %% [markdown]
# ## Can a language model be the judge?
#
# The paper's judge has 35 billion parameters and agrees with people on 81 % of texts (F1 0.80).
# Here a language model gets the same task in our own words: grammar, semantics and overall quality
# from 1 to 10, valid from 9 on all three (`calib_utils.openended.judges`). Half of the texts it is asked
# about are valid where there are enough, so 0.5 is chance and saying no to everything gets
# *always_invalid*. The references are the lists, and for grammar the checker, which errs itself.

# %%
judge = study.judge_by_name(judge_model if plan.judged else "", judge_url)
samples, judged = study.ask(run, judge, seed, page.store, page.model.key)
agreements = study.agreement_table(samples, judged, run)

# %%
print("judge:", judge.name if judge else "none in this run")
page.show(page.with_intervals(agreements))

# %% [markdown]
# The {term}`noise floor`: what a **perfect** ranking of 1,000 candidates would seem to have under
# a judge that errs at random, at the prevalence of this page's lists (*prevalence* is then the
# share that the judge calls valid). A frontier measured with such a judge says little about the
# ranking.

# %%
first = depths[(depths.kind == lists) & (depths.forced == 1)].iloc[0]
noise = study.noise_table(agreements, first.prevalence_all)
page.show(noise)

# %% [markdown]
# People are the better reference. No human label comes with this book. This writes a sheet with 50
# texts of either kind for a person to fill in, and `verifiers.read_sheets` reads what comes back:
#
# ```python
# texts = study.to_annotate(run, 50)
# cu.openended.verifiers.write_sheet("label-me.csv", texts)
# cu.openended.verifiers.read_sheets(texts, "label-me.csv")
# ```
#
# ## Knowing validity for two steps
#
# Table 1 of the paper: an *oracle* draws its first two tokens uniformly from those found valid,
# then the model goes on as usual. The others cut every step. For each of them four settings are
# drawn from its grid in Table 3 (the oracle has one), each writes 12 texts for each prompt, and
# the most diverse setting with validity 0.8 or more counts; *best_of* is the expected best of as
# many settings as the smallest grid has. {term}`Embedding diversity <embedding diversity>` is the
# mean of 1 − cosine over pairs of texts; {term}`self-BLEU` is high where texts repeat each other,
# over all texts and in groups of four, since the paper's "n = 4" can mean either. The prompts are
# every other list, whose names are short; the free texts, longer and judged by grammar alone, are
# in the appendix.

# %%
drawn = study.texts_of(page.model, run, seed, page.store)
embed = study.embedder_of(embedder)
scores = study.scores_of(drawn, embed, seed=seed)
compared = study.comparisons(scores)
apart = study.differences(scores)
table1_when = page.when_written([f"table1-{sweep.name}" for sweep in plan.oracle.values()])

# %% mystnb={"figure": {"caption": "Lists: Table 1 on this model, a row per strategy. Left: embedding diversity, more is better; middle and right: self-BLEU, less is better. Dots with 95 % intervals over prompts; hollow: the paper's numbers, of other models, prompts and judge.", "name": "fig-table1-lists"}, "image": {"alt": "Dots with intervals of embedding diversity and self-BLEU by strategy for lists, the paper's numbers hollow."}}
if lists in scores:
    own = compared[compared.kind == lists]
    figure = figures.strategy_dots(own, study.table1.published_table1())
    _ = figures.source_line(figure.axes[0], page.source, table1_when)

# %% [markdown]
# *tried* settings, *usable* ones with validity 0.8, the chosen one, and each measure with its
# interval over prompts. *held_out* chooses the setting on the other prompts. Then the oracle less
# each strategy, prompt by prompt:

# %%
page.show(page.with_intervals(study.compact(compared)))

# %%
page.show(page.with_intervals(apart))

# %% [markdown]
# ## The paper's own size
#
# Ten trees of depth 3 with 100 candidates a step, completed to 64 tokens (the length is not given),
# beside what this page ran. On a graphics card the same functions do it: `sweeps.Sweep` takes the
# depth, the ranks and the prompts, `prompts.noveltybench()` the paper's queries,
# `sweeps.size_of` counts its texts and tokens before it runs, and `sweeps.sweep` runs it.

# %%
page.show(study.sizes(plan), digits=3)

# %% [markdown]
# ## Claims and findings
#
# A model whose greedy answer is valid on fewer than ten of the lists, or of the forms, cannot do what
# the claims about them are about, and is excluded. Else the interval decides; where it holds both
# answers the claim is not decided here, nor where the
# oracle's own texts are valid less often than 0.8. The tests of the ranking are ours, and counted
# apart.

# %%
can = study.answered(measured)
found = study.findings(depths, changes, sources, compared, apart, can)
page.show(found)

# %% tags=["remove-cell"]
page.glue_verdicts(found)
page.glue_each(study.headline(depths, measured), "{}")
page.glue_each({f"{kind}_answered": f"{n} of {asked}" for kind, (n, asked) in can.items()}, "{}")

# %% [markdown]
# ## Appendix: free texts, by their grammar alone
#
# A story, a joke, a poem, a plot. An offline checker of spelling and grammar (*harper*) labels
# them, so "valid" means **free of the errors that it finds**: it knows no meaning, misses errors,
# and a text that was cut off is not punished for it. These numbers say how often the model goes on
# without a slip after a forced token, and decide no claim of the paper. The trees begin after 1 to
# 12 tokens of the model's own; with one token forced there are 48 ranks, spaced evenly in their
# logarithm.

# %% mystnb={"figure": {"caption": "Free texts, labelled by grammar alone: frontiers by step of the same trees, as for lists and forms.", "name": "fig-depth-texts"}, "image": {"alt": "Panels of precision-recall frontiers by depth for free texts, with prevalence and a random order."}}
figure = figures.depth_frontiers(*study.deepest(run, depths, texts))
_ = figures.source_line(figure.axes[0], page.source, when)

# %%
page.show(page.with_intervals(depths[depths.kind == texts].drop(columns="recall")))

# %% [markdown]
# ## Check it yourself
#
# What the ranking knows is the area beyond a random order. Destroy the order and it should go. In
# a cell of this page:
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
# Shuffled, the area scatters around the random one; if it kept the height of the last line, the
# area would not be about order. Where the last line lies within that scatter, this model's ranking
# knows nothing about this step. Other trees, draws and settings, kept apart from these:
#
# ```text
# python -m calib_utils run --model NAME --notebook 04_order_calibration -p seed=1 \
#   --results-dir other --book-dir other-pages
# ```
#
# Their intervals should overlap those above, since prompts are the same; a verdict that changes
# says that the sample was too small for it. Every text is stored with its tokens, ranks,
# log-probabilities and label, so labels can be made anew without the model, by another judge or by
# hand.
#
# ## Summary and provenance
#
# Texts and labels are kept under the results folder; a run after a kill goes on from there. They
# are reused for the same weights, prompts and convention only.

# %%
print("numbers from", page.source)
