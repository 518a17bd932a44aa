"""Work that nobody waits for any more, and media that kill what reads them, beside requests of others."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content

from cli.children import Child
from tests.exactness import cases
from tests.exactness.reference import Reference
from tests.harness import Failure, ask, ask_until_back, failure, gateway, metrics, wait_until
from tests.hostile.videos import hidden_frames

LARGE = 1260  # pixels a side: long enough in the encoder to be found there
PART = "conversation.messages[0].parts[0]"
ENCODED, BEGUN = "diptych_encoder_batch_patches_sum", "diptych_decoder_prompt_tokens_total"
UNDER_WAY = "diptych_encoder_queued_patches"
RUNNING = "diptych_decoder_requests_running"


class Fleet:
    """Two encoders, a decoder that works on one prompt at a time, and a gateway; nothing is cached between them."""

    def __init__(self, model: Path, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._common = {
            "DIPTYCH_MODEL": str(model),
            "DIPTYCH_THREADS": "1",
            "DIPTYCH_METRICS_LISTEN": "127.0.0.1:0",
            "DIPTYCH_DTYPE": "float32",
            "DIPTYCH_DECODER_KV_CACHE_TOKENS": "40000",
            "DIPTYCH_DECODER_MAX_SEQUENCES": "1",
            **{f"DIPTYCH_{name}_LISTEN": "127.0.0.1:0" for name in ("GATEWAY", "ENCODER", "DECODER")},
        }
        self.encoders = [self._child(f"encoder-{number}", "services.encoder") for number in range(2)]
        self.decoder = self._child("decoder", "services.decoder")
        self.listen(*self.encoders, self.decoder)
        behind = {
            "DIPTYCH_GATEWAY_ENCODER": ",".join(str(one.address) for one in self.encoders),
            "DIPTYCH_GATEWAY_DECODER": str(self.decoder.address),
            "DIPTYCH_GATEWAY_WORKER_SLACK_S": "0.1",
        }
        self.gateway = self._child("gateway", "gateway", **behind)
        self.listen(self.gateway)

    @property
    def address(self) -> str:
        """The gateway's."""
        return str(self.gateway.address)

    def listen(self, *children: Child) -> None:
        """Wait until they do."""
        wait_until(lambda: all(one.address for one in children), "the services listen", 60)

    def replace_encoders(self) -> None:
        """Dead encoders come back at their addresses."""
        addresses = [str(one.address) for one in self.encoders]
        self.encoders = [
            self._child(f"encoder-{number}-again", "services.encoder", DIPTYCH_ENCODER_LISTEN=address)
            for number, address in enumerate(addresses)
        ]
        self.listen(*self.encoders)

    async def holder(self) -> Child:
        """The encoder that has a picture, as soon as one has."""
        for _ in range(2000):
            for one in self.encoders:
                if one.exit_code is None and metrics(one)[UNDER_WAY] > 0:
                    return one
            await asyncio.sleep(0.01)
        raise AssertionError("no encoder got the picture")

    def _child(self, name: str, module: str, **more: str) -> Child:
        child = Child(name, module, {**self._common, **more}, self._folder)
        self._stack.callback(child.kill)
        return child


@pytest.fixture(scope="module")
def fleet(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One for all of these tests; the last of them kills its encoders."""
    with ExitStack() as stack:
        yield Fleet(checkpoint, tmp_path_factory.mktemp("deadly"), stack)


async def refused(fleet: Fleet, conversation: content.Conversation) -> Failure:
    """How a question is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(fleet.address, conversation, max_tokens=2)
    return failure(caught.value)


async def test_neighbours_of_a_file_that_kills_its_workers(fleet: Fleet, reference: Reference) -> None:
    """A video that only takes time is refused at its field; after its second death no process is started for it. All
    the while others are answered right.
    """
    part = content.Part(video=content.Video(data=hidden_frames(400)))
    bomb = content.Conversation(messages=[content.Message(role=content.ROLE_USER, parts=[part])])
    for number in range(3):
        neighbours = [cases.user("", cases.picture(700 + 3 * number + i), "Describe.") for i in range(3)]
        asking = [asyncio.create_task(ask(fleet.address, one.to_conversation(), max_tokens=4)) for one in neighbours]
        failed = await refused(fleet, bomb)
        assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
        assert failed.fields == {f"{PART}.video": "TOO_COSTLY"}
        for one, answer in zip(neighbours, await asyncio.gather(*asking), strict=True):
            assert answer.token_ids == reference.generate(one, 4)[1]
    deaths = [event for event in fleet.gateway.events() if event["event"] == "worker ended"]
    assert len(deaths) == 2


async def test_the_decoder_does_not_start_what_has_expired(fleet: Fleet) -> None:
    """A prompt whose caller's time ends while another has the only place is never begun."""
    text = cases.user("", "What can you see?").to_conversation()
    long = asyncio.create_task(ask(fleet.address, text, max_tokens=3000, ignore_eos=True))
    await asyncio.to_thread(wait_until, lambda: metrics(fleet.decoder)[RUNNING] > 0, "the place is taken")
    before = metrics(fleet.decoder)[BEGUN]
    async with gateway(fleet.address) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Chat(chat.ChatRequest(conversation=text), timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not long.done()
    long.cancel()
    answer = await ask(fleet.address, text, max_tokens=1)
    assert metrics(fleet.decoder)[BEGUN] - before == answer.finished.usage.num_prompt_tokens


async def test_an_input_that_kills_two_encoders_is_refused(fleet: Fleet, reference: Reference) -> None:
    """Whoever works on it is killed, twice; then it is refused, and when it comes again to encoders that are back and
    answer others, none of them sees it.
    """
    large = cases.user("", cases.picture(730, LARGE, LARGE), "Describe.").to_conversation()
    asking = asyncio.create_task(refused(fleet, large))
    for _ in fleet.encoders:
        (await fleet.holder()).kill()
    lost = await asking
    assert (lost.code, lost.fields) == (grpc.StatusCode.INVALID_ARGUMENT, {f"{PART}.image": "ENCODER_LOST"})
    fleet.replace_encoders()
    other = cases.user("", cases.picture(731), "Describe.")
    answer = await ask_until_back(fleet.address, other.to_conversation(), max_tokens=4)
    assert answer.token_ids == reference.generate(other, 4)[1]
    assert (await refused(fleet, large)).fields == lost.fields
    assert sum(metrics(one)[ENCODED] for one in fleet.encoders) == 6 * 8
