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
    "errors": "CalibUtilsError",
    "core.metrics": "best_by_budget",
    "core.processors": "Processors parse_rule",
    "core.prompts": "Policies",
    "core.rules": (
        "Chain Epsilon Eta MinP NoCutoff OracleSize Rule Sampler TopH TopK TopNSigma TopP "
        "Typical table3_rules"
    ),
    "core.tasks": "Task get_task list_tasks predicate_answers regex_answers",
    "core.tries": "trie_of_strings",
    "models.loading": "load_model",
    "results.comparison": "evaluate_many",
    "results.draws": "sample_answers",
    "results.evaluation": (
        "adaptive_frontier answer_probabilities evaluate render_prompt show_prompt split "
        "step_losses stored_measurement structural_facts"
    ),
    "theory.laws": (
        "ByStep Displaced EquallySharp Geometric LeakyShape Permuted UniformOverG "
        "UniformOverV Zipf character_tokenizer reference_model"
    ),
    "studies.reporting": "open_page",
    "book.commands": "coverage",
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names.split()}
__all__ = sorted(_MODULE_OF)
__version__ = "0.1.0"


def __getattr__(name: str):
    if name in _MODULE_OF:
        return getattr(import_module(f"calib_utils.{_MODULE_OF[name]}"), name)
    if not name.startswith("_"):
        try:
            return import_module(f"calib_utils.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"calib_utils.{name}":
                raise  # a room that needs a package which is not installed
    raise AttributeError(f"module 'calib_utils' has no attribute {name!r}")


def __dir__():
    return __all__
