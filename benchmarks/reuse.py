"""What a clip costs that shares three quarters of its slices with one seen, from its file, by an encoder process."""

import asyncio
from pathlib import Path
from statistics import median

from benchmarks.encoder_process import encode_ms, encoder_process, encoder_stub
from benchmarks.figures import MILLISECONDS, PERCENT, Result
from benchmarks.pictures import clip_file
from cli.children import Child

SIDE, NUM_FRAMES, NUM_NEW = 224, 64, 16


def measure_reuse(checkpoint: Path, num_repeats: int) -> list[Result]:
    """The clip when it is new, the overlapping one after it, and the same once more."""
    with encoder_process(checkpoint) as encoder:
        return asyncio.run(_measure(encoder, num_repeats))


async def _measure(encoder: Child, num_repeats: int) -> list[Result]:
    times: dict[str, list[float]] = {"new": [], "75 % of it seen": [], "all of it seen": []}
    async with encoder_stub(encoder) as stub:
        for seed in range(num_repeats + 1):
            data = clip_file(NUM_FRAMES + NUM_NEW, SIDE, seed)
            for name, first in zip(times, (0, NUM_NEW, NUM_NEW), strict=True):
                took_ms = await encode_ms(stub, data, SIDE, range(first, first + NUM_FRAMES))
                if seed:  # the first clip warms everything up
                    times[name].append(took_ms)
    shares = [100 * seen / new for new, seen in zip(times["new"], times["75 % of it seen"], strict=True)]
    return [
        *(Result(f"clips: {NUM_FRAMES} frames, {name}", median(own), MILLISECONDS) for name, own in times.items()),
        Result("clips: 75 % seen, share of a new one's cost", median(shares), PERCENT),  # each of its own moment's
    ]
