"""An open prompt as one model sees it: its tokens, and those that close a text.

Knows tokenizers and the small files beside the weights; never loads the weights.
"""

from dataclasses import dataclass

from calib_utils import prompts
from calib_utils.models import Model
from calib_utils.prompts import Policies
from calib_utils.tasks import OpenPrompt, Task


@dataclass(frozen=True)
class Start:
    """Token ids of a prompt, and the tokens of which any closes a text."""

    ids: tuple[int, ...]
    end_ids: tuple[int, ...]


def start_of(model: Model, prompt: OpenPrompt, end: str = "eos") -> Start:
    """The prompt under the project's conventions (`prompts`).

    A text is closed by the end of turn or of text, with `end="line"` by a line break as well, and
    by whatever the model's own generation settings stop at.
    """
    # `prompts.render` wants a task with an answer; what the answer is makes no difference here.
    rendered = prompts.render(model.tokenizer, Task(prompt.id, prompt.prompt, ["x"]), Policies(end))
    return Start(rendered.ids, tuple(sorted({*rendered.end_ids, *own_end_ids(model)})))


def own_end_ids(model: Model) -> tuple[int, ...]:
    """The tokens at which the model's own generation settings stop, ascending."""
    from transformers import GenerationConfig

    try:
        settings = GenerationConfig.from_pretrained(model.folder)
    except OSError:  # the file is optional
        settings = GenerationConfig.from_model_config(_config(model))
    found = settings.eos_token_id
    return () if found is None else tuple(sorted({found} if isinstance(found, int) else {*found}))


def vocabulary_size(model: Model) -> int:
    """Logits per position."""
    return _config(model).get_text_config().vocab_size


def _config(model: Model):
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model.folder, trust_remote_code=False)
