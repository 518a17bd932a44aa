"""An encoder and a decoder that say what a test wants, on real sockets."""
# ruff: noqa: N802 -- gRPC's own names

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from diptych.v1 import (
    chat_service_pb2_grpc,
    decoder_service_pb2,
    decoder_service_pb2_grpc,
    embedding_pb2,
    encoder_service_pb2,
    encoder_service_pb2_grpc,
    generation_pb2,
)

from gateway.caller import guards_of
from gateway.quotas import QuotaInterceptor
from gateway.reach.kinds import open_pools
from gateway.rooms import Rooms
from gateway.service import ChatService
from gateway.settings import GatewaySettings
from services.common.checkpoint import Checkpoint
from services.common.interceptors import ErrorInterceptor
from services.common.telemetry.process import Telemetry

End = decoder_service_pb2.GenerateFinished.End
Context = grpc.aio.ServicerContext[Any, Any]
MAX_CONTEXT = 4096
CHUNK = 100
MAX_MESSAGE_BYTES = 64 << 20


@dataclass
class FakeEncoder(encoder_service_pb2_grpc.EncoderServiceServicer):
    """Rows of one repeated byte. `num_failures`: UNAVAILABLE that often, `fail_after` rows' bytes have been sent.

    `streams`: it knows `EncodeHeader.stream`, and sends all slices but the last before its manifest.
    """

    checkpoint: Checkpoint
    stored: bool = False
    streams: bool = False
    num_failures: int = 0
    fail_after: int | None = None
    error: Exception | None = None
    digest: str = ""
    instance: str = field(default_factory=lambda: secrets.token_hex(8))
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    headers: list[encoder_service_pb2.EncodeHeader] = field(default_factory=list)
    files: list[bytes] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    sends_rows: asyncio.Event = field(default_factory=asyncio.Event)
    removed: encoder_service_pb2.PurgeEncoderResponse = field(default_factory=encoder_service_pb2.PurgeEncoderResponse)
    purges: list[encoder_service_pb2.PurgeEncoderRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    async def PurgeEncoder(self, request: Any, _context: Context) -> Any:
        self.purges.append(request)
        return self.removed

    async def Encode(self, request_iterator: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        header = (await anext(request_iterator)).header
        self.headers.append(header)
        self.files.append(b"".join([request.chunk async for request in request_iterator]))
        self.started.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.error is not None:
            raise self.error
        if self.num_failures and self.fail_after is None:
            self.num_failures -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        async for response in self._answer(header, context):
            yield response

    async def _answer(self, header: encoder_service_pb2.EncodeHeader, context: Context) -> AsyncIterator[Any]:
        grid, width = header.grid, self.checkpoint.text.hidden_size
        keys = [bytes([slice_index]) * 32 for slice_index in range(grid.t)]
        manifest = encoder_service_pb2.Manifest(
            grid=grid, width=width, dtype="float32", slice_keys=keys, stored=self.stored
        )
        size = len(expected_rows(header, self.checkpoint))
        early = size // grid.t * (grid.t - 1) if self.streams and header.stream else 0
        async for response in self._parts(header, 0, early, context):
            yield response
        yield encoder_service_pb2.EncodeResponse(manifest=manifest)
        if not self.stored or header.inline_embeddings:
            async for response in self._parts(header, early, size, context):
                yield response

    async def _parts(
        self, header: encoder_service_pb2.EncodeHeader, start: int, end: int, context: Context
    ) -> AsyncIterator[Any]:
        """Bytes `start` to `end` of the rows: keys of stored slices, or chunks."""
        rows = expected_rows(header, self.checkpoint)
        slice_size = len(rows) // header.grid.t
        is_named = self.stored and not header.inline_embeddings
        for at in range(start, end, slice_size if is_named else CHUNK):
            if self.num_failures and at >= (self.fail_after or 0):
                self.num_failures -= 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            if is_named:
                index = at // slice_size
                stored = encoder_service_pb2.StoredSlices(first_slice=index, slice_keys=[bytes([index]) * 32])
                yield encoder_service_pb2.EncodeResponse(stored=stored)
            else:
                data = rows[at : min(at + CHUNK, end)]
                chunk = embedding_pb2.EmbeddingChunk(byte_offset=at, data=data, dtype="float32")
                yield encoder_service_pb2.EncodeResponse(chunk=chunk)
                self.sends_rows.set()

    async def GetEncoderCapabilities(self, _request: Any, _context: Context) -> Any:
        pre = self.checkpoint.preprocessor
        return encoder_service_pb2.GetEncoderCapabilitiesResponse(
            model=self.checkpoint.name,
            vision_digest=f"vision{self.digest}",
            checkpoint_digest=self.digest or self.checkpoint.digest(),
            width=self.checkpoint.text.hidden_size,
            dtype="float32",
            patch_size=pre.patch_size,
            merge_size=pre.merge_size,
            temporal_patch_size=pre.temporal_patch_size,
            preprocessing=pre.version,
            max_patches=4096,
            cache="memory",
            instance=self.instance,
        )


def expected_rows(header: encoder_service_pb2.EncodeHeader, checkpoint: Checkpoint) -> bytes:
    """What FakeEncoder answers: the bytes differ from place to place, so that a gap shows."""
    grid, merge = header.grid, checkpoint.preprocessor.merge_size
    size = grid.t * grid.h * grid.w // merge**2 * checkpoint.text.hidden_size * 4
    return bytes(n % 251 for n in range(size))


@dataclass
class FakeDecoder(decoder_service_pb2_grpc.DecoderServiceServicer):
    """Waits for every item's embeddings, then says `scripts` (token ids of each choice), a token an event."""

    checkpoint: Checkpoint
    scripts: Sequence[Sequence[int]] = ((),)
    cache: str = "memory"
    accepts_parts: bool = False  # as decoders did before there were parts
    accepts_slice_keys: bool = False
    missing: set[int] = field(default_factory=set)
    num_failures: int = 0
    fail_after_tokens: int | None = None
    refusal: Exception | None = None  # of a prompt, once `may_refuse` is set
    end_reason: "generation_pb2.FinishReason" = generation_pb2.FINISH_REASON_STOP
    with_logprobs: bool = False
    digest: str = ""
    endless: bool = False
    has_prompt: bool = False
    num_running: int = 0
    num_descriptions: int = 0  # how often it was asked what it is
    answers: asyncio.Event = field(default_factory=asyncio.Event)  # while it is clear, it tells nothing of itself
    prompts: list[decoder_service_pb2.Prompt] = field(default_factory=list)
    references: dict[int, list[bytes]] = field(default_factory=dict)
    rows: dict[int, bytes] = field(default_factory=dict)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    may_refuse: asyncio.Event = field(default_factory=asyncio.Event)
    removed: decoder_service_pb2.PurgeDecoderResponse = field(default_factory=decoder_service_pb2.PurgeDecoderResponse)
    purges: list[decoder_service_pb2.PurgeDecoderRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.answers.set()

    async def PurgeDecoder(self, request: Any, _context: Context) -> Any:
        self.purges.append(request)
        return self.removed

    async def Generate(self, request_iterator: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        try:
            async for response in self._answer(request_iterator, context):
                yield response
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def _answer(self, requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        prompt = (await anext(requests)).prompt
        self.prompts.append(prompt)
        if self.refusal is not None:
            await self.may_refuse.wait()
            raise self.refusal
        if prompt.media:
            self.rows = {}
            self.references = {i: list(item.slice_keys) for i, item in enumerate(prompt.media) if item.slice_keys}
            assert self.accepts_slice_keys or not self.references
            await context.send_initial_metadata(())
        if self.num_failures and self.fail_after_tokens is None:
            self.num_failures -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        async for response in self._embeddings(prompt, requests):
            yield response
        begun = decoder_service_pb2.GenerateBegun(num_cached_tokens=3, queue_ms=1.5)
        yield decoder_service_pb2.GenerateResponse(begun=begun)
        num_sent = 0
        for step in range(max(map(len, self.scripts))):
            for index, script in enumerate(self.scripts):
                if step < len(script):
                    if num_sent == self.fail_after_tokens:
                        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
                    yield self._token(index, script[step])
                    num_sent += 1
        if self.endless:
            await asyncio.Event().wait()
        eos = self.checkpoint.generation.eos_token_ids[0]
        ends = [End(reason=self.end_reason, stop_token_id=eos, num_tokens=len(script) + 1) for script in self.scripts]
        finished = decoder_service_pb2.GenerateFinished(ends=ends)
        yield decoder_service_pb2.GenerateResponse(finished=finished)

    async def _embeddings(self, prompt: Any, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        for index in self.missing & self.references.keys():
            del self.references[index]
            yield self._missing(index)
        while not self.has_prompt and not all(self._is_complete(index, prompt) for index in range(len(prompt.media))):
            if (request := await anext(requests, None)) is None:
                await asyncio.Event().wait()  # the gateway is leaving: the cancellation is on its way
            async for response in self._take(request, prompt):
                yield response

    async def _take(self, request: Any, prompt: decoder_service_pb2.Prompt) -> AsyncIterator[Any]:
        if request.WhichOneof("message") == "chunk":
            chunk = request.chunk
            num_named = len(self.references.get(chunk.media_index, []))
            before = self.rows.get(chunk.media_index, b"")
            assert chunk.byte_offset == self._size(prompt.media[chunk.media_index], num_named) + len(before)
            self.rows[chunk.media_index] = before + chunk.data
        elif (index := request.reference.media_index) in self.missing:
            yield self._missing(index)
        else:
            first = request.reference.first_slice
            named = self.references.get(index, [])[:first]  # others may ask for the same at the same time
            assert (len(named), index in self.rows) == (first, False)
            self.references[index] = [*named, *request.reference.slice_keys]
            assert self.accepts_parts or self._is_complete(index, prompt)

    def _missing(self, index: int) -> decoder_service_pb2.GenerateResponse:
        self.missing.discard(index)
        return decoder_service_pb2.GenerateResponse(missing=decoder_service_pb2.EmbeddingMissing(media_index=index))

    def _is_complete(self, index: int, prompt: decoder_service_pb2.Prompt) -> bool:
        item, num_named = prompt.media[index], len(self.references.get(index, []))
        return self._size(item, num_named) + len(self.rows.get(index, b"")) == self._size(item, item.grid.t)

    def _size(self, item: decoder_service_pb2.MediaPlacement, num_slices: int) -> int:
        """Bytes of the rows of some slices of an item."""
        grid, merge = item.grid, self.checkpoint.preprocessor.merge_size
        return num_slices * grid.h * grid.w // merge**2 * self.checkpoint.text.hidden_size * 4

    def _token(self, index: int, token_id: int) -> decoder_service_pb2.GenerateResponse:
        logprobs = [generation_pb2.TokenLogprob(token_id=token_id, logprob=-0.5)] if self.with_logprobs else []
        delta = decoder_service_pb2.TokenDelta(index=index, token_ids=[token_id], logprobs=logprobs)
        return decoder_service_pb2.GenerateResponse(tokens=delta)

    async def GetDecoderCapabilities(self, _request: Any, _context: Context) -> Any:
        self.num_descriptions += 1
        await self.answers.wait()
        return decoder_service_pb2.GetDecoderCapabilitiesResponse(
            model=self.checkpoint.name,
            checkpoint_digest=self.digest or self.checkpoint.digest(),
            width=self.checkpoint.text.hidden_size,
            dtype="float32",
            vocab_size=self.checkpoint.text.vocab_size,
            max_context_tokens=MAX_CONTEXT,
            merge_size=self.checkpoint.preprocessor.merge_size,
            cache=self.cache,
            accepts_parts=self.accepts_parts,
            accepts_slice_keys=self.accepts_slice_keys,
        )

    async def GetLoad(self, _request: Any, _context: Context) -> Any:
        return decoder_service_pb2.GetLoadResponse(num_running=self.num_running, num_total_blocks=100)


@dataclass
class Stage:
    """A gateway between a fake encoder and a fake decoder; `None` servers are not running."""

    encoder: FakeEncoder
    decoder: FakeDecoder
    rooms: Rooms
    stub: Any
    servers: dict[str, grpc.aio.Server]


@asynccontextmanager
async def serving(
    register: Any, servicer: Any, guards: Sequence[grpc.aio.ServerInterceptor] = ()
) -> AsyncIterator[tuple[str, grpc.aio.Server]]:
    """A server on a free port."""
    server = grpc.aio.server(
        interceptors=[ErrorInterceptor(10), *guards],
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)],
    )
    register(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", server
    finally:
        await server.stop(0)


@asynccontextmanager
async def staged(checkpoint: Checkpoint, *, digests: Sequence[str] = ("", ""), **settings: Any) -> AsyncIterator[Stage]:
    """Everything running, the gateway with `settings`. `digests`: the checkpoints of encoder and decoder."""
    encoder, decoder = FakeEncoder(checkpoint, digest=digests[0]), FakeDecoder(checkpoint, digest=digests[1])
    async with (
        serving(encoder_service_pb2_grpc.add_EncoderServiceServicer_to_server, encoder) as (encoder_at, encoder_server),
        serving(decoder_service_pb2_grpc.add_DecoderServiceServicer_to_server, decoder) as (decoder_at, decoder_server),
        open_pools(
            chosen := GatewaySettings(
                model=str(checkpoint.path), encoder=encoder_at, decoder=decoder_at, **{"cache_timeout_s": 5, **settings}
            )
        ) as pools,
    ):
        rooms = Rooms(chosen, checkpoint, pools, Telemetry("gateway"))
        register = chat_service_pb2_grpc.add_ChatServiceServicer_to_server
        guards = [*guards_of(chosen), QuotaInterceptor(rooms.quotas)]
        async with (
            serving(register, ChatService(chosen, rooms), guards) as (gateway_at, gateway_server),
            grpc.aio.insecure_channel(gateway_at, options=[("grpc.max_send_message_length", -1)]) as channel,
        ):
            servers = {"encoder": encoder_server, "decoder": decoder_server, "gateway": gateway_server}
            yield Stage(encoder, decoder, rooms, chat_service_pb2_grpc.ChatServiceStub(channel), servers)
        await rooms.close()
