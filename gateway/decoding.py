"""One request's stream with the decoder: the prompt at once, embeddings as they come, tokens back."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from time import monotonic

import grpc
from diptych.v1 import content_pb2, decoder_service_pb2, decoder_service_pb2_grpc

from services.common.errors import ServiceUnavailable, from_rpc_error

from .caller import Caller
from .encoding import MAX_TRIES, EncodeJob, Encoding, Write

Request = decoder_service_pb2.GenerateRequest
Response = decoder_service_pb2.GenerateResponse
_Call = grpc.aio.StreamStreamCall[Request, Response]


@dataclass(slots=True)
class DecodeJob:
    """One prompt and the media it waits for. `media_cache` and `encode_s` are filled in as embeddings are sent.

    `inline`: the decoder cannot read the shared cache, so rows travel in the stream.
    """

    caller: Caller
    prompt: decoder_service_pb2.Prompt
    media: Sequence[EncodeJob]
    inline: bool
    encode_s: float = 0.0
    media_cache: list[content_pb2.CacheResult] = field(init=False)

    def __post_init__(self) -> None:
        self.media_cache = [content_pb2.CACHE_RESULT_UNSPECIFIED] * len(self.media)


class Decoding:
    """Runs jobs on the decoder."""

    def __init__(self, stub: decoder_service_pb2_grpc.DecoderServiceStub, encoding: Encoding) -> None:
        self._stub = stub
        self._encoding = encoding

    async def generate(self, job: DecodeJob) -> AsyncGenerator[Response]:
        """Token events, then `finished` once and last. Closing the iterator cancels decoder and encoder.

        A decoder that is not there is tried twice, and only before its first word.
        """
        for tries_left in reversed(range(MAX_TRIES)):
            heard = False
            try:
                async with aclosing(self._try_generate(job)) as responses:
                    async for response in responses:
                        heard = True
                        yield response
                return
            except ServiceUnavailable as error:
                if error.service != "decoder" or heard or not tries_left:
                    raise

    async def _try_generate(self, job: DecodeJob) -> AsyncGenerator[Response]:
        call = self._stub.Generate(timeout=job.caller.deadline.remaining())
        feed = _Feed(job, self._encoding, _writer(call))
        try:
            with suppress(CallOverError):
                await _write(call, Request(prompt=job.prompt))
                feed.start_all()
            while True:
                response = await feed.first_of(call.read())
                if not isinstance(response, decoder_service_pb2.GenerateResponse):
                    raise ServiceUnavailable("decoder", "the decoder ended its answer early")
                if response.WhichOneof("event") == "missing":
                    feed.start(response.missing.media_index, inline=True)
                    continue
                await feed.settle()  # tokens show that all embeddings have arrived
                yield response
                if response.WhichOneof("event") == "finished":
                    return
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, "decoder") from error
        finally:
            call.cancel()
            await feed.close()


class CallOverError(Exception):
    """The decoder's call has ended; its status comes with the next read."""


class _Feed:
    """Sends each item's embeddings in a task of its own. A failed one fails whoever waits for the decoder."""

    def __init__(self, job: DecodeJob, encoding: Encoding, write: Write) -> None:
        self._job = job
        self._encoding = encoding
        self._write = write
        self._started_at = monotonic()
        self._tasks: set[asyncio.Task[None]] = set()

    def start_all(self) -> None:
        """Start with every item; images of one request go in parallel."""
        for index in range(len(self._job.media)):
            self.start(index, inline=self._job.inline)

    def start(self, index: int, *, inline: bool) -> None:
        """Send one item's embeddings."""
        self._tasks.add(asyncio.create_task(self._send(index, inline=inline)))

    async def first_of(self, reading: Awaitable[object]) -> object:
        """What the decoder says next. Raises the error of an encode that fails meanwhile."""
        read = asyncio.ensure_future(reading)
        try:
            while not read.done() and self._tasks:
                await asyncio.wait({read, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
                self._collect()
            return await read
        finally:
            read.cancel()

    async def settle(self) -> None:
        """Wait until every item's task is over and has noted where its embeddings came from."""
        while self._tasks:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
            self._collect()

    async def close(self) -> None:
        """Cancel what is still being encoded."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _collect(self) -> None:
        done = {task for task in self._tasks if task.done()}
        self._tasks -= done
        errors = [error for task in done if (error := task.exception()) is not None]
        if errors:
            raise errors[0]

    async def _send(self, index: int, *, inline: bool) -> None:
        try:
            result = await self._encoding.send(self._job.media[index], self._write, inline=inline)
        except CallOverError:
            return  # the decoder's own status says more
        self._job.media_cache[index] = result
        self._job.encode_s = monotonic() - self._started_at


def _writer(call: _Call) -> Write:
    """Writes one message at a time, for many tasks."""
    lock = asyncio.Lock()

    async def write(message: Request) -> None:
        async with lock:
            await _write(call, message)

    return write


async def _write(call: _Call, message: Request) -> None:
    try:
        await call.write(message)
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
        raise CallOverError from error
