"""When a gateway says that requests should come to it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from diptych.v1 import encoder_service_pb2_grpc

from gateway.capabilities import Capabilities
from gateway.reach.kinds import open_pools
from gateway.readiness import readiness
from gateway.settings import GatewaySettings
from services.common.checkpoint import Checkpoint
from tests.gateway.client import until
from tests.gateway.fakes import FakeEncoder, serving
from tests.gateway.reach.decoders import Decoders

HOST = "127.0.0.1"


@pytest.fixture
async def decoders(model: Checkpoint) -> AsyncIterator[Decoders]:
    """One, running."""
    decoders = Decoders(model)
    await decoders.start(HOST)
    yield decoders
    await decoders.stop_all()


def settings_of(model: Checkpoint, encoder: str, decoders: Decoders) -> GatewaySettings:
    values: dict[str, Any] = {"model": str(model.path), "encoder": encoder, "decoder": f"{HOST}:{decoders.port}"}
    return GatewaySettings(**values)


async def test_it_follows_those_that_fit_and_does_not_flap(model: Checkpoint, decoders: Decoders) -> None:
    """Ready once a pair that fits was there; still while nobody is; not when only others than its own are there."""
    register = encoder_service_pb2_grpc.add_EncoderServiceServicer_to_server
    async with serving(register, FakeEncoder(model)) as (encoder, _):
        settings = settings_of(model, encoder, decoders)
        async with open_pools(settings) as pools:
            states = readiness(pools, Capabilities(model, pools))
            assert [await anext(states), await anext(states)] == [False, True]
            change = asyncio.ensure_future(anext(states))
            await decoders.stop(HOST)
            await until(lambda: not pools.decoders.usable)
            assert not change.done()
            await decoders.start(HOST, digest="upgraded")
            assert await change is False
            change = asyncio.ensure_future(anext(states))
            await decoders.stop(HOST)
            await until(lambda: not pools.decoders.usable)
            assert not change.done()
            await decoders.start(HOST)
            assert await change is True


async def test_an_encoder_of_another_checkpoint_makes_no_pair(model: Checkpoint, decoders: Decoders) -> None:
    """A decoder alone, or beside an encoder that does not fit, is not enough to begin with."""
    register = encoder_service_pb2_grpc.add_EncoderServiceServicer_to_server
    async with serving(register, FakeEncoder(model, digest="another")) as (encoder, _):
        settings = settings_of(model, encoder, decoders)
        async with open_pools(settings) as pools:
            states = readiness(pools, Capabilities(model, pools))
            assert await anext(states) is False
            change = asyncio.ensure_future(anext(states))
            await until(lambda: bool(pools.decoders.usable and pools.encoders.usable))
            assert not change.done()
            change.cancel()
