"""The service over a real socket, with a real engine behind it."""

import asyncio
import json
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from diptych.v1 import content_pb2, decoder_service_pb2, decoder_service_pb2_grpc, embedding_pb2, generation_pb2
from tokenizers import Tokenizer

from cli.local_redis import LocalRedis
from services.common.cache import EmbeddingCache, open_cache
from services.common.embedding import Slice
from services.common.errors import (
    DiptychError,
    InvalidRequest,
    PromptTooLong,
    SlowReader,
    VersionMismatch,
    from_rpc_error,
)
from services.common.int8_rows import SCALE_BYTES, dequantized, quantized
from services.common.server import serve
from services.common.settings import load
from services.common.telemetry.process import Telemetry
from services.decoder.__main__ import SERVICE_NAME
from services.decoder.assemble import build_decoder
from services.decoder.grammar import GrammarCompiler
from services.decoder.service import DecoderService
from services.decoder.settings import DecoderSettings
from tests.decoder.conftest import Case, Harness, Model

CALL_S = 60
KINDS = {"image": content_pb2.MEDIA_KIND_IMAGE, "video": content_pb2.MEDIA_KIND_VIDEO}
Message = decoder_service_pb2.GenerateRequest
Result = tuple[dict[int, list[int]], decoder_service_pb2.GenerateFinished]


class Service:
    """A running decoder and a client of it."""

    def __init__(self, model: Model, cache: EmbeddingCache, stub: Any, servicer: DecoderService) -> None:
        self.model, self.cache, self.stub, self.servicer = model, cache, stub, servicer

    async def generate(self, *messages: Message) -> Result:
        """Send all messages, close, and return (tokens by choice, finished)."""
        call = self.stub.Generate(timeout=CALL_S)
        for message in messages:
            await call.write(message)
        await call.done_writing()
        return await collect(call)

    async def fails(self, *messages: Message) -> DiptychError:
        """The domain error that a call ends with."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.generate(*messages)
        return from_rpc_error(caught.value, "decoder")

    async def until_idle(self) -> None:
        """Wait until nothing runs and every block is back."""
        for _ in range(2000):
            load = await self.stub.GetLoad(decoder_service_pb2.GetLoadRequest())
            if load.num_running == load.num_waiting == load.num_used_blocks == 0:
                return
            await asyncio.sleep(0.005)
        raise AssertionError("the engine did not come to rest")


async def collect(call: AsyncIterable[decoder_service_pb2.GenerateResponse]) -> Result:
    """Tokens by choice, and the end, which must be the last event."""
    tokens: dict[int, list[int]] = {}
    finished = None
    async for response in call:
        assert finished is None, "something came after finished"
        match response.WhichOneof("event"):
            case "begun":
                assert not tokens, "tokens came before begun"
            case "tokens":
                tokens.setdefault(response.tokens.index, []).extend(response.tokens.token_ids)
            case kind:
                assert kind == "finished"
                finished = response.finished
    assert finished is not None
    return tokens, finished


async def first_missing(events: AsyncIterator[decoder_service_pb2.GenerateResponse]) -> int:
    """The item that the decoder asks for; the prompt's text may have begun before."""
    while (response := await anext(events)).WhichOneof("event") == "begun":
        pass
    assert response.WhichOneof("event") == "missing"
    return response.missing.media_index


def prompt(case: Case, **options: Any) -> Message:
    """The first message for a case."""
    defaults = {"max_tokens": 12, "temperature": 0.0}
    placements = [
        decoder_service_pb2.MediaPlacement(
            offset=span.offset,
            grid=content_pb2.Grid(t=span.grid[0], h=span.grid[1], w=span.grid[2]),
            media_key=key,
            kind=KINDS["image" if span.grid[0] == 1 else "video"],
        )
        for span, key in zip(case.spans, case.keys, strict=True)
    ]
    generation = generation_pb2.Generation(**{**defaults, **options})
    return Message(
        prompt=decoder_service_pb2.Prompt(
            request_id="r", tenant="a", token_ids=case.token_ids, media=placements, generation=generation
        )
    )


def chunks(case: Case, index: int, size: int = 1 << 20, dtype: torch.dtype = torch.float32) -> list[Message]:
    """An item's rows as chunk messages."""
    data = case.rows[index].to(dtype).view(torch.uint8).numpy().tobytes()
    name = str(dtype).removeprefix("torch.")
    pieces = ((at, data[at : at + size]) for at in range(0, len(data), size))
    return [
        Message(chunk=embedding_pb2.EmbeddingChunk(media_index=index, byte_offset=at, data=piece, dtype=name))
        for at, piece in pieces
    ]


async def put(service: Service, case: Case, index: int, dtype: torch.dtype = torch.float32) -> Message:
    """Put an item's slices into the cache; the reference to them."""
    t = case.spans[index].grid[0]
    keys = [np.random.default_rng((index, i)).bytes(32) for i in range(t)]
    parts = case.rows[index].to(dtype).chunk(t)
    name = str(dtype).removeprefix("torch.")
    slices = {}
    for key, part in zip(keys, parts, strict=True):
        data = memoryview(part.contiguous().view(torch.uint8).numpy().tobytes())
        slices[key] = Slice(len(part), part.shape[1], name, data)
    assert await service.cache.of("a").put_slices(slices)
    return Message(reference=embedding_pb2.EmbeddingReference(media_index=index, slice_keys=keys))


@asynccontextmanager
async def serving(model: Model, cache_url: str = "memory://", **settings: Any) -> AsyncIterator[Service]:
    """A decoder on a free port, with some settings of its own."""
    cache = open_cache(cache_url, ttl_s=60, max_bytes=1 << 20, secrets=[b"secret"])
    chosen = {"kv_cache_tokens": 2048, "listen": "127.0.0.1:0", "device": "cpu", **settings}
    loaded = load(DecoderSettings, model=str(model.path), **chosen)
    engine, servicer = build_decoder(loaded, model.checkpoint, cache, Telemetry("decoder"))
    engine.start()
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()

    def register(server: grpc.aio.Server) -> None:
        decoder_service_pb2_grpc.add_DecoderServiceServicer_to_server(servicer, server)

    running = asyncio.create_task(serve(loaded, register, [SERVICE_NAME], stop=stop, on_ready=ready.set_result))
    port = await asyncio.wait_for(ready, CALL_S)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Service(model, cache, decoder_service_pb2_grpc.DecoderServiceStub(channel), servicer)
    finally:
        stop.set()
        await running
        engine.stop()
        await cache.close()


@pytest.fixture
async def service(gqa_model: Model) -> AsyncIterator[Service]:
    """A decoder with default settings."""
    async with serving(gqa_model) as service:
        yield service


@pytest.fixture
def mixed(gqa_model: Model) -> Case:
    """A prompt with a video and an image."""
    return gqa_model.case(3, ("video", (3, 3, 4)), 2, ("image", (1, 5, 2)), 9)


async def test_text(service: Service) -> None:
    """A text prompt's greedy tokens are transformers'."""
    case = service.model.case(9)
    tokens, finished = await service.generate(prompt(case))
    assert tokens[0] == service.model.generate(case, 12)
    assert finished.ends[0].reason == generation_pb2.FINISH_REASON_LENGTH
    assert finished.ends[0].num_tokens == 12


async def test_no_store_neither_finds_nor_leaves_a_prefix(service: Service) -> None:
    """Such a prompt is computed from its first token, and a later prompt finds none of its blocks."""
    case = service.model.case(64)
    passing = prompt(case, num_choices=3)
    passing.prompt.no_store = True

    async def num_cached(message: Message) -> int:
        call = service.stub.Generate(timeout=CALL_S)
        await call.write(message)
        await call.done_writing()
        events = [event async for event in call]
        await service.until_idle()
        return sum(event.begun.num_cached_tokens for event in events)

    found = [await num_cached(message) for message in (passing, passing, prompt(case), passing, prompt(case))]
    assert found == [0, 0, 0, 0, 48]


def test_blocks_of_no_store_are_empty_at_once(gqa_model: Model) -> None:
    """They do not push what others may still find out of the pool: nothing is known of them when the request ends."""
    harness = Harness(gqa_model)
    harness.engine.start()
    answer = harness.request(gqa_model.case(40))
    answer.request.no_store = True
    harness.engine.submit(answer.request)
    answer.wait()
    harness.engine.stop()
    assert not harness.pool._by_hash
    assert harness.pool.num_used == 0


async def test_begun_comes_first(service: Service) -> None:
    """The first event tells what was cached and how long the prompt waited, long before the answer ends."""
    case = service.model.case(40)
    cached = []
    for _ in range(2):
        call = service.stub.Generate(timeout=CALL_S)
        await call.write(prompt(case, max_tokens=1500, ignore_eos=True))
        first = await anext(aiter(call))
        assert first.WhichOneof("event") == "begun"
        assert first.begun.queue_ms >= 0
        cached.append(first.begun.num_cached_tokens)
        call.cancel()
        await service.until_idle()
    assert cached[0] == 0
    assert cached[1] >= 32


@pytest.mark.parametrize("size", [100, 1 << 20])
async def test_chunks_in_any_order_of_items(service: Service, mixed: Case, size: int) -> None:
    """Embeddings sent in chunks, the second item first."""
    tokens, _ = await service.generate(prompt(mixed), *chunks(mixed, 1, size), *chunks(mixed, 0, size))
    assert tokens[0] == service.model.generate(mixed, 12)


async def test_chunks_of_another_dtype_are_converted(service: Service, mixed: Case) -> None:
    """An encoder may compute in bfloat16 while the decoder computes in float32."""
    sent = [chunk for index in (0, 1) for chunk in chunks(mixed, index, 1000, torch.bfloat16)]
    mixed.rows = [rows.to(torch.bfloat16).float() for rows in mixed.rows]
    tokens, _ = await service.generate(prompt(mixed), *sent)
    assert tokens[0] == service.model.generate(mixed, 12)


async def test_chunks_of_int8_rows_are_converted(service: Service, mixed: Case) -> None:
    """An encoder may round its rows to 8 bits."""
    sent = []
    for index, rows in enumerate(mixed.rows):
        data = quantized(rows.numpy())
        pieces = [(at, data[at : at + 1000]) for at in range(0, len(data), 1000)]
        sent += [
            Message(chunk={"media_index": index, "byte_offset": at, "data": d, "dtype": "int8"}) for at, d in pieces
        ]
        mixed.rows[index] = torch.from_numpy(dequantized(bytearray(data), rows.shape[1]))
    tokens, _ = await service.generate(prompt(mixed), *sent)
    assert tokens[0] == service.model.generate(mixed, 12)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, np.finfo(np.float32).max])
async def test_a_wrong_scale_is_refused(service: Service, gqa_model: Model, scale: float) -> None:
    """NaN, infinity, below zero, and what makes a value infinite."""
    case = gqa_model.case(("image", (1, 2, 2)), 3)
    data = np.float32(scale).tobytes() + quantized(case.rows[0].numpy())[SCALE_BYTES:]
    error = await service.fails(prompt(case, ignore_eos=True), *spoiled(case, 0, data=data, dtype="int8"))
    assert isinstance(error, InvalidRequest)
    assert error.violations[0].field == "chunk.data"
    await service.until_idle()


async def test_references(service: Service, mixed: Case) -> None:
    """Embeddings that stand in the cache, one of them by reference and one in chunks."""
    reference = await put(service, mixed, 0)
    tokens, _ = await service.generate(prompt(mixed), reference, *chunks(mixed, 1))
    assert tokens[0] == service.model.generate(mixed, 12)


async def test_missing_reference(service: Service, mixed: Case) -> None:
    """A reference that the cache does not hold is reported, and its chunks are taken instead."""
    call = service.stub.Generate(timeout=CALL_S)
    await call.write(prompt(mixed))
    keys = [bytes(32)] * 3
    await call.write(Message(reference=embedding_pb2.EmbeddingReference(media_index=0, slice_keys=keys)))
    events = aiter(call)
    assert await first_missing(events) == 0
    for message in (*chunks(mixed, 1), *chunks(mixed, 0)):
        await call.write(message)
    await call.done_writing()
    tokens, _ = await collect(events)
    assert tokens[0] == service.model.generate(mixed, 12)


def reference_to(whole: Message, first: int, count: int) -> Message:
    """Some slices of an item whose slices are all in the cache."""
    keys = whole.reference.slice_keys[first : first + count]
    return Message(reference=embedding_pb2.EmbeddingReference(media_index=0, slice_keys=keys, first_slice=first))


async def test_an_item_in_parts(service: Service, mixed: Case) -> None:
    """References to some of its slices and chunks of the others, in turn, make one item."""
    whole = await put(service, mixed, 0)
    slices = chunks(mixed, 0, size=mixed.rows[0].nbytes // 3)
    parts = [reference_to(whole, 0, 1), slices[1], reference_to(whole, 2, 1)]
    tokens, _ = await service.generate(prompt(mixed), *parts, *chunks(mixed, 1))
    assert tokens[0] == service.model.generate(mixed, 12)


async def test_a_gap_between_parts_is_refused(service: Service, mixed: Case) -> None:
    """Parts come in order; what would leave rows out is named, and nothing is computed with them."""
    whole = await put(service, mixed, 0)
    error = await service.fails(prompt(mixed), reference_to(whole, 0, 1), reference_to(whole, 2, 1))
    assert isinstance(error, InvalidRequest)
    assert [violation.field for violation in error.violations] == ["reference.first_slice"]


async def test_a_part_that_is_lost(service: Service, mixed: Case) -> None:
    """Parts already on their way behind a lost one are passed over, and so are rows that come a second time."""
    whole = await put(service, mixed, 0)
    lost = embedding_pb2.EmbeddingReference(media_index=0, slice_keys=[bytes(32)], first_slice=1)
    call = service.stub.Generate(timeout=CALL_S)
    for message in (prompt(mixed), reference_to(whole, 0, 1), Message(reference=lost), reference_to(whole, 2, 1)):
        await call.write(message)
    events = aiter(call)
    assert await first_missing(events) == 0
    for message in (*chunks(mixed, 0, size=100), *chunks(mixed, 1)):
        await call.write(message)
    await call.done_writing()
    tokens, _ = await collect(events)
    assert tokens[0] == service.model.generate(mixed, 12)


async def test_reference_in_another_dtype_is_converted(service: Service, mixed: Case) -> None:
    """bf16 slices serve an fp32 decoder, as the values they stand for."""
    references = [await put(service, mixed, index, torch.bfloat16) for index in (0, 1)]
    mixed.rows = [rows.to(torch.bfloat16).float() for rows in mixed.rows]
    tokens, _ = await service.generate(prompt(mixed), *references)
    assert tokens[0] == service.model.generate(mixed, 12)


async def test_slices_of_another_shape_are_missing(service: Service, gqa_model: Model) -> None:
    """A slice with too few rows is not used but asked for again."""
    case, other = gqa_model.case(("image", (1, 4, 4)), 3), gqa_model.case(("image", (1, 2, 4)), 3)
    call = service.stub.Generate(timeout=CALL_S)
    await call.write(prompt(case))
    await call.write(await put(service, other, 0))
    assert await first_missing(aiter(call)) == 0
    call.cancel()


async def test_capabilities(service: Service) -> None:
    """What the decoder says of itself is the checkpoint's."""
    answer = await service.stub.GetDecoderCapabilities(decoder_service_pb2.GetDecoderCapabilitiesRequest())
    checkpoint = service.model.checkpoint
    assert answer.checkpoint_digest == checkpoint.digest()
    assert (answer.width, answer.vocab_size) == (checkpoint.text.hidden_size, checkpoint.text.vocab_size)
    assert (answer.dtype, answer.quantization, answer.cache, answer.merge_size) == ("float32", "none", "memory", 2)
    assert answer.max_context_tokens == 2048


async def test_another_checkpoint_is_refused(service: Service) -> None:
    """A prompt made for another checkpoint fails with both digests."""
    message = prompt(service.model.case(3))
    message.prompt.checkpoint_digest = "sha256:other"
    error = await service.fails(message)
    assert isinstance(error, VersionMismatch)


async def test_prompt_that_can_never_fit_is_refused(service: Service) -> None:
    """Prompt and answer beyond the context are refused at once."""
    error = await service.fails(prompt(service.model.case(2000), max_tokens=49))
    assert isinstance(error, PromptTooLong | InvalidRequest)
    assert error.reason == "PROMPT_TOO_LONG"
    assert error.violations[0].field == "prompt.token_ids"


WRONG: dict[str, Callable[[Any], None]] = {
    "prompt.token_ids": lambda m: m.prompt.ClearField("token_ids"),
    "prompt.token_ids ": lambda m: m.prompt.token_ids.__setitem__(0, 1 << 30),
    "prompt.token_ids  ": lambda m: m.prompt.token_ids.__setitem__(4, 7),
    "prompt.media[0].grid.t": lambda m: setattr(m.prompt.media[0].grid, "t", 0),
    "prompt.media[1].grid.h": lambda m: setattr(m.prompt.media[1].grid, "h", 3),
    "prompt.media[1].grid.w": lambda m: setattr(m.prompt.media[1].grid, "w", 0),
    "prompt.media[0].offset": lambda m: setattr(m.prompt.media[0], "offset", 4_000_000_000),
    "prompt.media[0].offset ": lambda m: setattr(m.prompt.media[0].grid, "w", 4_000_000_000),
    "prompt.media": lambda m: setattr(m.prompt.media[1], "offset", 5),
    "prompt.media[0].kind": lambda m: setattr(m.prompt.media[0], "kind", 0),
    "prompt.media[1].media_key": lambda m: m.prompt.media[1].ClearField("media_key"),
    "prompt.generation.temperature": lambda m: setattr(m.prompt.generation, "temperature", float("nan")),
    "prompt.generation.top_p": lambda m: setattr(m.prompt.generation, "top_p", 1.5),
    "prompt.generation.min_p": lambda m: setattr(m.prompt.generation, "min_p", -0.1),
    "prompt.generation.num_choices": lambda m: setattr(m.prompt.generation, "num_choices", 1000),
    "prompt.generation.top_logprobs": lambda m: setattr(m.prompt.generation, "top_logprobs", 1000),
    "prompt.generation.priority": lambda m: setattr(m.prompt.generation, "priority", 10),
    "prompt.generation.max_tokens": lambda m: setattr(m.prompt.generation, "max_tokens", 0),
    "prompt.generation.logit_bias": lambda m: m.prompt.generation.logit_bias.update({1 << 30: 1.0}),
    "prompt.generation.stop_token_ids": lambda m: m.prompt.generation.stop_token_ids.append(1 << 30),
    "prompt.generation.repetition_penalty": lambda m: setattr(m.prompt.generation, "repetition_penalty", 0.0),
    "prompt.generation.json_schema": lambda m: setattr(m.prompt.generation, "json_schema", '{"type": 3'),
    "prompt.generation.regex": lambda m: setattr(m.prompt.generation, "regex", "["),
    "prompt.generation.choice": lambda m: m.prompt.generation.choice.SetInParent(),
    "prompt.generation.grammar": lambda m: setattr(m.prompt.generation, "grammar", "start: nothing"),
}


async def test_wrong_prompts_name_their_field(service: Service, mixed: Case) -> None:
    """Every wrong field is refused by its path, and the engine goes on."""
    for field, spoil in WRONG.items():
        message = prompt(mixed)
        spoil(message)
        error = await service.fails(message)
        assert isinstance(error, InvalidRequest), field
        assert field.strip() in [violation.field for violation in error.violations], field
    case = service.model.case(4)
    tokens, _ = await service.generate(prompt(case))
    assert tokens[0] == service.model.generate(case, 12)


async def test_all_violations_at_once(service: Service) -> None:
    """Two wrong fields are both named."""
    error = await service.fails(prompt(service.model.case(3), top_p=2.0, min_p=2.0))
    assert isinstance(error, InvalidRequest)
    assert {violation.field for violation in error.violations} == {"prompt.generation.top_p", "prompt.generation.min_p"}


def spoiled(case: Case, index: int, **changes: Any) -> list[Message]:
    """An item's only chunk, changed."""
    message = chunks(case, index)[0]
    for name, value in changes.items():
        setattr(message.chunk, name, value)
    return [message]


async def test_wrong_embeddings_are_refused(service: Service, gqa_model: Model) -> None:
    """Gaps, surplus, NaN, unknown items, a second prompt, and items left out."""
    case = gqa_model.case(("image", (1, 2, 2)), 3)
    data = case.rows[0].numpy().tobytes()
    nan = np.full(len(data) // 4, np.nan, dtype=np.float32).tobytes()
    wrong = {
        "chunk.byte_offset": spoiled(case, 0, byte_offset=4),
        "chunk.data": spoiled(case, 0, data=data + b"1234"),
        "chunk.data ": spoiled(case, 0, data=nan),
        "chunk.dtype": spoiled(case, 0, dtype="float64"),
        "chunk.media_index": spoiled(case, 0, media_index=1),
        "chunk.media_index ": chunks(case, 0) + chunks(case, 0),
        "prompt": [prompt(case)],
        "prompt.media[0]": spoiled(case, 0, data=data[:-4]),
        "message": [Message()],
        "reference.slice_keys": [Message(reference=embedding_pb2.EmbeddingReference(media_index=0))],
    }
    for field, messages in wrong.items():
        # The prefix cache must not answer before the fault is seen: the call is held open by a long answer.
        error = await service.fails(prompt(case, max_tokens=1500, ignore_eos=True), *messages)
        assert isinstance(error, InvalidRequest), field
        assert error.violations[0].field == field.strip()
    await service.until_idle()


async def test_first_message_must_be_the_prompt(service: Service, mixed: Case) -> None:
    """Embeddings before the prompt, or nothing at all, are refused."""
    for messages in (chunks(mixed, 0), []):
        assert isinstance(await service.fails(*messages), InvalidRequest)


async def test_cancel_frees_everything(service: Service, mixed: Case) -> None:
    """A caller who goes away leaves no sequence and no block behind, whether running or waiting for embeddings."""
    running = service.stub.Generate(timeout=CALL_S)
    await running.write(prompt(service.model.case(9), max_tokens=2000, ignore_eos=True))
    await anext(aiter(running))
    stalled = service.stub.Generate(timeout=CALL_S)
    await stalled.write(prompt(mixed))
    running.cancel()
    stalled.cancel()
    await service.until_idle()


async def test_many_at_once(service: Service) -> None:
    """Forty calls in flight are answered as if each were alone."""
    cases = [service.model.case(3 + i % 7, ("image", (1, 2, 1 + i % 3)), 2, seed=i) for i in range(40)]
    answers = await asyncio.gather(*(service.generate(prompt(case), *chunks(case, 0)) for case in cases))
    assert [tokens[0] for tokens, _ in answers] == [service.model.generate(case, 12) for case in cases]
    await service.until_idle()


async def test_choices_and_logprobs(service: Service) -> None:
    """`num_choices` answers come with their index, each token with its log probability and alternatives."""
    options = {"num_choices": 3, "temperature": 1.0, "seed": 5, "top_logprobs": 2, "max_tokens": 4}
    call = service.stub.Generate(timeout=CALL_S)
    await call.write(prompt(service.model.case(20), **options))
    await call.done_writing()
    deltas = [response.tokens async for response in call if response.WhichOneof("event") == "tokens"]
    assert {delta.index for delta in deltas} == {0, 1, 2}
    for delta in deltas:
        assert [entry.token_id for entry in delta.logprobs] == list(delta.token_ids)
        for entry in delta.logprobs:
            assert len(entry.alternatives) == 2
            assert entry.logprob <= entry.alternatives[0].logprob <= 0


async def test_structured_output(service: Service) -> None:
    """An answer under a JSON schema is such JSON, and ends by itself."""
    tokenizer = Tokenizer.from_file(str(service.model.path / "tokenizer.json"))
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    tokens, finished = await service.generate(
        prompt(service.model.case(9), max_tokens=200, json_schema=json.dumps(schema))
    )
    assert json.loads(tokenizer.decode(tokens[0])) in ({"n": 1}, {"n": 2})
    assert finished.ends[0].reason == generation_pb2.FINISH_REASON_STOP


async def test_references_through_redis(gqa_model: Model, mixed: Case) -> None:
    """Embeddings that stand in a real Redis are used from there, and the decoder says that it reads it."""
    with LocalRedis() as redis:
        async with serving(gqa_model, redis.url) as service:
            capabilities = await service.stub.GetDecoderCapabilities(
                decoder_service_pb2.GetDecoderCapabilitiesRequest()
            )
            assert capabilities.cache == "redis"
            references = [await put(service, mixed, index) for index in (0, 1)]
            tokens, _ = await service.generate(prompt(mixed), *references)
            assert tokens[0] == gqa_model.generate(mixed, 12)


async def test_embeddings_that_never_come_end_the_call(gqa_model: Model, mixed: Case) -> None:
    """A caller who sends no embeddings and does not close either is cut off, and its blocks come back."""
    async with serving(gqa_model, embedding_timeout_s=0.2) as service:
        call = service.stub.Generate(timeout=CALL_S)
        await call.write(prompt(mixed))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(call)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await service.until_idle()


async def test_grammar_that_takes_too_long_is_refused(gqa_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grammar still being compiled after its time is refused by the name of its field; others go on."""
    over = threading.Event()
    compile_grammar = GrammarCompiler.compile
    async with serving(gqa_model, grammar_timeout_s=0.2) as service:
        with monkeypatch.context() as patched:
            patched.setattr(GrammarCompiler, "compile", lambda *_: over.wait(CALL_S))
            error = await service.fails(prompt(gqa_model.case(5), regex="a+"))
            assert isinstance(error, InvalidRequest)
            [violation] = error.violations
            assert (violation.field, violation.reason) == ("prompt.generation.regex", "TOO_COMPLEX")
        over.set()
        assert GrammarCompiler.compile is compile_grammar
        await service.generate(prompt(gqa_model.case(5)))


class StuckContext:
    """A caller whose connection takes nothing any more."""

    async def write(self, _response: decoder_service_pb2.GenerateResponse) -> None:
        """Never returns."""
        await asyncio.Event().wait()

    def time_remaining(self) -> float | None:
        """There is no deadline."""
        return None


async def test_slow_reader_is_cut_off(gqa_model: Model) -> None:
    """Who does not read for too long loses the call, and its blocks come back."""

    async def messages() -> AsyncIterator[Message]:
        yield prompt(gqa_model.case(5), max_tokens=1500, ignore_eos=True)

    async with serving(gqa_model, slow_reader_timeout_s=0.2) as service:
        stuck: Any = StuckContext()
        with pytest.raises(SlowReader):
            await service.servicer.Generate(messages(), stuck)
        await service.until_idle()


async def test_int8_is_reported(gqa_model: Model) -> None:
    """A decoder that was started with --quantize int8 answers, and says so."""
    async with serving(gqa_model, quantize="int8") as service:
        capabilities = await service.stub.GetDecoderCapabilities(decoder_service_pb2.GetDecoderCapabilitiesRequest())
        assert (capabilities.dtype, capabilities.quantization) == ("float32", "int8")
        tokens, _ = await service.generate(prompt(gqa_model.case(9), ignore_eos=True))
        assert len(tokens[0]) == 12
