"""The gRPC face of the engine: prompt in, token events out."""

import asyncio
import math
import secrets
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import structlog
import torch
from diptych.v1 import decoder_service_pb2, decoder_service_pb2_grpc

from services.common import mrope
from services.common.cache import EmbeddingCache
from services.common.chunk_wire import GENERATE_REQUEST, Chunk
from services.common.errors import DeadlineExceeded
from services.common.interceptors import discard
from services.common.keys import EPOCH_BYTES
from services.common.slow_reader import write
from services.common.telemetry.spans import failure_of
from services.decoder.embeddings import RowsFormat, refused
from services.decoder.engine import Engine
from services.decoder.grammar import GrammarCompiler, GrammarError, GrammarSource, Matcher
from services.decoder.intake import EmbeddingIntake
from services.decoder.prefix_cache import root_hash
from services.decoder.sequence import MediaItem, Request
from services.decoder.stream import ResponseStream
from services.decoder.telemetry import DecoderMetrics, RequestTelemetry
from services.decoder.validation import CheckedPrompt, Rules, check_prompt

SERVICE_NAME = decoder_service_pb2.DESCRIPTOR.services_by_name["DecoderService"].full_name

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[decoder_service_pb2.GenerateRequest, decoder_service_pb2.GenerateResponse]
Messages = AsyncIterator[decoder_service_pb2.GenerateRequest | Chunk]


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """What callers are told of this decoder, and how long it waits for them."""

    model: str
    width: int
    dtype: str
    quantization: str
    block_size: int
    num_blocks: int
    prefix_cache: bool
    embedding_timeout_s: float
    slow_reader_timeout_s: float
    grammar_timeout_s: float


class DecoderService(decoder_service_pb2_grpc.DecoderServiceServicer):
    """One call's journey: check the prompt, compile its grammar, queue it, feed it embeddings, send its tokens."""

    def __init__(  # noqa: PLR0913, PLR0917 -- its parts
        self,
        engine: Engine,
        rules: Rules,
        facts: ServiceFacts,
        cache: EmbeddingCache,
        grammars: GrammarCompiler,
        metrics: DecoderMetrics,
    ) -> None:
        self._engine, self._rules, self._facts = engine, rules, facts
        self._cache, self._grammars, self._metrics = cache, grammars, metrics
        self._compilers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="grammar")

    async def Generate(self, requests: Messages, context: Context) -> None:  # noqa: N802 -- the method's name
        """Generate from one prompt; blocks and slot are free again within a step of the call's end."""
        checked, prompt = await self._read_prompt(requests)
        structlog.contextvars.bind_contextvars(request_id=prompt.request_id)
        num_tokens = len(checked.token_ids)
        self._engine.require_room(num_tokens, checked.params.max_tokens, _patience_s(context))  # before its grammar
        telemetry = RequestTelemetry(self._metrics, num_tokens)
        stream = ResponseStream(telemetry, unhurried=prompt.unhurried)
        request = self._request(prompt, checked, await self._matchers(checked), stream)
        self._engine.submit(request, _patience_s(context))
        cache = self._cache.of(prompt.tenant, prompt.epoch)
        feeding = asyncio.create_task(self._feed(requests, request, checked, stream, cache))
        try:
            if not all(checked.slice_keys):
                await context.send_initial_metadata(())  # taken: who sent rows before would lose a refusal amid a write
            async for response in stream:
                await write(context, response, self._facts.slow_reader_timeout_s)
        except BaseException as error:
            telemetry.end(failure_of(error))
            raise
        finally:
            self._engine.cancel(request)
            feeding.cancel()

    async def GetDecoderCapabilities(  # noqa: N802
        self, _request: decoder_service_pb2.GetDecoderCapabilitiesRequest, _context: Context
    ) -> decoder_service_pb2.GetDecoderCapabilitiesResponse:
        """What this decoder runs."""
        return decoder_service_pb2.GetDecoderCapabilitiesResponse(
            model=self._facts.model,
            checkpoint_digest=self._rules.checkpoint_digest,
            width=self._facts.width,
            dtype=self._facts.dtype,
            vocab_size=self._rules.vocab_size,
            max_context_tokens=self._rules.max_context_tokens,
            merge_size=self._rules.merge_size,
            quantization=self._facts.quantization,
            accepts_parts=True,
            accepts_slice_keys=True,
            cache="redis" if self._cache.shared else "memory",
        )

    async def GetLoad(  # noqa: N802
        self, _request: decoder_service_pb2.GetLoadRequest, _context: Context
    ) -> decoder_service_pb2.GetLoadResponse:
        """How busy the engine is, as of its last step."""
        load = self._engine.load
        return decoder_service_pb2.GetLoadResponse(
            num_running=load.num_running,
            num_waiting=load.num_waiting,
            num_used_blocks=load.num_used_blocks,
            num_total_blocks=self._facts.num_blocks,
            block_size=self._facts.block_size,
            num_preemptions=load.num_preemptions,
        )

    async def PurgeDecoder(  # noqa: N802
        self, request: decoder_service_pb2.PurgeDecoderRequest, _context: Context
    ) -> decoder_service_pb2.PurgeDecoderResponse:
        """Forget a tenant's blocks, and what is here of its embeddings."""
        if not request.tenant:
            raise refused("tenant", "is empty", "REQUIRED")
        if len(request.epoch) not in {0, EPOCH_BYTES}:
            raise refused("epoch", f"must have {EPOCH_BYTES} bytes", "WRONG_LENGTH")
        removed = await self._cache.of(request.tenant).purge_copies(request.epoch)
        num_blocks = await asyncio.wrap_future(self._engine.purge(request.tenant))
        return decoder_service_pb2.PurgeDecoderResponse(
            num_blocks=num_blocks, num_values=removed.num_values, num_bytes=removed.num_bytes
        )

    async def _read_prompt(self, requests: Messages) -> tuple[CheckedPrompt, decoder_service_pb2.Prompt]:
        first = await anext(requests, None)
        if first is None or isinstance(first, Chunk) or first.WhichOneof("message") != "prompt":
            raise refused("prompt", "must be the first message", "REQUIRED")
        return check_prompt(first.prompt, self._rules, secrets.randbits(64)), first.prompt

    async def _matchers(self, checked: CheckedPrompt) -> list[Matcher]:
        """One matcher a choice, compiled off the loop; none without a grammar."""
        if checked.grammar is None:
            return []
        field = f"prompt.generation.{checked.grammar.kind.value}"
        try:
            matchers = await asyncio.wait_for(
                self._compile(checked.grammar, checked.params.num_choices), self._facts.grammar_timeout_s
            )
        except GrammarError as error:
            raise refused(field, f"does not compile: {error}", "INVALID_GRAMMAR") from error
        except TimeoutError as error:
            raise refused(field, "takes too long to compile", "TOO_COMPLEX") from error
        await self._advance(matchers, checked.resumed)
        return matchers

    async def _compile(self, source: GrammarSource, count: int) -> list[Matcher]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._compilers, self._grammars.compile, source, count)

    async def _advance(self, matchers: list[Matcher], resumed: list[list[int]]) -> None:
        """Bring each choice's matcher to where its answer stopped elsewhere."""
        loop = asyncio.get_running_loop()
        for index, (matcher, token_ids) in enumerate(zip(matchers, resumed, strict=False)):
            try:
                await loop.run_in_executor(self._compilers, matcher.accept_all, token_ids)
            except GrammarError as error:
                raise refused(f"prompt.resumed[{index}].token_ids", "do not fit the grammar", "CONFLICT") from error

    def _request(
        self,
        prompt: decoder_service_pb2.Prompt,
        checked: CheckedPrompt,
        matchers: list[Matcher],
        stream: ResponseStream,
    ) -> Request:
        num_tokens, spans = len(checked.token_ids), checked.spans
        shares = self._facts.prefix_cache and not prompt.no_store
        salt = prompt.epoch if shares else secrets.token_bytes(16)
        return Request(
            request_id=prompt.request_id,
            tenant=prompt.tenant,
            token_ids=checked.token_ids,
            positions=mrope.positions(num_tokens, spans),
            delta=mrope.delta(num_tokens, spans),
            media=[
                MediaItem(span.offset, span.num_tokens, key)
                for span, key in zip(spans, checked.media_keys, strict=True)
            ],
            params=checked.params,
            root_hash=root_hash(prompt.tenant, salt),
            on_event=stream.push,
            priority=checked.priority,
            matchers=matchers,
            resumed=checked.resumed,
            no_store=prompt.no_store,
        )

    async def _feed(
        self,
        requests: Messages,
        request: Request,
        checked: CheckedPrompt,
        stream: ResponseStream,
        cache: EmbeddingCache,
    ) -> None:
        """Take in the request's embeddings; a fault of theirs ends the stream."""

        def provide(index: int, rows: torch.Tensor, num_rows: int) -> None:
            self._engine.provide(request, index, rows, num_rows)

        forms = [
            RowsFormat(t, rows * columns, self._facts.width, self._facts.dtype)
            for t, rows, columns in (span.shape for span in checked.spans)
        ]
        patience_s = self._facts.embedding_timeout_s
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(patience_s if checked.spans else None) as timeout:

                def note_progress() -> None:
                    if checked.spans:
                        timeout.reschedule(clock() + patience_s)

                intake = EmbeddingIntake(forms, cache, provide, stream.report_missing, note_progress)
                await intake.read_named(checked.slice_keys)
                await intake.run(requests)
        except TimeoutError:
            stream.fail(DeadlineExceeded("the embeddings did not arrive in time"))
        except Exception as error:
            try:
                await discard(requests)
            finally:
                stream.fail(error)


def register(service: decoder_service_pb2_grpc.DecoderServiceServicer, server: grpc.aio.Server) -> None:
    """Add the service to a server, whose chunks come in without becoming messages."""
    decoder_service_pb2_grpc.add_DecoderServiceServicer_to_server(service, server)
    generate = grpc.stream_stream_rpc_method_handler(
        service.Generate,
        request_deserializer=GENERATE_REQUEST.read,
        response_serializer=decoder_service_pb2.GenerateResponse.SerializeToString,
    )
    server.add_registered_method_handlers(SERVICE_NAME, {"Generate": generate})  # takes the generated one's place


def _patience_s(context: Context) -> float:
    """How long the caller still waits."""
    remaining = context.time_remaining()
    return math.inf if remaining is None else remaining
