"""Speed through all services on this machine: `make bench`.

Two questions: how long a picture's first token takes when its embeddings are computed and when they are cached, and how
many tokens a second come out when several callers ask at once. Prints two tables; `--json FILE` writes the figures.
"""

import argparse
import asyncio
import io
import json
import random
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1 import generation_pb2 as generation
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub
from PIL import Image
from rich.console import Console
from rich.table import Table

from cli.client import gateway
from cli.stack import Stack, StackOptions

SIDES = (112, 224, 448)
CALLERS = (1, 4, 16)
NUM_REPEATS = 5
NUM_TOKENS = 64


@dataclass(frozen=True, slots=True)
class FirstToken:
    """Medians of the time to the first token about a square picture, in milliseconds."""

    side: int
    num_tokens: int
    encoded_ms: float
    cached_ms: float


@dataclass(frozen=True, slots=True)
class Throughput:
    """Tokens a second of all callers together."""

    num_callers: int
    tokens_per_s: float


def main() -> None:
    """Starts the services, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/demo")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with Stack(StackOptions(arguments.model)) as stack:
        stack.start()
        first_tokens, throughputs = asyncio.run(measure(stack.address))
    show(first_tokens, throughputs)
    if arguments.json:
        rows = [*map(asdict, first_tokens), *map(asdict, throughputs)]
        arguments.json.write_text(json.dumps(rows, indent=2))


async def measure(address: str) -> tuple[list[FirstToken], list[Throughput]]:
    """Both measurements, after one request that warms everything up."""
    async with gateway(address) as stub:
        await ask(stub, [picture(56, seed=0)], 4)
        first_tokens = [await measure_first_token(stub, side) for side in SIDES]
        throughputs = [await measure_throughput(stub, count) for count in CALLERS]
    return first_tokens, throughputs


async def measure_first_token(stub: ChatServiceStub, side: int) -> FirstToken:
    """New pictures, then the same again. The question differs, so that the decoder has no prefix of it."""
    encoded: list[float] = []
    cached: list[float] = []
    num_tokens = 0
    for seed in range(NUM_REPEATS):
        part = picture(side, seed=side + seed)
        for times, question in ((encoded, f"{seed} first"), (cached, f"{seed} again")):
            finished = await ask(stub, [content.Part(text=question), part], 1)
            times.append(finished.timings.time_to_first_token_ms)
            num_tokens = finished.usage.num_media_tokens
    return FirstToken(side, num_tokens, statistics.median(encoded), statistics.median(cached))


async def measure_throughput(stub: ChatServiceStub, num_callers: int) -> Throughput:
    """All callers ask at once, each about its own picture, and generate a fixed number of tokens."""
    began = time.monotonic()
    await asyncio.gather(*(ask(stub, [picture(112, seed=number)], NUM_TOKENS) for number in range(num_callers)))
    return Throughput(num_callers, num_callers * NUM_TOKENS / (time.monotonic() - began))


async def ask(stub: ChatServiceStub, parts: list[content.Part], num_tokens: int) -> chat.Finished:
    """One request of exactly `num_tokens`."""
    conversation = content.Conversation(messages=[content.Message(role=content.ROLE_USER, parts=parts)])
    options = generation.Generation(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    finished = chat.Finished()
    async for event in stub.StreamChat(chat.StreamChatRequest(conversation=conversation, generation=options)):
        if event.HasField("finished"):
            finished = event.finished
    return finished


def picture(side: int, *, seed: int) -> content.Part:
    """Noise, always the same for one seed."""
    out = io.BytesIO()
    Image.frombytes("RGB", (side, side), random.Random(seed).randbytes(3 * side * side)).save(out, "PNG")
    return content.Part(image=content.Image(data=out.getvalue()))


def show(first_tokens: list[FirstToken], throughputs: list[Throughput]) -> None:
    """Both tables."""
    table = Table("picture", "tokens", "first token, encoded", "first token, cached")
    for row in first_tokens:
        sides, tokens = f"{row.side} x {row.side}", str(row.num_tokens)
        table.add_row(sides, tokens, f"{row.encoded_ms:.1f} ms", f"{row.cached_ms:.1f} ms")
    Console().print(table)
    table = Table("callers", "tokens a second")
    for result in throughputs:
        table.add_row(str(result.num_callers), f"{result.tokens_per_s:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
