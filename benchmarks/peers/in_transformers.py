"""transformers on the same checkpoint, in fp32: the class that the model's authors published."""

from statistics import median
from typing import Any

import torch
from transformers import DynamicCache, Qwen2VLForConditionalGeneration

from benchmarks.figures import (
    BATCHES,
    CONTEXT,
    MILLISECONDS,
    TOKENS_PER_S,
    Effort,
    argument_parser,
    median_ms,
    say,
    timed_ms,
)


@torch.inference_mode()
def decode_ms(model: Any, batch: int, num_tokens: int) -> float:
    """Median time of a step on top of a cache that is filled with noise."""
    config = model.config.text_config
    cache, shape = (
        DynamicCache(),
        (batch, config.num_key_value_heads, CONTEXT, config.hidden_size // config.num_attention_heads),
    )
    for layer in range(config.num_hidden_layers):
        cache.update(torch.randn(shape), torch.randn(shape), layer)
    tokens = torch.full((batch, 1), 1000)

    def step() -> None:
        nonlocal tokens
        positions = torch.full((3, batch, 1), cache.get_seq_length())
        output = model(input_ids=tokens, past_key_values=cache, position_ids=positions, use_cache=True)
        tokens = output.logits[:, -1:].argmax(-1)

    step()
    return median(timed_ms(step) for _ in range(num_tokens))


@torch.inference_mode()
def prefill_ms(model: Any, num_tokens: int, num_repeats: int) -> float:
    """Median time of a text prompt, logits for its last token only."""
    ids = torch.randint(0, 100_000, (1, num_tokens))
    return median_ms(lambda: model(input_ids=ids, logits_to_keep=1, use_cache=True), num_repeats)


def main() -> None:
    """All figures of one checkpoint."""
    arguments = argument_parser(__doc__).parse_args()
    effort = Effort.of(arguments)
    model: Any = Qwen2VLForConditionalGeneration.from_pretrained(arguments.checkpoint, dtype=torch.float32)
    for batch in BATCHES:
        step_ms = decode_ms(model, batch, effort.num_tokens // 2)
        say(f"decode, batch {batch}", batch * 1000 / step_ms, TOKENS_PER_S)
    for num_tokens in effort.prefills:
        say(f"prefill {num_tokens}", prefill_ms(model, num_tokens, effort.num_repeats), MILLISECONDS)


if __name__ == "__main__":
    main()
