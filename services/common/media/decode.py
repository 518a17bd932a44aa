"""From the bytes of media to uint8 RGB frames at the planned size. For worker processes (`jobs.py`)."""

from collections.abc import Iterator, Sequence

import numpy as np
from av.video.frame import VideoFrame
from PIL import Image

from services.common.media import images, videos
from services.common.media.errors import MediaError
from services.common.media.frames import DecodePlan, Frames, Pixels

_WHITE = (255, 255, 255)
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(plan: DecodePlan, files: Sequence[bytes]) -> Iterator[Frames]:
    """The temporal slices of one media item, in order, each made when it is asked for.

    Raises MediaError, with `file_index` when one file of several is at fault.
    """
    if plan.source == "image":
        yield (decode_image(files[0], plan),) * plan.temporal_patch_size
        return
    frames = decode_video(files[0], plan) if plan.source == "container" else _pictures(files, plan)
    slice_: list[Pixels] = []
    for frame in frames:
        slice_.append(frame)
        if len(slice_) == plan.temporal_patch_size:
            yield tuple(slice_)
            slice_.clear()


def decode_image(data: bytes, plan: DecodePlan) -> Pixels:
    """One picture: oriented, composited on white, resized. Raises MediaError."""
    image = load_rgb(data, max_pixels=plan.max_source_pixels)
    return np.asarray(image.resize((plan.width, plan.height), Image.Resampling.BICUBIC))


def load_rgb(data: bytes, *, max_pixels: int) -> Image.Image:
    """A picture file as an upright RGB picture at its own size. Raises MediaError."""
    image = images.open_image(data, max_pixels=max_pixels)
    image_format = str(image.format)
    orientation = images.orientation_of(image, data)
    try:
        image.load()
        rgb = to_rgb(image)
    except images.BROKEN as error:
        raise images.broken_image(image_format) from error
    return rgb.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else rgb


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB on white; 16-bit grey is scaled to 8 bits, which Pillow's own conversion would clip."""
    if image.mode.startswith("I"):
        return _grey16_to_rgb(image)
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        layered = image.convert("RGBA")
        canvas = Image.new("RGB", layered.size, _WHITE)
        canvas.paste(layered, mask=layered.getchannel("A"))
        return canvas
    return image.convert("RGB")


def _grey16_to_rgb(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    # the high byte, as libpng reduces 16-bit colour
    grey = (values >> 8).astype(np.uint8)
    if (transparent := image.info.get("transparency")) is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _pictures(files: Sequence[bytes], plan: DecodePlan) -> Iterator[Pixels]:
    """All pictures of a list, the last one repeated until its slice is full."""
    size: tuple[int, int] | None = None
    for index, data in enumerate(files):
        try:
            image = load_rgb(data, max_pixels=plan.max_source_pixels)
        except MediaError as error:
            raise MediaError(error.reason, error.message, file_index=index) from error
        if image.size != (size := size or image.size):
            raise MediaError("FRAME_SIZES_DIFFER", "a frame differs in size from the first", file_index=index)
        frame = np.asarray(image.resize((plan.width, plan.height), Image.Resampling.BICUBIC))
        yield frame
    for _ in range(-len(files) % plan.temporal_patch_size):
        yield frame


def decode_video(data: bytes, plan: DecodePlan) -> Iterator[Pixels]:
    """The planned frames of a container file, in order, resized as they are decoded.

    Raises MediaError when a frame of the plan cannot be decoded or the frames change their size.
    """
    wanted = iter(plan.frame_indices)
    next_wanted = next(wanted, None)
    with videos.open_video(data) as (container, stream):
        stream.codec_context.thread_count = 1  # a worker has no threads; several videos go side by side
        size: tuple[int, int] | None = None
        for index, frame in enumerate(container.decode(stream)):
            if (frame.height, frame.width) != (size := size or _frame_size(frame, plan)):
                raise MediaError("VIDEO_SIZE_CHANGES", f"the video changes its size at frame {index}")
            if index != next_wanted:
                continue
            pixels = _upright(frame, plan)
            while index == next_wanted:
                yield pixels
                next_wanted = next(wanted, None)
            if next_wanted is None:
                return
    raise MediaError("BROKEN_VIDEO", f"frame {next_wanted} of the video cannot be decoded")


def _frame_size(frame: VideoFrame, plan: DecodePlan) -> tuple[int, int]:
    if frame.height * frame.width > plan.max_source_pixels:
        raise MediaError("VIDEO_TOO_LARGE", f"the video has frames of more than {plan.max_source_pixels} pixels")
    return frame.height, frame.width


def _upright(frame: VideoFrame, plan: DecodePlan) -> Pixels:
    pixels = np.rot90(frame.reformat(format="rgb24", threads=1).to_ndarray(), videos.quarter_turns(frame))
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((plan.width, plan.height), Image.Resampling.BICUBIC))
