"""Media from strangers, through every way in: a right answer or a clear refusal, and nobody else notices."""

import asyncio
import socket
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1 import encoder_service_pb2 as encoder
from diptych.v1 import generation_pb2 as generation
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub
from diptych.v1.encoder_service_pb2_grpc import EncoderServiceStub

from cli.client import gateway
from cli.stack import Stack
from tests.exactness import cases
from tests.harness import Answer, ask, collect, failure, running
from tests.hostile import images, videos
from tests.hostile.carriers import ENCODE, FRAMES, SOURCES, Kind, Sender, encode_header, encode_messages, http_server
from tests.hostile.case import Case

MIB = 1 << 20
PART = "conversation.messages[0].parts[0]"
# the promise is one second on a machine that does nothing else
BOUND_S = 5.0
MAX_GROWTH = 64 * MIB
CONTROL = cases.user("", cases.picture(9), "Describe.").to_conversation()
CONTROL_TOKENS = 48
MEDIA_SERVICES = ("gateway", "encoder")


@dataclass(frozen=True)
class Place:
    """A stack, the ways to it, and a socket that nobody may connect to."""

    stack: Stack
    sender: Sender
    trap: socket.socket

    @property
    def trap_url(self) -> str:
        """Where the socket listens."""
        return f"http://127.0.0.1:{self.trap.getsockname()[1]}/secret"

    def touched(self) -> bool:
        """Whether anybody has connected."""
        try:
            self.trap.accept()[0].close()
        except BlockingIOError:
            return False
        return True


@pytest.fixture(scope="module")
def place(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A stack that reads files and fetches from this machine, as only a test would let it."""
    folder = tmp_path_factory.mktemp("served")
    allowed = {
        "DIPTYCH_GATEWAY_FILE_ROOTS": str(folder),
        "DIPTYCH_GATEWAY_ALLOW_HTTP": "true",
        "DIPTYCH_GATEWAY_FETCH_NETWORKS": "127.0.0.0/8",
    }
    with (
        http_server(folder) as address,
        socket.create_server(("127.0.0.1", 0)) as trap,
        running(checkpoint, tmp_path_factory.mktemp("hostile"), redis=True, **allowed) as stack,
    ):
        trap.setblocking(False)
        yield Place(stack, Sender(folder, address), trap)


@dataclass(slots=True)
class Findings:
    """What came of all requests: how long each took, and what was not as promised."""

    seconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def note(self, what: str, seconds: float, problem: str | None) -> None:
        """One request; a problem is None when all is well."""
        self.seconds.append(seconds)
        if problem:
            self.problems.append(f"{what}: {problem}")
        if seconds > BOUND_S:
            self.problems.append(f"{what}: {seconds:.1f} s")

    def __str__(self) -> str:
        p50, p99 = statistics.median(self.seconds), statistics.quantiles(self.seconds, n=100)[98]
        return f"{len(self.seconds)} requests; p50 {p50:.3f} s, p99 {p99:.3f} s, max {max(self.seconds):.3f} s"


def matrix(trap_url: str) -> list[tuple[Kind, Case, str]]:
    """Every file through every way in that it can take."""
    pictures = [("image", case, way) for case in images.image_cases() for way in (*SOURCES, FRAMES, ENCODE)]
    films = [("video", case, way) for case in videos.video_cases(trap_url) for way in (*SOURCES, ENCODE)]
    return [(kind, case, way) for kind, case, way in (*pictures, *films) if not (case.only_gateway and way == ENCODE)]  # type: ignore[misc]


async def test_hostile_media_through_one_way_each(place: Place) -> None:
    """Each file once, the ways in taken in turn."""
    # a picture has seven ways and a video six, so every fifth is each file at least once
    every = matrix(place.trap_url)
    await run(place, [entry for number, entry in enumerate(every) if number % 5 == 0])


@pytest.mark.soak
async def test_hostile_media_through_every_way(place: Place) -> None:
    """Each file by each source, as frames of a list, and at the encoder itself."""
    await run(place, matrix(place.trap_url))


async def run(place: Place, entries: list[tuple[Kind, Case, str]]) -> None:
    """Asks everything beside a stream of our own; then looks at times, memory, processes and the stream's tokens."""
    quiet = await warm_up(place)
    findings = Findings()
    before = {name: reset_peak(place, name) for name in MEDIA_SERVICES}
    async with beside(place.stack.address, quiet) as differences, doors(place) as (chats, encodes):
        for kind, case, way in entries:
            started = time.monotonic()
            if way == ENCODE:
                problem = await try_encode(encodes, kind, case)
            else:
                problem = await try_chat(place, chats, kind, case, way)
            # an answer is asked for twice, the second time as a plain file
            num_asked = 2 if case.reason is None else 1
            findings.note(f"{case.name} by {way}", (time.monotonic() - started) / num_asked, problem)
    growth = {name: memory(place, name, "VmHWM") - before[name] for name in MEDIA_SERVICES}
    print(findings, {name: f"{value / MIB:.1f} MiB more" for name, value in growth.items()})
    assert findings.problems == []
    assert differences == []
    assert all(child.exit_code is None for child in place.stack.children.values())
    assert max(growth.values()) <= MAX_GROWTH
    assert not place.touched()


async def warm_up(place: Place) -> list[int]:
    """Everything once with sound files; returns the tokens of the stream that will run beside."""
    async with doors(place) as (chats, encodes):
        for kind, data in (("image", images.PNG), ("video", videos.MP4)):
            case = Case("sound", data, None)
            for way in (*SOURCES, *([FRAMES] if kind == "image" else [])):
                assert await try_chat(place, chats, kind, case, way) is None  # type: ignore[arg-type]
            assert await try_encode(encodes, kind, case) is None  # type: ignore[arg-type]
    return (await control(place.stack.address)).token_ids


async def control(address: str) -> Answer:
    """The stream whose tokens must not change."""
    return await ask(address, CONTROL, max_tokens=CONTROL_TOKENS, ignore_eos=True)


@asynccontextmanager
async def beside(address: str, quiet: list[int]) -> AsyncIterator[list[list[int]]]:
    """The same stream again and again; what differed from the quiet one is in the list at the end."""
    differences: list[list[int]] = []
    over = asyncio.Event()

    async def repeat() -> None:
        while not over.is_set():
            tokens = (await control(address)).token_ids
            if tokens != quiet:
                differences.append(tokens)

    async with asyncio.TaskGroup() as group:
        group.create_task(repeat())
        yield differences
        over.set()


@asynccontextmanager
async def doors(place: Place) -> AsyncIterator[tuple[ChatServiceStub, EncoderServiceStub]]:
    """A stub of the gateway and one of the encoder."""
    address = place.stack.children["encoder"].address
    assert address is not None
    async with gateway(place.stack.address) as chats, grpc.aio.insecure_channel(address) as channel:
        yield chats, EncoderServiceStub(channel)


async def try_chat(place: Place, stub: ChatServiceStub, kind: Kind, case: Case, way: str) -> str | None:
    """What is wrong with how the gateway takes a file, if anything."""
    try:
        part = await place.sender.part(stub, kind, case.data, way)
        tokens = await answer(stub, part)
    except grpc.aio.AioRpcError as error:
        return refusal_problem(error, case, PART if case.data or way != "digest" else "")
    if case.reason is not None:
        return "answered"
    if kind == "image" and way != FRAMES:
        expected = await answer(stub, content.Part(image=content.Image(data=images.plain(case.data))))
        return None if tokens == expected else f"{tokens} for {expected}"
    return None


async def answer(stub: ChatServiceStub, part: content.Part) -> list[int]:
    """The first tokens about a file."""
    conversation = content.Conversation(messages=[content.Message(role=content.ROLE_USER, parts=[part])])
    options = generation.Generation(max_tokens=2, ignore_eos=True)
    request = chat.StreamChatRequest(conversation=conversation, generation=options)
    return (await collect(stub.StreamChat(request, timeout=60))).token_ids


async def try_encode(stub: EncoderServiceStub, kind: Kind, case: Case) -> str | None:
    """What is wrong with how the encoder takes a file. It decodes what it is asked for: the gateway's rules on shape,
    and on frames that nobody asks for, are not its own.
    """
    try:
        async for _ in stub.Encode(encode_messages(encode_header(kind, case.data), case.data), timeout=60):
            pass
    except grpc.aio.AioRpcError as error:
        lenient = Case(case.name, case.data, failure(error).reason if kind == "video" else case.reason)
        return refusal_problem(error, lenient, "chunk")
    return None if kind == "video" or case.reason in (None, "CANNOT_APPLY") else "encoded"


def refusal_problem(error: grpc.aio.AioRpcError, case: Case, path: str) -> str | None:
    """What is wrong with a refusal: it must blame the caller, at the item's path, with the case's reason."""
    failed = failure(error)
    if failed.code is not grpc.StatusCode.INVALID_ARGUMENT or not failed.fields:
        return str(failed)
    well = case.reason in failed.fields.values() and all(name.startswith(path) for name in failed.fields)
    return None if well else f"{failed.fields} for {case.reason}"


def memory(place: Place, name: str, what: str) -> int:
    """A figure of a service's own process, in bytes."""
    status = Path(f"/proc/{place.stack.children[name].process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{what}:")) * 1024


def reset_peak(place: Place, name: str) -> int:
    """Let the kernel measure the most memory from now on; returns what it is now."""
    Path(f"/proc/{place.stack.children[name].process.pid}/clear_refs").write_text("5")
    return memory(place, name, "VmRSS")


def frames(*data: bytes) -> content.Part:
    """A list of frames."""
    return content.Part(video=content.Video(frames=content.FrameList(frames=[content.Frame(data=one) for one in data])))


@pytest.mark.parametrize(
    ("part", "path"),
    [
        (frames(images.PNG, cases.drawing(56, 56, 1)), "[1]"),
        (frames(images.PNG, images.PNG, b""), "[2]"),
        (frames(images.PNG, images.PNG[:4000]), "[1]"),
        (frames(images.PNG, videos.MP4), "[1]"),
        (frames(*[cases.drawing(2, 2, 1)] * 5000), ""),
        (frames(), ""),
    ],
    ids=["sizes differ", "empty frame", "cut frame", "video as frame", "5000 frames", "none"],
)
async def test_bad_frames_are_named(place: Place, part: content.Part, path: str) -> None:
    """A list of frames is refused at the frame that is wrong."""
    async with gateway(place.stack.address) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answer(stub, part)
    failed = failure(caught.value)
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert all(name.startswith(f"{PART}.video.frames.frames{path}") for name in failed.fields), failed


def grid(**sides: int) -> Callable[[encoder.EncodeHeader], None]:
    """A header that lies about its grid."""
    return lambda header: header.grid.CopyFrom(content.Grid(**sides))


def fields(**values: object) -> Callable[[encoder.EncodeHeader], None]:
    """A header with other values."""

    def change(header: encoder.EncodeHeader) -> None:
        for name in values:
            header.ClearField(name)
        header.MergeFrom(encoder.EncodeHeader(**values))  # type: ignore[arg-type]

    return change


@pytest.mark.parametrize(
    ("lie", "name"),
    [
        (grid(), "grid"),
        (grid(t=1, h=3, w=4), "grid"),
        (grid(t=2**32 - 1, h=2**32 - 1, w=2**32 - 1), "grid"),
        (fields(resized_height=57), "resized_height"),
        (fields(resized_height=0), "resized_height"),
        (fields(resized_width=2**32 - 4), "grid"),
        (fields(file_sizes=[2**64 - 1]), "file_sizes"),
        (fields(file_sizes=[len(images.PNG) - 1]), "file_sizes"),
        (fields(file_sizes=[len(images.PNG) + 1]), "file_sizes"),
        (fields(file_sizes=[]), "file_sizes"),
        (fields(file_sizes=[1] * 100_000), "file_sizes"),
        (fields(frame_indices=[0, 1]), "frame_indices"),
        (fields(media_key=b"short"), "media_key"),
        (fields(tenant=""), "tenant"),
        (fields(kind=0), "kind"),
    ],
)
async def test_a_header_that_lies_is_refused(
    place: Place, lie: Callable[[encoder.EncodeHeader], None], name: str
) -> None:
    """The encoder, called directly, checks a header against itself and against the bytes."""
    header = encode_header("image", images.PNG)
    lie(header)
    async with doors(place) as (_, encodes):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in encodes.Encode(encode_messages(header, images.PNG), timeout=60):
                pass
    failed = failure(caught.value)
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"header.{name}" in failed.fields
