"""A fleet with a client and questions whose answers are known, for one proof or for several."""

import asyncio
import resource
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from urllib.request import urlopen

import grpc
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1 import decoder_service_pb2 as decoder
from diptych.v1 import generation_pb2 as generation
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub
from diptych.v1.decoder_service_pb2_grpc import DecoderServiceStub
from prometheus_client.parser import text_string_to_metric_families

from services.common.channels import open_channel
from tests.checkpoints import CheckpointSpec, build_checkpoint
from tests.exactness import cases
from tests.faults.fleet import Fleet, Replica, running_fleet
from tests.faults.questions import Question, questions
from tests.faults.traffic import Client, client_of

METRICS = MappingProxyType({"DIPTYCH_METRICS_LISTEN": "127.0.0.1:0"})  # settings for what `counted` reads
MANY_FILES = 8192
POLL_S = 0.002
NUM_QUESTIONS = 8  # of each tenant
Stream = grpc.aio.UnaryStreamCall[chat.StreamChatRequest, chat.StreamChatResponse]


@dataclass(frozen=True)
class Stage:
    """What a proof plays on."""

    fleet: Fleet
    client: Client
    asked: list[Question]

    def long_stream(self, gateway: Replica, text: str, num_tokens: int, **options: object) -> Stream:
        """A call that streams so many tokens, whatever they are."""
        return long_stream(self.client.stub(gateway, self.asked[0].tenant), text, num_tokens, **options)

    def new_picture(self, number: int) -> content.Conversation:
        """A question with a picture that no cache has seen."""
        return cases.user("", cases.picture(50_000 + number), "What is this?").to_conversation()


@asynccontextmanager
async def stage(num_replicas: int = 2, settings: Mapping[str, str] = MappingProxyType({})) -> AsyncIterator[Stage]:
    """A stage that is torn down afterwards."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(MANY_FILES, most), most))
    with tempfile.TemporaryDirectory(prefix="diptych-faults-") as folder:
        model = build_checkpoint(Path(folder) / "model", CheckpointSpec(tied=False))
        asked = questions(model, NUM_QUESTIONS)
        running = running_fleet(model, Path(folder) / "logs", num_replicas, **settings)
        async with running as fleet, client_of(fleet) as client:
            yield Stage(fleet, client, asked)


def long_stream(stub: ChatServiceStub, text: str, num_tokens: int, **options: object) -> Stream:
    """A call that streams so many tokens, whatever they are; `options` are Generation's fields."""
    wanted = generation.Generation(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    wanted.MergeFrom(generation.Generation(**options))  # type: ignore[arg-type]
    request = chat.StreamChatRequest(conversation=user_text(text), generation=wanted)
    call: Stream = stub.StreamChat(request, timeout=120)
    return call


def user_text(text: str) -> content.Conversation:
    """One user turn of text."""
    return content.Conversation(messages=[content.Message(role=content.ROLE_USER, parts=[content.Part(text=text)])])


@asynccontextmanager
async def decoder_of(replica: Replica) -> AsyncIterator[DecoderServiceStub]:
    """A stub of one decoder, past its proxy."""
    assert replica.child is not None
    assert replica.child.address is not None
    async with open_channel(replica.child.address) as channel:
        yield DecoderServiceStub(channel)


async def first_text(call: Stream) -> None:
    """Read until there is text."""
    async for event in call:
        if event.WhichOneof("event") == "text_delta":
            return
    raise AssertionError("the stream ended before its first text")


async def idle(stub: DecoderServiceStub) -> None:
    """Wait until a decoder holds nothing for anybody."""
    while (load := await load_of(stub)).num_running or load.num_waiting or load.num_used_blocks:  # noqa: ASYNC110 (RPC)
        await asyncio.sleep(POLL_S)


async def load_of(stub: DecoderServiceStub) -> decoder.GetLoadResponse:
    """How busy a decoder is."""
    load: decoder.GetLoadResponse = await stub.GetLoad(decoder.GetLoadRequest(), timeout=10)
    return load


def counted(replica: Replica, sample_name: str, **labels: str) -> float:
    """The sum of a replica's samples of this name and these labels; the fleet has METRICS."""
    assert replica.child is not None
    with urlopen(f"http://{replica.child.metrics_address}/metrics", timeout=10) as page:
        families = text_string_to_metric_families(page.read().decode())
    samples = (sample for family in families for sample in family.samples if sample.name == sample_name)
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of `values` lie."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
