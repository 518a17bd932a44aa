"""Running streams while pictures storm in: the 99th percentile of the time between their tokens, idle and then.

Two cores: the encoder and the storm have one, the decoder, the gateway and the streams the other. Beside it stands one
process of transformers with both cores and both kinds of work (`benchmarks/peers/storm_in_transformers.py`).
"""

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1 import generation_pb2 as generation
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub
from diptych.v1.encoder_service_pb2_grpc import EncoderServiceStub

from benchmarks.encoder_process import encode_ms, encoder_stub
from benchmarks.figures import MILLISECONDS, Figure
from benchmarks.pictures import picture_file
from cli.client import gateway
from cli.stack import Stack, StackOptions

NUM_STREAMS, NUM_TOKENS = 4, 200
STORM_SIDE, STORM_CALLERS, NUM_PICTURES = 448, 4, 800
IDLE, STORMY = "storm: between tokens, p99, before it", "storm: between tokens, p99, in it"
QUESTION = "Count: one, two, three, four"


def measure_storm(model: str) -> list[Figure]:
    """Starts the services, pins them, measures, stops them. Needs two cores."""
    cores = sorted(os.sched_getaffinity(0))
    with Stack(StackOptions(model, environment={"DIPTYCH_THREADS": "1"})) as stack:
        stack.start()
        for name, child in stack.children.items():
            pin(child.process.pid, cores[name == "encoder"])
        for task in Path(f"/proc/{os.getpid()}/task").iterdir():
            os.sched_setaffinity(int(task.name), {cores[0]})
        try:
            return asyncio.run(_measure(stack))
        finally:
            for task in Path(f"/proc/{os.getpid()}/task").iterdir():
                os.sched_setaffinity(int(task.name), cores)


def pin(pid: int, core: int) -> None:
    """Keep all threads of a process and its children, and those they start later, on one core."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError, FileNotFoundError):  # a thread that has ended meanwhile
            os.sched_setaffinity(int(task.name), {core})
            for child in (task / "children").read_text().split():
                pin(int(child), core)


async def _measure(stack: Stack) -> list[Figure]:
    files = [picture_file(STORM_SIDE, seed) for seed in range(NUM_PICTURES)]
    async with gateway(stack.address) as stub, encoder_stub(stack.children["encoder"]) as encoder:
        await stream_intervals_ms(stub)  # warms up
        idle = await stream_intervals_ms(stub)
        stormy = await beside(lambda: storm(encoder, files), stream_intervals_ms(stub))
    return [Figure(IDLE, p99(idle), MILLISECONDS), Figure(STORMY, p99(stormy), MILLISECONDS)]


def slowdown(figures: Sequence[Figure]) -> Figure:
    """How much longer the time between tokens is in the storm."""
    values = {figure.name: figure.value for figure in figures}
    return Figure("storm: between tokens, p99, in it over before it", values[STORMY] / values[IDLE], "times")


def p99(values: list[float]) -> float:
    """The 99th percentile."""
    return float(np.percentile(values, 99))


async def beside(work: Callable[[], Coroutine[Any, Any, None]], measured: Coroutine[Any, Any, list[float]]) -> Any:
    """What `measured` gives while `work` goes on."""
    task = asyncio.create_task(work())
    try:
        return await measured
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def storm(encoder: EncoderServiceStub, files: list[bytes]) -> None:
    """Pictures that no cache knows, as fast as the encoder takes them. RuntimeError when there are too few."""

    async def caller(number: int) -> None:
        for data in files[number::STORM_CALLERS]:
            await encode_ms(encoder, data, STORM_SIDE)
        raise RuntimeError("the storm ended before the streams")

    await asyncio.gather(*(caller(number) for number in range(STORM_CALLERS)))


async def stream_intervals_ms(stub: ChatServiceStub) -> list[float]:
    """Times between the tokens of streams that run together."""
    found = await asyncio.gather(*(_intervals_ms(stub, number) for number in range(NUM_STREAMS)))
    return [interval for intervals in found for interval in intervals]


async def _intervals_ms(stub: ChatServiceStub, number: int) -> list[float]:
    loop = asyncio.get_running_loop()
    parts = [content.Part(text=f"{QUESTION} {number}")]
    conversation = content.Conversation(messages=[content.Message(role=content.ROLE_USER, parts=parts)])
    options = generation.Generation(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
    events = stub.StreamChat(chat.StreamChatRequest(conversation=conversation, generation=options))
    times = [loop.time() async for event in events if event.HasField("text_delta")]
    return [(after - before) * 1000 for before, after in pairwise(times)]
