"""The two services behind the gateway, and the pools that reach them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

import grpc
from diptych.v1 import decoder_service_pb2, decoder_service_pb2_grpc, encoder_service_pb2, encoder_service_pb2_grpc

from gateway.settings import GatewaySettings
from services.common.background import beside
from services.common.channels import open_channel
from services.common.tls import watched_credentials
from services.common.watched_files import WatchedFiles

from .addresses import Resolver, Target, system_resolver
from .endpoint import Endpoint, InfoT, Kind, Load, StubT
from .pool import Pool
from .stubs import decoder_stub, encoder_stub

Encoder = encoder_service_pb2.GetEncoderCapabilitiesResponse
Decoder = decoder_service_pb2.GetDecoderCapabilitiesResponse
EncoderStub = encoder_service_pb2_grpc.EncoderServiceStub
DecoderStub = decoder_service_pb2_grpc.DecoderServiceStub

EncoderPool: TypeAlias = Pool[EncoderStub, Encoder]
DecoderPool: TypeAlias = Pool[DecoderStub, Decoder]
EncoderEndpoint: TypeAlias = Endpoint[EncoderStub, Encoder]
DecoderEndpoint: TypeAlias = Endpoint[DecoderStub, Decoder]

LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Pools:
    """What the gateway reaches."""

    encoders: EncoderPool
    decoders: DecoderPool


@asynccontextmanager
async def open_pools(settings: GatewaySettings, resolver: Resolver = system_resolver) -> AsyncIterator[Pools]:
    """Both pools, watching; nobody needs to be there yet. OSError when a certificate cannot be used."""
    credentials = watched_credentials(settings)

    def pool_of(kind: Kind[StubT, InfoT], address: str) -> Pool[StubT, InfoT]:
        target = Target.parse(address)

        def open_one(address: str) -> grpc.aio.Channel:
            return open_channel(
                address, credentials.read(), authority=target.authority, keepalive_s=settings.keepalive_s
            )

        return Pool(kind, target, open_one, resolver)

    async with AsyncExitStack() as stack:
        encoders = await stack.enter_async_context(pool_of(ENCODERS, settings.encoder).running())
        decoders = await stack.enter_async_context(pool_of(DECODERS, settings.decoder).running())
        pools = Pools(encoders, decoders)
        await stack.enter_async_context(beside(_renew(pools, credentials)))
        yield pools


async def _renew(pools: Pools, credentials: WatchedFiles[grpc.ChannelCredentials | None]) -> None:
    """Connect anew whenever the certificates have changed; for ever."""
    used = credentials.read()
    while True:
        await asyncio.sleep(LOOK_S)
        if (found := credentials.read()) is not used:
            used = found
            pools.encoders.renew()
            pools.decoders.renew()


async def _describe_encoder(stub: EncoderStub, timeout_s: float) -> tuple[Encoder, str]:
    request = encoder_service_pb2.GetEncoderCapabilitiesRequest()
    found: Encoder = await stub.GetEncoderCapabilities(request, timeout=timeout_s)
    instance = found.instance
    found.ClearField("instance")  # what it runs is compared with what others run
    return found, instance


async def _describe_decoder(stub: DecoderStub, timeout_s: float) -> tuple[Decoder, str]:
    request = decoder_service_pb2.GetDecoderCapabilitiesRequest()
    found: Decoder = await stub.GetDecoderCapabilities(request, timeout=timeout_s)
    return found, ""


async def _no_load(_stub: EncoderStub, _timeout_s: float) -> Load:
    """An encoder tells none: this gateway's own calls have to do."""
    return Load()


async def _measure_decoder(stub: DecoderStub, timeout_s: float) -> Load:
    found = await stub.GetLoad(decoder_service_pb2.GetLoadRequest(), timeout=timeout_s)
    return Load(found.num_running + found.num_waiting, found.num_used_blocks / max(found.num_total_blocks, 1))


ENCODERS = Kind("encoder", encoder_stub, _describe_encoder, _no_load)
DECODERS = Kind("decoder", decoder_stub, _describe_decoder, _measure_decoder)
