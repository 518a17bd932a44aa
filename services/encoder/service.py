"""EncoderService: a header and bytes in, a manifest and embeddings out."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import grpc
import structlog
from diptych.v1 import content_pb2, encoder_service_pb2, encoder_service_pb2_grpc

from services.common.checkpoint import Preprocessor
from services.common.embedding import MAX_CHUNK_BYTES
from services.common.errors import DiptychError, InvalidRequest, VersionMismatch, Violation
from services.common.interceptors import discard
from services.common.keys import EPOCH_BYTES
from services.common.workers.files import FileBundle
from services.encoder.admission import Admission
from services.encoder.item import Item, Limits, read_header
from services.encoder.pipeline import Pipeline
from services.encoder.slices import EncodedSlice

log = structlog.get_logger()

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
    ) -> AsyncIterator[Response]:
        with ExitStack() as room:
            files = room.enter_context(FileBundle())
            deadline = _deadline(context)
            item = await self._receive(request_iterator, room, files, deadline)
            started = time.monotonic()
            encoded = await self._pipeline.encode(item, files, deadline)
            manifest = _manifest(item, encoded, (time.monotonic() - started) * 1000)
            _log(item, manifest)
            yield Response(manifest=manifest)
            if item.inline or not manifest.stored:
                for response in chunks(encoded):
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


def chunks(encoded: Sequence[EncodedSlice]) -> Iterator[Response]:
    """The rows of all slices in order, at most 1 MiB a chunk.

    A chunk is made in its place: protobuf copies a message that is given to another one, which takes a hundred times as
    long.
    """
    offset = 0
    for part in encoded:
        data = part.rows.data
        for start in range(0, len(data), MAX_CHUNK_BYTES):
            piece = bytes(data[start : start + MAX_CHUNK_BYTES])
            yield Response(chunk={"byte_offset": offset, "data": piece, "dtype": part.rows.dtype})
            offset += len(piece)


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


def _manifest(item: Item, encoded: Sequence[EncodedSlice], total_ms: float) -> encoder_service_pb2.Manifest:
    t, h, w = item.grid
    queue_ms = max((part.times.queue_ms for part in encoded if part.times is not None), default=0.0)
    return encoder_service_pb2.Manifest(
        grid=content_pb2.Grid(t=t, h=h, w=w),
        width=encoded[0].rows.width,
        dtype=encoded[0].rows.dtype,
        slice_keys=[part.key for part in encoded],
        stored=all(part.stored for part in encoded),
        num_cached_slices=sum(part.cached for part in encoded),
        queue_ms=queue_ms,
        encode_ms=max(0.0, total_ms - queue_ms),
    )


def _log(item: Item, manifest: encoder_service_pb2.Manifest) -> None:
    log.info(
        "encoded",
        kind=item.plan.source,
        num_patches=item.num_patches,
        num_slices=len(manifest.slice_keys),
        cache=f"{manifest.num_cached_slices}/{len(manifest.slice_keys)}",
        queue_ms=round(manifest.queue_ms, 1),
        encode_ms=round(manifest.encode_ms, 1),
    )
