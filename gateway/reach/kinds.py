"""The two services behind the gateway, and the pools that reach them."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from diptych.v1 import decoder_service_pb2, decoder_service_pb2_grpc, encoder_service_pb2, encoder_service_pb2_grpc

from gateway.settings import GatewaySettings
from services.common.channels import open_channel
from services.common.tls import channel_credentials

from .addresses import Resolver, Target, system_resolver
from .endpoint import Endpoint, InfoT, Kind, Load, StubT
from .pool import Pool

Encoder = encoder_service_pb2.GetEncoderCapabilitiesResponse
Decoder = decoder_service_pb2.GetDecoderCapabilitiesResponse
EncoderStub = encoder_service_pb2_grpc.EncoderServiceStub
DecoderStub = decoder_service_pb2_grpc.DecoderServiceStub

EncoderPool: TypeAlias = Pool[EncoderStub, Encoder]
DecoderPool: TypeAlias = Pool[DecoderStub, Decoder]
EncoderEndpoint: TypeAlias = Endpoint[EncoderStub, Encoder]
DecoderEndpoint: TypeAlias = Endpoint[DecoderStub, Decoder]


@dataclass(frozen=True, slots=True)
class Pools:
    """What the gateway reaches."""

    encoders: EncoderPool
    decoders: DecoderPool


@asynccontextmanager
async def open_pools(settings: GatewaySettings, resolver: Resolver = system_resolver) -> AsyncIterator[Pools]:
    """Both pools, watching; nobody needs to be there yet. OSError when a certificate cannot be read."""
    credentials = channel_credentials(settings)

    def pool_of(kind: Kind[StubT, InfoT], address: str) -> Pool[StubT, InfoT]:
        target = Target.parse(address)
        open_one = partial(open_channel, credentials=credentials, authority=target.authority)
        return Pool(kind, target, open_one, resolver)

    async with AsyncExitStack() as stack:
        encoders = await stack.enter_async_context(pool_of(ENCODERS, settings.encoder).running())
        decoders = await stack.enter_async_context(pool_of(DECODERS, settings.decoder).running())
        yield Pools(encoders, decoders)


async def _describe_encoder(stub: EncoderStub, timeout_s: float) -> Encoder:
    request = encoder_service_pb2.GetEncoderCapabilitiesRequest()
    found: Encoder = await stub.GetEncoderCapabilities(request, timeout=timeout_s)
    return found


async def _describe_decoder(stub: DecoderStub, timeout_s: float) -> Decoder:
    request = decoder_service_pb2.GetDecoderCapabilitiesRequest()
    found: Decoder = await stub.GetDecoderCapabilities(request, timeout=timeout_s)
    return found


async def _no_load(_stub: EncoderStub, _timeout_s: float) -> Load:
    """An encoder tells none: this gateway's own calls have to do."""
    return Load()


async def _measure_decoder(stub: DecoderStub, timeout_s: float) -> Load:
    found = await stub.GetLoad(decoder_service_pb2.GetLoadRequest(), timeout=timeout_s)
    return Load(found.num_running + found.num_waiting, found.num_used_blocks / max(found.num_total_blocks, 1))


ENCODERS = Kind("encoder", EncoderStub, _describe_encoder, _no_load)
DECODERS = Kind("decoder", DecoderStub, _describe_decoder, _measure_decoder)
