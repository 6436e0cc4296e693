"""Exact validity and diversity of language models on tasks whose valid answers are known.

    import calib_utils as cu
    model = cu.load_model("qwen2.5-coder-0.5b-instruct")
    table = cu.evaluate(model, cu.get_task("rng-2"), rules=[cu.NoCutoff(), cu.TopP(0.9)])

The flow, each module importing only from those before it: tasks, tries, prompts, models, scoring,
ranking, rules, steps, metrics, measure, results, evaluation, figures. Importing the package loads
neither torch nor transformers: names are looked up on first use.
"""

from importlib import import_module

_PUBLIC = {
    "ByStep": "laws",
    "CalibUtilsError": "errors",
    "Chain": "samplers",
    "Displaced": "ranked",
    "Epsilon": "samplers",
    "EquallySharp": "ranked",
    "Eta": "samplers",
    "Geometric": "ranked",
    "LeakyShape": "laws",
    "MinP": "rules",
    "NoCutoff": "rules",
    "OracleSize": "rules",
    "Permuted": "ranked",
    "Policies": "prompts",
    "Processors": "processors",
    "Rule": "rules",
    "Sampler": "rules",
    "Task": "tasks",
    "TopH": "samplers",
    "TopK": "rules",
    "TopNSigma": "samplers",
    "TopP": "rules",
    "Typical": "samplers",
    "UniformOverG": "laws",
    "UniformOverV": "laws",
    "Zipf": "ranked",
    "adaptive_frontier": "evaluation",
    "answer_probabilities": "evaluation",
    "best_by_budget": "budgets",
    "character_tokenizer": "reference",
    "evaluate": "evaluation",
    "get_task": "tasks",
    "list_tasks": "tasks",
    "load_model": "models",
    "parse_rule": "parsing",
    "reference_model": "reference",
    "render_prompt": "evaluation",
    "sample_answers": "sampling",
    "show_prompt": "evaluation",
    "step_losses": "evaluation",
    "stored_measurement": "evaluation",
    "structural_facts": "structure",
    "table3_rules": "rules",
    "trie_of_strings": "tries",
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
