"""From headers and options to exactly what the encoder shall do. Pure arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from services.common.checkpoint import Preprocessor
from services.common.media import rules
from services.common.media.errors import MediaRuleError
from services.common.media.headers import ImageHeader, VideoHeader
from services.common.media.rules import SizeOptions, VideoSampling

__all__ = ["MediaPlan", "SizeOptions", "VideoSampling", "plan_frames", "plan_image", "plan_video"]


@dataclass(frozen=True, slots=True)
class MediaPlan:
    """What one media item becomes.

    `height` and `width`: pixels the model sees. `grid`: patches along (t, h, w). `num_tokens`: t * h * w / merge^2.
    `frame_indices`: for a video, counted from 0 in presentation order. `min_pixels` and `max_pixels`: the limits that
    held, 0 when the size was given exactly. `sampled_fps`: for a container file.
    """

    kind: Literal["image", "video"]
    height: int
    width: int
    frame_indices: tuple[int, ...]
    grid: tuple[int, int, int]
    num_tokens: int
    source_height: int
    source_width: int
    min_pixels: int
    max_pixels: int
    sampled_fps: float | None


@dataclass(frozen=True, slots=True)
class _Sizing:
    """A size in pixels and the limits it was found under (0 when given exactly)."""

    height: int
    width: int
    min_pixels: int = 0
    max_pixels: int = 0


def plan_image(header: ImageHeader, size: SizeOptions, pre: Preprocessor) -> MediaPlan:
    """The plan of a still picture; one temporal slice. Raises MediaRuleError."""
    sizing = _exact(size, pre, ceiling=pre.image.max_pixels)
    if sizing is None:
        sizing = _limited(header, size, pre, *_image_limits(size, pre))
    return _plan(header, sizing, (), pre)


def plan_video(header: VideoHeader, size: SizeOptions, sampling: VideoSampling, pre: Preprocessor) -> MediaPlan:
    """The plan of a video in a container file. Raises MediaRuleError."""
    tp = pre.temporal_patch_size
    indices = rules.sample_frames(header.total_frames, header.fps, sampling, frame_factor=tp)
    first, last = rules.clip_range(header.total_frames, header.fps, sampling)
    sizing = _video_sizing(header, size, sampling.total_pixels, len(indices), pre)
    sampled_fps = len(indices) / (last - first + 1) * header.fps
    return replace(_plan(header, sizing, tuple(indices), pre), sampled_fps=sampled_fps)


def plan_frames(
    headers: Sequence[ImageHeader], size: SizeOptions, total_pixels: int | None, pre: Preprocessor
) -> MediaPlan:
    """The plan of a video that comes as pictures: all are used, the last repeated to fill its slice.

    Raises MediaRuleError when there are none or when they differ in size once oriented.
    """
    if not headers:
        raise MediaRuleError("frames", "a list of frames needs at least one")
    first = headers[0]
    for index, header in enumerate(headers):
        if (header.height, header.width) != (first.height, first.width):
            message = f"frame {index} is {header.height}x{header.width} and frame 0 is {first.height}x{first.width}"
            raise MediaRuleError(f"frames[{index}]", message)
    padding = -len(headers) % pre.temporal_patch_size
    indices = (*range(len(headers)), *(len(headers) - 1,) * padding)
    sizing = _video_sizing(first, size, total_pixels, len(indices), pre)
    return _plan(first, sizing, indices, pre)


def _exact(size: SizeOptions, pre: Preprocessor, *, ceiling: int) -> _Sizing | None:
    """The size asked for exactly, if any; it excludes the limits."""
    height, width = size.resized_height, size.resized_width
    if height is None and width is None:
        return None
    if height is None or width is None:
        given, missing = ("resized_width", "resized_height") if height is None else ("resized_height", "resized_width")
        raise MediaRuleError(given, f"{given} needs {missing}")
    for name in ("min_pixels", "max_pixels"):
        if getattr(size, name) is not None:
            raise MediaRuleError(name, f"{name} cannot be used together with resized_height and resized_width")
    return _Sizing(*rules.exact_size(height, width, factor=pre.patch_size * pre.merge_size, ceiling=ceiling))


def _image_limits(size: SizeOptions, pre: Preprocessor) -> tuple[int, int]:
    rules.require_positive(min_pixels=size.min_pixels, max_pixels=size.max_pixels)
    least = pre.image.min_pixels if size.min_pixels is None else size.min_pixels
    most = pre.image.max_pixels if size.max_pixels is None else size.max_pixels
    return least, most


def _video_sizing(
    header: ImageHeader | VideoHeader, size: SizeOptions, total_pixels: int | None, num_frames: int, pre: Preprocessor
) -> _Sizing:
    rules.require_positive(total_pixels=total_pixels)
    sizing = _exact(size, pre, ceiling=_frame_ceiling(pre))
    if sizing is None:
        return _limited(header, size, pre, *_video_limits(size, total_pixels, num_frames, pre))
    if total_pixels is not None:
        message = "total_pixels cannot be used together with resized_height and resized_width"
        raise MediaRuleError("total_pixels", message)
    return sizing


def _frame_ceiling(pre: Preprocessor) -> int:
    return max(pre.image.max_pixels, pre.video.max_pixels)


def _video_limits(size: SizeOptions, total_pixels: int | None, num_frames: int, pre: Preprocessor) -> tuple[int, float]:
    rules.require_positive(min_pixels=size.min_pixels, max_pixels=size.max_pixels)
    if size.min_pixels is not None and size.min_pixels > _frame_ceiling(pre):
        raise MediaRuleError("min_pixels", f"min_pixels {size.min_pixels} is above the model's {_frame_ceiling(pre)}")
    token_pixels = (pre.patch_size * pre.merge_size) ** 2
    return rules.video_frame_pixels(
        num_frames,
        min_pixels=pre.video.min_pixels if size.min_pixels is None else size.min_pixels,
        max_pixels=pre.video.max_pixels,
        asked_max_pixels=size.max_pixels,
        total_pixels=rules.DEFAULT_TOTAL_TOKENS * token_pixels if total_pixels is None else total_pixels,
    )


def _limited(
    header: ImageHeader | VideoHeader, size: SizeOptions, pre: Preprocessor, least: int, most: float
) -> _Sizing:
    if least > most:
        option = "min_pixels" if size.max_pixels is None else "max_pixels"
        raise MediaRuleError(option, f"min_pixels {least} is above max_pixels {int(most)}")
    height, width = rules.smart_resize(
        header.height, header.width, factor=pre.patch_size * pre.merge_size, min_pixels=least, max_pixels=most
    )
    return _Sizing(height, width, least, int(most))


def _plan(header: ImageHeader | VideoHeader, sizing: _Sizing, indices: tuple[int, ...], pre: Preprocessor) -> MediaPlan:
    """A plan without a rate; a video is what has frame indices."""
    slices = len(indices) // pre.temporal_patch_size if indices else 1
    grid = (slices, sizing.height // pre.patch_size, sizing.width // pre.patch_size)
    return MediaPlan(
        kind="video" if indices else "image",
        height=sizing.height,
        width=sizing.width,
        frame_indices=indices,
        grid=grid,
        num_tokens=grid[0] * grid[1] * grid[2] // pre.merge_size**2,
        source_height=header.height,
        source_width=header.width,
        min_pixels=sizing.min_pixels,
        max_pixels=sizing.max_pixels,
        sampled_fps=None,
    )
