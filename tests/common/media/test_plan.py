import pytest

from services.common.media.headers import ImageHeader, VideoHeader
from services.common.media.plan import SizeOptions, VideoSampling, plan_frames, plan_image, plan_video
from services.common.media.rules import MediaRuleError
from tests.common.media.files import preprocessor

PRE = preprocessor()
PHOTO = ImageHeader("JPEG", 512, 768, "RGB")
CLIP = VideoHeader(480, 640, 240, 24.0, "h264", "mov")


def test_a_picture_is_one_slice() -> None:
    """Grid, tokens and limits of a photograph at the defaults."""
    plan = plan_image(PHOTO, SizeOptions(), PRE)
    assert (plan.height, plan.width, plan.grid) == (504, 756, (1, 36, 54))
    assert plan.num_tokens == 36 * 54 // 4
    assert (plan.min_pixels, plan.max_pixels) == (3136, 12845056)
    assert plan.frame_indices == ()


def test_limits_of_an_item_override_the_checkpoint() -> None:
    """A picture can be asked for smaller, and larger than the checkpoint's limit."""
    small = plan_image(PHOTO, SizeOptions(max_pixels=100_000), PRE)
    assert small.height * small.width <= 100_000
    large = plan_image(PHOTO, SizeOptions(min_pixels=13_000_000, max_pixels=20_000_000), PRE)
    assert large.height * large.width >= 13_000_000


def test_an_exact_size_wins_over_the_limits() -> None:
    """resized_* are rounded to multiples of the factor and reported without limits."""
    plan = plan_image(PHOTO, SizeOptions(resized_height=30, resized_width=100), PRE)
    assert (plan.height, plan.width) == (28, 112)
    assert (plan.min_pixels, plan.max_pixels) == (0, 0)


@pytest.mark.parametrize(
    ("option", "size"),
    [
        ("resized_height", SizeOptions(resized_height=28)),
        ("resized_width", SizeOptions(resized_width=28)),
        ("min_pixels", SizeOptions(resized_height=28, resized_width=28, min_pixels=1)),
        ("max_pixels", SizeOptions(resized_height=28, resized_width=28, max_pixels=1)),
        ("resized_height", SizeOptions(resized_height=100_000, resized_width=100_000)),
        ("resized_height", SizeOptions(resized_height=1, resized_width=201)),
        ("resized_height", SizeOptions(resized_height=0, resized_width=28)),
        ("resized_width", SizeOptions(resized_height=28, resized_width=0)),
        ("min_pixels", SizeOptions(min_pixels=0)),
        ("max_pixels", SizeOptions(max_pixels=0)),
        ("max_pixels", SizeOptions(min_pixels=9000, max_pixels=8000)),
        ("max_pixels", SizeOptions(max_pixels=3135)),
        ("min_pixels", SizeOptions(min_pixels=13_000_000)),
    ],
)
def test_a_size_that_cannot_apply_is_named(option: str, size: SizeOptions) -> None:
    """Contradicting, empty and absurd sizes are refused by the option's name, for pictures and videos alike."""
    with pytest.raises(MediaRuleError) as image:
        plan_image(PHOTO, size, PRE)
    with pytest.raises(MediaRuleError) as frames:
        plan_frames([PHOTO], size, None, PRE)
    assert image.value.option == option
    assert frames.value.option == option


def test_the_factor_is_the_checkpoints() -> None:
    """Another patch and merge size give another grid, and another cost in tokens."""
    plan = plan_image(PHOTO, SizeOptions(), preprocessor(patch_size=8, merge_size=3))
    assert (plan.height % 24, plan.width % 24) == (0, 0)
    assert plan.grid == (1, plan.height // 8, plan.width // 8)
    assert plan.num_tokens == plan.grid[1] * plan.grid[2] // 9


def test_a_video_is_sampled_at_two_frames_a_second() -> None:
    """Ten seconds give twenty frames, ten slices, and the rate that was reached."""
    plan = plan_video(CLIP, SizeOptions(), VideoSampling(), PRE)
    assert len(plan.frame_indices) == 20
    assert plan.grid[0] == 10
    assert plan.sampled_fps == 2.0
    assert plan.max_pixels == 768 * 784
    assert plan.num_tokens == plan.grid[0] * plan.grid[1] * plan.grid[2] // 4


def test_total_pixels_lower_the_frames_of_a_long_clip() -> None:
    """The budget is shared among the frames and reported as each frame's limit."""
    plan = plan_video(CLIP, SizeOptions(), VideoSampling(num_frames=20, total_pixels=2_000_000), PRE)
    assert plan.max_pixels == 200_000
    assert plan.height * plan.width <= 200_000


def test_total_pixels_exclude_an_exact_size() -> None:
    """A budget beside an exact size would have no effect."""
    sampling = VideoSampling(total_pixels=2_000_000)
    with pytest.raises(MediaRuleError) as caught:
        plan_video(CLIP, SizeOptions(resized_height=56, resized_width=56), sampling, PRE)
    assert caught.value.option == "total_pixels"


def test_an_odd_list_of_frames_repeats_its_last() -> None:
    """Three pictures are two slices."""
    plan = plan_frames([PHOTO] * 3, SizeOptions(), None, PRE)
    assert plan.kind == "video"
    assert plan.frame_indices == (0, 1, 2, 2)
    assert plan.grid[0] == 2
    assert plan.sampled_fps is None


def test_frames_of_different_sizes_are_refused() -> None:
    """The frame that differs is named."""
    with pytest.raises(MediaRuleError, match="frame 1") as caught:
        plan_frames([PHOTO, ImageHeader("PNG", 768, 512, "RGB")], SizeOptions(), None, PRE)
    assert caught.value.option == "frames[1]"


def test_no_frames_are_no_video() -> None:
    """An empty list is refused."""
    with pytest.raises(MediaRuleError):
        plan_frames([], SizeOptions(), None, PRE)
