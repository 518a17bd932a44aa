"""Embeddings on their way in: in chunks, by reference, in parts, in another type."""

import pytest
import torch
from diptych.v1 import decoder_service_pb2, embedding_pb2

from cli.local_redis import LocalRedis
from services.common.errors import InvalidRequest
from services.common.int8_rows import dequantized, quantized
from tests.decoder.harness import Case, Model
from tests.decoder.serving import CALL_S, Message, Service, chunks, collect, first_missing, prompt, put, serving


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


async def test_a_prompt_names_its_slices(service: Service, mixed: Case) -> None:
    """Embeddings of which nothing follows the prompt, one of them missing, whose chunks are taken instead."""
    asked = prompt(mixed)
    asked.prompt.media[0].slice_keys.extend((await put(service, mixed, 0)).reference.slice_keys)
    asked.prompt.media[1].slice_keys.append(bytes(32))
    call = service.stub.Generate(timeout=CALL_S)
    await call.write(asked)
    events = aiter(call)
    assert await first_missing(events) == 1
    for message in chunks(mixed, 1):
        await call.write(message)
    await call.done_writing()
    tokens, _ = await collect(events)
    assert tokens[0] == service.model.generate(mixed, 12)


async def test_slices_are_named_all_or_none(service: Service, mixed: Case) -> None:
    """Another number of keys than slices is refused at the item."""
    asked = prompt(mixed)
    asked.prompt.media[0].slice_keys.extend([bytes(32)] * 2)
    error = await service.fails(asked)
    assert isinstance(error, InvalidRequest)
    assert [violation.field for violation in error.violations] == ["prompt.media[0].slice_keys"]


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
