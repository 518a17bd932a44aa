"""From the bytes of media to uint8 RGB frames at the planned size. For worker processes (`jobs.py`)."""

from collections.abc import Iterator, Sequence

import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from services.common.media import images, videos, worth
from services.common.media.errors import MediaError
from services.common.media.frames import DecodePlan, Frames, Pixels
from services.common.workers.allowance import UNLIMITED, Allowance

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


def decode(plan: DecodePlan, files: Sequence[bytes], allowance: Allowance = UNLIMITED) -> Iterator[Frames]:
    """The temporal slices of one media item, in order, each made when it is asked for.

    Raises MediaError, with `file_index` when one file of several is at fault.
    """
    if plan.source == "image":
        yield (decode_image(files[0], plan, allowance),) * plan.temporal_patch_size
        return
    is_container = plan.source == "container"
    frames = decode_video(files[0], plan, allowance) if is_container else _pictures(files, plan, allowance)
    slice_: list[Pixels] = []
    for frame in frames:
        slice_.append(frame)
        if len(slice_) == plan.temporal_patch_size:
            yield tuple(slice_)
            slice_.clear()


def decode_image(data: bytes, plan: DecodePlan, allowance: Allowance = UNLIMITED) -> Pixels:
    """One picture: oriented, composited on white, resized. Raises MediaError."""
    return _resized(load_rgb(data, max_pixels=plan.max_source_pixels, allowance=allowance), plan, allowance)


def load_rgb(data: bytes, *, max_pixels: int, allowance: Allowance = UNLIMITED) -> Image.Image:
    """A picture file as an upright RGB picture at its own size. Raises MediaError."""
    image = images.open_image(data, max_pixels=max_pixels)
    allowance.earn(worth.of_picture(image.height * image.width, len(data)))
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


def _pictures(files: Sequence[bytes], plan: DecodePlan, allowance: Allowance) -> Iterator[Pixels]:
    """All pictures of a list, the last one repeated until its slice is full."""
    size: tuple[int, int] | None = None
    for index, data in enumerate(files):
        try:
            image = load_rgb(data, max_pixels=plan.max_source_pixels, allowance=allowance)
        except MediaError as error:
            raise MediaError(error.reason, error.message, file_index=index) from error
        if image.size != (size := size or image.size):
            raise MediaError("FRAME_SIZES_DIFFER", "a frame differs in size from the first", file_index=index)
        frame = _resized(image, plan, allowance)
        yield frame
    for _ in range(-len(files) % plan.temporal_patch_size):
        yield frame


def decode_video(data: bytes, plan: DecodePlan, allowance: Allowance = UNLIMITED) -> Iterator[Pixels]:
    """The planned frames of a container file, in order, resized as they are decoded.

    Raises MediaError when a frame of the plan cannot be decoded or the frames change their size.
    """
    wanted = iter(plan.frame_indices)
    next_wanted = next(wanted, None)
    with videos.open_video(data) as (container, stream):
        stream.codec_context.thread_count = 1  # a worker has no threads; several videos go side by side
        size: tuple[int, int] | None = None
        for index, frame in enumerate(_all_frames(container, stream, plan, allowance)):
            if (frame.height, frame.width) != (size := size or _frame_size(frame, plan)):
                raise MediaError("VIDEO_SIZE_CHANGES", f"the video changes its size at frame {index}")
            if index != next_wanted:
                continue
            pixels = _fitted(_upright(frame), plan, allowance)
            while index == next_wanted:
                yield pixels
                next_wanted = next(wanted, None)
            if next_wanted is None:
                return
    raise MediaError("BROKEN_VIDEO", f"frame {next_wanted} of the video cannot be decoded")


def _all_frames(
    container: InputContainer, stream: VideoStream, plan: DecodePlan, allowance: Allowance
) -> Iterator[VideoFrame]:
    """Every frame of a video. A packet is worth its bytes and the frames that the one before it gave: what shows
    nothing earns next to nothing.
    """
    num_pixels = min(stream.codec_context.height * stream.codec_context.width, plan.max_source_pixels)
    for packet in container.demux(stream):
        allowance.earn(worth.of_packet(packet.size, num_pixels))
        num_pixels = 0
        for frame in packet.decode():
            num_pixels += frame.height * frame.width
            yield frame


def _frame_size(frame: VideoFrame, plan: DecodePlan) -> tuple[int, int]:
    if frame.height * frame.width > plan.max_source_pixels:
        raise MediaError("VIDEO_TOO_LARGE", f"the video has frames of more than {plan.max_source_pixels} pixels")
    return frame.height, frame.width


def _upright(frame: VideoFrame) -> Pixels:
    pixels = np.rot90(frame.reformat(format="rgb24", threads=1).to_ndarray(), videos.quarter_turns(frame))
    return np.ascontiguousarray(pixels)


def _fitted(pixels: Pixels, plan: DecodePlan, allowance: Allowance) -> Pixels:
    """Resized, or as they are: a frame of the planned size takes no longer than its decoding."""
    if pixels.shape[:2] == (plan.height, plan.width):
        return pixels
    return _resized(Image.fromarray(pixels), plan, allowance)


def _resized(image: Image.Image, plan: DecodePlan, allowance: Allowance) -> Pixels:
    allowance.earn(plan.height * plan.width * worth.PIXEL_S)
    return np.asarray(image.resize((plan.width, plan.height), Image.Resampling.BICUBIC))
