"""Video files that a stranger might send, and what must become of each."""

import io
import struct
from collections.abc import Iterator, Sequence

import av
import numpy as np

from tests.common.media.files import encode_video, flat_frames
from tests.exactness.cases import film
from tests.hostile.case import Case
from tests.hostile.images import PNG, noise

MP4 = film(8, 64, 96, 8)
WEBM = film(8, 64, 96, 8, container="webm", codec="libvpx")
AVI = encode_video(flat_frames(8), container="avi", codec="mjpeg", pix_fmt="yuvj420p")
TS = film(8, 64, 96, 8, container="mpegts", codec="mpeg2video", rate=25)
PLAIN = {"mp4": MP4, "webm": WEBM, "avi": AVI, "ts": TS}

_MANY = 0x7FFF_FFFF


def video_cases(trap: str) -> Iterator[Case]:
    """All of them. `trap` is the URL of a server that nothing may ever connect to."""
    yield from _playlists(trap)
    yield from _lies()
    yield from _cut_short()
    yield from _changing()
    yield from _crowded()
    yield Case("mp4 whose data are elsewhere", with_reference(MP4, trap), None)


def _playlists(trap: str) -> Iterator[Case]:
    dash = f'<?xml version="1.0"?><MPD><Period><BaseURL>{trap}</BaseURL></Period></MPD>'
    for address in (trap, "file:///etc/passwd"):
        texts = {
            "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{address}\n#EXT-X-ENDLIST\n",
            "ffconcat": f"ffconcat version 1.0\nfile '{address}'\n",
            "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\na=control:{address}\nm=video 5000 RTP/AVP 96\n",
        }
        for name, text in texts.items():
            yield Case(f"{name} of {address}", text.encode(), "UNSUPPORTED_VIDEO_FORMAT")
    for name, data in {"dash": dash.encode(), "noise": noise(4096), "picture": PNG, "text": b"x" * 600}.items():
        yield Case(name, data, "UNSUPPORTED_VIDEO_FORMAT")
    yield Case("nothing", b"", "REQUIRED", only_gateway=True)
    lossless = encode_video(flat_frames(4), container="matroska", codec="ffv1")
    yield Case("codec that is not allowed", lossless, "UNSUPPORTED_VIDEO_FORMAT")


def _lies() -> Iterator[Case]:
    """Numbers in headers that are not so. The frames that are there decide."""
    yield Case("mp4 of 24 days", patched(MP4, b"mvhd", 16, _MANY), None)
    yield Case("mp4 with time in units of 0", patched(MP4, b"mdhd", 12, 0), "CANNOT_APPLY")
    yield Case("mp4 with time in units of 1/4294967295 s", patched(MP4, b"mdhd", 12, 0xFFFF_FFFF), "CANNOT_APPLY")
    yield Case("mp4 with 2^31 frame times", patched(MP4, b"stts", 8, _MANY), None)
    yield Case("mp4 with 2^31 frames", patched(MP4, b"stsz", 8, _MANY), "BROKEN_VIDEO")
    yield Case(
        "mp4 with 2^28 frames of a byte", patched(patched(MP4, b"stsz", 4, 1), b"stsz", 8, 1 << 28), "BROKEN_VIDEO"
    )
    yield Case("mp4 with chunks out of the file", patched(MP4, b"stco", 8, _MANY), "BROKEN_VIDEO")
    yield Case("avi of 60000x60000", avi_of(60_000, 60_000), None)
    yield Case("avi with frames of 60000x60000", mjpeg_of(60_000, 60_000), "BROKEN_VIDEO")
    yield Case("frames weeks apart", stamped([0, 1 << 29, 1 << 30, _MANY]), None)
    yield Case("a thousand frames a second", stamped(range(8)), None)


def _cut_short() -> Iterator[Case]:
    for name, data in PLAIN.items():
        yield Case(
            f"{name} cut at 100 bytes", data[:100], "UNSUPPORTED_VIDEO_FORMAT" if name == "ts" else "BROKEN_VIDEO"
        )
        yield Case(f"{name} cut at 30 %", data[: len(data) * 3 // 10], "BROKEN_VIDEO")
        # what is made for streams is a shorter video when it is cut
        whole = name in {"webm", "ts"}
        yield Case(f"{name} cut at 80 %", data[: len(data) * 8 // 10], None if whole else "BROKEN_VIDEO")
    yield Case("mp4 of nothing but noise", MP4[:32] + noise(20_000), "BROKEN_VIDEO")
    yield Case("matroska of nothing but noise", WEBM[:4] + noise(20_000), "BROKEN_VIDEO")
    yield Case("avi of nothing but noise", AVI[:12] + noise(20_000), "BROKEN_VIDEO")
    yield Case("ts of nothing but sync bytes", b"G" * 188 * 5000, "BROKEN_VIDEO")


def _changing() -> Iterator[Case]:
    other = film(8, 96, 64, 9, container="mpegts", codec="mpeg2video", rate=25)
    yield Case("a video that changes its size", TS + other, "VIDEO_SIZE_CHANGES")


def _crowded() -> Iterator[Case]:
    yield Case("sound alone", sound(), "BROKEN_VIDEO")
    yield Case("no frames", remuxed("matroska", num_packets=0), "BROKEN_VIDEO")
    yield Case("matroska with 1000 tags", remuxed("matroska", num_tags=1000), None)
    yield Case("matroska with 200 attachments", remuxed("matroska", num_attachments=200), None)
    yield Case("mp4 with 300 streams", remuxed("mp4", num_streams=300), None)


def patched(data: bytes, box: bytes, offset: int, value: int) -> bytes:
    """An MP4 with another 32-bit number at `offset` behind a box's name."""
    place = data.index(box) + 4 + offset
    return data[:place] + struct.pack(">I", value) + data[place + 4 :]


def with_reference(data: bytes, url: str) -> bytes:
    """An MP4 whose table of data references names a URL instead of the file itself."""
    text = url.encode() + b"\0"
    place = data.index(b"url \0\0\0\1")
    grown = bytearray(data[: place + 4] + bytes(4) + text + data[place + 8 :])
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref", b"url "):
        size = grown.index(box) - 4
        struct.pack_into(">I", grown, size, struct.unpack_from(">I", grown, size)[0] + len(text))
    return bytes(grown)


def avi_of(width: int, height: int) -> bytes:
    """An AVI whose stream header has been told another size."""
    place = AVI.index(b"strf") + 12
    return AVI[:place] + struct.pack("<II", width, height) + AVI[place + 8 :]


def mjpeg_of(width: int, height: int) -> bytes:
    """An AVI whose pictures have been told another size than its header."""
    parts = AVI.split(b"\xff\xc0\x00\x11\x08")
    sides = struct.pack(">HH", height, width)
    return b"".join([parts[0], *(b"\xff\xc0\x00\x11\x08" + sides + part[4:] for part in parts[1:])])


def stamped(times: Sequence[int]) -> bytes:
    """Frames at any times, in milliseconds."""
    return encode_video(flat_frames(len(times)), codec="mpeg4", rate=1000, times=times)


def remuxed(
    container: str, *, num_packets: int = 8, num_tags: int = 0, num_attachments: int = 0, num_streams: int = 1
) -> bytes:
    """A sound video with a crowd around it."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(MP4), "r") as source, av.open(buffer, "w", format=container) as out:
        streams = [out.add_stream_from_template(source.streams.video[0]) for _ in range(num_streams)]
        for index in range(num_attachments):
            out.add_attachment(f"{index}.ttf", "font/ttf", noise(1000))
        out.metadata.update({f"tag{index}": "x" * 100 for index in range(num_tags)})
        out.start_encoding()
        for packet in [packet for packet in source.demux(video=0) if packet.size][:num_packets]:
            for stream in streams:
                packet.stream = stream
                out.mux(packet)
    return buffer.getvalue()


def hidden_frames(num_packets: int, side: int = 2048) -> bytes:
    """A WebM of large VP8 frames of few bytes, none of which is shown: bit 4 of a frame's first byte says so."""
    buffer = io.BytesIO()
    file = encode_video(flat_frames(1, side, side) * 2, container="webm", codec="libvpx")
    with av.open(io.BytesIO(file), "r") as source, av.open(buffer, "w", format="webm") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        first, same_again = [bytes(packet) for packet in source.demux(video=0) if packet.size]
        for number in range(num_packets):
            shown = same_again if number else first
            packet = av.Packet(bytes([shown[0] & 0xEF]) + shown[1:])
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, number, number, number == 0
            out.mux(packet)
    return buffer.getvalue()


def sound() -> bytes:
    """A file without a picture."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as out:
        stream = out.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
    return buffer.getvalue()
