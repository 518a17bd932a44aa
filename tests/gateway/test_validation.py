"""Every violation is found, each at its path."""

import math

import pytest
from diptych.v1 import content_pb2 as content
from diptych.v1 import generation_pb2
from hypothesis import given
from hypothesis import strategies as st

from gateway.generation import GenerationRules
from gateway.settings import Limits, target_of
from gateway.validation import require_valid
from services.common.checkpoint import GenerationDefaults
from services.common.errors import InvalidRequest

LIMITS = Limits()
VOCAB = 100
USER, SYSTEM = content.ROLE_USER, content.ROLE_SYSTEM
DIGEST = "sha256:" + "0" * 64
Generation = generation_pb2.Generation


def message(*parts: content.Part, role: "content.Role" = USER) -> content.Message:
    return content.Message(role=role, parts=parts)


def violations(conversation: content.Conversation, generation: Generation | None = None) -> dict[str, str]:
    try:
        require_valid(conversation, generation, LIMITS, VOCAB)
    except InvalidRequest as error:
        return {violation.field: violation.reason for violation in error.violations}
    return {}


def of_part(part: content.Part) -> dict[str, str]:
    found = violations(content.Conversation(messages=[message(part)]))
    return {field.removeprefix("conversation.messages[0].parts[0]."): reason for field, reason in found.items()}


def of_generation(generation: Generation) -> dict[str, str]:
    good = content.Conversation(messages=[message(content.Part(text="hi"))])
    return {field.removeprefix("generation."): reason for field, reason in violations(good, generation).items()}


def test_all_violations_are_found_at_once() -> None:
    """Wrong roles, empty turns, bad media and bad options are all named in one answer."""
    conversation = content.Conversation(
        messages=[
            message(content.Part(text="a")),
            message(content.Part(text="b"), role=SYSTEM),
            message(),
            content.Message(parts=[content.Part()]),
            message(content.Part(image=content.Image(data=b"x", min_pixels=0))),
        ]
    )
    assert violations(conversation, Generation(temperature=-1)) == {
        "conversation.messages[1].role": "MISPLACED",
        "conversation.messages[2].parts": "REQUIRED",
        "conversation.messages[3].role": "REQUIRED",
        "conversation.messages[3].parts[0]": "REQUIRED",
        "conversation.messages[4].parts[0].image.min_pixels": "OUT_OF_RANGE",
        "generation.temperature": "OUT_OF_RANGE",
    }


def test_an_empty_conversation_is_refused() -> None:
    """There must be something to answer."""
    assert violations(content.Conversation()) == {"conversation.messages": "REQUIRED"}


def test_empty_texts_are_fine() -> None:
    """An empty string is a text."""
    assert violations(content.Conversation(messages=[message(content.Part(text=""))])) == {}


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (content.Image(), {"image": "REQUIRED"}),
        (content.Image(data=b""), {"image.data": "REQUIRED"}),
        (content.Image(uri=""), {"image.uri": "REQUIRED"}),
        (content.Image(digest="sha256:abc"), {"image.digest": "MALFORMED"}),
        (content.Image(digest=DIGEST), {}),
        (content.Image(data=b"x", resized_height=28), {"image.resized_width": "REQUIRED"}),
        (
            content.Image(data=b"x", resized_height=28, resized_width=28, max_pixels=9),
            {"image.max_pixels": "CANNOT_APPLY"},
        ),
        (content.Image(data=b"x", min_pixels=10, max_pixels=9), {"image.min_pixels": "OUT_OF_RANGE"}),
        (content.Image(data=b"x", max_pixels=1 << 40), {"image.max_pixels": "OUT_OF_RANGE"}),
        (content.Image(data=b"x", resized_height=9999, resized_width=9999), {"image.resized_height": "OUT_OF_RANGE"}),
    ],
)
def test_image_options(image: content.Image, found: dict[str, str]) -> None:
    """A picture's source and sizes are checked, each at its own path."""
    assert of_part(content.Part(image=image)) == found


FRAMES = content.FrameList(frames=[content.Frame(data=b"x"), content.Frame()])


@pytest.mark.parametrize(
    ("video", "found"),
    [
        (content.Video(data=b"x", fps=math.nan), {"video.fps": "OUT_OF_RANGE"}),
        (content.Video(data=b"x", fps=1e6), {"video.fps": "OUT_OF_RANGE"}),
        (content.Video(data=b"x", fps=1, num_frames=4), {"video.fps": "CANNOT_APPLY"}),
        (content.Video(data=b"x", num_frames=4, max_frames=8), {"video.max_frames": "CANNOT_APPLY"}),
        (content.Video(data=b"x", min_frames=8, max_frames=4), {"video.min_frames": "OUT_OF_RANGE"}),
        (content.Video(data=b"x", num_frames=0), {"video.num_frames": "OUT_OF_RANGE"}),
        (content.Video(data=b"x", start_seconds=2, end_seconds=1), {"video.end_seconds": "OUT_OF_RANGE"}),
        (content.Video(data=b"x", start_seconds=-math.inf), {"video.start_seconds": "OUT_OF_RANGE"}),
        (content.Video(data=b"x", total_pixels=0), {"video.total_pixels": "OUT_OF_RANGE"}),
        (content.Video(frames=content.FrameList()), {"video.frames.frames": "REQUIRED"}),
        (content.Video(frames=FRAMES, fps=2), {"video.frames.frames[1]": "REQUIRED"}),
        (
            content.Video(frames=FRAMES, num_frames=2),
            {"video.frames.frames[1]": "REQUIRED", "video.num_frames": "CANNOT_APPLY"},
        ),
    ],
)
def test_video_options(video: content.Video, found: dict[str, str]) -> None:
    """A video's sampling options are checked; what cannot apply to a list of frames is an error."""
    assert of_part(content.Part(video=video)) == found


@pytest.mark.parametrize(
    ("generation", "found"),
    [
        (Generation(temperature=math.nan), "temperature"),
        (Generation(temperature=101), "temperature"),
        (Generation(top_p=0), "top_p"),
        (Generation(top_p=math.nan), "top_p"),
        (Generation(min_p=1.5), "min_p"),
        (Generation(presence_penalty=math.inf), "presence_penalty"),
        (Generation(frequency_penalty=-math.inf), "frequency_penalty"),
        (Generation(repetition_penalty=0), "repetition_penalty"),
        (Generation(max_tokens=0), "max_tokens"),
        (Generation(max_tokens=4, min_tokens=5), "min_tokens"),
        (Generation(num_choices=17), "num_choices"),
        (Generation(priority=10), "priority"),
        (Generation(top_logprobs=21), "top_logprobs"),
        (Generation(logit_bias={VOCAB: 1.0}), f"logit_bias[{VOCAB}]"),
        (Generation(logit_bias={1: math.nan}), "logit_bias[1]"),
        (Generation(stop=["x", ""]), "stop[1]"),
        (Generation(stop=["x"] * 17), "stop"),
        (Generation(stop_token_ids=[VOCAB]), "stop_token_ids[0]"),
        (Generation(json_schema="{"), "json_schema"),
        (Generation(json_schema="[" * 10_000), "json_schema"),
        (Generation(regex=""), "regex"),
        (Generation(choice=generation_pb2.Choices(options=["a", ""])), "choice.options[1]"),
        (Generation(choice=generation_pb2.Choices()), "choice.options"),
    ],
)
def test_generation_options(generation: Generation, found: str) -> None:
    """NaN, infinities and values out of range are refused, each at its own path."""
    assert list(of_generation(generation)) == [found]


def test_good_generation_options_pass() -> None:
    """The ends of the ranges are inside them."""
    good = Generation(
        temperature=0, top_p=1, top_k=0, min_p=0, logit_bias={0: -100}, stop=["x"], num_choices=16, top_logprobs=0
    )
    assert of_generation(good) == {}


@given(temperature=st.floats(width=32), top_p=st.floats(width=32), penalty=st.floats(width=32))
def test_only_usable_numbers_pass(temperature: float, top_p: float, penalty: float) -> None:
    """Whatever passes is finite and in its range."""
    found = of_generation(Generation(temperature=temperature, top_p=top_p, repetition_penalty=penalty))
    assert ("temperature" not in found) == (0 <= temperature <= 100)
    assert ("top_p" not in found) == (0 < top_p <= 1)
    assert ("repetition_penalty" not in found) == (0 < penalty <= 100)


OFFICIAL = GenerationDefaults(
    do_sample=True, temperature=0.01, top_p=0.001, top_k=1, repetition_penalty=1.05, eos_token_ids=(1,)
)
GREEDY = GenerationDefaults(
    do_sample=False, temperature=0.7, top_p=1.0, top_k=50, repetition_penalty=1.0, eos_token_ids=(1,)
)


def test_the_checkpoints_options_fill_what_a_request_leaves_unset() -> None:
    """The official checkpoints' temperature, top_p, top_k and penalty hold until a request names others."""
    effective = GenerationRules(OFFICIAL, greedy=False, max_completion_tokens=50).effective(Generation(top_k=0), 20)
    assert effective.temperature == pytest.approx(0.01)
    assert effective.top_p == pytest.approx(0.001)
    assert effective.top_k == 0
    assert effective.repetition_penalty == pytest.approx(1.05)
    assert effective.max_tokens == 20
    assert effective.num_choices == 1
    assert not effective.HasField("top_logprobs")
    scalars = ("min_tokens", "min_p", "presence_penalty", "frequency_penalty", "seed")
    assert all(effective.HasField(name) for name in scalars)


@pytest.mark.parametrize(("defaults", "greedy"), [(GREEDY, False), (OFFICIAL, True)])
def test_greedy_defaults(defaults: GenerationDefaults, greedy: bool) -> None:
    """`do_sample: false`, or the operator's word, is temperature 0; a request's own temperature stands over it."""
    rules = GenerationRules(defaults, greedy=greedy, max_completion_tokens=50)
    assert rules.effective(Generation(), 100).temperature == 0
    assert rules.effective(Generation(temperature=0.5), 100).temperature == 0.5


def test_min_tokens_beyond_the_context_are_refused() -> None:
    """An answer that cannot be as long as asked for is an error."""
    rules = GenerationRules(GREEDY, greedy=False, max_completion_tokens=50)
    with pytest.raises(InvalidRequest, match="min_tokens"):
        rules.effective(Generation(min_tokens=10), 5)


def test_addresses() -> None:
    """One address is a gRPC target as it is; several become a list of IP addresses."""
    assert target_of("dns:///encoder:50051") == "dns:///encoder:50051"
    assert target_of("10.0.0.1:1, 10.0.0.2:2") == "ipv4:10.0.0.1:1,10.0.0.2:2"
    with pytest.raises(ValueError, match="not an IPv4"):
        target_of("encoder:1,encoder:2")
