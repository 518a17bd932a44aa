"""A media item's embeddings on their way to the decoder: by reference where a shared cache has them, else in chunks."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import grpc
from diptych.v1 import content_pb2, decoder_service_pb2, embedding_pb2, encoder_service_pb2

from services.common.cache.base import EmbeddingCache
from services.common.chunk_wire import Chunk
from services.common.embedding import DTYPES, MAX_CHUNK_BYTES, row_bytes
from services.common.errors import DiptychError, InvalidRequest, ServiceUnavailable, Violation
from services.common.telemetry.spans import trace_metadata, traced

from .caller import Caller
from .media import MediaItem
from .reach.kinds import Encoder, EncoderEndpoint, EncoderPool, EncoderStub
from .reach.retries import Retries
from .reach.suspects import Suspects

Message = decoder_service_pb2.GenerateRequest
Write = Callable[[Message | Chunk], Awaitable[None]]
Note = Callable[[content_pb2.CacheResult], None]

HIT = content_pb2.CACHE_RESULT_HIT
MISS = content_pb2.CACHE_RESULT_MISS
PARTIAL = content_pb2.CACHE_RESULT_PARTIAL


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """One item to be encoded for the decoder. `index`: its place in the prompt. `encoder`: what it must run.

    With `no_store` it goes inline, and takes no turn with others that are to be cached. `in_parts`: the decoder takes
    what is encoded of it while the rest is not.
    """

    caller: Caller
    item: MediaItem
    index: int
    media_key: bytes
    encoder: Encoder
    no_store: bool = False
    in_parts: bool = False

    @property
    def num_slices(self) -> int:
        """Temporal slices of the item."""
        return self.item.plan.grid[0]

    def slice_bytes(self, dtype: str) -> int:
        """Bytes of one slice's rows."""
        return self.item.plan.num_tokens // self.num_slices * row_bytes(self.encoder.width, dtype)


class Encoding:
    """Finds or makes embeddings. Requests for the same media at the same time encode once."""

    def __init__(self, encoders: EncoderPool, cache: EmbeddingCache) -> None:
        self._encoders = encoders
        self._cache = cache
        self._flights = _Flights()
        self._suspects = Suspects(encoders)

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

    async def find_for(self, job: EncodeJob) -> list[bytes] | None:
        """The same of an item to be encoded, which then need not be."""
        keys = await self.find(job.item, job.media_key, job.encoder.width, job.caller.tenant)
        if keys is not None:
            self._suspects.note_encoded(job.media_key)
        return keys

    async def encode(self, job: EncodeJob, write: Write, note: Note, *, inline: bool) -> None:
        """Have an item encoded and give the decoder its embeddings; `inline` sends the rows themselves.

        `note` is told when they turn out to have been cached. There is another try, elsewhere if possible, when the
        encoder was lost; rows already sent are not sent again.
        """
        rows, retries, tried = _Rows(job, write), Retries(self._encoders.budget), None
        while True:
            async with AsyncExitStack() as turn:
                flight = _Flight() if job.no_store else await turn.enter_async_context(self._flights.of(job.media_key))
                may_be_there = flight.endpoint and not inline and rows.is_empty
                if may_be_there and (keys := await self.find_for(job)) is not None:
                    note(HIT)
                    await write(reference_to(job, keys))
                    return
                picking = self._encoders.pick(job.media_key, job.encoder, avoid=tried, prefer=flight.endpoint)
                tried = flight.endpoint = await job.caller.deadline.bound(picking)
                try:
                    with tried.call() as stub:
                        await self._try_encode(tried, stub, rows, note, turn, inline=inline)
                    return
                except InvalidRequest as error:
                    raise _at_field(error, job.item.field) from error
                except ServiceUnavailable:
                    if not retries.take():
                        raise

    @traced("call encoder")
    async def _try_encode(  # noqa: PLR0913 -- whom to ask for what, and who is told
        self,
        endpoint: EncoderEndpoint,
        stub: EncoderStub,
        rows: "_Rows",
        note: Note,
        turn: AsyncExitStack,
        *,
        inline: bool,
    ) -> None:
        job = rows.job
        async with AsyncExitStack() as until_known:
            await until_known.enter_async_context(self._suspects.trying(job.media_key, job.item.field, endpoint))
            inline = inline or rows.must_go_on_inline
            requests = _requests(job, inline=inline)
            call = stub.Encode(requests, timeout=job.caller.deadline.remaining(), metadata=trace_metadata())
            try:
                manifest = await rows.relay(call)
                note(_result(manifest))
                await until_known.aclose()
                await turn.aclose()  # who is next in line need not wait for the decoder's pace
                if manifest.stored and not inline:
                    await rows.send_references(0, manifest.slice_keys)
                await rows.relay_rest(call)
            finally:
                call.cancel()


class _Rows:
    """How far one item's rows are on their way to the decoder; holds none of them."""

    def __init__(self, job: EncodeJob, write: Write) -> None:
        self.job = job
        self.write = write
        self._num_slices = 0
        self._num_bytes = 0  # of the slice after those
        self._dtype = ""  # what rows themselves come in; only they tell

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been sent."""
        return self._num_slices == self._num_bytes == 0

    @property
    def is_complete(self) -> bool:
        """Whether everything has been sent."""
        return (self._num_slices, self._num_bytes) == (self.job.num_slices, 0)

    @property
    def must_go_on_inline(self) -> bool:
        """Whether what was sent can only be followed by rows: it ends amid a slice, or the decoder takes no parts."""
        return self._num_bytes > 0 or not (self.is_empty or self.job.in_parts)

    async def relay(self, call: "_EncodeCall") -> encoder_service_pb2.Manifest:
        """Pass on what the encoder says before its manifest. Raises DiptychError for one that does not fit the plan."""
        while (response := await _next(call)) is not None:
            if not isinstance(response, Chunk) and response.WhichOneof("message") == "manifest":
                _require_fitting(response.manifest, self.job)
                return response.manifest
            await self._pass_on(response)
        raise DiptychError(metadata={"service": "encoder"})

    async def relay_rest(self, call: "_EncodeCall") -> None:
        """Pass on what comes behind the manifest, if any is needed. Raises DiptychError when rows are missing."""
        if self.is_complete:
            return
        while (response := await _next(call)) is not None:
            await self._pass_on(response)
        if not self.is_complete:
            raise DiptychError(metadata={"service": "encoder"})

    async def send_references(self, first_slice: int, keys: Sequence[bytes]) -> None:
        """Send the keys of slices that have not been sent yet."""
        next_slice = self._num_slices
        if first_slice > next_slice or first_slice + len(keys) > self.job.num_slices or self._num_bytes:
            raise DiptychError(metadata={"service": "encoder"})
        if new := keys[next_slice - first_slice :]:
            await self.write(reference_to(self.job, new, next_slice))
            self._num_slices += len(new)

    async def _pass_on(self, response: "_Response") -> None:
        if isinstance(response, Chunk):
            await self._send_chunk(response)
        elif response.WhichOneof("message") == "stored":
            await self.send_references(response.stored.first_slice, response.stored.slice_keys)
        else:
            raise DiptychError(metadata={"service": "encoder"})

    async def _send_chunk(self, chunk: Chunk) -> None:
        """Send what has not been sent yet of a chunk."""
        if chunk.dtype not in DTYPES or self._dtype not in ("", chunk.dtype):
            raise DiptychError(metadata={"service": "encoder"})
        self._dtype, slice_bytes = chunk.dtype, self.job.slice_bytes(chunk.dtype)
        num_sent = self._num_slices * slice_bytes + self._num_bytes
        if chunk.byte_offset > num_sent:
            raise DiptychError(metadata={"service": "encoder"})
        if new := chunk.data[num_sent - chunk.byte_offset :]:
            await self.write(Chunk(self.job.index, num_sent, new, chunk.dtype))
            self._num_slices, self._num_bytes = divmod(num_sent + len(new), slice_bytes)


@dataclass(eq=False, slots=True)
class _Flight:
    """Requests for the same media. `endpoint`: who was asked last, and so has it; None before the first was."""

    endpoint: EncoderEndpoint | None = None
    num_users: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class _Flights:
    """One encode of the same media at a time: the next in line looks into the cache first."""

    def __init__(self) -> None:
        self._flights: dict[bytes, _Flight] = {}

    @asynccontextmanager
    async def of(self, media_key: bytes) -> AsyncIterator[_Flight]:
        """Hold the media's turn."""
        flight = self._flights.setdefault(media_key, _Flight())
        flight.num_users += 1
        try:
            async with flight.lock:
                yield flight
        finally:
            flight.num_users -= 1
            if not flight.num_users:
                del self._flights[media_key]


_Response = encoder_service_pb2.EncodeResponse | Chunk
_EncodeCall = grpc.aio.StreamStreamCall[encoder_service_pb2.EncodeRequest, _Response]


async def _next(call: _EncodeCall) -> _Response | None:
    """The encoder's next word; None when it has said all."""
    response = await call.read()
    return response if isinstance(response, _Response) else None


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
        stream=job.in_parts,
    )
    yield encoder_service_pb2.EncodeRequest(header=header)
    for file in item.files:
        for start in range(0, len(file), MAX_CHUNK_BYTES):
            yield encoder_service_pb2.EncodeRequest(chunk=file[start : start + MAX_CHUNK_BYTES])


def _require_fitting(manifest: encoder_service_pb2.Manifest, job: EncodeJob) -> None:
    """What the encoder has made must be what was planned."""
    made = (manifest.width, len(manifest.slice_keys))
    if manifest.grid != job.item.grid or made != (job.encoder.width, job.num_slices):
        raise DiptychError(metadata={"service": "encoder"})


def reference_to(job: EncodeJob, slice_keys: Iterable[bytes], first_slice: int = 0) -> Message:
    """A message that names slices of an item in the shared cache."""
    reference = embedding_pb2.EmbeddingReference(media_index=job.index, slice_keys=slice_keys, first_slice=first_slice)
    return Message(reference=reference)


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
