"""An encoder that fails at one picture of a batch or is kept busy, a decoder that hangs: what others see of it."""

import asyncio
import hashlib
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import generation_pb2 as generation
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub
from diptych.v1.encoder_service_pb2_grpc import EncoderServiceStub
from PIL import Image

from cli.children import Child
from services.common.channels import open_channel
from tests.encoder.conftest import image_header, requests
from tests.exactness import cases
from tests.exactness.reference import Reference
from tests.faults.stage import Stream, first_text
from tests.harness import failure, failure_of, gateway, metrics, wait_until
from tests.system.failpoints import BREAKS, FOLDER_VARIABLE, GO_ON, HELD, HOLDS, MODULE, NAME_VARIABLE
from tests.system.fleet import Fleet

KEEPALIVE_S, MARGIN_S = 1.0, 2.0
BEGUN = "diptych_decoder_prompt_tokens_total"
WAITING, ENCODED = "diptych_encoder_slices_waiting", "diptych_encoder_batch_patches_sum"
TEXT = cases.user("", "What can you see?").to_conversation()
GREEDY = generation.Generation(max_tokens=6, temperature=0.0)


@pytest.fixture(scope="module")
def fleet(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One for these tests; nothing is cached between its processes."""
    folder = tmp_path_factory.mktemp("frail")
    common = {
        "DIPTYCH_MODEL": str(checkpoint),
        "DIPTYCH_METRICS_LISTEN": "127.0.0.1:0",
        FOLDER_VARIABLE: str(folder),
        NAME_VARIABLE: "encoder.batch",
    }
    with Fleet(common, folder) as fleet:
        fleet.start_all(encoder=MODULE, DIPTYCH_GATEWAY_KEEPALIVE_S=str(KEEPALIVE_S))
        yield fleet


@pytest.fixture
async def stub(fleet: Fleet) -> AsyncIterator[ChatServiceStub]:
    """A connection to its gateway."""
    async with gateway(fleet.address("gateway")) as stub:
        yield stub


def plain(colour: tuple[int, int, int]) -> cases.Case:
    """A picture in one colour."""
    return cases.user("", cases.Picture(cases.encode(Image.new("RGB", (112, 112), colour), "PNG"), cases.SMALL))


async def chat_ids(stub: ChatServiceStub, case: cases.Case) -> list[int]:
    """The answer of a call of its own."""
    request = chat.ChatRequest(conversation=case.to_conversation(), generation=GREEDY)
    response = await stub.Chat(request, timeout=60)
    return list(response.choices[0].end.token_ids)


async def batch_ends(stub: ChatServiceStub, batch: list[cases.Case]) -> dict[int, chat.BatchChatResponse]:
    """How each of a batch's items ended."""
    items = [chat.BatchChatItem(conversation=case.to_conversation(), generation=GREEDY) for case in batch]
    responses = stub.BatchChat(chat.BatchChatRequest(items=items), timeout=60)
    return {one.index: one async for one in responses if one.WhichOneof("event") in ("finished", "failed")}


async def test_one_bad_picture_of_a_batch_fails_alone(
    fleet: Fleet, stub: ChatServiceStub, reference: Reference
) -> None:
    """Pictures of two calls meet in one batch of the model, which one of them breaks: that item of its call fails, and
    the others of both calls are answered right.
    """
    good = [cases.user("", cases.picture(720 + number), "Describe.") for number in range(3)]
    encoder = fleet.children["encoder"]
    held, go_on = (encoder.log.parent / name for name in (HELD, GO_ON))
    first = asyncio.create_task(chat_ids(stub, plain(HOLDS)))
    await asyncio.to_thread(wait_until, held.exists, "the model is kept busy")
    batch = asyncio.create_task(batch_ends(stub, [good[0], plain(BREAKS), good[1]]))
    beside = asyncio.create_task(chat_ids(stub, good[2]))
    await asyncio.to_thread(wait_until, lambda: metrics(encoder)[WAITING] == 4, "four pictures wait for the model")
    go_on.touch()

    ends, *_ = await asyncio.gather(batch, first, beside)
    failed = failure_of(ends[1].failed)
    assert (failed.code, failed.message) == (grpc.StatusCode.INTERNAL, "internal error")
    answers = [list(ends[index].finished.choices[0].token_ids) for index in (0, 2)] + [beside.result()]
    assert answers == [reference.generate(case, GREEDY.max_tokens)[1] for case in good]
    sizes = [event["num_slices"] for event in encoder.events() if event["event"] == "batch failed"]
    assert (sizes[0], sizes[-1]) == (4, 1)


async def encode(encoder: Child, data: bytes, side: int, timeout_s: float = 60.0) -> None:
    """Have a picture encoded, past the gateway."""
    header = image_header(data, side, side, media_key=hashlib.sha256(data).digest())
    async with open_channel(str(encoder.address)) as channel:
        async for _ in EncoderServiceStub(channel).Encode(requests(header, data), timeout=timeout_s):
            pass


async def test_the_encoder_does_not_start_what_has_expired(fleet: Fleet) -> None:
    """A picture whose caller's time ends while another one is in the model never goes through it."""
    encoder = fleet.children["encoder"]
    held, go_on = (encoder.log.parent / name for name in (HELD, GO_ON))
    for sign in (held, go_on):
        sign.unlink(missing_ok=True)
    before = metrics(encoder)[ENCODED]
    busy = asyncio.create_task(encode(encoder, cases.encode(Image.new("RGB", (112, 112), HOLDS), "PNG"), 112))
    await asyncio.to_thread(wait_until, held.exists, "the model is kept busy")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await encode(encoder, cases.drawing(56, 56, 722), 56, timeout_s=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    go_on.touch()
    await busy
    await encode(encoder, cases.drawing(56, 56, 723), 56)
    assert metrics(encoder)[ENCODED] - before == 8 * 8 + 4 * 4


def stream(stub: ChatServiceStub, num_tokens: int, *, resume: bool = False) -> Stream:
    """An answer of so many tokens, always to the same question and so at the same decoder."""
    options = generation.Generation(max_tokens=num_tokens, temperature=0.0, ignore_eos=True, resume=resume)
    call: Stream = stub.StreamChat(chat.StreamChatRequest(conversation=TEXT, generation=options), timeout=60)
    return call


async def ids_of(call: Stream) -> list[int]:
    """The whole answer."""
    [*_, last] = [event async for event in call]
    return list(last.finished.choices[0].token_ids)


async def lost(call: Stream) -> str:
    """Why an answer ended amid its text."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ids_of(call)
    return failure(caught.value).reason


async def test_a_decoder_that_hangs_is_an_outage(fleet: Fleet, stub: ChatServiceStub) -> None:
    """SIGSTOP amid answers: within twice the keepalive they end as DECODER_UNAVAILABLE, and one with `resume` and a new
    one are the other decoder's. When it goes on it drops what it had, and is asked again.
    """
    whole = await ids_of(stream(stub, 300))
    calls = [stream(stub, 2000) for _ in range(3)]
    await asyncio.gather(*(first_text(call) for call in calls))
    resumed = stream(stub, 300, resume=True)
    await first_text(resumed)
    counts = await fleet.num_sequences()
    name = max(counts, key=lambda name: counts[name])
    hung = fleet.children[name]
    num_tokens = metrics(hung)[BEGUN]
    hung.process.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    assert await asyncio.gather(*map(lost, calls)) == ["DECODER_UNAVAILABLE"] * len(calls)
    assert time.monotonic() - stopped < 2 * KEEPALIVE_S + MARGIN_S
    assert await ids_of(resumed) == whole
    assert await ids_of(stream(stub, 300)) == whole

    hung.process.send_signal(signal.SIGCONT)
    async with asyncio.timeout(20):
        while metrics(hung)[BEGUN] == num_tokens:
            assert await ids_of(stream(stub, 300)) == whole
        while await fleet.num_sequences_of(name):  # noqa: ASYNC110 -- another process's number
            await asyncio.sleep(0.02)
