"""Media from strangers, through every way in: a right answer or a clear refusal, and nobody else notices."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from diptych.v1 import content_pb2 as content
from diptych.v1.decoder_service_pb2_grpc import DecoderServiceStub
from diptych.v1.encoder_service_pb2_grpc import EncoderServiceStub

from cli.client import gateway
from cli.stack import Stack
from tests.exactness import cases
from tests.faults.results import keep, show
from tests.harness import Answer, ask, failure, running
from tests.hostile import images, lies, videos
from tests.hostile.carriers import Sender, http_server
from tests.hostile.files import PART, answer, entries, sound_entries
from tests.hostile.findings import MAX_GROWTH, Findings
from tests.hostile.lies import Lie
from tests.hostile.trials import Doors, Trial, file_trial, lie_trials

BUSY_BOUND_S = 5.0  # among the tests, on whatever machine
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


async def test_hostile_media_through_one_way_each(place: Place) -> None:
    """Each file once, the ways in taken in turn."""
    # a picture has eleven ways and a video ten, so every ninth is each file at least once
    every = entries(place.trap_url)
    async with doors(place) as open_doors:
        findings = await run(place, [file_trial(open_doors, entry) for entry in every[::9]])
    assert findings.problems == []
    assert all(findings.streams)
    assert max(findings.growth.values()) <= MAX_GROWTH
    assert max(findings.refused_s.values()) <= BUSY_BOUND_S, findings.slowest()


@pytest.mark.soak
async def test_hostile_media_through_every_way(place: Place) -> None:
    """Each file by each source, in a list of frames, by each RPC and at the encoder itself; and all lies to encoder and
    decoder. Writes its figures.
    """
    async with doors(place) as open_doors:
        trials = [file_trial(open_doors, entry) for entry in entries(place.trap_url)]
        findings = await run(place, [*trials, *await lie_trials(open_doors)])
    figures = findings.figures()
    show(figures)
    keep(figures)
    assert findings.problems == []
    assert all(item.holds for item in figures)


async def run(place: Place, trials: list[Trial]) -> Findings:
    """Tries everything beside a stream of our own; then looks at memory, processes and the stream's tokens."""
    async with doors(place) as open_doors:
        for what, trial in [file_trial(open_doors, entry) for entry in sound_entries()]:
            assert (await trial()).problem is None, what
    quiet = (await control(place.stack.address)).token_ids
    findings = Findings()
    before = {name: reset_peak(place, name) for name in MEDIA_SERVICES}
    async with beside(place.stack.address, quiet, findings.streams):
        for what, trial in trials:
            findings.note(what, await trial())
    findings.growth = {name: memory(place, name, "VmHWM") - before[name] for name in MEDIA_SERVICES}
    assert all(child.exit_code is None for child in place.stack.children.values())
    assert not place.touched()
    return findings


@asynccontextmanager
async def doors(place: Place) -> AsyncIterator[Doors]:
    """Channels to all three."""
    async with AsyncExitStack() as open_:
        chats = await open_.enter_async_context(gateway(place.stack.address))
        channels = {}
        for name in ("encoder", "decoder"):
            address = place.stack.children[name].address
            assert address is not None
            channels[name] = await open_.enter_async_context(grpc.aio.insecure_channel(address))
        encodes, generates = EncoderServiceStub(channels["encoder"]), DecoderServiceStub(channels["decoder"])
        yield Doors(place.sender, chats, encodes, generates)


async def control(address: str) -> Answer:
    """The stream whose tokens must not change."""
    return await ask(address, CONTROL, max_tokens=CONTROL_TOKENS, ignore_eos=True)


@asynccontextmanager
async def beside(address: str, quiet: list[int], are_same: list[bool]) -> AsyncIterator[None]:
    """The same stream again and again; `are_same` gets, for each, whether it was as the quiet one."""
    over = asyncio.Event()

    async def repeat() -> None:
        while not over.is_set():
            are_same.append((await control(address)).token_ids == quiet)

    async with asyncio.TaskGroup() as group:
        group.create_task(repeat())
        yield
        over.set()


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


@pytest.mark.parametrize(("lie", "name"), lies.HEADERS)
async def test_a_header_that_lies_is_refused(place: Place, lie: Lie, name: str) -> None:
    """The encoder, called directly, checks a header against itself and against the bytes."""
    async with doors(place) as open_doors:
        assert (await lies.try_header(open_doors.encodes, lie, name)).problem is None


async def test_a_decoder_told_lies_refuses_them(place: Place) -> None:
    """The decoder, called directly, names what is wrong with a prompt and with embeddings."""
    async with doors(place) as open_doors:
        sound = await lies.sound_prompt(open_doors.chats)
        for lie, path in lies.PROMPTS:
            assert (await lies.try_prompt(open_doors.generates, sound, lie, path)).problem is None
        for chunk, path in lies.CHUNKS:
            assert (await lies.try_chunk(open_doors.generates, sound, chunk, path)).problem is None
