"""transformers' vision tower and image processor on the same pictures, in fp32."""

import argparse
import io
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from transformers import Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from benchmarks.encoder import BEST_BATCH, ONE_BY_ONE
from benchmarks.figures import MILLISECONDS, PICTURES_PER_S, median_ms, say
from benchmarks.pictures import MIXED_SIDES, SIDES, picture_file


class Tower:
    """From files to rows."""

    def __init__(self, checkpoint: str) -> None:
        model: Any = Qwen2VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
        self._visual: Any = model.model.visual.eval()
        self._processor: Any = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)

    @torch.inference_mode()
    def encode(self, files: Sequence[bytes]) -> None:
        """Some pictures in one forward."""
        images = [Image.open(io.BytesIO(data)).convert("RGB") for data in files]
        inputs = self._processor(images, return_tensors="pt")
        self._visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])

    def encode_batches(self, files: Sequence[bytes], size: int) -> None:
        """All pictures, `size` at a time."""
        for start in range(0, len(files), size):
            self.encode(files[start : start + size])


def main() -> None:
    """All figures of one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    tower, num_repeats = Tower(arguments.checkpoint), 1 if arguments.quick or arguments.large else 3
    for side in SIDES[-2:]:
        files = [picture_file(side)]
        say(f"encode {side} x {side}", median_ms(partial(tower.encode, files), num_repeats), MILLISECONDS)
    if not arguments.large:
        _many(tower, num_repeats)


def _many(tower: Tower, num_repeats: int) -> None:
    for side in SIDES:
        files = [picture_file(side, seed) for seed in range(4)]
        took_ms = median_ms(partial(tower.encode, files), num_repeats)
        say(f"pictures a second, side {side}", len(files) * 1000 / took_ms, PICTURES_PER_S)
    files = [picture_file(side, seed) for seed, side in enumerate(MIXED_SIDES)]
    times = {size: median_ms(partial(tower.encode_batches, files, size), num_repeats) for size in (1, 8, 32)}
    say(ONE_BY_ONE, times[1], MILLISECONDS)
    say(BEST_BATCH, min(times.values()), MILLISECONDS)


if __name__ == "__main__":
    main()
