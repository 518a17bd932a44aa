"""EncoderService: a header and bytes in, a manifest and embeddings out."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, aclosing
from typing import Any

import grpc
import structlog
from diptych.v1 import encoder_service_pb2, encoder_service_pb2_grpc

from services.common.checkpoint import Preprocessor
from services.common.chunk_wire import ENCODE_RESPONSE, Chunk
from services.common.errors import DiptychError, InvalidRequest, VersionMismatch, Violation
from services.common.interceptors import discard
from services.common.keys import EPOCH_BYTES
from services.common.workers.files import FileBundle
from services.encoder.admission import Admission
from services.encoder.item import Item, Limits, read_header
from services.encoder.outcome import Outcome
from services.encoder.pipeline import Pipeline
from services.encoder.slices import EncodedSlice

SERVICE_NAME = encoder_service_pb2.DESCRIPTOR.services_by_name["EncoderService"].full_name

_NO_DEADLINE_S = 3600.0
Requests = AsyncIterator[encoder_service_pb2.EncodeRequest]
Response = encoder_service_pb2.EncodeResponse


class EncoderService(encoder_service_pb2_grpc.EncoderServiceServicer):
    """Proto in, proto out."""

    def __init__(
        self,
        pipeline: Pipeline,
        admission: Admission,
        *,
        preprocessor: Preprocessor,
        limits: Limits,
        capabilities: encoder_service_pb2.GetEncoderCapabilitiesResponse,
    ) -> None:
        self._pipeline = pipeline
        self._admission = admission
        self._preprocessor = preprocessor
        self._limits = limits
        self._capabilities = capabilities

    async def Encode(  # noqa: N802  # gRPC's name
        self, request_iterator: Requests, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Response | Chunk]:
        with ExitStack() as room:
            files = room.enter_context(FileBundle())
            deadline = _deadline(context)
            item = await self._receive(request_iterator, room, files, deadline)
            outcome = Outcome(item)
            held: list[EncodedSlice] = []
            async with aclosing(self._pipeline.encode(item, files, deadline)) as windows:
                async for window in windows:
                    outcome.add(window)
                    if not item.streams or outcome.is_complete:
                        held += window
                        continue
                    for response in outcome.parts(window):
                        yield response
            manifest = outcome.manifest()
            yield Response(manifest=manifest)
            if item.inline or not manifest.stored:
                for response in outcome.parts(held):
                    yield response

    async def _receive(self, requests: Requests, room: ExitStack, files: FileBundle, deadline: float) -> Item:
        """The checked item; its bytes go into `files`. Its patches are counted in `room` before the first is read."""
        try:
            header = await _header(requests)
            self._require_own_weights(header.vision_digest)
            item = read_header(header, self._preprocessor, self._limits)
            structlog.contextvars.bind_contextvars(request_id=item.request_id)
            room.enter_context(self._admission.admit(item.num_patches, deadline - asyncio.get_running_loop().time()))
            await _read_files(requests, item.file_sizes, files)
        except DiptychError:
            await discard(requests)
            raise
        return item

    async def PurgeEncoder(  # noqa: N802  # gRPC's name
        self,
        request: encoder_service_pb2.PurgeEncoderRequest,
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002
    ) -> encoder_service_pb2.PurgeEncoderResponse:
        if not request.tenant:
            raise InvalidRequest([Violation("tenant", "is empty", "REQUIRED")])
        if len(request.epoch) != EPOCH_BYTES:
            raise InvalidRequest([Violation("epoch", f"must have {EPOCH_BYTES} bytes", "WRONG_LENGTH")])
        removed = await self._pipeline.purge(request.tenant, request.epoch)
        return encoder_service_pb2.PurgeEncoderResponse(num_values=removed.num_values, num_bytes=removed.num_bytes)

    def _require_own_weights(self, expected: str) -> None:
        """Raises VersionMismatch: what other weights make must not stand under a key of the expected ones."""
        own = self._capabilities.vision_digest
        if expected not in ("", own):
            raise VersionMismatch("vision weights", expected, own)

    async def GetEncoderCapabilities(  # noqa: N802  # gRPC's name
        self,
        request: encoder_service_pb2.GetEncoderCapabilitiesRequest,  # noqa: ARG002  # empty
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002
    ) -> encoder_service_pb2.GetEncoderCapabilitiesResponse:
        return self._capabilities


def register(service: encoder_service_pb2_grpc.EncoderServiceServicer, server: grpc.aio.Server) -> None:
    """Add the service to a server, whose rows leave without becoming messages."""
    encoder_service_pb2_grpc.add_EncoderServiceServicer_to_server(service, server)
    encode = grpc.stream_stream_rpc_method_handler(
        service.Encode,
        request_deserializer=encoder_service_pb2.EncodeRequest.FromString,
        response_serializer=ENCODE_RESPONSE.write,
    )
    server.add_registered_method_handlers(SERVICE_NAME, {"Encode": encode})  # takes the place of the generated one


async def _header(requests: Requests) -> encoder_service_pb2.EncodeHeader:
    first = await anext(requests, None)
    if first is None or first.WhichOneof("message") != "header":
        raise InvalidRequest([Violation("header", "must be the first message", "REQUIRED")])
    return first.header


async def _read_files(requests: Requests, sizes: Sequence[int], files: FileBundle) -> None:
    """The files' bytes as announced. Raises InvalidRequest as soon as there are more, or at the end when fewer."""
    announced = sum(sizes)
    async for request in requests:
        if request.WhichOneof("message") != "chunk":
            raise InvalidRequest([Violation("header", "must be sent once", "REPEATED")])
        await files.append(request.chunk)
        if files.num_bytes > announced:
            break
    if files.num_bytes != announced:
        problem = f"add up to {announced} bytes, but {'more' if files.num_bytes > announced else 'fewer'} were sent"
        raise InvalidRequest([Violation("header.file_sizes", problem, "SIZE_MISMATCH")])


def _deadline(context: grpc.aio.ServicerContext[Any, Any]) -> float:
    """When the caller stops waiting, in the loop's time."""
    remaining = context.time_remaining()
    return asyncio.get_running_loop().time() + (_NO_DEADLINE_S if remaining is None else remaining)
