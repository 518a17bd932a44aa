"""Measures the encoder's model on a checkpoint, from files to rows, in a process of its own: one figure a line."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from benchmarks.figures import FRAMES_PER_S, MILLISECONDS, PICTURES_PER_S, median_ms, say
from benchmarks.limits import say_limits
from benchmarks.pictures import CLIP_FRAMES, CLIP_SIDE, MIXED_SIDES, SIDES, clip_file, picture_file
from services.common.allocator import keep_freed_memory
from services.common.checkpoint import Checkpoint
from services.common.linear import Quantization
from services.common.media.decode import decode
from services.common.media.frames import DecodePlan, Frames
from services.common.media.headers import MAX_SOURCE_PIXELS
from services.encoder.embedder import Embedder
from services.encoder.patchify import Patchifier
from services.encoder.weights import load_vision

BATCH_PATCHES = 8192  # as the encoder's default
ONE_BY_ONE, BEST_BATCH = "32 pictures of mixed sizes", "32 pictures of mixed sizes, batched"


class EncoderBenchmark:
    """The figures of one vision tower in one precision."""

    def __init__(self, checkpoint: Checkpoint, quantization: Quantization, num_repeats: int) -> None:
        vision = load_vision(checkpoint, dtype="float32", device="cpu", quantization=quantization)
        self._pre = checkpoint.preprocessor
        self._embedder = Embedder(vision, Patchifier(self._pre))
        self._num_repeats = num_repeats

    def pictures(self, sides: Sequence[int]) -> None:
        """One picture at a time: decoding, resizing, patches, model."""
        for side in sides:
            files = [(picture_file(side), side)]
            say(f"encode {side} x {side}", self._median_ms(partial(self._encode, files)), MILLISECONDS)
            say_limits()

    def many(self, sides: Sequence[int]) -> None:
        """Pictures of one size in full batches."""
        for side in sides:
            count = BATCH_PATCHES // (side // self._pre.patch_size) ** 2
            files = [(picture_file(side, seed), side) for seed in range(count)]
            took_ms = self._median_ms(partial(self._encode, files))
            say(f"pictures a second, side {side}", count * 1000 / took_ms, PICTURES_PER_S)

    def mixed(self) -> None:
        """A queue of many sizes, packed into batches by their patches."""
        files = [(picture_file(side, seed), side) for seed, side in enumerate(MIXED_SIDES)]
        took_ms = self._median_ms(lambda: self._encode(files))
        for name in (ONE_BY_ONE, BEST_BATCH):
            say(name, took_ms, MILLISECONDS)

    def video(self) -> None:
        """A clip from its file."""
        data = clip_file(CLIP_FRAMES, CLIP_SIDE)
        plan = self._plan("container", CLIP_SIDE, tuple(range(CLIP_FRAMES)))
        took_ms = self._median_ms(lambda: self._embed(decode(plan, [data])))
        say("video frames a second", CLIP_FRAMES * 1000 / took_ms, FRAMES_PER_S)

    def _encode(self, files: Sequence[tuple[bytes, int]]) -> None:
        self._embed(part for data, side in files for part in decode(self._plan("image", side), [data]))

    def _embed(self, slices: Iterator[Frames]) -> None:
        """In batches as the batcher makes them: in order, up to so many patches."""
        batch: list[Frames] = []
        num_patches = 0
        for part in slices:
            height, width, _ = part[0].shape
            cost = height * width // self._pre.patch_size**2
            if batch and num_patches + cost > BATCH_PATCHES:
                self._embedder.embed(batch)
                batch, num_patches = [], 0
            batch.append(part)
            num_patches += cost
        self._embedder.embed(batch)

    def _plan(self, source: str, side: int, frame_indices: tuple[int, ...] = ()) -> DecodePlan:
        return DecodePlan(
            source="container" if source == "container" else "image",
            height=side,
            width=side,
            frame_indices=frame_indices,
            temporal_patch_size=self._pre.temporal_patch_size,
            max_source_pixels=MAX_SOURCE_PIXELS,
        )

    def _median_ms(self, work: Callable[[], None]) -> float:
        return median_ms(work, self._num_repeats)


def main() -> None:
    """All figures of one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--large", action="store_true", help="a tower of real size: single pictures alone")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the encoder does
    checkpoint = Checkpoint.open(arguments.checkpoint)
    benchmark = EncoderBenchmark(checkpoint, arguments.quantize, num_repeats=1 if arguments.quick else 3)
    benchmark.pictures(SIDES[-2:])
    if not arguments.large:
        benchmark.many(SIDES)
        benchmark.mixed()
        benchmark.video()


if __name__ == "__main__":
    main()
