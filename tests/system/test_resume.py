"""A decoder dies amid its answers, and another one goes on with those that ask for it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1 import decoder_service_pb2, decoder_service_pb2_grpc
from diptych.v1 import generation_pb2 as generation

from cli.children import Child
from cli.local_redis import LocalRedis
from services.common.channels import open_channel
from tests.exactness import cases
from tests.harness import failure, gateway, wait_until

CONVERSATION = cases.user("", cases.picture(310), "Describe.").to_conversation()
LONG = {"max_tokens": 200, "ignore_eos": True, "top_logprobs": 0, "resume": True}
SEEDED = {**LONG, "temperature": 1.1, "seed": 7}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {**LONG, "temperature": 0},
    "seeded": SEEDED,
    "penalties": {**SEEDED, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
    "two choices": {**SEEDED, "num_choices": 2},
    "grammar": {"temperature": 1.0, "seed": 3, "regex": "[a-z ]{500}", "max_tokens": 200, "resume": True},
}


@dataclass
class Fleet:
    """An encoder, two decoders and a gateway, each a process."""

    common: dict[str, str]
    folder: Path
    children: dict[str, Child] = field(default_factory=dict)

    def start(self, name: str, module: str, **settings: str) -> None:
        """Start one; it need not listen yet."""
        self.children[name] = Child(name, module, {**self.common, **settings}, self.folder)

    def address(self, name: str) -> str:
        """Wait until it listens."""
        wait_until(lambda: self.children[name].address is not None, f"{name} listens", timeout_s=60)
        return self.children[name].address or ""


@pytest.fixture
def fleet(checkpoint: Path, tmp_path: Path) -> Iterator[Fleet]:
    """All of them, with a Redis between them."""
    with LocalRedis() as redis:
        common = {"DIPTYCH_MODEL": str(checkpoint), "DIPTYCH_THREADS": "1", "DIPTYCH_CACHE_URL": redis.url}
        fleet = Fleet({**common, "DIPTYCH_DTYPE": "float32", "DIPTYCH_DECODER_KV_CACHE_TOKENS": "40000"}, tmp_path)
        try:
            for name in ("encoder", "decoder 1", "decoder 2"):
                fleet.start(name, f"services.{name.split()[0]}")
            decoders = ",".join(fleet.address(name) for name in ("decoder 1", "decoder 2"))
            services = {"DIPTYCH_GATEWAY_ENCODER": fleet.address("encoder"), "DIPTYCH_GATEWAY_DECODER": decoders}
            fleet.start("gateway", "gateway", **services)
            yield fleet
        finally:
            for child in fleet.children.values():
                child.kill()


async def num_sequences(fleet: Fleet) -> dict[str, int]:
    """How many each decoder works on."""
    found = {}
    for name in ("decoder 1", "decoder 2"):
        async with open_channel(fleet.address(name)) as channel:
            stub = decoder_service_pb2_grpc.DecoderServiceStub(channel)
            load = await stub.GetLoad(decoder_service_pb2.GetLoadRequest(), timeout=10)
            found[name] = load.num_running + load.num_waiting
    return found


async def follow(events: AsyncIterator[chat.StreamChatResponse], begun: asyncio.Event) -> chat.Finished:
    """The end of an answer; `begun` is set at its first text."""
    async for event in events:
        if event.WhichOneof("event") == "text_delta":
            begun.set()
    begun.set()
    return event.finished


def ids(finished: chat.Finished) -> list[list[int]]:
    """What was generated."""
    return [list(choice.token_ids) for choice in finished.choices]


def request(**options: Any) -> chat.StreamChatRequest:
    return chat.StreamChatRequest(conversation=CONVERSATION, generation=generation.Generation(**options))


async def test_answers_go_on_where_the_dead_decoder_stopped(fleet: Fleet) -> None:
    """kill -9 amid six answers: one without `resume` is UNAVAILABLE, and the others are as if nothing had happened.

    Then the other decoder is killed, too, and comes back: an answer goes on when it is there again.
    """
    async with gateway(fleet.address("gateway")) as stub:
        whole = {way: await follow(stub.StreamChat(request(**WAYS[way])), asyncio.Event()) for way in WAYS}
        assert all(len(answer) > 100 for finished in whole.values() for answer in ids(finished))

        begun = {way: asyncio.Event() for way in WAYS}
        mortal = {"max_tokens": 2000, "ignore_eos": True, "top_logprobs": 0}
        lost = asyncio.create_task(follow(stub.StreamChat(request(**mortal)), at_first := asyncio.Event()))
        await at_first.wait()
        [victim] = [name for name, count in (await num_sequences(fleet)).items() if count]
        answers = {way: asyncio.create_task(follow(stub.StreamChat(request(**WAYS[way])), begun[way])) for way in WAYS}
        await asyncio.gather(*(event.wait() for event in begun.values()))
        assert (await num_sequences(fleet))[victim] > 3  # the rest has gone where there was less to do
        fleet.children[victim].kill()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await lost
        assert failure(caught.value).reason == "DECODER_UNAVAILABLE"
        for way, answer in answers.items():
            finished = await answer
            assert ids(finished) == ids(whole[way]), way
            assert finished.usage.num_completion_tokens == whole[way].usage.num_completion_tokens
            assert finished.media_cache == [content.CACHE_RESULT_HIT]

        again = asyncio.Event()
        last = asyncio.create_task(follow(stub.StreamChat(request(**WAYS["seeded"])), again))
        await again.wait()
        [survivor] = {"decoder 1", "decoder 2"} - {victim}
        address = fleet.address(survivor)
        assert not last.done()
        fleet.children[survivor].kill()
        fleet.start(survivor, "services.decoder", DIPTYCH_DECODER_LISTEN=address)
        assert ids(await last) == ids(whole["seeded"])
