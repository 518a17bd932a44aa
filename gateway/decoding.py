"""One request's stream with the decoder: the prompt at once, embeddings as they come, tokens back."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import AbstractContextManager, aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from time import monotonic

import grpc
from diptych.v1 import content_pb2, decoder_service_pb2

from services.common.chunk_wire import Chunk
from services.common.errors import ServiceUnavailable
from services.common.telemetry.spans import trace_metadata, traced

from .caller import Caller
from .encoding import HIT, MISS, PARTIAL, EncodeJob, Encoding, Write, reference_to
from .reach.kinds import Decoder, DecoderPool, DecoderStub
from .reach.refusals import Wish
from .reach.retries import Retries
from .resume import Progress

Request = decoder_service_pb2.GenerateRequest
Response = decoder_service_pb2.GenerateResponse
_Call = grpc.aio.StreamStreamCall[Request | Chunk, Response]

TAKEN_S = 1.0


@dataclass(slots=True)
class DecodeJob:
    """One prompt and the media it waits for. `media_cache` and `encode_s` are filled in as embeddings are found or
    sent, `begun` when the decoder starts on the prompt.

    `decoder`: what it must run. `prefix`: what prompts that start alike have in common, so that they find its caches.
    """

    caller: Caller
    prompt: decoder_service_pb2.Prompt
    media: Sequence[EncodeJob]
    decoder: Decoder
    prefix: bytes
    encode_s: float = 0.0
    begun: decoder_service_pb2.GenerateBegun = field(default_factory=decoder_service_pb2.GenerateBegun)
    media_cache: list[content_pb2.CacheResult] = field(init=False)
    progress: Progress = field(init=False)

    @property
    def inline(self) -> bool:
        """Whether rows travel in the stream: the decoder cannot read the shared cache, or it must hold nothing."""
        return self.decoder.cache != "redis" or self.prompt.no_store

    @property
    def wish(self) -> Wish | None:
        """What is asked of a decoder; nothing of one that is to go on with an answer."""
        if self.progress.has_begun:
            return None
        return Wish(self.caller.patience_s, self.prompt.generation.max_tokens)

    def __post_init__(self) -> None:
        generation = self.prompt.generation
        self.progress = Progress(generation.num_choices, resume=generation.resume)
        self.media_cache = [content_pb2.CACHE_RESULT_UNSPECIFIED] * len(self.media)


class Decoding:
    """Runs jobs on decoders."""

    def __init__(self, decoders: DecoderPool, encoding: Encoding) -> None:
        self._decoders = decoders
        self._encoding = encoding

    def expecting(self, wish: Wish) -> AbstractContextManager[None]:
        """While a call is prepared. Raises Overloaded when the decoders would refuse it, as they have just others."""
        return self._decoders.expecting(wish)

    async def generate(self, job: DecodeJob) -> AsyncGenerator[Response]:
        """Token events, then `finished` once and last. Closing the iterator cancels decoder and encoder.

        When a decoder is lost before its first token, another one is asked, within the budget; later only to resume.
        """
        retries, tried, progress = Retries(self._decoders.budget), None, job.progress
        while True:
            picking = self._decoders.pick(
                job.prefix, job.decoder, avoid=tried, patience_s=progress.patience_s, wish=job.wish
            )
            tried = await job.caller.deadline.bound(picking)
            try:
                with tried.call(job.wish) as stub:
                    async with aclosing(self._try_generate(job, stub)) as responses:
                        async for response in responses:
                            progress.note(response)
                            yield response
                return
            except ServiceUnavailable as error:
                if error.service != "decoder":
                    raise
                if not (await progress.may_resume() if progress.has_begun else retries.take()):
                    raise

    @traced("generate")
    async def _try_generate(self, job: DecodeJob, stub: DecoderStub) -> AsyncGenerator[Response]:
        call = stub.Generate(timeout=job.caller.deadline.remaining(), metadata=trace_metadata())
        writer = _Writer(call)
        feed = _Feed(job, self._encoding, writer.write_once_taken)
        responses = aiter(call)  # not `read`, which gives up at a failed write though the answer is there
        try:
            await feed.look_up()
            with suppress(CallOverError):
                await writer.write(Request(prompt=job.progress.continued(job.prompt)))
                feed.start_all()
            while (response := await feed.first_of(anext(responses, None))) is not None:
                if response.WhichOneof("event") == "missing":
                    await feed.start_again(response.missing.media_index)
                    continue
                if response.WhichOneof("event") == "begun":
                    job.begun = job.begun if job.progress.has_begun else response.begun
                    continue
                await feed.stop()  # tokens show that the decoder has all it needs
                yield response
                if response.WhichOneof("event") == "finished":
                    return
            raise ServiceUnavailable("decoder", "the decoder ended its answer early")
        finally:
            call.cancel()
            await feed.stop()


class CallOverError(Exception):
    """The decoder's call has ended; its status comes with the next read."""


class _Writer:
    """Writes one message at a time, for many tasks."""

    def __init__(self, call: _Call) -> None:
        self._call = call
        self._lock = asyncio.Lock()

    async def write(self, message: Request | Chunk) -> None:
        """Raises CallOverError. A cancelled caller leaves the write to end by itself: grpc would cancel the call."""
        writing = asyncio.ensure_future(self._write(message))
        writing.add_done_callback(lambda done: done.exception())  # nobody else may be left to hear it
        await asyncio.shield(writing)

    async def _write(self, message: Request | Chunk) -> None:
        async with self._lock:
            try:
                await self._call.write(message)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError) as error:
                raise CallOverError from error

    async def write_once_taken(self, message: Request | Chunk) -> None:
        """Like `write`, once the decoder has taken the prompt, or is one that does not say so.

        grpc.aio loses the status of a call that ends while it is written to, so a refusal must come before.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(TAKEN_S):
                await self._call.initial_metadata()
        await self.write(message)


class _Feed:
    """Says in the prompt where embeddings are cached, and sends those of other items, each in a task of its own.

    A task that fails fails whoever waits for the decoder.
    """

    def __init__(self, job: DecodeJob, encoding: Encoding, write: Write) -> None:
        self._job = job
        self._encoding = encoding
        self._write = write
        self._started_at = monotonic()
        self._found: list[list[bytes] | None] = [None] * len(job.media)  # keys of slices that are cached
        self._earlier = list(job.media_cache)  # of sends that were lost: what those encoded counts
        self._tasks: set[asyncio.Task[None]] = set()
        self._task_of: dict[int, asyncio.Task[None]] = {}

    async def look_up(self) -> None:
        """Find what is cached, and name it in the prompt of a decoder that reads that."""
        job = self._job
        if not job.inline and job.media:
            self._found = await asyncio.gather(*(self._encoding.find_for(item) for item in job.media))
        for index, keys in enumerate(self._found):
            self._note(index, MISS if keys is None else HIT)
            del job.prompt.media[index].slice_keys[:]  # of an earlier try
            if job.decoder.accepts_slice_keys:
                job.prompt.media[index].slice_keys.extend(keys or ())
        job.encode_s = monotonic() - self._started_at

    def start_all(self) -> None:
        """Start with every item that the prompt does not name; images of one request go in parallel."""
        for index, placement in enumerate(self._job.prompt.media):
            if not placement.slice_keys:
                self._start(index, inline=self._job.inline)

    async def start_again(self, index: int) -> None:
        """Send an item's rows themselves, for the decoder has lost a reference; nothing else of it goes beside them."""
        before = self._task_of.get(index)
        if before is not None and not before.done():
            self._tasks.discard(before)
            before.cancel()
            await asyncio.gather(before, return_exceptions=True)
        self._found[index], self._earlier[index] = None, self._job.media_cache[index]
        self._note(index, MISS)
        self._start(index, inline=True)

    async def first_of(self, reading: Awaitable[Response | None]) -> Response | None:
        """What the decoder says next. Raises the error of an encode that fails meanwhile."""
        if not self._tasks:
            return await reading  # most tokens: without a task of its own
        read = asyncio.ensure_future(reading)
        try:
            while not read.done() and self._tasks:
                await asyncio.wait({read, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
                self._collect()
            return await read
        finally:
            read.cancel()

    async def stop(self) -> None:
        """Cancel what is still on its way: a decoder that has the prompt from before needs none of it."""
        if self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._tasks.clear()

    def _collect(self) -> None:
        done = [task for task in self._tasks if task.done()]
        errors = [error for task in done if (error := task.exception()) is not None]
        for task in done:
            self._tasks.discard(task)
        if errors:
            raise errors[0]

    def _note(self, index: int, result: content_pb2.CacheResult) -> None:
        earlier = self._earlier[index]
        self._job.media_cache[index] = earlier if earlier in (MISS, PARTIAL) else result

    def _start(self, index: int, *, inline: bool) -> None:
        task = self._task_of[index] = asyncio.create_task(self._send(index, inline=inline))
        self._tasks.add(task)

    async def _send(self, index: int, *, inline: bool) -> None:
        job, keys = self._job.media[index], self._found[index]
        with suppress(CallOverError):  # the decoder's own status says more
            if keys is not None:
                await self._write(reference_to(job, keys))
            else:
                await self._encoding.encode(job, self._write, partial(self._note, index), inline=inline)
        self._job.encode_s = monotonic() - self._started_at
