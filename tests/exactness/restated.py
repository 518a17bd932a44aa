"""The media and position rules once more, written apart from the services so that both can be wrong only together.

Nothing here imports the project's own rules. Sources: qwen_vl_utils 0.0.14 for sizes and frames, the report on Qwen2-VL
for positions ("after any media the next position is the maximum over the three axes, plus one").
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import av
import numpy as np
import torch
from PIL import Image, ImageOps

VIDEO_MIN_TOKENS, VIDEO_MAX_TOKENS, VIDEO_TOTAL_TOKENS = 128, 768, 128000


def upright_rgb(data: bytes) -> Image.Image:
    """The picture as a person sees it: turned by its EXIF tag, on white where it is transparent, RGB."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def fit(height: int, width: int, factor: int, least: float, most: float) -> tuple[int, int]:
    """Sides as multiples of `factor`, with an area from `least` to `most` pixels."""
    rows, columns = max(factor, round(height / factor) * factor), max(factor, round(width / factor) * factor)
    if rows * columns > most:
        shrink = math.sqrt(height * width / most)
        rows, columns = (max(1, math.floor(side / shrink / factor)) * factor for side in (height, width))
    elif rows * columns < least:
        grow = math.sqrt(least / (height * width))
        rows, columns = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return rows, columns


def exact(side: int, factor: int) -> int:
    """One side given by the request, as the nearest multiple."""
    return max(factor, round(side / factor) * factor)


def clip_range(total: int, rate: float, start: float | None, end: float | None) -> tuple[int, int]:
    """First and last frame of the clip between two times in seconds."""
    seconds = total / rate
    first = 0 if start is None else math.ceil(min(max(start, 0.0), seconds) * rate)
    last = total - 1 if end is None else min(math.floor(min(max(end, 0.0), seconds) * rate), total - 1)
    return first, last


def frame_indices(total: int, rate: float, options: Mapping[str, float]) -> list[int]:
    """The frames a request uses, by fps or by number."""
    first, last = clip_range(total, rate, options.get("start_seconds"), options.get("end_seconds"))
    length = last - first + 1
    if "num_frames" in options:
        count = round(options["num_frames"] / 2) * 2
    else:
        least = math.ceil(options.get("min_frames", 4) / 2) * 2
        most = math.floor(options.get("max_frames", min(768, length)) / 2) * 2
        wanted = min(max(length / rate * options.get("fps", 2.0), least), most, length)
        count = math.floor(wanted / 2) * 2
    return [int(index) for index in torch.linspace(first, last, count).round().long()]


def video_limits(
    frames: int, factor: int, options: Mapping[str, float], default: tuple[int, int]
) -> tuple[float, float]:
    """Least and most pixels of one frame of a video that uses `frames` frames."""
    area = factor * factor
    least = options.get("min_pixels", default[0])
    total = options.get("total_pixels", VIDEO_TOTAL_TOKENS * area * 0.9)
    most = max(min(default[1], total / frames * 2), int(least * 1.05))
    return least, min(options.get("max_pixels", most), most)


def decode_all(data: bytes) -> tuple[list[Image.Image], float]:
    """Every frame of a container, turned upright, and the average rate."""
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 0)
        frames = []
        for frame in container.decode(stream):
            to_image: Any = frame.to_image  # without annotations in PyAV
            picture = to_image()
            frames.append(picture.rotate(frame.rotation, expand=True) if frame.rotation else picture)
    return frames, rate


def patches(
    frames: Sequence[Image.Image], patch: int, merge: int, mean: Sequence[float], std: Sequence[float]
) -> np.ndarray:
    """Pixels of an even number of equal frames as rows of patches, `[t*h*w, 3*2*patch*patch]`."""
    values = np.stack([np.asarray(frame, dtype=np.float32) for frame in frames]) * np.float32(1 / 255)
    pixels = (values - np.array(mean, np.float32)) / np.array(std, np.float32)
    rows_of_patches = []
    for t in range(0, len(frames), 2):
        rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
        for top in range(0, rows, merge):
            for left in range(0, columns, merge):
                for y in range(top, top + merge):
                    for x in range(left, left + merge):
                        block = pixels[t : t + 2, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch]
                        rows_of_patches.append(block.transpose(3, 0, 1, 2).reshape(-1))
    return np.stack(rows_of_patches)


def walk_positions(
    kinds: Sequence[int], grids: Sequence[tuple[int, int, int]], merge: int
) -> Iterator[tuple[int, int, int]]:
    """One (time, height, width) position a token; `kinds` is 0 for text and 1, 2, ... for the pads of each item."""
    at, index = 0, 0
    while index < len(kinds):
        if kinds[index] == 0:
            yield (at, at, at)
            at, index = at + 1, index + 1
            continue
        t, h, w = grids[kinds[index] - 1]
        h, w = h // merge, w // merge
        yield from ((at + a, at + b, at + c) for a in range(t) for b in range(h) for c in range(w))
        at, index = at + max(t, h, w), index + t * h * w
