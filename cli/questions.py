"""Held-out cases of the small checkpoint as requests, and whether an answer is right."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from diptych.v1 import content_pb2 as content

if TYPE_CHECKING:
    from PIL import Image

    from models.demo.heldout import Case

FRAMES_PER_SECOND = 2  # what a request samples when it does not say


@dataclass(frozen=True, slots=True)
class Score:
    """How many of the things asked for are right: 1 answer, or every field of a card."""

    num_right: int
    num_asked: int

    @classmethod
    def of(cls, case: "Case", answer: str) -> "Score":
        """Exact words; for a card, exact fields."""
        if not case.fields:
            return cls(int(answer.strip() == case.answer), 1)
        from models.demo.cards import parse  # noqa: PLC0415 (draws nothing, but imports what draws)

        given = parse(answer)
        return cls(sum(given.get(name) == value for name, value in case.fields.items()), len(case.fields))


def to_conversation(case: "Case", *, container: bool = False) -> content.Conversation:
    """The case as one user turn; a video as its frames, or as a file in a `container`."""
    parts = [content.Part(image=content.Image(data=encode_png(image))) for image in case.images]
    if case.video_frames and container:
        parts.append(content.Part(video=content.Video(data=encode_mp4(case.video_frames))))
    elif case.video_frames:
        frames = [content.Frame(data=encode_png(frame)) for frame in case.video_frames]
        parts.append(content.Part(video=content.Video(frames=content.FrameList(frames=frames))))
    parts.append(content.Part(text=case.question))
    return content.Conversation(messages=[content.Message(role=content.ROLE_USER, parts=parts)])


def encode_png(image: "Image.Image") -> bytes:
    """A picture as a file."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def encode_mp4(frames: Sequence["Image.Image"]) -> bytes:
    """Frames as a video file of which every frame is used."""
    import av  # noqa: PLC0415 (slow to import, and only for videos)

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(FRAMES_PER_SECOND), options={"qp": "8"})
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv444p"
        new_frame: Any = av.VideoFrame.from_image  # without annotations in PyAV
        for frame in frames:
            container.mux(stream.encode(new_frame(frame)))
        container.mux(stream.encode())
    return out.getvalue()
