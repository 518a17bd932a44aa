"""A media item's embeddings on their way to the decoder: by reference where a shared cache has them, else in chunks."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass

import grpc
from diptych.v1 import content_pb2, decoder_service_pb2, embedding_pb2, encoder_service_pb2

from services.common.cache.base import EmbeddingCache
from services.common.embedding import DTYPES, MAX_CHUNK_BYTES, row_bytes
from services.common.errors import DiptychError, InvalidRequest, ServiceUnavailable, Violation
from services.common.telemetry.spans import trace_metadata, traced

from .caller import Caller
from .media import MediaItem
from .reach.kinds import Encoder, EncoderEndpoint, EncoderPool, EncoderStub
from .reach.retries import Retries
from .reach.suspects import Suspects

Message = decoder_service_pb2.GenerateRequest
Write = Callable[[Message], Awaitable[None]]
Note = Callable[[content_pb2.CacheResult], None]

HIT = content_pb2.CACHE_RESULT_HIT
MISS = content_pb2.CACHE_RESULT_MISS
PARTIAL = content_pb2.CACHE_RESULT_PARTIAL


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """One item to be encoded for the decoder. `index`: its place in the prompt. `encoder`: what it must run.

    With `no_store` it goes inline, and takes no turn with others that are to be cached.
    """

    caller: Caller
    item: MediaItem
    index: int
    media_key: bytes
    encoder: Encoder
    no_store: bool = False


class Encoding:
    """Finds or makes embeddings. Requests for the same media at the same time encode once."""

    def __init__(self, encoders: EncoderPool, cache: EmbeddingCache) -> None:
        self._encoders = encoders
        self._cache = cache
        self._flights = _Flights()
        self._suspects = Suspects()

    @traced("cache")
    async def find(self, item: MediaItem, media_key: bytes, width: int, tenant: str) -> list[bytes] | None:
        """The slice keys of an item of which the shared cache has everything."""
        if not self._cache.shared:
            return None
        cache = self._cache.of(tenant)
        manifest = await cache.get_manifest(media_key)
        if manifest is None or (manifest.grid, manifest.width) != (item.plan.grid, width):
            return None
        keys = list(manifest.slice_keys)
        complete = len(keys) == item.plan.grid[0] and all(await cache.has_slices(keys))
        return keys if complete else None

    async def send(self, job: EncodeJob, write: Write, note: Note, *, inline: bool) -> None:
        """Give the decoder one item's embeddings; `inline` sends the rows themselves.

        `note` is told where they come from: once after the look-up, before anything is sent, and again when the
        encoder knows better.
        """
        if inline or not await self._send_reference(job, write, note):
            note(MISS)
            await self._encode(job, write, note, inline=inline)

    async def _send_reference(self, job: EncodeJob, write: Write, note: Note) -> bool:
        keys = await self.find(job.item, job.media_key, job.encoder.width, job.caller.tenant)
        if keys is None:
            return False
        note(HIT)
        await write(_reference(job, keys))
        return True

    async def _encode(self, job: EncodeJob, write: Write, note: Note, *, inline: bool) -> None:
        """Another try, elsewhere if possible, when the encoder was lost. Rows already sent are not sent again."""
        rows, retries, tried = _Rows(job, write), Retries(self._encoders.budget), None
        while True:
            picking = self._encoders.pick(job.media_key, job.encoder, avoid=tried)
            tried = await job.caller.deadline.bound(picking)
            try:
                with tried.call() as stub:
                    await self._try_encode(tried, stub, rows, note, inline=inline)
                return
            except InvalidRequest as error:
                raise _at_field(error, job.item.field) from error
            except ServiceUnavailable:
                if not retries.take():
                    raise

    @traced("call encoder")
    async def _try_encode(
        self, endpoint: EncoderEndpoint, stub: EncoderStub, rows: "_Rows", note: Note, *, inline: bool
    ) -> None:
        job, write = rows.job, rows.write
        turn = nullcontext(False) if job.no_store else self._flights.of(job.media_key)
        async with turn as waited:
            if waited and not inline and await self._send_reference(job, write, note):
                return
            async with self._suspects.trying(job.media_key, job.item.field, endpoint):
                call = stub.Encode(
                    _requests(job, inline=inline), timeout=job.caller.deadline.remaining(), metadata=trace_metadata()
                )
                try:
                    manifest = await _manifest(call, job)
                except BaseException:
                    call.cancel()
                    raise
        note(_result(manifest))
        try:
            if manifest.stored and not inline:
                await write(_reference(job, manifest.slice_keys))
            else:
                await rows.relay(call, manifest)
        finally:
            call.cancel()


class _Rows:
    """One item's rows on their way to the decoder, held a chunk at a time."""

    def __init__(self, job: EncodeJob, write: Write) -> None:
        self.job = job
        self.write = write
        self._num_sent = 0

    async def relay(self, call: "_EncodeCall", manifest: encoder_service_pb2.Manifest) -> None:
        """Pass on what has not been sent yet. Raises DiptychError when rows are missing."""
        while isinstance(response := await call.read(), encoder_service_pb2.EncodeResponse):
            chunk = response.chunk
            if chunk.byte_offset > self._num_sent:
                raise DiptychError(metadata={"service": "encoder"})
            if new := chunk.data[self._num_sent - chunk.byte_offset :]:
                await self.write(_chunk(self.job, self._num_sent, new, manifest.dtype))
                self._num_sent += len(new)
        if self._num_sent != self.job.item.plan.num_tokens * row_bytes(manifest.width, manifest.dtype):
            raise DiptychError(metadata={"service": "encoder"})


class _Flights:
    """One encode of the same media at a time: the next in line looks into the cache first."""

    def __init__(self) -> None:
        self._locks: dict[bytes, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, media_key: bytes) -> AsyncIterator[bool]:
        """Hold the media's turn; yields whether somebody else had it first."""
        lock, num_users = self._locks.get(media_key, (asyncio.Lock(), 0))
        self._locks[media_key] = (lock, num_users + 1)
        try:
            async with lock:
                yield num_users > 0
        finally:
            lock, num_users = self._locks.pop(media_key)
            if num_users > 1:
                self._locks[media_key] = (lock, num_users - 1)


_EncodeCall = grpc.aio.StreamStreamCall[encoder_service_pb2.EncodeRequest, encoder_service_pb2.EncodeResponse]


async def _requests(job: EncodeJob, *, inline: bool) -> AsyncIterator[encoder_service_pb2.EncodeRequest]:
    item, plan = job.item, job.item.plan
    header = encoder_service_pb2.EncodeHeader(
        request_id=job.caller.request_id,
        tenant=job.caller.owner.tenant,
        epoch=job.caller.owner.epoch,
        max_cache_bytes=job.caller.owner.max_cache_bytes or None,
        kind=item.kind,
        file_sizes=[len(file) for file in item.files],
        resized_height=plan.height,
        resized_width=plan.width,
        frame_indices=plan.frame_indices,
        grid=item.grid,
        media_key=job.media_key,
        inline_embeddings=inline,
        vision_digest=job.encoder.vision_digest,
        no_store=job.no_store,
    )
    yield encoder_service_pb2.EncodeRequest(header=header)
    for file in item.files:
        for start in range(0, len(file), MAX_CHUNK_BYTES):
            yield encoder_service_pb2.EncodeRequest(chunk=file[start : start + MAX_CHUNK_BYTES])


async def _manifest(call: _EncodeCall, job: EncodeJob) -> encoder_service_pb2.Manifest:
    """The encoder's first word, which must fit the plan."""
    first = await call.read()
    if not isinstance(first, encoder_service_pb2.EncodeResponse) or first.WhichOneof("message") != "manifest":
        raise DiptychError(metadata={"service": "encoder"})
    manifest = first.manifest
    if manifest.grid != job.item.grid or manifest.width != job.encoder.width or manifest.dtype not in DTYPES:
        raise DiptychError(metadata={"service": "encoder"})
    return manifest


def _reference(job: EncodeJob, slice_keys: Iterable[bytes]) -> Message:
    return Message(reference=embedding_pb2.EmbeddingReference(media_index=job.index, slice_keys=slice_keys))


def _chunk(job: EncodeJob, byte_offset: int, data: bytes, dtype: str) -> Message:
    # made in its place: protobuf takes a hundred times as long to copy a message into another one
    return Message(chunk={"media_index": job.index, "byte_offset": byte_offset, "data": data, "dtype": dtype})


def _result(manifest: encoder_service_pb2.Manifest) -> content_pb2.CacheResult:
    if manifest.num_cached_slices == 0:
        return MISS
    return HIT if manifest.num_cached_slices == manifest.grid.t else PARTIAL


def _at_field(error: InvalidRequest, field: str) -> InvalidRequest:
    """The encoder's paths mean nothing to a client, save which of the files of a list of frames is at fault."""
    return InvalidRequest(
        [
            Violation(field + _frame_of(violation.field), violation.description, violation.reason)
            for violation in error.violations
        ]
    )


def _frame_of(encoder_field: str) -> str:
    place = encoder_field.removeprefix("header.file_sizes")
    return f".frames.frames{place}" if place != encoder_field and place else ""
