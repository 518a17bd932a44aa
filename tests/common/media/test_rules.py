import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as transformers_smart_resize

from services.common.media.rules import (
    MediaRuleError,
    VideoSampling,
    clip_range,
    sample_frames,
    smart_resize,
    video_frame_pixels,
)

LIMITS = {"factor": 28, "min_pixels": 3136, "max_pixels": 12845056}
SIDES = st.integers(1, 5000)


@given(SIDES, SIDES)
def test_sizes_are_multiples_of_the_factor(height: int, width: int) -> None:
    """Every accepted size becomes positive multiples of the factor, near the limits on area."""
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(MediaRuleError):
            smart_resize(height, width, **LIMITS)
        return
    resized = smart_resize(height, width, **LIMITS)
    assert all(side >= 28 and side % 28 == 0 for side in resized)
    assert resized[0] * resized[1] >= 3136


@given(st.integers(28, 4000), st.integers(28, 4000))
def test_ordinary_sizes_agree_with_transformers(height: int, width: int) -> None:
    """Sides of at least one factor give transformers' own sizes."""
    if max(height, width) <= 200 * min(height, width):
        expected = transformers_smart_resize(height, width, 28, 3136, 12845056)
        assert smart_resize(height, width, **LIMITS) == expected


@pytest.mark.parametrize(
    ("source", "ours", "theirs"),
    [((10, 1000), (28, 1008), (28, 560)), ((13, 500), (28, 504), (28, 364)), ((2, 399), (28, 392), (28, 812))],
)
def test_thin_sizes_follow_qwen_vl_utils(
    source: tuple[int, int], ours: tuple[int, int], theirs: tuple[int, int]
) -> None:
    """A side under half a factor is clamped before the area test, where transformers does so only when shrinking."""
    assert smart_resize(*source, **LIMITS) == ours
    assert transformers_smart_resize(*source, 28, 3136, 12845056) == theirs


def test_rounding_is_bankers() -> None:
    """42 is midway between 28 and 56 and goes to the even multiple, 70 too."""
    assert smart_resize(42, 70, factor=28, min_pixels=1, max_pixels=10**9) == (56, 56)


@pytest.mark.parametrize(
    ("height", "width", "limits"),
    [(1, 201, LIMITS), (0, 10, LIMITS), (56, 56, {"factor": 28, "min_pixels": 5000, "max_pixels": 4000})],
)
def test_impossible_sizes_are_refused(height: int, width: int, limits: dict[str, int]) -> None:
    """Ratios above 200, empty sides and crossed limits are errors."""
    with pytest.raises(MediaRuleError):
        smart_resize(height, width, **limits)


def qwen_num_frames(total: int, video_fps: float, options: VideoSampling) -> int:
    """smart_nframes of qwen_vl_utils, restated."""
    if options.num_frames is not None:
        return round(options.num_frames / 2) * 2
    fewest = math.ceil((options.min_frames or 4) / 2) * 2
    most = math.floor((options.max_frames or min(768, total)) / 2) * 2
    wanted = total / video_fps * (options.fps or 2.0)
    return math.floor(min(max(wanted, fewest), most, total) / 2) * 2


@settings(max_examples=200)
@given(
    total=st.integers(4, 200_000),
    video_fps=st.sampled_from([1.0, 23.976, 24.0, 25.0, 29.97, 30.0, 59.94]),
    fps=st.none() | st.floats(0.01, 60),
    max_frames=st.none() | st.integers(4, 768),
)
def test_frames_are_those_of_the_reference(
    total: int, video_fps: float, fps: float | None, max_frames: int | None
) -> None:
    """Count and indices are qwen_vl_utils': torch's linspace, rounded, the last frame included."""
    options = VideoSampling(fps=fps, max_frames=max_frames)
    indices = sample_frames(total, video_fps, options)
    num_frames = qwen_num_frames(total, video_fps, options)
    assert indices == torch.linspace(0, total - 1, num_frames).round().long().tolist()
    assert indices[0] == 0
    assert indices[-1] == total - 1


def test_seventeen_frames_fourteen_wanted() -> None:
    """The case in which transformers' own sampler leaves the video stays inside it."""
    indices = sample_frames(17, 24.0, VideoSampling(num_frames=14))
    assert len(indices) == 14
    assert indices[-1] == 16


@pytest.mark.parametrize(("asked", "used"), [(4, 4), (5, 4), (6, 6), (7, 8), (3, 4)])
def test_num_frames_is_rounded_to_even(asked: int, used: int) -> None:
    """An odd number goes to the neighbour that banker's rounding of its half gives."""
    assert len(sample_frames(100, 25.0, VideoSampling(num_frames=asked))) == used


def test_a_clip_is_counted_from_its_own_frames() -> None:
    """start and end choose whole frames inside the interval, and fps counts over the clip alone."""
    options = VideoSampling(start_seconds=1.01, end_seconds=3.0, fps=2.0)
    assert clip_range(100, 25.0, options) == (26, 75)
    assert sample_frames(100, 25.0, options) == [26, 42, 59, 75]


def test_an_end_beyond_the_video_is_its_last_frame() -> None:
    """A clip may be asked for without knowing how long the video is."""
    assert clip_range(100, 25.0, VideoSampling(end_seconds=1e6)) == (0, 99)


@pytest.mark.parametrize(
    ("option", "options"),
    [
        ("fps", VideoSampling(fps=2, num_frames=4)),
        ("min_frames", VideoSampling(min_frames=4, num_frames=4)),
        ("max_frames", VideoSampling(max_frames=8, num_frames=4)),
        ("fps", VideoSampling(fps=0)),
        ("fps", VideoSampling(fps=-1)),
        ("fps", VideoSampling(fps=float("nan"))),
        ("fps", VideoSampling(fps=float("inf"))),
        ("num_frames", VideoSampling(num_frames=102)),
        ("num_frames", VideoSampling(num_frames=1)),
        ("num_frames", VideoSampling(num_frames=0)),
        ("max_frames", VideoSampling(max_frames=1)),
        ("min_frames", VideoSampling(min_frames=10, max_frames=8)),
        ("min_frames", VideoSampling(min_frames=1000)),
        ("end_seconds", VideoSampling(start_seconds=2, end_seconds=2)),
        ("end_seconds", VideoSampling(end_seconds=0.01)),
        ("start_seconds", VideoSampling(start_seconds=100)),
        ("start_seconds", VideoSampling(start_seconds=float("nan"))),
        ("start_seconds", VideoSampling(start_seconds=-1)),
        ("end_seconds", VideoSampling(end_seconds=-1)),
    ],
)
def test_an_option_that_cannot_apply_is_named(option: str, options: VideoSampling) -> None:
    """Sampling options that contradict each other or the video are refused by name."""
    with pytest.raises(MediaRuleError) as caught:
        sample_frames(100, 25.0, options)
    assert caught.value.option == option


def test_a_single_frame_is_no_video() -> None:
    """One frame cannot fill a slice."""
    with pytest.raises(MediaRuleError, match="at least 2 frames"):
        sample_frames(1, 25.0, VideoSampling())


@pytest.mark.parametrize(
    ("num_frames", "asked", "expected"),
    [
        (4, None, 768 * 784),
        (768, None, 0.9 * 128000 * 784 / 768 * 2),
        (768, 150_000, 150_000),
        (4, 10**9, 768 * 784),
        (10**6, None, int(128 * 784 * 1.05)),
    ],
)
def test_frame_pixels(num_frames: int, asked: int | None, expected: float) -> None:
    """The cap of a frame falls with their number, never under 1.05 of the least, and an item can only lower it."""
    limits = video_frame_pixels(
        num_frames,
        min_pixels=128 * 784,
        max_pixels=768 * 784,
        asked_max_pixels=asked,
        total_pixels=0.9 * 128000 * 784,
    )
    assert limits == (128 * 784, expected)
