"""Opening video files so that nothing but their own bytes is ever read."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from services.common.media.errors import MediaError

# demuxers by name; playlists (hls, dash, concat) and raw streams are not among them
VIDEO_CONTAINERS: Final = ("mov", "matroska", "avi", "mpegts")
VIDEO_CODECS: Final = frozenset(
    {"av1", "h263", "h264", "hevc", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "vp8", "vp9"}
)
# what PyAV raises on hostile bytes beside its own errors
BROKEN = (av.FFmpegError, OSError, ValueError, IndexError, OverflowError)
_TS_PACKET_BYTES = 188


@contextmanager
def open_video(data: bytes) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its best video stream.

    Raises MediaError: UNSUPPORTED_VIDEO_FORMAT (container or codec) or BROKEN_VIDEO; the latter for library errors
    in the body too.
    """
    demuxer = sniff_video(data)
    try:
        with _open(data, demuxer) as container:
            yield container, _video_stream(container)
    except BROKEN as error:
        raise broken_video(demuxer) from error


def broken_video(container: str) -> MediaError:
    """The error of a video that cannot be read."""
    return MediaError("BROKEN_VIDEO", f"the {container} file is broken or incomplete")


def sniff_video(data: bytes) -> str:
    """The demuxer by the first bytes, so that no other can be chosen by what the file says later."""
    if data[4:8] in {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}:
        return "mov"
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    if data[:1] == b"G" and data[_TS_PACKET_BYTES : _TS_PACKET_BYTES + 1] == b"G":
        return "mpegts"
    raise MediaError("UNSUPPORTED_VIDEO_FORMAT", f"the video is none of {', '.join(VIDEO_CONTAINERS)}")


def is_shown(packet: "Packet[VideoStream]", codec: str) -> bool:
    """Whether a packet becomes a frame: not a flush, not cut off by an edit list, not a hidden VP8 reference."""
    if packet.size == 0 or packet.is_discard:
        return False
    # RFC 6386, section 9.1: bit 4 of the first byte is show_frame
    return codec != "vp8" or bool(memoryview(packet)[0] & 0x10)


def quarter_turns(frame: VideoFrame) -> int:
    """How often to turn a frame by 90 degrees counter-clockwise so that it stands upright (its display matrix)."""
    return round(frame.rotation / 90) % 4


def codec_of(stream: VideoStream) -> str:
    """The codec's own name, whichever library decodes it ("av1", not "libdav1d")."""
    return str(stream.codec_context.codec.canonical_name)


def _open(data: bytes, demuxer: str) -> InputContainer:
    return av.open(
        io.BytesIO(data), mode="r", format=demuxer, io_open=_refuse_to_open, options={"protocol_whitelist": "none"}
    )


def _video_stream(container: InputContainer) -> VideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        raise MediaError("BROKEN_VIDEO", "the file holds no video")
    if not _has_decoder(stream) or codec_of(stream) not in VIDEO_CODECS:
        raise MediaError("UNSUPPORTED_VIDEO_FORMAT", f"the codec is none of {', '.join(sorted(VIDEO_CODECS))}")
    return stream


def _has_decoder(stream: VideoStream) -> bool:
    """PyAV's types say that a stream always has a codec; one whose codec nobody here knows has none."""
    context: object = stream.codec_context
    return context is not None


def _refuse_to_open(*_args: object) -> NoReturn:
    raise PermissionError("a video may not open other files")
