"""A decoder dies amid its answers, and another one goes on with those that ask for it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1 import generation_pb2 as generation

from cli.local_redis import LocalRedis
from tests.exactness import cases
from tests.harness import failure, gateway
from tests.system.failpoints import FOLDER_VARIABLE, MODULE, NAME_VARIABLE, SLOW
from tests.system.fleet import DECODERS, Fleet

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


@pytest.fixture
def fleet(checkpoint: Path, tmp_path: Path) -> Iterator[Fleet]:
    """All of them, with a Redis between them; the decoders take their time while there is a file `SLOW`."""
    with LocalRedis() as redis:
        common = {"DIPTYCH_MODEL": str(checkpoint), "DIPTYCH_CACHE_URL": redis.url}
        common |= {NAME_VARIABLE: "decoder.step", FOLDER_VARIABLE: str(tmp_path)}
        with Fleet(common, tmp_path) as fleet:
            fleet.start_all(decoder=MODULE)
            yield fleet


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


async def test_answers_go_on_where_the_dead_decoder_stopped(fleet: Fleet, tmp_path: Path) -> None:
    """kill -9 amid six answers: one without `resume` is UNAVAILABLE, and the others are as if nothing had happened.

    Then the other decoder is killed, too, and comes back: an answer goes on when it is there again.
    """
    async with gateway(fleet.address("gateway")) as stub:
        whole = {way: await follow(stub.StreamChat(request(**WAYS[way])), asyncio.Event()) for way in WAYS}
        assert all(len(answer) > 100 for finished in whole.values() for answer in ids(finished))

        slow = tmp_path / SLOW
        slow.touch()  # so that no answer is over before all have begun
        begun = {way: asyncio.Event() for way in WAYS}
        mortal = {"max_tokens": 2000, "ignore_eos": True, "top_logprobs": 0}
        lost = asyncio.create_task(follow(stub.StreamChat(request(**mortal)), at_first := asyncio.Event()))
        await at_first.wait()
        [victim] = [name for name, count in (await fleet.num_sequences()).items() if count]
        answers = {way: asyncio.create_task(follow(stub.StreamChat(request(**WAYS[way])), begun[way])) for way in WAYS}
        await asyncio.gather(*(event.wait() for event in begun.values()))
        assert (await fleet.num_sequences())[victim] > 3  # the rest has gone where there was less to do
        fleet.children[victim].kill()
        slow.unlink()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await lost
        assert failure(caught.value).reason == "DECODER_UNAVAILABLE"
        for way, answer in answers.items():
            finished = await answer
            assert ids(finished) == ids(whole[way]), way
            assert finished.usage.num_completion_tokens == whole[way].usage.num_completion_tokens
            assert finished.media_cache == [content.CACHE_RESULT_HIT]

        slow.touch()
        again = asyncio.Event()
        last = asyncio.create_task(follow(stub.StreamChat(request(**WAYS["seeded"])), again))
        await again.wait()
        [survivor] = {*DECODERS} - {victim}
        address = fleet.address(survivor)
        assert not last.done()
        fleet.children[survivor].kill()
        slow.unlink()
        fleet.start(survivor, MODULE, DIPTYCH_DECODER_LISTEN=address)
        assert ids(await last) == ids(whole["seeded"])
