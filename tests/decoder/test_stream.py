"""From the engine's thread to a call: how many wake-ups and messages a step's tokens take."""

import asyncio
from itertools import chain

from prometheus_client import CollectorRegistry

from services.decoder.assemble import build_engine
from services.decoder.engine import Told, tell
from services.decoder.sequence import Begun, Ended, Finished, FinishReason, Token
from services.decoder.stream import ResponseStream
from services.decoder.telemetry import DecoderMetrics, RequestTelemetry
from tests.decoder.harness import Harness, Model

NUM_TOKENS = 50
BOUND_S = 10


def test_a_steps_events_are_delivered_together(gqa_model: Model) -> None:
    """However many streams a step continues, whoever delivers their tokens is called once."""
    harness, token_counts = Harness(gqa_model), []

    def deliver(told: Told) -> None:
        token_counts.append(sum(isinstance(event, Token) for _, event in told))
        tell(told)

    parts = build_engine(harness.settings, gqa_model.checkpoint, gqa_model.language_model, deliver=deliver)
    answers = [harness.request(gqa_model.case(4, seed=seed), stop_ids=frozenset()) for seed in range(3)]
    for answer in answers:
        parts.engine.submit(answer.request)
    parts.engine.start()
    for answer in answers:
        answer.wait()
    parts.engine.stop()
    assert [count for count in token_counts if count] == [3] * 12


def unhurried() -> ResponseStream:
    """A stream of an answer that nobody reads before its end."""
    return ResponseStream(RequestTelemetry(DecoderMetrics(CollectorRegistry()), 4), unhurried=True)


async def test_an_answer_that_nobody_waits_for_comes_in_few_messages() -> None:
    """Its first token leaves at once, the others together; they are the same tokens in the same order."""
    stream = unhurried()

    async def generate() -> None:
        stream.push(Begun(0, 0.0))
        for token_id in range(NUM_TOKENS):
            stream.push(Token(0, token_id, None))
            await asyncio.sleep(0)
        stream.push(Ended(0, FinishReason.LENGTH, None, NUM_TOKENS))
        stream.push(Finished())

    generating = asyncio.create_task(generate())
    responses = [response async for response in stream]
    await generating
    kinds = [response.WhichOneof("event") for response in responses]
    deltas = [list(response.tokens.token_ids) for response in responses if response.WhichOneof("event") == "tokens"]
    assert (kinds[0], kinds[-1]) == ("begun", "finished")
    assert len(deltas[0]) < NUM_TOKENS // 2
    assert len(deltas) < NUM_TOKENS // 5
    assert list(chain(*deltas)) == list(range(NUM_TOKENS))


async def test_gathered_tokens_do_not_wait_for_the_end() -> None:
    """A message comes every now and then though the answer goes on."""
    stream = unhurried()
    for token_id in range(3):
        stream.push(Token(0, token_id, None))
        response = await asyncio.wait_for(anext(stream), BOUND_S)
        assert list(response.tokens.token_ids) == [token_id]
