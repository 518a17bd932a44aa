"""How large the model sees media, and which frames of a video it sees.

The rules are those of qwen_vl_utils 0.0.14 (`vision_process.py`), restated in docs of the project as "exactness". Two
things differ on purpose: a side never falls below one factor, and an option that cannot apply is an error.
"""

import math
from dataclasses import dataclass

import numpy as np

from services.common.media.errors import MediaRuleError

__all__ = [
    "MediaRuleError",
    "SizeOptions",
    "VideoSampling",
    "clip_range",
    "sample_frames",
    "smart_resize",
    "video_frame_pixels",
]

MAX_RATIO = 200
DEFAULT_FPS = 2.0
DEFAULT_MIN_FRAMES = 4
DEFAULT_MAX_FRAMES = 768
# 0.9 of a context of 128,000 tokens, in units of one merged patch's pixels
DEFAULT_TOTAL_TOKENS = 0.9 * 128_000
FRAMES_PER_SLICE = 2


@dataclass(frozen=True, slots=True)
class SizeOptions:
    """How large a picture or frame shall be, in pixels; None is the default."""

    min_pixels: int | None = None
    max_pixels: int | None = None
    resized_height: int | None = None
    resized_width: int | None = None


@dataclass(frozen=True, slots=True)
class VideoSampling:
    """Which frames of a video are used; None is the default. `total_pixels` bounds all frames together."""

    fps: float | None = None
    num_frames: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None
    total_pixels: int | None = None


def require_positive(**options: float | None) -> None:
    """Refuse options that are set but are not positive, finite numbers."""
    for name, value in options.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise MediaRuleError(name, f"{name} must be a positive number, not {value}")


def smart_resize(height: int, width: int, *, factor: int, min_pixels: float, max_pixels: float) -> tuple[int, int]:
    """The (height, width) nearest to the source's that are multiples of `factor` with an area within the limits.

    Python's banker's rounding, as qwen_vl_utils. At extreme ratios the floor of one factor a side wins over
    `max_pixels`. Raises MediaRuleError when min > max, a side is not positive or the ratio is above 200.
    """
    if min_pixels > max_pixels:
        raise MediaRuleError("min_pixels", f"min_pixels {min_pixels:.0f} is above max_pixels {max_pixels:.0f}")
    require_ratio(height, width)
    resized_height, resized_width = round_to_factor(height, factor), round_to_factor(width, factor)
    if resized_height * resized_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        resized_height = max(factor, math.floor(height / shrink / factor) * factor)
        resized_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif resized_height * resized_width < min_pixels:
        enlarge = math.sqrt(min_pixels / (height * width))
        resized_height = math.ceil(height * enlarge / factor) * factor
        resized_width = math.ceil(width * enlarge / factor) * factor
    return resized_height, resized_width


def exact_size(height: int, width: int, *, factor: int, ceiling: int) -> tuple[int, int]:
    """`resized_height` and `resized_width` rounded to multiples of `factor`; an area above `ceiling` is refused."""
    require_positive(resized_height=height, resized_width=width)
    require_ratio(height, width, option="resized_height")
    rounded = round_to_factor(height, factor), round_to_factor(width, factor)
    if rounded[0] * rounded[1] > ceiling:
        message = f"resized_height x resized_width is {rounded[0]}x{rounded[1]}, above the model's {ceiling} pixels"
        raise MediaRuleError("resized_height", message)
    return rounded


def round_to_factor(side: int, factor: int) -> int:
    """The multiple of `factor` nearest to `side`, at least one."""
    return max(factor, round(side / factor) * factor)


def require_ratio(height: int, width: int, option: str = "") -> None:
    """Refuse sides that are not positive and ratios above 200."""
    if height < 1 or width < 1:
        raise MediaRuleError(option, f"a size of {height}x{width} has no pixels")
    if max(height, width) > MAX_RATIO * min(height, width):
        raise MediaRuleError(option, f"the aspect ratio of {height}x{width} is above {MAX_RATIO}")


def sample_frames(
    total_frames: int, video_fps: float, options: VideoSampling, *, frame_factor: int = FRAMES_PER_SLICE
) -> list[int]:
    """Indices of the frames to use, first and last of the clip included. Raises MediaRuleError."""
    first, last = clip_range(total_frames, video_fps, options)
    return linspace(first, last, count_frames(last - first + 1, video_fps, options, frame_factor=frame_factor))


def linspace(first: int, last: int, count: int) -> list[int]:
    """`torch.linspace(first, last, count).round()`, digit for digit: float32, fused multiply-add, from both ends.

    In long videos its rounding chooses other frames than exact arithmetic would, and the rule is what torch computes.
    """
    if count == 1:
        return [first]
    start, end = np.float32(first), np.float32(last)
    step = np.float64((end - start) / np.float32(count - 1))
    index = np.arange(count)
    # a product of two float32 is exact in float64, so that rounding the sum once is what fusing does
    ahead, behind = np.float64(start) + step * index, np.float64(end) - step * (count - 1 - index)
    chosen = np.where(index < count // 2, ahead, behind).astype(np.float32)
    return [int(frame) for frame in np.rint(chosen)]


def clip_range(total_frames: int, video_fps: float, options: VideoSampling) -> tuple[int, int]:
    """First and last frame between `start_seconds` and `end_seconds` (`calculate_video_frame_range`)."""
    start, end = options.start_seconds, options.end_seconds
    for name, value in (("start_seconds", start), ("end_seconds", end)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise MediaRuleError(name, f"{name} must not be negative, not {value}")
    if start is not None and end is not None and start >= end:
        raise MediaRuleError("end_seconds", f"end_seconds {end} is not after start_seconds {start}")
    duration = total_frames / video_fps
    first = 0 if start is None else math.ceil(min(start, duration) * video_fps)
    last = total_frames - 1 if end is None else min(math.floor(min(end, duration) * video_fps), total_frames - 1)
    if first >= last and not (start is None and end is None):
        option = "end_seconds" if start is None else "start_seconds"
        raise MediaRuleError(option, f"the clip holds fewer than 2 frames of a video of {duration:.3f} s")
    return first, last


def count_frames(clip_frames: int, video_fps: float, options: VideoSampling, *, frame_factor: int) -> int:
    """How many of a clip's frames are used, a multiple of `frame_factor` (`smart_nframes`)."""
    require_positive(
        fps=options.fps,
        num_frames=options.num_frames,
        min_frames=options.min_frames,
        max_frames=options.max_frames,
    )
    if clip_frames < frame_factor:
        raise MediaRuleError("", f"a video needs at least {frame_factor} frames and this one has {clip_frames}")
    if options.num_frames is not None:
        return _asked_frames(clip_frames, options, options.num_frames, frame_factor)
    fewest, most = _frame_bounds(clip_frames, options, frame_factor)
    wanted = clip_frames / video_fps * (DEFAULT_FPS if options.fps is None else options.fps)
    return math.floor(min(max(wanted, fewest), most, clip_frames) / frame_factor) * frame_factor


def _asked_frames(clip_frames: int, options: VideoSampling, num_frames: int, frame_factor: int) -> int:
    for name in ("fps", "min_frames", "max_frames"):
        if getattr(options, name) is not None:
            raise MediaRuleError(name, f"{name} cannot be used together with num_frames")
    rounded = round(num_frames / frame_factor) * frame_factor
    if not frame_factor <= rounded <= clip_frames:
        message = f"num_frames {num_frames} becomes {rounded}, outside {frame_factor} to {clip_frames}"
        raise MediaRuleError("num_frames", message)
    return rounded


def _frame_bounds(clip_frames: int, options: VideoSampling, frame_factor: int) -> tuple[int, int]:
    most = min(DEFAULT_MAX_FRAMES, clip_frames) if options.max_frames is None else options.max_frames
    most = math.floor(most / frame_factor) * frame_factor
    if most < frame_factor:
        raise MediaRuleError("max_frames", f"max_frames {options.max_frames} is below {frame_factor}")
    if options.min_frames is None:
        return min(math.ceil(DEFAULT_MIN_FRAMES / frame_factor) * frame_factor, most), most
    fewest = math.ceil(options.min_frames / frame_factor) * frame_factor
    ceiling = most if options.max_frames is not None else DEFAULT_MAX_FRAMES
    if fewest > ceiling:
        raise MediaRuleError("min_frames", f"min_frames {options.min_frames} is above the most frames, {ceiling}")
    return fewest, most


def video_frame_pixels(
    num_frames: int,
    *,
    min_pixels: int,
    max_pixels: int,
    asked_max_pixels: int | None = None,
    total_pixels: float,
) -> tuple[int, float]:
    """The (least, most) pixels of each of `num_frames` frames (`fetch_video`).

    `max_pixels` is the rule's own cap and `asked_max_pixels` an item's, which can only lower what the rule gives.
    """
    most: float = max(min(max_pixels, total_pixels / num_frames * FRAMES_PER_SLICE), int(min_pixels * 1.05))
    if asked_max_pixels is not None:
        most = min(most, asked_max_pixels)
    return min_pixels, most
