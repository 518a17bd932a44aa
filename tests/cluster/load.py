"""Steady requests of all kinds, and chats whose turns grow."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1 import generation_pb2 as generation
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub

from services.common.channels import open_channel
from tests.exactness import cases
from tests.harness import Answer, collect

CALL_TIMEOUT_S = 60.0
MAX_TOKENS = 8
SEEN_SEEDS = range(6)  # of pictures that come again and again


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that got no answer."""

    code: str
    details: str


@dataclass(slots=True)
class Outcome:
    """How the requests ended."""

    answered_s: list[float] = field(default_factory=list)  # how long each answer took
    failures: list[Failure] = field(default_factory=list)


@asynccontextmanager
async def steady_load(address: str, num_clients: int, seed: int = 0) -> AsyncIterator[Outcome]:
    """So many clients that ask one thing after another, until the block is left and what runs is answered."""
    outcome, stop, rng = Outcome(), asyncio.Event(), random.Random(seed)  # noqa: S311 -- of questions
    async with open_channel(address) as channel:
        stub = ChatServiceStub(channel)
        clients = [asyncio.create_task(_ask_on(stub, rng, outcome, stop)) for _ in range(num_clients)]
        try:
            yield outcome
        finally:
            stop.set()
            await asyncio.gather(*clients)


async def _ask_on(stub: ChatServiceStub, rng: random.Random, outcome: Outcome, stop: asyncio.Event) -> None:
    while not stop.is_set():
        kind, case = _question(rng)
        started_at = time.monotonic()
        try:
            await answer(stub, case.to_conversation(), MAX_TOKENS)
        except grpc.aio.AioRpcError as error:
            outcome.failures.append(Failure(error.code().name, f"{kind}: {error.details()}"))
        else:
            outcome.answered_s.append(time.monotonic() - started_at)


def _question(rng: random.Random) -> tuple[str, cases.Case]:
    """A third each: text, a picture that others send too, and one never seen or a few frames."""
    match rng.randrange(6):
        case 0 | 1:
            return "text", cases.user("", f"What is {rng.randrange(1000)} and one?")
        case 2 | 3:
            return "known picture", cases.user("", cases.picture(rng.choice(SEEN_SEEDS)), "Describe.")
        case 4:
            return "new picture", cases.user("", cases.picture(rng.randrange(10_000, 1 << 30)), "What is it?")
        case _:
            return "frames", cases.user("", cases.frame_list(rng.randrange(40), 4), "What happens?")


async def answer(stub: ChatServiceStub, conversation: content.Conversation, max_tokens: int) -> Answer:
    """One streamed answer. AioRpcError when it fails; AssertionError when it is not whole."""
    wanted = generation.Generation(max_tokens=max_tokens, temperature=0)
    request = chat.StreamChatRequest(conversation=conversation, generation=wanted)
    return await collect(stub.StreamChat(request, timeout=CALL_TIMEOUT_S))


async def hit_rate(address: str, num_chats: int, num_turns: int, num_at_once: int) -> float:
    """The share of prompt tokens that the decoders still had, over chats about a picture each that grow by a turn."""
    gate, usage = asyncio.Semaphore(num_at_once), Counter[str]()
    async with open_channel(address) as channel:
        stub = ChatServiceStub(channel)
        await asyncio.gather(*(_chat(stub, seed, num_turns, gate, usage) for seed in range(num_chats)))
    return usage["cached"] / usage["prompt"]


async def _chat(stub: ChatServiceStub, seed: int, num_turns: int, gate: asyncio.Semaphore, usage: Counter[str]) -> None:
    conversation = cases.user("", cases.picture(70_000 + seed, 112, 112), "Describe it.").to_conversation()
    for turn in range(num_turns):
        async with gate:
            said = await answer(stub, conversation, 16)
        usage["prompt"] += said.finished.usage.num_prompt_tokens
        usage["cached"] += said.finished.usage.num_cached_tokens
        told = content.Message(role=content.ROLE_ASSISTANT, parts=[content.Part(text=said.text)])
        asked = content.Part(text=f"And what else, number {turn}, can you tell me about its left side?")
        conversation.messages.extend([told, content.Message(role=content.ROLE_USER, parts=[asked])])
