"""Chat with a model of one's own: greedy replies to single messages, in batches.

Knows torch models and their chat templates. Knows no rubric.
"""

from collections.abc import Iterator, Sequence

from calib_utils.endpoint import Reply
from calib_utils.errors import JudgeError
from calib_utils.models import Model, load_model
from calib_utils.prompts import render
from calib_utils.tasks import Task


class LocalChat:
    """An embedded, hub or local chat model that answers like an endpoint.

    Args:
        model: what `load_model` takes, or a loaded model.
        max_tokens: limit of a reply.
        batch_size: messages in one call of `generate`.
    """

    def __init__(self, model: Model | str, *, max_tokens: int = 128, batch_size: int = 8):
        if max_tokens < 1 or batch_size < 1:
            raise JudgeError(f"{max_tokens=} and {batch_size=} must be above 0")
        self.model = load_model(model)
        self.max_tokens, self.batch_size = max_tokens, batch_size

    @property
    def identity(self) -> dict:
        """What an answer depends on."""
        return {
            "weights_sha256": self.model.weights_sha256,
            "dtype": self.model.dtype,
            "max_tokens": self.max_tokens,
        }

    def replies(self, messages: Sequence[str]) -> Iterator[tuple[int, Reply]]:
        """Answers to single user messages: (position, reply), messages of similar length together.

        Raises:
            JudgeError: the model has no chat template.
        """
        rows = [self._prompt(message) for message in messages]
        order = sorted(range(len(rows)), key=lambda row: len(rows[row].ids))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            yield from zip(batch, self._generate([rows[row] for row in batch]), strict=True)

    def _prompt(self, message: str):
        # An answer is asked for by `render` and not used here; the template does not show it.
        prompt = render(self.model.tokenizer, Task("chat", message, ("yes",)))
        if not prompt.is_chat:
            raise JudgeError(
                f"{self.model.name} has no chat template: a judge must be a chat model"
            )
        return prompt

    def _generate(self, prompts) -> list[Reply]:
        import torch
        from transformers import GenerationConfig

        network, tokenizer = self.model.network, self.model.tokenizer
        device = network.get_input_embeddings().weight.device
        end_ids = sorted({*prompts[0].end_ids, tokenizer.eos_token_id} - {None})
        longest = max(len(prompt.ids) for prompt in prompts)
        ids = torch.full((len(prompts), longest), end_ids[0], device=device)
        seen = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):  # padded on the left
            ids[row, longest - len(prompt.ids) :] = torch.tensor(prompt.ids, device=device)
            seen[row, longest - len(prompt.ids) :] = 1
        # Each set here, since generate fills what is left open from the model's own settings.
        config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            max_new_tokens=self.max_tokens,
            eos_token_id=end_ids,
            pad_token_id=end_ids[0],
        )
        with torch.inference_mode():
            out = network.generate(input_ids=ids, attention_mask=seen, generation_config=config)
        return [self._reply(row, end_ids) for row in out[:, longest:].tolist()]

    def _reply(self, row: list[int], end_ids: list[int]) -> Reply:
        stop = next((at for at, token in enumerate(row) if token in end_ids), None)
        text = self.model.tokenizer.decode(row[:stop], skip_special_tokens=True)
        return Reply(text, stop is not None)
