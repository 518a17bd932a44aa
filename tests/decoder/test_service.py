"""The service over a real socket, with a real engine behind it."""

import asyncio
import json

from diptych.v1 import decoder_service_pb2, generation_pb2
from tokenizers import Tokenizer

from tests.decoder.harness import Harness, Model
from tests.decoder.serving import CALL_S, Message, Service, chunks, prompt, serving


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


async def test_capabilities(service: Service) -> None:
    """What the decoder says of itself is the checkpoint's."""
    answer = await service.stub.GetDecoderCapabilities(decoder_service_pb2.GetDecoderCapabilitiesRequest())
    checkpoint = service.model.checkpoint
    assert answer.checkpoint_digest == checkpoint.digest()
    assert (answer.width, answer.vocab_size) == (checkpoint.text.hidden_size, checkpoint.text.vocab_size)
    assert (answer.dtype, answer.quantization, answer.cache, answer.merge_size) == ("float32", "none", "memory", 2)
    assert answer.max_context_tokens == 2048


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


async def test_int8_is_reported(gqa_model: Model) -> None:
    """A decoder that was started with --quantize int8 answers, and says so."""
    async with serving(gqa_model, quantize="int8") as service:
        capabilities = await service.stub.GetDecoderCapabilities(decoder_service_pb2.GetDecoderCapabilitiesRequest())
        assert (capabilities.dtype, capabilities.quantization) == ("float32", "int8")
        tokens, _ = await service.generate(prompt(gqa_model.case(9), ignore_eos=True))
        assert len(tokens[0]) == 12
