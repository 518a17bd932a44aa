"""How often int8 picks the token that fp32 picks, over text the checkpoint can read: one figure a line."""

import argparse
from dataclasses import replace

import numpy as np
import torch
from tokenizers import Tokenizer

from benchmarks.engine import BLOCK_SIZE, request_of
from benchmarks.figures import PERCENT, say
from services.common.checkpoint import Checkpoint
from services.decoder.kv_cache import KVCache
from services.decoder.language_model import LanguageModel
from services.decoder.runner import ModelRunner
from services.decoder.scheduler import Chunk
from services.decoder.weights import load_language_model

NUM_PROMPTS = 8
TEXT = (
    "What is the name on the card? Describe the picture. How many red circles are there? Which digit is shown? Is the "
    "blue square left of the green triangle? Yes. No. There are 3 red circles and 2 green squares."
)


def choices(model: LanguageModel, checkpoint: Checkpoint, token_ids: list[int]) -> torch.Tensor:
    """The likeliest next token after each token of a text."""
    num_blocks = len(token_ids) // BLOCK_SIZE + 1
    cache = KVCache(checkpoint.text, num_blocks, BLOCK_SIZE, model.dtype, model.device)
    sequence = request_of(token_ids, 1).sequences[0]
    sequence.blocks = list(range(num_blocks))
    step = ModelRunner(model, cache).step_input([Chunk(sequence, 0, len(token_ids))])
    return model.run(replace(step, sampled_rows=torch.arange(len(token_ids))), cache).argmax(dim=-1)


def main() -> None:
    """The figure for one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    checkpoint, cpu = Checkpoint.open(arguments.checkpoint), torch.device("cpu")
    exact, quantized = (load_language_model(checkpoint, torch.float32, cpu, kind) for kind in ("none", "int8"))
    tokenizer = Tokenizer.from_file(str(checkpoint.path / "tokenizer.json"))
    random = np.random.default_rng(0)
    equal = []
    for _ in range(2 if arguments.quick else NUM_PROMPTS):
        ids = tokenizer.encode(" ".join(random.permutation(TEXT.split()))).ids
        equal.append(choices(exact, checkpoint, ids) == choices(quantized, checkpoint, ids))
    say("top-1 agreement with fp32 on text", 100 * float(torch.cat(equal).float().mean()), PERCENT)


if __name__ == "__main__":
    main()
