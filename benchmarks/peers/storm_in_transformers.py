"""One process of transformers with all cores: a batch of streams in one thread, pictures in another."""

import argparse
import io
import threading
from itertools import pairwise
from time import perf_counter
from typing import Any

import torch
from PIL import Image
from transformers import DynamicCache, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from benchmarks.figures import MILLISECONDS, say
from benchmarks.pictures import picture_file
from benchmarks.storm import IDLE, NUM_STREAMS, NUM_TOKENS, STORM_SIDE, STORMY, p99

PROMPT_TOKENS = 32


@torch.inference_mode()
def intervals_ms(model: Any) -> list[float]:
    """Between the tokens of streams that are computed as one batch."""
    cache, tokens, times = DynamicCache(), torch.full((NUM_STREAMS, PROMPT_TOKENS), 100), []
    for _ in range(NUM_TOKENS):
        output = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        tokens = output.logits[:, -1:].argmax(-1)
        times.append(perf_counter())
    return [(after - before) * 1000 for before, after in pairwise(times)]


@torch.inference_mode()
def storm(visual: Any, processor: Any, over: threading.Event) -> None:
    """Pictures until `over`."""
    image = Image.open(io.BytesIO(picture_file(STORM_SIDE))).convert("RGB")
    while not over.is_set():
        inputs = processor([image], return_tensors="pt")
        visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])


def main() -> None:
    """Idle, then stormy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    model: Any = Qwen2VLForConditionalGeneration.from_pretrained(arguments.checkpoint, dtype=torch.float32)
    processor = Qwen2VLImageProcessorPil.from_pretrained(arguments.checkpoint)
    intervals_ms(model)  # warms up
    say(IDLE, p99(intervals_ms(model)), MILLISECONDS)
    over = threading.Event()
    thread = threading.Thread(target=storm, args=(model.model.visual, processor, over))
    thread.start()
    say(STORMY, p99(intervals_ms(model)), MILLISECONDS)
    over.set()
    thread.join()


if __name__ == "__main__":
    main()
