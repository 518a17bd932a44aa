"""Conversations to compare, each written once for both sides: a request for the gateway, an input for the reference."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import numpy as np
from diptych.v1 import content_pb2 as pb
from PIL import Image, ImageDraw

ROLES = {"system": pb.ROLE_SYSTEM, "user": pb.ROLE_USER, "assistant": pb.ROLE_ASSISTANT}
Options = Mapping[str, float]


@dataclass(frozen=True)
class Picture:
    """A still picture as an encoded file, and the request's options for it."""

    data: bytes
    options: Options = field(default_factory=dict)

    def to_part(self) -> pb.Part:
        return pb.Part(image=pb.Image(data=self.data, **self.options))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Clip:
    """A video as a container file, and the request's options for it."""

    data: bytes
    options: Options = field(default_factory=dict)

    def to_part(self) -> pb.Part:
        return pb.Part(video=pb.Video(data=self.data, **self.options))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Frames:
    """A video as a list of encoded pictures, and the request's options for it."""

    frames: tuple[bytes, ...]
    options: Options = field(default_factory=dict)

    def to_part(self) -> pb.Part:
        frames = pb.FrameList(frames=[pb.Frame(data=frame) for frame in self.frames])
        return pb.Part(video=pb.Video(frames=frames, **self.options))  # type: ignore[arg-type]


Media = Picture | Clip | Frames
Piece = str | Media


@dataclass(frozen=True)
class Case:
    """One conversation: turns of (role, pieces), and whether media are numbered."""

    name: str
    turns: tuple[tuple[str, tuple[Piece, ...]], ...]
    add_vision_id: bool = False

    @property
    def media(self) -> list[Media]:
        """All media, in prompt order."""
        return [piece for _, pieces in self.turns for piece in pieces if not isinstance(piece, str)]

    def to_conversation(self) -> pb.Conversation:
        messages = [
            pb.Message(role=ROLES[role], parts=[pb.Part(text=p) if isinstance(p, str) else p.to_part() for p in pieces])
            for role, pieces in self.turns
        ]
        return pb.Conversation(messages=messages, add_vision_id=self.add_vision_id)


def user(name: str, *pieces: Piece, system: str | None = None, add_vision_id: bool = False) -> Case:
    """A single question."""
    head = (("system", (system,)),) if system is not None else ()
    return Case(name, (*head, ("user", pieces)), add_vision_id)


def drawing(height: int, width: int, seed: int, file_format: str = "PNG", mode: str = "RGB") -> bytes:
    """A picture with edges and smooth parts, so that resizing and order both matter."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 255, width, dtype=np.float32)[None, :, None] * rng.random(3, dtype=np.float32)
    noise = rng.normal(0, 12, (height, width, 3)) + np.linspace(0, 90, height)[:, None, None]
    image = Image.fromarray(np.clip(ramp + noise, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(4):
        x, y = int(rng.integers(0, max(2, width - 8))), int(rng.integers(0, max(2, height - 8)))
        colour = tuple(int(c) for c in rng.integers(0, 255, 3))
        pen.ellipse((x, y, x + max(4, width // 3), y + max(4, height // 3)), fill=colour)
    return encode(image if mode == "RGB" else image.convert(mode), file_format)


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def film(
    frames: int, height: int, width: int, seed: int, rate: int = 8, container: str = "mp4", codec: str = "mpeg4"
) -> bytes:
    """A moving disc as a container file."""
    buffer = io.BytesIO()
    rng = np.random.default_rng(seed)
    colour = tuple(int(c) for c in rng.integers(64, 255, 3))
    with av.open(buffer, "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=Fraction(rate))  # PyAV's types do not know that it is a video
        frame_of: Any = av.VideoFrame.from_image
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            image = Image.new("RGB", (width, height), (20, 30, 60))
            x = int((width - 16) * index / max(1, frames - 1))
            ImageDraw.Draw(image).ellipse((x, height // 3, x + 16, height // 3 + 16), fill=colour)
            out.mux(stream.encode(frame_of(image)))
        out.mux(stream.encode())
    return buffer.getvalue()


SMALL: Options = {"min_pixels": 3136, "max_pixels": 50176}
SMALL_VIDEO: Options = {"min_pixels": 3136, "max_pixels": 12544}


def picture(seed: int, height: int = 84, width: int = 112, **options: float) -> Picture:
    return Picture(drawing(height, width, seed), {**SMALL, **options})


def clip(seed: int, frames: int = 12, height: int = 64, width: int = 96, **options: float) -> Clip:
    return Clip(film(frames, height, width, seed), {**SMALL_VIDEO, **options})


def frame_list(seed: int, count: int, height: int = 56, width: int = 84, **options: float) -> Frames:
    return Frames(tuple(drawing(height, width, seed + i) for i in range(count)), {**SMALL_VIDEO, **options})


TEXTS = {
    "plain": "What can you see?",
    "empty": "",
    "space": "   ",
    "newline first": "\nsecond line",
    "newlines": "one\n\n\ntwo\n",
    "unicode": "naïve façade — 漢字かな 한국어 العربية עברית हिन्दी",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 ok? é é",
    "decomposed": "e\u0301a\u0300 \u1100\u1161",
    "controls": "tab\there\u0000nul\u200bzero\ufeff",
    "digits": "12345 67 890 3.14159 1e-9",
    "code": "def f(x):\n    return {'a': [1, 2], \"b\": x}",
    "braces": "{{ messages }} {% raw %}",
    "long": "The quick brown fox jumps over the lazy dog. " * 6,
}
VERY_LONG = "The quick brown fox jumps over the lazy dog. " * 24


def text_cases() -> Iterator[Case]:
    """Text alone: every alphabet, empty strings, templates' own syntax."""
    for name, text in TEXTS.items():
        yield user(f"text: {name}", text)
        yield user(f"text: {name}, with system", text, system="Answer in one word.")
        yield user(f"text: {name}, beside a picture", picture(1), text)
    yield user("text: very long, around a picture", VERY_LONG, picture(2), VERY_LONG, "Why?")
    yield user("text: empty system", "hello", system="")
    yield user("text: split in parts", "Wh", "at ", "is", "\n", "this?")
    yield Case("text: many turns", (("user", ("hi",)), ("assistant", ("Hello.",)), ("user", ("Why?",))))
    yield Case("text: ends with assistant", (("user", ("hi",)), ("assistant", ("Sure,",))))


def image_cases() -> Iterator[Case]:
    """Pictures: number, place, size and limits."""
    for seed, (height, width) in enumerate(
        [(56, 56), (84, 112), (200, 120), (30, 400), (333, 211), (17, 23), (448, 448)]
    ):
        yield user(f"image: {height}x{width}", Picture(drawing(height, width, seed), SMALL), "Describe.")
    for options in ({"min_pixels": 20000}, {"max_pixels": 6000}, {"min_pixels": 6272, "max_pixels": 6272}):
        name = ", ".join(f"{k}={v}" for k, v in options.items())
        yield user(f"image: {name}", Picture(drawing(90, 130, 5), {**SMALL, **options}), "Describe.")
    for height, width in ((56, 112), (100, 60), (29, 300)):
        exact = {"resized_height": height, "resized_width": width}
        yield user(f"image: exactly {height}x{width}", Picture(drawing(90, 130, 6), exact), "Describe.")
    for count in (2, 3, 6):
        yield user(f"image: {count} together", *(picture(20 + i) for i in range(count)), "Compare.")
    yield user("image: the same twice", picture(3), picture(3), "Same?")
    yield user("image: text around", "First ", picture(4), " then ", picture(5, 56, 140), " which?")
    yield user("image: alone", picture(7))
    yield user("image: mixed sizes", picture(8, 56, 56), picture(9, 168, 84), picture(10, 30, 200), "Which?")
    yield user("image: vision ids", picture(11), picture(12), "Picture 2?", add_vision_id=True)
    yield Case(
        "image: one a turn",
        (
            ("user", (picture(13), "What?")),
            ("assistant", ("A disc.",)),
            ("user", (picture(14), "And this?")),
        ),
    )
    yield Case(
        "image: in an assistant turn",
        (
            ("user", ("Draw.",)),
            ("assistant", (picture(15), "Here.")),
            ("user", ("What colour?",)),
        ),
    )


def video_cases() -> Iterator[Case]:
    """Videos: containers and frame lists, sampling and limits."""
    for frames in (4, 5, 9, 24):
        yield user(f"video: {frames} frames", clip(frames, frames), "What moves?")
    for options in (
        {"fps": 1.0},
        {"fps": 4.0},
        {"fps": 8.0},
        {"num_frames": 6},
        {"num_frames": 7},
        {"min_frames": 8},
        {"max_frames": 6, "fps": 8.0},
        {"start_seconds": 0.5},
        {"end_seconds": 1.5},
        {"start_seconds": 0.6, "end_seconds": 2.2},
        {"total_pixels": 40000},
        {"max_pixels": 6272},
        {"min_pixels": 9000},
    ):
        name = ", ".join(f"{k}={v}" for k, v in options.items())
        yield user(f"video: {name}", clip(40, 24, **options), "What moves?")
    exact = {"resized_height": 56, "resized_width": 84}
    yield user("video: exactly 56x84", Clip(film(12, 64, 96, 41), exact), "What moves?")
    for count in (1, 2, 3, 8):
        yield user(f"video: list of {count}", frame_list(50, count), "What moves?")
    yield user("video: more slices than rows", frame_list(60, 16, 56, 56), "After it?")
    yield user("video: two", clip(61), clip(62, 8), "Which is longer?")
    yield user("video: vision ids", clip(63), frame_list(64, 4), "Video 2?", add_vision_id=True)
    yield user("video: webm", Clip(film(10, 64, 96, 65, container="webm", codec="libvpx-vp9"), SMALL_VIDEO), "What?")
    yield user("video: mkv", Clip(film(10, 64, 96, 66, container="matroska"), SMALL_VIDEO), "What?")


def mixed_cases() -> Iterator[Case]:
    """Pictures and videos together, in any order and in any turn."""
    yield user("mixed: image, video", picture(70), clip(71), "Both?")
    yield user("mixed: video, image", clip(72), picture(73), "Both?")
    yield user("mixed: alternating", picture(74), frame_list(75, 6), picture(76, 56, 56), clip(77, 8), "All?")
    yield user("mixed: vision ids", picture(78), clip(79), picture(80), "All?", add_vision_id=True)
    yield Case(
        "mixed: over turns",
        (
            ("system", ("Be brief.",)),
            ("user", (picture(81), "What?")),
            ("assistant", ("A disc.",)),
            ("user", (clip(82), "And now?")),
            ("assistant", ("It moves.", frame_list(83, 4))),
            ("user", ("Why?", picture(84))),
        ),
    )
    yield Case(
        "mixed: system with a picture", (("system", ("Look:", picture(85))), ("user", (frame_list(86, 2), "Same?")))
    )


def all_cases() -> list[Case]:
    """Every case, in a fixed order."""
    return [*text_cases(), *image_cases(), *video_cases(), *mixed_cases()]
