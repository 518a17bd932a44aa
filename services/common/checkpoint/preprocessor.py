"""preprocessor_config.json and its relatives: how pixels become patches."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from services.common.checkpoint.config import VisionConfig
from services.common.checkpoint.files import CheckpointError, Section, read_json_if_present

RULES_VERSION = "1"  # raised when the code that makes pixels changes what it makes
BICUBIC = 3  # Pillow's number
# Tokens of a picture, and of a video's frame, where the checkpoint sets no limits (qwen_vl_utils 0.0.14)
IMAGE_TOKENS = (4, 16384)
FRAME_TOKENS = (128, 768)


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Least and most pixels of a picture or of one frame after resizing."""

    min_pixels: int
    max_pixels: int


@dataclass(frozen=True, slots=True)
class Preprocessor:
    """How pixels become patches. `merge_size` squared patches make one token."""

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    rescale_factor: float
    image: ImageLimits
    video: ImageLimits

    @property
    def version(self) -> str:
        """Names all that changes an embedding besides the resized pixels; part of every cache key."""
        fields = (self.patch_size, self.merge_size, self.temporal_patch_size, self.rescale_factor)
        text = repr((*fields, self.image_mean, self.image_std))
        return f"{RULES_VERSION}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def read_preprocessor(folder: Path, vision: VisionConfig) -> Preprocessor:
    """From preprocessor_config.json, or the newer processor_config.json; must fit the vision transformer."""
    image, video = _sections(folder)
    _check_supported(image)
    token_pixels = (vision.patch_size * vision.spatial_merge_size) ** 2
    preprocessor = Preprocessor(
        patch_size=image.integer("patch_size", 14),
        merge_size=image.integer("merge_size", 2),
        temporal_patch_size=image.integer("temporal_patch_size", 2),
        image_mean=image.numbers("image_mean", vision.in_channels),
        image_std=image.numbers("image_std", vision.in_channels),
        rescale_factor=image.number("rescale_factor", 1 / 255),
        image=_limits(image, IMAGE_TOKENS, token_pixels),
        video=_limits(video, FRAME_TOKENS, token_pixels),
    )
    expected = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
    if (preprocessor.patch_size, preprocessor.merge_size, preprocessor.temporal_patch_size) != expected:
        raise CheckpointError(
            f"{image.path}: patch, merge and temporal patch size must be {expected}, as in config.json"
        )
    return preprocessor


def _sections(folder: Path) -> tuple[Section, Section]:
    """The image processor's fields and the video processor's (empty when the checkpoint has none)."""
    joint = read_json_if_present(folder / "processor_config.json")
    image = read_json_if_present(folder / "preprocessor_config.json")
    video = read_json_if_present(folder / "video_preprocessor_config.json")
    if not image.path.is_file():
        image = joint.section("image_processor")
        if "image_processor" not in joint:
            raise CheckpointError(
                f"{folder}: neither preprocessor_config.json nor processor_config.json describes images"
            )
    return image, video if video.path.is_file() else joint.section("video_processor")


def _check_supported(image: Section) -> None:
    for name in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        if not image.flag(name, True):
            raise image.error(name, "is false, which is not supported")
    if image.integer("resample", BICUBIC) != BICUBIC:
        raise image.error("resample", "is not bicubic (3), which is not supported")


def _limits(section: Section, default_tokens: tuple[int, int], token_pixels: int) -> ImageLimits:
    """`min_pixels` and `max_pixels`, or `size`, whose edges are areas despite their names."""
    size = section.section("size")
    least, most = (tokens * token_pixels for tokens in default_tokens)
    limits = ImageLimits(
        section.integer("min_pixels", size.integer("shortest_edge", least)),
        section.integer("max_pixels", size.integer("longest_edge", most)),
    )
    if not 0 < limits.min_pixels <= limits.max_pixels:
        raise section.error("min_pixels", f"({limits.min_pixels}) must be positive and at most {limits.max_pixels}")
    return limits
