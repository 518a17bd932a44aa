"""vLLM on the CPU, in fp32: run by the interpreter of the environment that VLLM_VENV names.

It needs nothing of this project but figures.py beside it, and neither weights nor a tokenizer: its own random weights
at the checkpoint's shape cost the same time.
"""

import os
import random
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.figures import BATCHES, CONTEXT, MILLISECONDS, TOKENS_PER_S, Effort, argument_parser, say


def generate_s(engine: Any, prompts: list[list[int]], num_tokens: int) -> float:
    """Seconds for exactly `num_tokens` after each prompt."""
    from vllm import SamplingParams  # noqa: PLC0415 -- only in vLLM's own environment

    params = SamplingParams(
        temperature=0, max_tokens=num_tokens, min_tokens=num_tokens, ignore_eos=True, detokenize=False
    )
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    began = perf_counter()
    engine.generate(inputs, params, use_tqdm=False)
    return perf_counter() - began


def text(num_tokens: int) -> list[int]:
    """Ids that no prompt before starts with."""
    return [random.randrange(100_000) for _ in range(num_tokens)]


def main() -> None:
    """All figures of one checkpoint."""
    arguments = argument_parser(__doc__).parse_args()
    effort = Effort.of(arguments)
    num_tokens, num_repeats = effort.num_tokens, min(effort.num_repeats, 3)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM  # noqa: PLC0415 -- only in vLLM's own environment

    engine = LLM(
        arguments.checkpoint,
        dtype="float32",
        load_format="dummy",
        skip_tokenizer_init=True,
        limit_mm_per_prompt={"image": 0, "video": 0},
        max_model_len=4096,
        max_num_seqs=16,
        max_num_batched_tokens=8192,
    )
    for batch in BATCHES:
        prompts = [text(CONTEXT) for _ in range(batch)]
        generate_s(engine, prompts, 1)  # fills the prefix cache, so that both times below are of decoding alone
        one_s = generate_s(engine, prompts, 1)
        rest_s = median(generate_s(engine, prompts, num_tokens + 1) - one_s for _ in range(num_repeats))
        say(f"decode, batch {batch}", batch * num_tokens / rest_s, TOKENS_PER_S)
    for length in effort.prefills:
        say(
            f"prefill {length}",
            median(generate_s(engine, [text(length)], 1) for _ in range(num_repeats)) * 1000,
            MILLISECONDS,
        )


if __name__ == "__main__":
    main()
