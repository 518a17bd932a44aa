"""A decoder dies or hangs in the middle of a stream, an encoder dies in the middle of a request."""

import asyncio
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass

import grpc

from services.common.channels import KEEPALIVE_S
from tests.faults import checker
from tests.faults.results import Figure, figure
from tests.faults.stage import Stage, Stream, decoder_of, first_text, idle
from tests.faults.traffic import Record
from tests.harness import failure

DECODER, STOPPED, ENCODER = "decoder killed", "decoder stopped", "encoder killed"
NUM_STREAMS = 8
WHOLE = "whole"
NOTICED_S = 2 * KEEPALIVE_S + 2.0  # a ping is due, and unanswered
PASSED_OVER_S = 10.0  # three questions of the gateway, a second apart, each unanswered for two
STOPPED_S = 13.0  # longer than a slow reader is given
ANSWERED_S = 5.0


async def prove_decoder(stage: Stage, num_tokens: int = 2000) -> list[Figure]:
    """Kill every decoder under running streams: each ends as UNAVAILABLE, none as if it were complete."""
    calls = [stage.long_stream(stage.fleet.gateways[0], f"go on {i}", num_tokens) for i in range(NUM_STREAMS)]
    await asyncio.gather(*(first_text(call) for call in calls))
    for replica in stage.fleet.decoders:
        replica.kill()
    ends = [how for how, _ in await asyncio.gather(*map(_end, calls))]
    await asyncio.gather(*(replica.restart() for replica in stage.fleet.decoders))
    right, num_cut = ends.count("DECODER_UNAVAILABLE"), NUM_STREAMS - ends.count(WHOLE)
    what = f"{num_cut} streams whose decoder was killed before their end: ended with DECODER_UNAVAILABLE"
    return [figure(DECODER, what, str(right), str(num_cut), 0 < num_cut == right)]


async def prove_stopped(stage: Stage, num_tokens: int = 500) -> list[Figure]:
    """Stop a decoder under running streams, for good and for a while: it is an outage, and no client is to blame."""
    good = await _stop(stage, num_tokens, 4 * NOTICED_S)
    while_ = await _stop(stage, num_tokens, STOPPED_S)
    resumed, asked = good.resumed + while_.resumed, good.asked + while_.asked
    right = sum(record.is_answered and not list(checker.violations(record)) for record in asked)
    slowest_s = max(attempt.elapsed_s for record in asked for attempt in record.attempts)
    retries = checker.count_retries(asked)
    return [
        figure(STOPPED, f"streams of a decoder that stays stopped, and of another ({_told(good.plain)}): last ended",
               f"{good.ended_s:.1f} s after", f"{NOTICED_S:.0f} s",
               good.ended_s <= NOTICED_S and good.plain.keys() == {WHOLE, "DECODER_UNAVAILABLE"}),
        figure(STOPPED, f"streams of one that stops for {STOPPED_S:.0f} s, and of another", _told(while_.plain),
               f"{WHOLE} or DECODER_UNAVAILABLE", while_.plain.keys() <= {WHOLE, "DECODER_UNAVAILABLE"}),
        figure(STOPPED, "streams with `resume` through both, each with its undisturbed answer", _told(resumed), WHOLE,
               resumed.keys() == {WHOLE}),
        figure(STOPPED, f"questions asked {PASSED_OVER_S:.0f} s after a stop, and when it was over: right within two"
               " client retries; the slowest", f"{right} of {len(asked)}, {retries[1]} at once; {slowest_s:.1f} s",
               f"all; {ANSWERED_S:.0f} s",
               right == len(asked) and slowest_s <= ANSWERED_S),
    ]  # fmt: skip


@dataclass(frozen=True)
class _Stopped:
    """How streams ended, when the last without `resume` did, and what became of questions asked later."""

    plain: Counter[str]
    resumed: Counter[str]
    ended_s: float
    asked: list[Record]


async def _stop(stage: Stage, num_tokens: int, seconds: float) -> _Stopped:
    """Stop a decoder until its streams have ended, `seconds` at most; then it is to be as free and right as before."""
    victim = stage.fleet.decoders[0]
    expected = [await _end(call) for call in _streams(stage, num_tokens)]
    plain, resumed = _streams(stage, num_tokens), _streams(stage, num_tokens, resume=True)
    await asyncio.gather(*(first_text(call) for call in (*plain, *resumed)))
    victim.signal(signal.SIGSTOP)
    started = time.monotonic()
    ends, resumed_ends = (asyncio.gather(*map(_end, calls)) for calls in (plain, resumed))
    await asyncio.sleep(PASSED_OVER_S)
    asked = await _ask_all(stage)
    await asyncio.wait({ends}, timeout=started + seconds - time.monotonic())
    ended_s = time.monotonic() - started
    victim.signal(signal.SIGCONT)
    went_on = [
        how if ids == whole or how != WHOLE else "another answer"
        for (how, ids), (_, whole) in zip(await resumed_ends, expected, strict=True)
    ]
    plain_ends = Counter(how for how, _ in await ends)
    async with decoder_of(victim) as stub, asyncio.timeout(ANSWERED_S):
        await idle(stub)
    return _Stopped(plain_ends, Counter(went_on), ended_s, asked + await _ask_all(stage))


def _streams(stage: Stage, num_tokens: int, *, resume: bool = False) -> list[Stream]:
    gateway = stage.fleet.gateways[0]
    return [stage.long_stream(gateway, f"go on {i}", num_tokens, resume=resume) for i in range(NUM_STREAMS)]


async def _ask_all(stage: Stage) -> list[Record]:
    rng = random.Random(0)
    return await asyncio.gather(*(stage.client.ask(question, rng) for question in stage.asked))


async def _end(call: Stream) -> tuple[str, list[int]]:
    """Read to the end: WHOLE, or how it failed; and the ids of an answer that is whole."""
    token_ids = None
    try:
        async for response in call:
            if response.HasField("finished"):
                token_ids = list(response.finished.choices[0].token_ids)
    except grpc.aio.AioRpcError as error:
        return failure(error).reason, []
    return ("a silent end", []) if token_ids is None else (WHOLE, token_ids)


def _told(ends: Counter[str]) -> str:
    return ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))


async def prove_encoder(stage: Stage) -> list[Figure]:
    """Stop an encoder so that requests hang in it, then kill it: they are answered by the other one, right."""
    rng = random.Random(0)
    pictures = [question for question in stage.asked if question.has_media]
    victim = stage.fleet.encoders[0]
    victim.signal(signal.SIGSTOP)
    asking = [asyncio.create_task(stage.client.ask_once(question, rng, fresh=True)) for question in pictures]
    await asyncio.wait(asking, timeout=1.0)
    hanging = sum(not task.done() for task in asking)
    victim.kill()
    records = await asyncio.gather(*asking)
    await victim.restart()
    problems = [problem for record in records for problem in checker.violations(record)]
    right = sum(record.is_answered for record in records)
    what = f"{len(records)} requests about new pictures, {hanging} in an encoder that was killed: answered, right"
    return [figure(ENCODER, what, str(right), str(len(records)), right == len(records) and not problems)]
