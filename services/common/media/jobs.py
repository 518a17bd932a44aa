"""What worker processes do with media: everything in which a stranger's bytes meet a parser.

Replies are plain values, checked again by `reader.py` on the other side.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final, Literal

import av
from PIL import Image

from services.common.media import worth
from services.common.media.decode import decode
from services.common.media.errors import MediaError
from services.common.media.frames import DecodePlan, Frames
from services.common.media.images import IMAGE_FORMATS
from services.common.media.probe import probe_image, probe_video
from services.common.workers.allowance import Allowance
from services.common.workers.child import Files, JobFunction, Refusal, Reply


def warm_up() -> None:
    """Import what the libraries would import at their first picture, when nothing can be opened any more."""
    picture = Image.new("RGB", (16, 16))
    for image_format in IMAGE_FORMATS:
        buffer = io.BytesIO()
        picture.save(buffer, image_format)
        probe_image(buffer.getvalue())
        list(decode(_plan("image", ()), [buffer.getvalue()]))
    video = io.BytesIO()
    with av.open(video, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = *picture.size, "yuv420p"
        container.mux([*stream.encode(av.VideoFrame(*picture.size, "yuv420p")), *stream.encode()])
    probe_video(video.getvalue())
    list(decode(_plan("container", (0,)), [video.getvalue()]))


def _plan(source: Literal["image", "container"], indices: tuple[int, ...]) -> DecodePlan:
    return DecodePlan(source, 28, 28, indices, temporal_patch_size=1, max_source_pixels=256)


def probe_images(_arguments: dict[str, Any], files: Files, allowance: Allowance) -> Iterator[Reply]:
    """One header a file."""
    for index in range(len(files)):
        allowance.earn(worth.PICTURE_HEADER_S)
        try:
            header = probe_image(files[index])
        except MediaError as error:
            raise _refusal(error, index) from error
        yield Reply(asdict(header))


def probe_one_video(_arguments: dict[str, Any], files: Files, allowance: Allowance) -> Iterator[Reply]:
    """The header of a container file."""
    try:
        yield Reply(asdict(probe_video(files[0], allowance=allowance)))
    except MediaError as error:
        raise _refusal(error, None) from error


def decode_slices(arguments: dict[str, Any], files: Files, allowance: Allowance) -> Iterator[Reply]:
    """One temporal slice a reply: its distinct frames as bytes, and which of them stands where."""
    plan = DecodePlan(**{**arguments, "frame_indices": tuple(arguments["frame_indices"])})
    try:
        for frames in decode(plan, files, allowance):
            yield _slice(frames)
    except MediaError as error:
        raise _refusal(error, error.file_index) from error


def _slice(frames: Frames) -> Reply:
    distinct = list({id(frame): frame for frame in frames}.values())
    places = [next(place for place, other in enumerate(distinct) if other is frame) for frame in frames]
    return Reply({"places": places}, [frame.data.cast("B") for frame in distinct])


def _refusal(error: MediaError, file_index: int | None) -> Refusal:
    return Refusal(reason=error.reason, message=error.message, file_index=file_index)


JOBS: Final[Mapping[str, JobFunction]] = {
    "probe_images": probe_images,
    "probe_video": probe_one_video,
    "decode": decode_slices,
}
