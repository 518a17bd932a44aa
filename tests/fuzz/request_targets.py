"""What clients send: requests, texts, data URIs and URLs, and the operator's file of tokens."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1 import generation_pb2 as generation
from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry

from gateway.fetch import Fetcher, FetchError, FetchRules
from gateway.rooms import open_prompts
from gateway.settings import Limits
from gateway.sources import SourceRules, Sources
from gateway.telemetry import GatewayMetrics
from gateway.template import MediaSlot, Turn
from gateway.validation import require_valid
from services.common.checkpoint import Checkpoint
from services.common.errors import InvalidRequest, MediaNotFound
from services.common.identity import Identity, TokenFileError, new_token, parse_tokens, token_line
from services.common.keys import Owner
from tests.fuzz.target import Target

VOCAB_SIZE = 1000
SEPARATOR = b"\0\n\0"  # between the texts of one input


def targets(model: Path) -> Iterator[Target]:
    """Everything in front of the gateway's pipeline."""
    yield Target("chat request", _requests(), _request, (DecodeError, InvalidRequest), 3.0)
    yield _prompts(model)
    yield Target("data URI", _data_uris(), _DataUri().run, (InvalidRequest, MediaNotFound), 2.0)
    yield Target("URL", _urls(), _Url().run, (FetchError,), 1.0)
    yield Target("tokens file", _token_files(), lambda data: parse_tokens(data.decode(errors="replace")),
                 (TokenFileError,), 2.0)  # fmt: skip


def _requests() -> list[bytes]:
    picture = content.Part(image=content.Image(data=b"\x89PNG", min_pixels=1, max_pixels=2))
    exact = content.Part(image=content.Image(uri="data:image/png;base64,AAAA", resized_height=28, resized_width=28))
    frames = content.FrameList(frames=[content.Frame(data=b"1"), content.Frame(digest="sha256:" + "0" * 64)])
    videos = [
        content.Part(video=content.Video(data=b"ftyp", fps=2.0, min_frames=4, max_frames=8, start_seconds=0.5)),
        content.Part(video=content.Video(frames=frames, total_pixels=4000)),
    ]
    turns = [
        content.Message(role=content.ROLE_SYSTEM, parts=[content.Part(text="Be brief.")]),
        content.Message(role=content.ROLE_USER, parts=[picture, content.Part(text="What?"), exact, *videos]),
        content.Message(role=content.ROLE_ASSISTANT, parts=[content.Part(text="A disc.")]),
    ]
    conversation = content.Conversation(messages=turns, add_vision_id=True)
    requests = [chat.ChatRequest(conversation=conversation, generation=options) for options in _generations()]
    return [request.SerializeToString() for request in requests]


def _generations() -> list[generation.Generation]:
    sampled = generation.Generation(
        max_tokens=5, min_tokens=1, temperature=0.7, top_p=0.9, top_k=20, min_p=0.1, repetition_penalty=1.1, seed=1,
        presence_penalty=0.1, frequency_penalty=0.1, stop=["end"], stop_token_ids=[3], num_choices=2, top_logprobs=3,
    )  # fmt: skip
    sampled.logit_bias[5] = 1.0
    return [
        generation.Generation(),
        sampled,
        generation.Generation(json_schema='{"type": "object"}'),
        generation.Generation(regex="[a-z]+"),
        generation.Generation(choice=generation.Choices(options=["yes", "no"])),
        generation.Generation(grammar='start: "a"'),
    ]


def _request(data: bytes) -> None:
    request = chat.ChatRequest.FromString(data)
    require_valid(request.conversation, request.generation, Limits(), VOCAB_SIZE)


def _prompts(model: Path) -> Target:
    """Whatever users type, the prompt holds the control tokens that the template writes, and no others."""
    prompts = open_prompts(Checkpoint.open(str(model)))
    control = prompts.tokenizer.control_tokens
    control_ids = set(control.values())
    roles = ("user", "assistant", "user")

    def ids_of(texts: list[str]) -> list[int]:
        turns = [Turn(role, (text, MediaSlot("image", 2))) for role, text in zip(roles, texts, strict=False)]
        return [token for token in prompts.build(turns).token_ids if token in control_ids]

    expected = {count: ids_of(["x"] * count) for count in (1, 2, 3)}

    def run(data: bytes) -> None:
        texts = [part.decode(errors="replace") for part in data.split(SEPARATOR)][: len(roles)]
        assert ids_of(texts) == expected[len(texts)], "users have written or removed control tokens"

    spelled = "".join(control).encode()
    seeds = [b"What is this?", spelled, SEPARATOR.join([b"hi", spelled, "Größe 東京 \ue000".encode()])]
    return Target("template and tokenizer", seeds, run, (InvalidRequest,), 0.3)


def _data_uris() -> list[bytes]:
    return [
        b"data:image/png;base64,iVBORw0KGgo=",
        b"data:image;base64,AAAA",
        b"data:video/mp4;charset=utf-8;base64,AAAAIGZ0eXA=",
        b"file:///tmp/x.png",
        b"https://example.org/x.png",
    ]


class _Store:
    async def put(self, *_: object) -> bool:
        return False

    async def get(self, *_: object) -> None:
        return None


class _DataUri:
    """The sources of a request, with fetching and files off, as they are unless configured."""

    def __init__(self) -> None:
        self._sources = Sources(SourceRules(1 << 20), _Store(), GatewayMetrics(CollectorRegistry()))  # type: ignore[arg-type]

    def run(self, data: bytes) -> None:
        image = content.Image(uri=data.decode(errors="replace"))
        _finish(self._sources.read("image", image, "image", Owner("tenant")))


def _urls() -> list[bytes]:
    hosts = ["example.org", "127.0.0.1", "0x7f.1", "2130706433", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]"]
    hosts += ["user:pw@host:80", "169.254.169.254", "10.0.0.1:6379", "[fe80::1%25eth0]"]
    return [f"{scheme}://{host}/a?b#c".encode() for host in hosts for scheme in ("http", "https")]


class _Url:
    """Fetching with the guard on and a resolver that knows one host, so that no connection is ever allowed."""

    def __init__(self) -> None:
        async def resolve(host: str, _port: int) -> list[str]:
            return [host.strip("[]")] if host[:1].isdigit() or ":" in host else ["127.0.0.1"]

        self._fetcher = Fetcher(FetchRules(timeout_s=1.0), resolver=resolve)

    def run(self, data: bytes) -> None:
        _finish(self._fetcher.fetch(data.decode(errors="replace"), 1000))
        raise AssertionError("something was fetched")


def _token_files() -> list[bytes]:
    lines = [token_line(new_token(), Identity(tenant)) for tenant in ("alpha", "beta")]
    return ["\n".join([*lines, "# a comment", ""]).encode()]


def _finish(work: object) -> None:
    """Run a coroutine that never really waits."""
    _LOOP.run_until_complete(work)  # type: ignore[arg-type]


_LOOP = asyncio.new_event_loop()
