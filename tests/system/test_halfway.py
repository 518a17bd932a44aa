"""An encoder that is gone amid its writing, a decoder whose model fails amid an answer: what is there afterwards."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from redis import Redis

from cli.local_redis import LocalRedis
from tests.exactness import cases
from tests.exactness.reference import Reference
from tests.harness import ask, ask_until_back, failure, metrics
from tests.system.failpoints import FAIL, FOLDER_VARIABLE, MODULE, NAME_VARIABLE
from tests.system.fleet import Fleet

COMPUTED = "diptych_encoder_batch_patches_sum"
TEXT = cases.user("", "What can you see?")


@pytest.fixture
def redis() -> Iterator[LocalRedis]:
    """The cache."""
    with LocalRedis() as redis:
        yield redis


@pytest.fixture
def fleet(checkpoint: Path, redis: LocalRedis, tmp_path: Path) -> Iterator[Fleet]:
    """One process of each kind. The encoder dies of its first picture; the decoder fails at a sign."""
    common = {
        "DIPTYCH_MODEL": str(checkpoint),
        "DIPTYCH_CACHE_URL": redis.url,
        "DIPTYCH_METRICS_LISTEN": "127.0.0.1:0",
        FOLDER_VARIABLE: str(tmp_path),
    }
    with Fleet(common, tmp_path) as fleet:
        fleet.start("encoder", MODULE, **{NAME_VARIABLE: "encoder.manifest"})
        fleet.start("decoder", MODULE, **{NAME_VARIABLE: "decoder.step"})
        services = {f"DIPTYCH_GATEWAY_{name.upper()}": fleet.address(name) for name in ("encoder", "decoder")}
        fleet.start("gateway", "gateway", **services)
        yield fleet


def kinds_of_values(redis: LocalRedis) -> list[str]:
    """What is in the cache, by the second part of its name."""
    with Redis.from_url(redis.url) as client:
        return sorted(name.decode().split(":")[2] for name in client.scan_iter("diptych:*:*:*"))


async def test_slices_without_their_manifest(fleet: Fleet, redis: LocalRedis, reference: Reference) -> None:
    """An encoder dies when it has stored a picture's rows and not what they are: the call is UNAVAILABLE. The encoder
    that comes after it answers right, from those rows.
    """
    case, address = cases.user("", cases.picture(740), "Describe."), fleet.address("encoder")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(fleet.address("gateway"), case.to_conversation(), max_tokens=4)
    assert (caught.value.code(), failure(caught.value).reason) == (grpc.StatusCode.UNAVAILABLE, "ENCODER_UNAVAILABLE")
    assert fleet.children["encoder"].process.wait(10) != 0
    assert kinds_of_values(redis) == ["slice"]

    fleet.start("encoder", "services.encoder", DIPTYCH_ENCODER_LISTEN=address)
    assert fleet.address("encoder") == address
    answer = await ask_until_back(fleet.address("gateway"), case.to_conversation(), max_tokens=4)
    assert answer.token_ids == reference.generate(case, 4)[1]
    assert kinds_of_values(redis) == ["header", "manifest", "media", "slice"]
    assert metrics(fleet.children["encoder"])[COMPUTED] == 0


async def test_a_step_that_fails(fleet: Fleet, tmp_path: Path, reference: Reference) -> None:
    """Whoever was in it gets INTERNAL with its fixed text; nothing of them stays, and the next are answered right."""
    address = fleet.address("gateway")
    expected = reference.generate(TEXT, 6)[1]
    assert (await ask(address, TEXT.to_conversation(), max_tokens=6)).token_ids == expected
    long = [asyncio.create_task(ask(address, TEXT.to_conversation(), max_tokens=3000, ignore_eos=True)) for _ in "abc"]
    async with asyncio.timeout(20):
        while await fleet.num_sequences_of("decoder") < len(long):  # noqa: ASYNC110 -- another process's number
            await asyncio.sleep(0.02)
    (tmp_path / FAIL).touch()
    for answer in long:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answer
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert await fleet.num_sequences_of("decoder") == 0
    (tmp_path / FAIL).unlink()
    assert (await ask(address, TEXT.to_conversation(), max_tokens=6)).token_ids == expected
