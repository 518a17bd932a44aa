"""A client that stops reading: its stream is cut off, and nobody else notices."""

import asyncio
import random
import time

import grpc
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub
from grpc_status import rpc_status

from services.common.bearer import bearer_interceptors
from tests.faults import checker
from tests.faults.cancels import MIB, held_by
from tests.faults.proxy import HEALTHY, FaultProxy, Faults
from tests.faults.results import Figure, figure
from tests.faults.stage import Stage, Stream, decoder_of, first_text, idle, long_stream
from tests.harness import failure

PROOF = "slow reader"
NUM_TOKENS, NUM_CHOICES = 2400, 16
NUM_ALTERNATIVES = 20  # makes a token some 300 bytes: all of it outgrows every buffer on its way
FILL_S = 15.0  # until the buffers are full: those of the sockets are the kernel's, a few MB
MEMORY_BAR = 32 * MIB
SETTINGS = {"DIPTYCH_DECODER_KERNELS": "torch"}  # slow enough that the answer is not over before patience is


async def prove(stage: Stage, timeout_s: float = 10.0) -> list[Figure]:
    """A connection of which nothing is read after the first text, while others ask by another one."""
    for question in stage.asked:
        await stage.client.ask_once(question, random.Random(0))  # what a first request makes its process grow by
    before = {replica.name: held_by(replica).memory_bytes for replica in stage.fleet.all}
    gateway = stage.fleet.gateways[0]
    proxy = FaultProxy(gateway.proxy.target)
    await proxy.start()
    signed = bearer_interceptors(stage.fleet.tokens[stage.asked[0].tenant])
    async with grpc.aio.insecure_channel(proxy.address, interceptors=signed) as channel:  # its keepalive would end it
        call = long_stream(
            ChatServiceStub(channel),
            "tell me everything",
            NUM_TOKENS,
            top_logprobs=NUM_ALTERNATIVES,
            num_choices=NUM_CHOICES,
        )
        await first_text(call)
        proxy.faults = Faults(is_stalled=True)
        problems, num_others, cut_after_s = await _ask_others(stage)
        grown, who = max((held_by(one).memory_bytes - before[one.name], one.name) for one in stage.fleet.all)
        proxy.faults = HEALTHY
        reason = await _reason(call)
    await proxy.close()
    wanted_s = timeout_s + FILL_S
    return [
        figure(PROOF, "a stream that is not read loses its slot and blocks after", f"{cut_after_s:.1f} s",
               f"{timeout_s:.0f} s once its buffers are full", cut_after_s <= wanted_s),
        figure(PROOF, "its end, once it is read again", reason, "SLOW_READER, or the connection is lost",
               reason in ("SLOW_READER", "connection lost")),
        figure(PROOF, f"{num_others} requests of others meanwhile: not right", str(len(problems)), "0", not problems),
        figure(PROOF, "memory of the process that grew most", f"{who} {grown / MIB:+.1f} MiB",
               f"{MEMORY_BAR // MIB} MiB", grown <= MEMORY_BAR),
    ]  # fmt: skip


async def _reason(call: Stream) -> str:
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:  # the kernel may have dropped the connection first (TCP_USER_TIMEOUT, 20 s)
        return failure(error).reason if rpc_status.from_call(error) else "connection lost"
    return "OK"


async def _ask_others(stage: Stage) -> tuple[list[str], int, float]:
    """Ask until the decoder has let go of the stream: what was not right, how often, and after how long it did."""
    rng, problems, num_others = random.Random(0), list[str](), 0
    started = time.monotonic()
    async with decoder_of(stage.fleet.decoders[0]) as stub:
        letting_go = asyncio.create_task(idle(stub))
        while not letting_go.done():
            record = await stage.client.ask_once(rng.choice(stage.asked), rng)
            problems += checker.violations(record)
            num_others += 1
            assert time.monotonic() < started + 120, "the stream was never cut off"
            await asyncio.wait({letting_go}, timeout=0.2)
    return problems, num_others, time.monotonic() - started
