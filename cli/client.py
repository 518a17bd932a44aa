"""Requests to a gateway: the conversation, the connection, and errors in one line."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import grpc
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub
from pydantic import Field, SecretStr

from cli.media import Media, Turn
from services.common.channels import open_channel
from services.common.errors import InvalidRequest, from_rpc_error, rich_status
from services.common.settings import load
from services.common.tls import TlsSettings, channel_credentials

UPLOAD_CHUNK_BYTES = 1 << 20
GATEWAY_DECIDES = -1


class ClientSettings(TlsSettings):
    """Who asks. From the environment alone: a flag can be read by every user of the machine."""

    token: SecretStr = Field(
        default=SecretStr(""), validation_alias="DIPTYCH_TOKEN", description="Bearer token for the gateway."
    )


def run_request(address: str, request: Callable[[ChatServiceStub], Awaitable[None]]) -> int:
    """Runs `request` against the gateway at `address`; returns the exit code, 1 after printing why it failed."""
    try:
        asyncio.run(with_gateway(address, request))
    except grpc.aio.AioRpcError as error:
        for line in error_lines(error, address):
            print(f"error: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # as the shell reports an interrupt; the call is cancelled
    return 0


async def with_gateway(address: str, request: Callable[[ChatServiceStub], Awaitable[None]]) -> None:
    """Opens the connection, makes the request, closes the connection."""
    async with gateway(address) as stub:
        await request(stub)


@asynccontextmanager
async def gateway(address: str, settings: ClientSettings | None = None) -> AsyncIterator[ChatServiceStub]:
    """A stub for the gateway at `address`; without `settings` the environment's."""
    chosen = settings or load(ClientSettings)
    token = chosen.token.get_secret_value()
    channel = open_channel(address, channel_credentials(chosen), token=token, max_send_bytes=GATEWAY_DECIDES)
    try:
        yield ChatServiceStub(channel)
    finally:
        await channel.close()


async def build_conversation(stub: ChatServiceStub, turn: Turn) -> content.Conversation:
    """One user turn, media first; files too large for any message are uploaded and named by their digest."""
    parts = [await media_part(stub, item, inline=turn.is_inline) for item in turn.media]
    messages = [content.Message(role=content.ROLE_USER, parts=[*parts, content.Part(text=turn.question)])]
    if turn.system is not None:
        messages.insert(0, content.Message(role=content.ROLE_SYSTEM, parts=[content.Part(text=turn.system)]))
    return content.Conversation(messages=messages, no_store=turn.no_store)


async def media_part(stub: ChatServiceStub, item: Media, *, inline: bool) -> content.Part:
    """The part that names `item`."""
    part = content.Part()
    target = part.image if item.kind == "image" else part.video
    if item.data is None and item.name.startswith("sha256:"):
        target.digest = item.name
    elif item.data is None:
        target.uri = item.name
    elif inline:
        target.data = item.data
    else:
        target.digest = await upload(stub, item.data)
    for limit in ("min_pixels", "max_pixels"):
        if (pixels := getattr(item.limits, limit)) is not None:
            setattr(target, limit, pixels)
    return part


async def upload(stub: ChatServiceStub, data: bytes) -> str:
    """Sends a file in chunks and returns its digest."""
    starts = range(0, len(data), UPLOAD_CHUNK_BYTES)
    chunks = (chat.UploadMediaRequest(chunk=data[start : start + UPLOAD_CHUNK_BYTES]) for start in starts)
    response: chat.UploadMediaResponse = await stub.UploadMedia(chunks)
    return response.digest


def error_lines(error: grpc.aio.AioRpcError, address: str) -> Iterator[str]:
    """Reason, field and message of each thing that was wrong, one line each."""
    if rich_status(error) is None:  # not a status of ours: nobody answers there, or something else does
        yield f"{error.code().name}: {error.details()} ({address})"
        return
    known = from_rpc_error(error, "gateway")
    if isinstance(known, InvalidRequest):
        yield from (f"{item.reason} {item.field}: {item.description}" for item in known.violations)
    else:
        yield f"{known.reason}: {known.message}"
