"""What can be said about a request before anything is fetched. Finds all that is wrong, not the first thing only."""

import re

from diptych.v1 import content_pb2, generation_pb2

from services.common.telemetry.spans import traced

from .checks import Checks
from .generation import check_generation
from .settings import Limits

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LIMIT_OPTIONS = ("min_pixels", "max_pixels")
_CLIP_OPTIONS = ("num_frames", "min_frames", "max_frames", "start_seconds", "end_seconds")


@traced("validate")
def require_valid(
    conversation: content_pb2.Conversation,
    generation: generation_pb2.Generation | None,
    limits: Limits,
    vocab_size: int,
) -> None:
    """Raise InvalidRequest with every violation in the request."""
    checks = Checks()
    check_conversation(checks, conversation, limits)
    if generation is not None:
        check_generation(checks, generation, limits, vocab_size)
    checks.raise_any()


def check_conversation(checks: Checks, conversation: content_pb2.Conversation, limits: Limits) -> None:
    """Turns, parts, counts and each item's options."""
    path = "conversation.messages"
    messages = conversation.messages
    checks.require(len(messages) > 0, path, "must have at least one turn", "REQUIRED")
    if not checks.require(len(messages) <= limits.max_messages, path, f"has more than {limits.max_messages} turns"):
        return
    for index, message in enumerate(messages):
        _check_message(checks, f"{path}[{index}]", message, index, limits)
    parts = [part for message in messages for part in message.parts]
    num_media = sum(part.WhichOneof("kind") in ("image", "video") for part in parts)
    checks.require(num_media <= limits.max_media, path, f"have more than {limits.max_media} images and videos")
    num_chars = sum(len(part.text) for part in parts if part.WhichOneof("kind") == "text")
    checks.require(
        num_chars <= limits.max_text_chars, path, f"have more than {limits.max_text_chars} characters of text"
    )


def _check_message(checks: Checks, path: str, message: content_pb2.Message, index: int, limits: Limits) -> None:
    known = (content_pb2.ROLE_SYSTEM, content_pb2.ROLE_USER, content_pb2.ROLE_ASSISTANT)
    if checks.require(message.role in known, f"{path}.role", "must be system, user or assistant", "REQUIRED"):
        misplaced = message.role == content_pb2.ROLE_SYSTEM and index > 0
        checks.require(not misplaced, f"{path}.role", "a system turn may only be the first", "MISPLACED")
    checks.require(len(message.parts) > 0, f"{path}.parts", "must have at least one part", "REQUIRED")
    if checks.require(
        len(message.parts) <= limits.max_parts, f"{path}.parts", f"has more than {limits.max_parts} parts"
    ):
        for number, part in enumerate(message.parts):
            _check_part(checks, f"{path}.parts[{number}]", part, limits)


def _check_part(checks: Checks, path: str, part: content_pb2.Part, limits: Limits) -> None:
    kind = part.WhichOneof("kind")
    if kind is None:
        checks.add(path, "must be a text, an image or a video", "REQUIRED")
    elif kind == "image":
        _check_image(checks, f"{path}.image", part.image, limits)
    elif kind == "video":
        _check_video(checks, f"{path}.video", part.video, limits)


def _check_image(checks: Checks, path: str, image: content_pb2.Image, limits: Limits) -> None:
    _check_source(checks, path, image)
    _check_size(checks, path, image, limits.max_image_pixels)


def _check_video(checks: Checks, path: str, video: content_pb2.Video, limits: Limits) -> None:
    if video.WhichOneof("source") == "frames":
        _check_frames(checks, path, video, limits)
    else:
        _check_source(checks, path, video)
    _check_size(checks, path, video, limits.max_frame_pixels)
    checks.excludes(path, video, "total_pixels", ("resized_height", "resized_width"))
    checks.excludes(path, video, "num_frames", ("fps", "min_frames", "max_frames"))
    _check_sampling(checks, path, video, limits)


def _check_sampling(checks: Checks, path: str, video: content_pb2.Video, limits: Limits) -> None:
    if video.HasField("fps"):
        good = 0 < video.fps <= limits.max_video_fps
        checks.require(good, f"{path}.fps", f"must be above 0 and at most {limits.max_video_fps:g}")
    for name in ("num_frames", "min_frames", "max_frames"):
        if video.HasField(name):
            good = 1 <= getattr(video, name) <= limits.max_video_frames
            checks.require(good, f"{path}.{name}", f"must be between 1 and {limits.max_video_frames}")
    for name in ("start_seconds", "end_seconds"):
        if video.HasField(name):
            checks.finite(f"{path}.{name}", getattr(video, name), 0.0, 1e9)
    if video.HasField("min_frames") and video.HasField("max_frames"):
        checks.require(video.min_frames <= video.max_frames, f"{path}.min_frames", "is above max_frames")
    if video.HasField("start_seconds") and video.HasField("end_seconds"):
        checks.require(video.start_seconds < video.end_seconds, f"{path}.end_seconds", "is not after start_seconds")
    if video.HasField("total_pixels"):
        good = 1 <= video.total_pixels <= limits.max_video_pixels
        checks.require(good, f"{path}.total_pixels", f"must be between 1 and {limits.max_video_pixels}")


def _check_frames(checks: Checks, path: str, video: content_pb2.Video, limits: Limits) -> None:
    """`fps` of a list says how its frames were sampled; what chooses among frames cannot apply."""
    frames = video.frames.frames
    checks.require(len(frames) > 0, f"{path}.frames.frames", "must have at least one frame", "REQUIRED")
    for name in _CLIP_OPTIONS:
        if video.HasField(name):
            checks.add(f"{path}.{name}", "cannot apply to a list of frames, which is used whole", "CANNOT_APPLY")
    most = limits.max_video_frames
    if checks.require(len(frames) <= most, f"{path}.frames.frames", f"has more than {most} frames"):
        for index, frame in enumerate(frames):
            _check_source(checks, f"{path}.frames.frames[{index}]", frame)


def _check_source(checks: Checks, path: str, media: content_pb2.Image | content_pb2.Video | content_pb2.Frame) -> None:
    source = media.WhichOneof("source")
    if source is None:
        checks.add(path, "must have a source", "REQUIRED")
    elif source == "data":
        checks.require(len(media.data) > 0, f"{path}.data", "is empty", "REQUIRED")
    elif source == "uri":
        checks.require(len(media.uri) > 0, f"{path}.uri", "is empty", "REQUIRED")
    elif source == "digest":
        good = _DIGEST.fullmatch(media.digest) is not None
        checks.require(good, f"{path}.digest", 'must be "sha256:" and 64 lower-case hexadecimal digits', "MALFORMED")


def _check_size(checks: Checks, path: str, media: content_pb2.Image | content_pb2.Video, ceiling: int) -> None:
    for name in _LIMIT_OPTIONS:
        if media.HasField(name):
            good = 1 <= getattr(media, name) <= ceiling
            checks.require(good, f"{path}.{name}", f"must be between 1 and {ceiling}")
    if media.HasField("min_pixels") and media.HasField("max_pixels"):
        checks.require(media.min_pixels <= media.max_pixels, f"{path}.min_pixels", "is above max_pixels")
    _check_exact_size(checks, path, media, ceiling)


def _check_exact_size(checks: Checks, path: str, media: content_pb2.Image | content_pb2.Video, ceiling: int) -> None:
    for name, other in (("resized_height", "resized_width"), ("resized_width", "resized_height")):
        if media.HasField(name):
            checks.require(getattr(media, name) > 0, f"{path}.{name}", "must be above 0")
            checks.require(media.HasField(other), f"{path}.{other}", f"is needed beside {name}", "REQUIRED")
    checks.excludes(path, media, "resized_height", _LIMIT_OPTIONS)
    good = media.resized_height * media.resized_width <= ceiling
    checks.require(good, f"{path}.resized_height", f"times resized_width is above {ceiling} pixels")
