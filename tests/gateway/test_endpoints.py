"""Why an encoder or a decoder gets no requests, as GetModel tells it."""

from collections.abc import Sequence

import pytest
from diptych.v1 import chat_service_pb2 as pb

from services.common.checkpoint import Checkpoint
from tests.gateway.client import until
from tests.gateway.fakes import FakeDecoder, FakeEncoder
from tests.gateway.reach.crowd import Crowd, crowded

Described = pb.GetModelResponse.Endpoint
USABLE, LEFT_OUT, FAILING = Described.STATE_USABLE, Described.STATE_LEFT_OUT, Described.STATE_FAILING


async def ask(crowd: Crowd, service: str) -> Sequence[Described]:
    """What is said of one kind of service."""
    model: pb.GetModelResponse = await crowd.stub.GetModel(pb.GetModelRequest(), timeout=20)
    return [endpoint for endpoint in model.endpoints if endpoint.service == service]


async def test_an_upgraded_decoder_is_left_out_and_says_why(model: Checkpoint) -> None:
    """By address, with both digests; the one that fits is usable."""
    async with crowded(model, [FakeEncoder(model)], [FakeDecoder(model), FakeDecoder(model, digest="new")]) as crowd:
        endpoints = {endpoint.state: endpoint for endpoint in await ask(crowd, "decoder")}
    assert set(endpoints) == {USABLE, LEFT_OUT}
    assert endpoints[USABLE].checkpoint_digest == model.digest()
    left_out = endpoints[LEFT_OUT]
    assert left_out.checkpoint_digest == "new"
    assert left_out.difference == f"checkpoint of gateway and decoder differs: expected {model.digest()}, found new"
    assert left_out.address.startswith("ipv4:127.0.0.1:")


async def test_an_encoder_without_a_decoder_is_left_out(model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway without weights takes any checkpoint, but an encoder has to have a decoder of its own."""
    monkeypatch.setattr("gateway.capabilities.own_digest", lambda _: "")
    async with crowded(model, [FakeEncoder(model), FakeEncoder(model, digest="new")], [FakeDecoder(model)]) as crowd:
        endpoints = {endpoint.checkpoint_digest: endpoint for endpoint in await ask(crowd, "encoder")}
    assert endpoints[model.digest()].state == USABLE
    assert endpoints["new"].state == LEFT_OUT
    assert endpoints["new"].difference.startswith("checkpoint of encoder and decoder differs")


async def test_one_that_is_gone_is_unreachable(model: Checkpoint) -> None:
    """It stays listed while its address is known, and nothing is said of what it ran."""
    async with crowded(model, [FakeEncoder(model), FakeEncoder(model)], [FakeDecoder(model)]) as crowd:
        await crowd.servers[0].stop(0)
        await until(lambda: len(crowd.pools.encoders.usable) == 1)
        found = [(endpoint.state, endpoint.checkpoint_digest) for endpoint in await ask(crowd, "encoder")]
    assert sorted(found) == [(USABLE, model.digest()), (Described.STATE_UNREACHABLE, "")]


async def test_one_that_hangs_is_failing(model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is connected, and does not answer what it runs."""
    monkeypatch.setattr("gateway.reach.endpoint.POLL_S", 0.02)
    monkeypatch.setattr("gateway.reach.endpoint.PROBE_TIMEOUT_S", 0.1)
    decoders = [FakeDecoder(model), FakeDecoder(model)]
    async with crowded(model, [FakeEncoder(model)], decoders) as crowd:
        decoders[0].answers.clear()
        await until(lambda: len(crowd.pools.decoders.usable) == 1)
        assert sorted(endpoint.state for endpoint in await ask(crowd, "decoder")) == [USABLE, FAILING]
        decoders[0].answers.set()
