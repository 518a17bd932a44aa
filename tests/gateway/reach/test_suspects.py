"""Who is suspected of an encoder's death, and for how long, with encoders that are names alone."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from gateway.reach import suspects
from gateway.reach.suspects import MAX_DEATHS, MAX_DEATHS_OF_ENCODED, MEMORY_S, RETURN_S, Suspects
from services.common.errors import InvalidRequest

KEY, FIELD = b"key", "image"


@dataclass
class Named:
    """An encoder's endpoint."""

    instance: str
    address: str = "127.0.0.1:1"
    lost: asyncio.Event = field(default_factory=asyncio.Event)

    def lose(self) -> None:
        """Its connection ends."""
        self.instance = ""
        self.lost.set()

    def connect(self, instance: str) -> None:
        """Somebody answers at its address."""
        self.instance, self.lost = instance, asyncio.Event()


class Scene:
    """Two encoders, the suspects, and a clock of its own."""

    def __init__(self) -> None:
        self.endpoints = [Named("first"), Named("second")]
        self.change = asyncio.Event()
        self.now = 0.0
        pool: Any = self
        self.suspects = Suspects(pool, lambda: self.now)

    async def encode(self, number: int = 0, *, dies: bool = False) -> None:
        """Try KEY at one of the encoders."""
        endpoint: Any = self.endpoints[number]
        async with self.suspects.trying(KEY, FIELD, endpoint):
            if dies:
                endpoint.lose()
                metadata = grpc.aio.Metadata()
                raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, metadata, metadata)

    async def die(self, number: int, successor: str) -> None:
        """It dies of KEY, and another process takes its place."""
        with pytest.raises(grpc.aio.AioRpcError):
            await self.encode(number, dies=True)
        self.endpoints[number].connect(successor)


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(suspects, "RETURN_S", 0.1)
    return Scene()


async def test_refused_after_two_deaths_for_some_minutes(scene: Scene) -> None:
    """At once, whoever is there meanwhile; then it may be tried again."""
    await scene.die(0, "third")
    with pytest.raises(InvalidRequest):
        await scene.encode(1, dies=True)
    scene.now += RETURN_S
    with pytest.raises(InvalidRequest) as caught:
        await scene.encode()
    [violation] = caught.value.violations
    assert (violation.field, violation.reason) == (FIELD, "ENCODER_LOST")
    assert violation.description.startswith(f"{MAX_DEATHS} encoders")
    scene.now += MEMORY_S
    await scene.encode()


async def test_what_was_encoded_before_is_refused_after_four(scene: Scene) -> None:
    """Whether this gateway had it encoded or found it in the cache."""
    scene.suspects.note_encoded(KEY)
    for number in range(MAX_DEATHS_OF_ENCODED - 1):
        await scene.die(0, f"next {number}")
    with pytest.raises(InvalidRequest):
        await scene.encode(dies=True)


async def test_success_clears(scene: Scene) -> None:
    """Deaths count in a row."""
    await scene.die(0, "third")
    await scene.encode()
    for number in range(MAX_DEATHS_OF_ENCODED - 1):
        await scene.die(0, f"next {number}")
    await scene.encode()


async def test_who_comes_while_encoders_are_out_of_reach_waits_for_them(scene: Scene) -> None:
    """An encoder that is heard of again has not died, and is not counted in front of anybody else either."""
    await scene.die(0, "third")
    scene.suspects._note_loss(KEY, "second")
    scene.endpoints[1].lose()
    asking = asyncio.create_task(scene.encode())
    await asyncio.sleep(0)
    assert not asking.done()
    scene.endpoints[1].connect("second")
    scene.change.set()
    await asking
