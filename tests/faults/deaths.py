"""A decoder dies in the middle of a stream, an encoder in the middle of a request."""

import asyncio
import random
import signal

import grpc

from tests.faults import checker
from tests.faults.results import Figure, figure
from tests.faults.stage import Stage, first_text
from tests.harness import failure

DECODER, ENCODER = "decoder killed", "encoder killed"
NUM_STREAMS = 8


async def prove_decoder(stage: Stage, num_tokens: int = 2000) -> list[Figure]:
    """Kill every decoder under running streams: each ends as UNAVAILABLE, none as if it were complete."""
    calls = [stage.long_stream(stage.fleet.gateways[0], f"go on {i}", num_tokens) for i in range(NUM_STREAMS)]
    await asyncio.gather(*(first_text(call) for call in calls))
    for replica in stage.fleet.decoders:
        replica.kill()
    ends = []
    for call in calls:
        is_whole = False
        try:
            async for response in call:
                is_whole = response.HasField("finished")
            ends.append("whole" if is_whole else "a silent end")
        except grpc.aio.AioRpcError as error:
            ends.append(failure(error).reason)
    await asyncio.gather(*(replica.restart() for replica in stage.fleet.decoders))
    right, num_cut = ends.count("DECODER_UNAVAILABLE"), NUM_STREAMS - ends.count("whole")
    what = f"{num_cut} streams whose decoder was killed before their end: ended with DECODER_UNAVAILABLE"
    return [figure(DECODER, what, str(right), str(num_cut), 0 < num_cut == right)]


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
