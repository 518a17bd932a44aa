"""What a picture seen before adds to a request: its first token's time beside that of text of as many tokens.

Both prompts begin with words of their own, so the decoder has computed neither: what differs is the picture's way from
its file to the prompt. The encoder's calls are counted meanwhile.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from statistics import median
from time import perf_counter

from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub
from redis.asyncio import Redis

from benchmarks.figures import MILLISECONDS, Result
from benchmarks.pictures import picture_file
from benchmarks.serve import ask
from cli.client import gateway
from cli.scrape import Change, Reading, read
from cli.stack import Stack, StackOptions
from services.common.checkpoint import Checkpoint
from services.common.telemetry import catalogue

SIDES = (112, 448)
VALUE_BYTES = 4  # of float32


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured with. `words` differ at every call, from their first token on."""

    stub: ChatServiceStub
    redis: Redis
    width: int
    words: Callable[[], str]


def measure_warm(model: str, num_repeats: int) -> list[Result]:
    """Starts the services, measures, stops them."""
    with Stack(StackOptions(model, dtype="float32")) as stack:
        stack.start()
        return asyncio.run(_measure(stack, Checkpoint.open(model).text.hidden_size, num_repeats))


async def _measure(stack: Stack, width: int, num_repeats: int) -> list[Result]:
    results = []
    async with _bench(stack, width) as bench:
        await ask(bench.stub, [content.Part(text="warm up")], 4)
        pictures = {side: _picture(side) for side in SIDES}
        for picture in pictures.values():
            await ask(bench.stub, [picture], 1)  # from here on they have been seen
        before = _encoder_page(stack)
        for side, picture in pictures.items():
            results += await _measure_side(bench, side, picture, num_repeats)
        calls = Change(before, _encoder_page(stack)).grown(f"{catalogue.RPC_DURATION.name}_count", method="Encode")
    return [*results, Result("warm: calls of the encoder", calls, "calls")]


@asynccontextmanager
async def _bench(stack: Stack, width: int) -> AsyncIterator[Bench]:
    if stack.redis is None:
        raise RuntimeError("the stack has no Redis")
    numbers = count(100)
    async with gateway(stack.address) as stub, Redis.from_url(stack.redis.url) as redis:
        yield Bench(stub, redis, width, lambda: f"{next(numbers)} is the number.")


async def _measure_side(bench: Bench, side: int, picture: content.Part, num_repeats: int) -> list[Result]:
    """In turn, so that whatever else runs on the machine meets both alike."""
    num_tokens, num_rows = await _counted(bench.stub, [content.Part(text=bench.words()), picture])
    filler = await _filler(bench, num_tokens)
    with_picture, with_text, gets = [], [], []
    for _ in range(num_repeats):
        with_text.append(await _first_token_ms(bench.stub, [content.Part(text=bench.words() + filler)]))
        with_picture.append(await _first_token_ms(bench.stub, [content.Part(text=bench.words()), picture]))
        gets.append(await _get_ms(bench.redis, num_rows * bench.width * VALUE_BYTES))
    ours, text, transfer = median(with_picture), median(with_text), median(gets)
    name = f"{side} x {side}"
    return [
        Result(f"warm: first token, {name}", ours, MILLISECONDS, "text of as many tokens", text, text / ours),
        Result(f"warm: a seen picture adds, {name}", ours - text, MILLISECONDS, "redis-py GET of its rows", transfer),
    ]


async def _first_token_ms(stub: ChatServiceStub, parts: list[content.Part]) -> float:
    return (await ask(stub, parts, 1)).timings.time_to_first_token_ms


async def _get_ms(redis: Redis, num_bytes: int) -> float:
    """A value of that size by the plain library."""
    await redis.set("plain", bytes(num_bytes))
    began = perf_counter()
    await redis.get("plain")
    return (perf_counter() - began) * 1000


async def _filler(bench: Bench, num_tokens: int) -> str:
    """Words that make a prompt of so many tokens."""
    bare, _ = await _counted(bench.stub, [content.Part(text=bench.words())])
    filler = " the" * (num_tokens - bare)
    filled, _ = await _counted(bench.stub, [content.Part(text=bench.words() + filler)])
    if filled != num_tokens:
        raise RuntimeError(f"the text has {filled} tokens, not {num_tokens}")
    return filler


async def _counted(stub: ChatServiceStub, parts: list[content.Part]) -> tuple[int, int]:
    """Tokens of a prompt, and those of them that are its media's."""
    conversation = content.Conversation(messages=[content.Message(role=content.ROLE_USER, parts=parts)])
    counted = await stub.CountTokens(chat.CountTokensRequest(conversation=conversation))
    return counted.num_prompt_tokens, counted.num_media_tokens


def _picture(side: int) -> content.Part:
    return content.Part(image=content.Image(data=picture_file(side, seed=side)))


def _encoder_page(stack: Stack) -> Reading:
    page = read(str(stack.children["encoder"].metrics_address))
    if page is None:
        raise RuntimeError("the encoder shows no metrics")
    return page
