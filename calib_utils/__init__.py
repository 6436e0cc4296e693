"""Exact validity and diversity of language models on tasks whose valid answers are known.

    import calib_utils as cu
    model = cu.load_model("qwen2.5-coder-0.5b-instruct")
    table = cu.evaluate(model, cu.get_task("rng-2"), rules=[cu.NoCutoff(), cu.TopP(0.9)])

The rooms, each importing only from those before it: core, models, results, theory, openended,
studies, figures, book. Importing the package loads neither torch nor transformers: names are looked
up on first use.
"""

from importlib import import_module

_PUBLIC = {
    "ByStep": "theory.laws",
    "CalibUtilsError": "errors",
    "Chain": "core.rules",
    "Displaced": "theory.laws",
    "Epsilon": "core.rules",
    "EquallySharp": "theory.laws",
    "Eta": "core.rules",
    "Geometric": "theory.laws",
    "LeakyShape": "theory.laws",
    "MinP": "core.rules",
    "NoCutoff": "core.rules",
    "OracleSize": "core.rules",
    "Permuted": "theory.laws",
    "Policies": "core.prompts",
    "Processors": "core.processors",
    "Rule": "core.rules",
    "Sampler": "core.rules",
    "Task": "core.tasks",
    "TopH": "core.rules",
    "TopK": "core.rules",
    "TopNSigma": "core.rules",
    "TopP": "core.rules",
    "Typical": "core.rules",
    "UniformOverG": "theory.laws",
    "UniformOverV": "theory.laws",
    "Zipf": "theory.laws",
    "adaptive_frontier": "results.evaluation",
    "answer_probabilities": "results.evaluation",
    "best_by_budget": "core.metrics",
    "character_tokenizer": "theory.laws",
    "coverage": "book.commands",
    "evaluate": "results.evaluation",
    "evaluate_many": "results.comparison",
    "get_task": "core.tasks",
    "list_tasks": "core.tasks",
    "load_model": "models.loading",
    "open_page": "studies.reporting",
    "parse_rule": "core.processors",
    "predicate_answers": "core.answer_sets",
    "reference_model": "theory.laws",
    "regex_answers": "core.answer_sets",
    "render_prompt": "results.evaluation",
    "sample_answers": "results.draws",
    "show_prompt": "results.evaluation",
    "split": "results.evaluation",
    "step_losses": "results.evaluation",
    "stored_measurement": "results.evaluation",
    "structural_facts": "results.evaluation",
    "table3_rules": "core.rules",
    "trie_of_strings": "core.tries",
}
__all__ = sorted(_PUBLIC)
__version__ = "0.1.0"


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(f"calib_utils.{_PUBLIC[name]}"), name)
    if not name.startswith("_"):
        try:
            return import_module(f"calib_utils.{name}")
        except ModuleNotFoundError:
            pass
    raise AttributeError(f"module 'calib_utils' has no attribute {name!r}")


def __dir__():
    return __all__
