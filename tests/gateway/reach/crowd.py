"""A gateway before several fake encoders and decoders."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from diptych.v1 import chat_service_pb2_grpc, decoder_service_pb2_grpc, encoder_service_pb2_grpc

from gateway.reach.kinds import Pools, open_pools
from gateway.rooms import Rooms
from gateway.service import ChatService
from gateway.settings import GatewaySettings
from services.common.checkpoint import Checkpoint
from services.common.telemetry.process import Telemetry
from tests.gateway.client import until
from tests.gateway.fakes import FakeDecoder, FakeEncoder, serving


@dataclass
class Crowd:
    """What runs; `servers` are the encoders', in their order."""

    encoders: Sequence[FakeEncoder]
    decoders: Sequence[FakeDecoder]
    servers: list[grpc.aio.Server]
    pools: Pools
    stub: Any


@asynccontextmanager
async def crowded(
    checkpoint: Checkpoint, encoders: Sequence[FakeEncoder], decoders: Sequence[FakeDecoder], **settings: Any
) -> AsyncIterator[Crowd]:
    """Everything running and known to the gateway."""
    async with AsyncExitStack() as stack:
        at: dict[str, list[str]] = {"encoder": [], "decoder": []}
        servers = []
        for encoder in encoders:
            register = encoder_service_pb2_grpc.add_EncoderServiceServicer_to_server
            address, server = await stack.enter_async_context(serving(register, encoder))
            at["encoder"].append(address)
            servers.append(server)
        for decoder in decoders:
            add = decoder_service_pb2_grpc.add_DecoderServiceServicer_to_server
            at["decoder"].append((await stack.enter_async_context(serving(add, decoder)))[0])
        addresses = {kind: ",".join(found) for kind, found in at.items()}
        values: dict[str, Any] = {"model": str(checkpoint.path), **addresses, **settings}
        chosen = GatewaySettings(**values)
        pools = await stack.enter_async_context(open_pools(chosen))
        rooms = Rooms(chosen, checkpoint, pools, Telemetry("gateway"))
        stack.push_async_callback(rooms.close)
        service = ChatService(chosen, rooms)
        register_chat = chat_service_pb2_grpc.add_ChatServiceServicer_to_server
        address, _ = await stack.enter_async_context(serving(register_chat, service))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        await until(lambda: len(pools.encoders.usable) == len(encoders) and len(pools.decoders.usable) == len(decoders))
        yield Crowd(encoders, decoders, servers, pools, chat_service_pb2_grpc.ChatServiceStub(channel))
