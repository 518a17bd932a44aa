"""The same media asked for by many or again, through several gateways and decoders, is encoded once."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from diptych.v1 import content_pb2 as content
from redis import Redis

from cli.children import Child
from cli.local_redis import LocalRedis
from cli.scrape import Change, read
from services.common.telemetry import catalogue
from tests.exactness import cases
from tests.exactness.reference import Reference
from tests.harness import NUM_KV_TOKENS, ask, wait_until

NUM_ASKERS, MANY_ASKERS, AT_ONCE = 60, 1000, 50
MANY_PREFIXES = 64
LARGE = 1400  # pixels a side: seconds of work for the encoder


@dataclass(frozen=True)
class Fleet:
    """Two gateways, each before an encoder of its own, with two decoders for both and one Redis."""

    gateways: list[Child]
    encoders: list[Child]
    decoders: list[Child]
    redis: LocalRedis

    def computed(self) -> list[int]:
        """Slices that each encoder has computed, by its log."""
        return [sum(_computed(event) for event in encoder.events()) for encoder in self.encoders]

    def encoder_calls(self) -> float:
        """Encodes that any encoder was asked for, by its metrics."""
        name = f"{catalogue.RPC_DURATION.name}_count"
        return sum(page_of(encoder).grown(name, method="Encode") for encoder in self.encoders)

    def address(self, index: int) -> str:
        """A gateway's."""
        address = self.gateways[index].address
        assert address is not None
        return address


def page_of(child: Child) -> Change:
    """Its metrics since it has started."""
    page = read(str(child.metrics_address))
    assert page is not None
    return Change(None, page)


def _computed(event: dict[str, str]) -> int:
    if event["event"] != "encoded":
        return 0
    cached, slices = map(int, event["cache"].split("/"))
    return slices - cached


@contextmanager
def fleet(model: Path, folder: Path) -> Iterator[Fleet]:
    """All of it as processes."""
    with ExitStack() as stack:
        redis = stack.enter_context(LocalRedis())
        common = {
            "DIPTYCH_MODEL": str(model),
            "DIPTYCH_CACHE_URL": redis.url,
            "DIPTYCH_CACHE_TIMEOUT_S": "2",
            "DIPTYCH_DTYPE": "float32",
            "DIPTYCH_THREADS": "1",
            "DIPTYCH_METRICS_LISTEN": "127.0.0.1:0",
            "DIPTYCH_DECODER_KV_CACHE_TOKENS": NUM_KV_TOKENS,
            "DIPTYCH_DECODER_MAX_WAITING_REQUESTS": "1024",
            **{f"DIPTYCH_{name}_LISTEN": "127.0.0.1:0" for name in ("GATEWAY", "ENCODER", "DECODER")},
        }

        def child(name: str, module: str, **more: str) -> Child:
            started = Child(name, module, {**common, **more}, folder)
            stack.callback(started.kill)
            return started

        encoders = [child(f"encoder-{i}", "services.encoder") for i in range(2)]
        decoders = [child(f"decoder-{i}", "services.decoder") for i in range(2)]
        wait_until(lambda: all(one.address for one in (*encoders, *decoders)), "the models are loaded", 60)
        behind = {"DIPTYCH_GATEWAY_DECODER": ",".join(str(one.address) for one in decoders)}
        gateways = [
            child(f"gateway-{i}", "gateway", DIPTYCH_GATEWAY_ENCODER=str(encoder.address), **behind)
            for i, encoder in enumerate(encoders)
        ]
        wait_until(lambda: all(one.address for one in gateways), "the gateways listen", 60)
        yield Fleet(gateways, encoders, decoders, redis)


@pytest.fixture(scope="module")
def pair(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet, which the last of these tests breaks."""
    with fleet(checkpoint, tmp_path_factory.mktemp("once")) as running:
        yield running


async def test_the_same_picture_by_many_through_two_gateways(pair: Fleet, reference: Reference) -> None:
    """All answers are right, and the picture has been encoded once."""
    case, before = cases.user("", cases.picture(600), "Describe."), sum(pair.computed())
    answers = await asyncio.gather(
        *(ask(pair.address(i % 2), case.to_conversation(), max_tokens=4) for i in range(NUM_ASKERS))
    )
    expected = reference.generate(case, 4)[1]
    assert [answer.token_ids for answer in answers] == [expected] * NUM_ASKERS
    assert sum(pair.computed()) == before + 1


@pytest.mark.parametrize("gateway", [0, 1])
async def test_a_picture_seen_before_calls_no_encoder(pair: Fleet, gateway: int) -> None:
    """Whichever gateway is asked about it, and whichever decoder answers."""
    picture = cases.picture(603)
    await ask(pair.address(0), cases.user("", picture, "Describe.").to_conversation(), max_tokens=1)
    calls, name = pair.encoder_calls(), catalogue.DECODER_PROMPT_TOKENS.name
    before = [page_of(decoder).grown(name) for decoder in pair.decoders]
    for system in range(MANY_PREFIXES):  # each has a decoder of its own choice
        case = cases.user("", picture, "Describe.", system=f"{gateway} {system}")
        answer = await ask(pair.address(gateway), case.to_conversation(), max_tokens=1)
        assert answer.cache == [content.CACHE_RESULT_HIT]
        if all(page_of(one).grown(name) > was for one, was in zip(pair.decoders, before, strict=True)):
            break
    else:
        raise AssertionError("a decoder was never asked")
    assert pair.encoder_calls() == calls


@pytest.mark.soak
async def test_the_same_picture_by_a_thousand(pair: Fleet) -> None:
    """A thousand requests, as many at once as two gateways take, and one encode."""
    conversation = cases.user("", cases.picture(601), "Describe.").to_conversation()
    room, before = asyncio.Semaphore(AT_ONCE), sum(pair.computed())

    async def one(i: int) -> None:
        async with room:
            await ask(pair.address(i % 2), conversation, max_tokens=1)

    await asyncio.gather(*(one(i) for i in range(MANY_ASKERS)))
    assert sum(pair.computed()) == before + 1


async def test_an_heir_finishes_what_a_killed_leader_began(pair: Fleet) -> None:
    """An encoder dies with the lease in its hands; the one that waited encodes, and its caller has an answer."""
    sizes = {"min_pixels": LARGE * LARGE, "max_pixels": LARGE * LARGE}
    conversation = cases.user("", cases.picture(602, LARGE, LARGE, **sizes), "Describe.").to_conversation()
    store, before = Redis.from_url(pair.redis.url), pair.computed()
    leading = asyncio.create_task(ask(pair.address(0), conversation, max_tokens=1))
    await _until_leased(store)
    leader = pair.encoders[0]
    leader.process.send_signal(signal.SIGSTOP)
    assert store.keys("*:lease"), "the leader was done before it could be stopped"
    following = asyncio.create_task(ask(pair.address(1), conversation, max_tokens=1))
    await asyncio.sleep(0)
    os.kill(leader.process.pid, signal.SIGKILL)
    answer = await following
    assert answer.token_ids
    assert pair.computed() == [before[0], before[1] + 1]
    leading.cancel()
    await asyncio.gather(leading, return_exceptions=True)


async def _until_leased(store: Redis) -> None:
    deadline = time.monotonic() + 20
    while not store.keys("*:lease"):
        assert time.monotonic() < deadline, "nobody took a lease"
        await asyncio.sleep(0.005)
