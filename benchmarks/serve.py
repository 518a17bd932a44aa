"""Speed through all services on this machine, with the checkpoint that ships with the project.

Two questions: how long a picture's first token takes when it is new, when its embeddings are cached, and when the
decoder has its prefix too; and how many tokens a second come out when several callers ask at once.
"""

import asyncio
import io
import random
import time
from statistics import median

from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1 import generation_pb2 as generation
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub
from PIL import Image

from benchmarks.figures import MILLISECONDS, TOKENS_PER_S, Result
from cli.client import gateway
from cli.stack import Stack, StackOptions

SIDES = (112, 224, 448)
CALLERS = (1, 4, 16)
NUM_TOKENS = 64


def measure_services(model: str, num_repeats: int) -> list[Result]:
    """Starts the services, measures, stops them."""
    with Stack(StackOptions(model)) as stack:
        stack.start()
        return asyncio.run(_measure(stack.address, num_repeats))


async def _measure(address: str, num_repeats: int) -> list[Result]:
    """Both measurements, after one request that warms everything up."""
    async with gateway(address) as stub:
        await ask(stub, [picture(56, seed=0)], 4)
        first_tokens = [result for side in SIDES for result in await measure_first_token(stub, side, num_repeats)]
        return first_tokens + [await measure_throughput(stub, count) for count in CALLERS]


async def measure_first_token(stub: ChatServiceStub, side: int, num_repeats: int) -> list[Result]:
    """New pictures; the same again after other words, which hide the prefix from the decoder; and once more."""
    times: dict[str, list[float]] = {"new": [], "embeddings cached": [], "prefix cached": []}
    for seed in range(num_repeats):
        part = picture(side, seed=side + seed)
        asked = (f"{seed} first", f"{seed} again", f"{seed} again")
        for kind, words in zip(times, asked, strict=True):
            finished = await ask(stub, [content.Part(text=words), part], 1)
            times[kind].append(finished.timings.time_to_first_token_ms)
    return [
        Result(f"services: first token, {side} x {side}, {kind}", median(values), MILLISECONDS)
        for kind, values in times.items()
    ]


async def measure_throughput(stub: ChatServiceStub, num_callers: int) -> Result:
    """All callers ask at once, each about its own picture, and generate a fixed number of tokens."""
    began = time.monotonic()
    await asyncio.gather(*(ask(stub, [picture(112, seed=number)], NUM_TOKENS) for number in range(num_callers)))
    speed = num_callers * NUM_TOKENS / (time.monotonic() - began)
    return Result(f"services: tokens a second, {num_callers} callers", speed, TOKENS_PER_S)


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
