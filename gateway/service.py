"""ChatService: proto in, proto out."""
# ruff: noqa: N802 -- gRPC's own names

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import grpc
import structlog
from diptych.v1 import chat_service_pb2 as pb
from diptych.v1 import chat_service_pb2_grpc

from services.common.errors import DiptychError, PermissionDenied
from services.common.identity import current_identity

from .batch import run_batch
from .caller import Caller, caller_of
from .explain import explain
from .pipeline import Pipeline
from .rooms import Rooms
from .settings import GatewaySettings
from .sources import refused

Context = grpc.aio.ServicerContext[Any, Any]

_MAX_UPLOAD_CHUNK = 1 << 20

log = structlog.get_logger()


class ChatService(chat_service_pb2_grpc.ChatServiceServicer):
    """What clients call. Every handler makes a caller, asks the pipeline, and wraps what comes out."""

    def __init__(self, settings: GatewaySettings, rooms: Rooms) -> None:
        self._settings = settings
        self._rooms = rooms
        self._pipeline = Pipeline(rooms)

    async def Chat(self, request: pb.ChatRequest, context: Context) -> pb.ChatResponse:
        """The whole answer in one message."""
        caller = await self._caller(context)
        response = pb.ChatResponse()
        choices: dict[int, pb.Choice] = {}
        async for event in self._pipeline.run(request.conversation, request.generation, caller, whole=True):
            if isinstance(event, pb.Started):
                response.started.CopyFrom(event)
            elif isinstance(event, pb.TextDelta):
                choice = choices.setdefault(event.index, pb.Choice(index=event.index))
                choice.text += event.text
                choice.logprobs.extend(event.logprobs)
            else:
                _finish(response, choices, event)
        return response

    async def StreamChat(
        self, request: pb.StreamChatRequest, context: Context
    ) -> AsyncGenerator[pb.StreamChatResponse]:
        """The answer as it is generated."""
        caller = await self._caller(context)
        async with aclosing(self._pipeline.run(request.conversation, request.generation, caller)) as events:
            async for event in events:
                if isinstance(event, pb.Started):
                    yield pb.StreamChatResponse(started=event)
                elif isinstance(event, pb.TextDelta):
                    yield pb.StreamChatResponse(text_delta=event)
                else:
                    yield pb.StreamChatResponse(finished=event)

    async def BatchChat(self, request: pb.BatchChatRequest, context: Context) -> AsyncGenerator[pb.BatchChatResponse]:
        """Many conversations, each on its own."""
        if not 1 <= len(request.items) <= self._settings.max_batch_items:
            raise refused("items", f"must have 1 to {self._settings.max_batch_items} entries", "OUT_OF_RANGE")
        callers = [await self._caller(context) for _ in request.items]
        self._rooms.quotas.take_requests(callers[0].tenant, len(request.items) - 1)  # one went with the call
        work = run_batch(self._pipeline, request.items, callers, self._settings.batch_concurrency)
        async with aclosing(work) as events:
            async for event in events:
                yield event

    async def CountTokens(self, request: pb.CountTokensRequest, context: Context) -> pb.CountTokensResponse:
        """The cost of a conversation; works with encoder and decoder down."""
        caller = await self._caller(context)
        prepared = await self._pipeline.prepare(request.conversation, None, caller)
        await self._pipeline.remember(prepared, caller)
        return self._rooms.reports.count(prepared.items, prepared.prompt)

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:
        """The model's input, looked into."""
        caller = await self._caller(context)
        prepared = await self._pipeline.prepare(request.conversation, request.generation, caller)
        await self._pipeline.remember(prepared, caller)
        return await explain(self._rooms, prepared, request.generation, caller)

    async def UploadMedia(
        self, request_iterator: AsyncIterator[pb.UploadMediaRequest], context: Context
    ) -> pb.UploadMediaResponse:
        """Keep a file under its digest."""
        caller = await self._caller(context)
        data = await caller.deadline.bound(self._receive(request_iterator))
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        if not await self._rooms.store.put(caller.owner, digest, data):
            raise DiptychError("the file could not be kept")
        return pb.UploadMediaResponse(digest=digest, num_bytes=len(data), ttl_seconds=self._settings.cache_ttl_s)

    async def PurgeMedia(self, request: pb.PurgeMediaRequest, _context: Context) -> pb.PurgeMediaResponse:
        """Remove what is kept of the caller's tenant, or of the one that an administrator names."""
        identity = current_identity()
        tenant = request.tenant if request.HasField("tenant") else identity.tenant
        if not tenant:
            raise refused("tenant", "is empty", "REQUIRED")
        if tenant != identity.tenant and identity.scope != "admin":
            raise PermissionDenied("another tenant's media needs a token of scope admin")
        removed = await self._rooms.purge.run(tenant)
        log.info("purged", num_items=removed.num_values, num_bytes=removed.num_bytes, num_blocks=removed.num_blocks)
        return removed

    async def GetModel(self, _request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """The model, its limits and its defaults."""
        caller = caller_of(context, self._settings.max_request_s)
        await self._rooms.ask_services(caller)
        return self._rooms.reports.model()

    async def _caller(self, context: Context) -> Caller:
        caller = caller_of(context, self._settings.max_request_s)
        owner = await self._rooms.epochs.owner(caller.tenant)
        return replace(caller, owner=replace(owner, max_cache_bytes=self._rooms.quotas.cache_bytes(caller.tenant)))

    async def _receive(self, requests: AsyncIterator[pb.UploadMediaRequest]) -> bytes:
        data = bytearray()
        async for request in requests:
            if len(request.chunk) > _MAX_UPLOAD_CHUNK:
                raise refused("chunk", f"has more than {_MAX_UPLOAD_CHUNK} bytes", "TOO_LARGE")
            data += request.chunk
            if len(data) > self._settings.max_media_bytes:
                raise refused("chunk", f"makes more than {self._settings.max_media_bytes} bytes together", "TOO_LARGE")
        if not data:
            raise refused("chunk", "the file is empty", "REQUIRED")
        return bytes(data)


def _finish(response: pb.ChatResponse, choices: dict[int, pb.Choice], finished: pb.Finished) -> None:
    for end in finished.choices:
        choice = choices.setdefault(end.index, pb.Choice(index=end.index))
        choice.end.CopyFrom(end)
    response.choices.extend(choice for _, choice in sorted(choices.items()))
    response.usage.CopyFrom(finished.usage)
    response.timings.CopyFrom(finished.timings)
