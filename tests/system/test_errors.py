"""What cannot be served fails with one precise status, and nothing is lost by it."""

import grpc
import pytest
from diptych.v1 import content_pb2 as content

from cli.stack import Stack
from tests.exactness import cases
from tests.harness import Failure, ask, failure

PART = "conversation.messages[0].parts[0]"
PNG = cases.drawing(84, 112, 7)
MP4 = cases.film(8, 64, 96, 8)


def asking(*parts: content.Part) -> content.Conversation:
    """One user turn."""
    return content.Conversation(messages=[content.Message(role=content.ROLE_USER, parts=parts)])


def image(**source: object) -> content.Part:
    """A picture and its options."""
    return content.Part(image=content.Image(**source))  # type: ignore[arg-type]


def video(**source: object) -> content.Part:
    """A video and its options."""
    return content.Part(video=content.Video(**source))  # type: ignore[arg-type]


async def fails(stack: Stack, conversation: content.Conversation, **options: object) -> Failure:
    """What the request fails with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(stack.address, conversation, **options)
    return failure(caught.value)


@pytest.mark.parametrize(
    ("part", "field"),
    [
        (image(data=b"not a picture"), f"{PART}.image"),
        (image(data=PNG[: len(PNG) // 2]), f"{PART}.image"),
        (image(data=MP4), f"{PART}.image"),
        (image(uri="ftp://example.org/a.png"), f"{PART}.image.uri"),
        (image(uri="http://127.0.0.1/a.png"), f"{PART}.image.uri"),
        (image(uri="file:///etc/hostname"), f"{PART}.image.uri"),
        (image(uri="data:image/png;base64,%%%"), f"{PART}.image.uri"),
        (image(digest="sha256:12"), f"{PART}.image.digest"),
        (image(), f"{PART}.image"),
        (image(data=PNG, min_pixels=9000, max_pixels=8000), f"{PART}.image.min_pixels"),
        (image(data=PNG, resized_height=28), f"{PART}.image.resized_width"),
        (video(data=b"not a video"), f"{PART}.video"),
        (video(data=MP4[: len(MP4) // 3]), f"{PART}.video"),
        (video(data=MP4, fps=-1.0), f"{PART}.video.fps"),
        (content.Part(), PART),
    ],
    ids=[
        "broken picture",
        "cut picture",
        "video as picture",
        "unknown scheme",
        "http switched off",
        "file outside the roots",
        "bad base64",
        "bad digest",
        "no source",
        "contrary limits",
        "half a size",
        "broken video",
        "cut video",
        "negative fps",
        "empty part",
    ],
)
async def test_bad_media_is_an_invalid_argument_with_its_field(stack: Stack, part: content.Part, field: str) -> None:
    """The status names the field by its path, and the reason by a word."""
    failed = await fails(stack, asking(part, content.Part(text="What is it?")))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [path for path in failed.fields if path == field or path.startswith(field + ".")], failed
    assert all(reason.isupper() for reason in failed.fields.values())


async def test_every_bad_field_is_named_at_once(stack: Stack) -> None:
    """One answer tells all that is wrong before anything is loaded."""
    conversation = asking(image(), video(data=MP4, fps=-1.0))
    conversation.messages.add(role=content.ROLE_UNSPECIFIED)
    failed = await fails(stack, conversation, temperature=-2.0, top_p=7.0)
    expected = {"conversation.messages[0].parts[0].image", "conversation.messages[0].parts[1].video.fps"}
    expected |= {"conversation.messages[1].role", "conversation.messages[1].parts"}
    assert set(failed.fields) >= expected | {"generation.temperature", "generation.top_p"}


async def test_unknown_digest_is_not_found(stack: Stack) -> None:
    """A digest that nobody has sent is NOT_FOUND with its field, so that a client sends the media again."""
    part = image(digest="sha256:" + "0" * 64)
    failed = await fails(stack, asking(part))
    assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "MEDIA_NOT_FOUND")
    assert failed.metadata["field"].startswith(f"{PART}.image")


async def test_over_long_prompt_says_how_long(stack: Stack) -> None:
    """A prompt that does not fit is refused with both numbers."""
    failed = await fails(stack, asking(content.Part(text="one two three " * 20000)))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LONG")
    assert set(failed.fields) == {"conversation"}
    assert int(failed.metadata["num_tokens"]) > int(failed.metadata["max_tokens"]) > 0


async def test_failures_leave_other_requests_alone(stack: Stack) -> None:
    """After all this, the same question has the same answer."""
    conversation = cases.user("", cases.picture(9), "Describe.").to_conversation()
    before = await ask(stack.address, conversation, max_tokens=8)
    await fails(stack, asking(image(data=b"not a picture")))
    after = await ask(stack.address, conversation, max_tokens=8)
    assert after.token_ids == before.token_ids
