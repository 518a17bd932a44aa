"""How much of its chats' prompts a fleet of decoders finds in its prefix caches: `python -m benchmarks.affinity`.

Real processes with the checkpoint that ships with the project: several users talk in turns, half of them about a
picture, once with one decoder and once with four. Every turn repeats the conversation so far.
"""

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1 import generation_pb2 as generation
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub

from benchmarks.serve import picture
from cli.children import Child
from cli.client import gateway
from cli.local_redis import LocalRedis
from cli.stack import POLL_S

MODEL = "models/demo"
NUM_USERS, NUM_TURNS, NUM_AT_ONCE, NUM_TOKENS = 16, 3, 4, 4
WORDS = [
    *("what", "is", "the", "colour", "of", "the", "card", "and", "how", "many", "are", "there", "left", "or"),
    *("right", "above", "below", "number", "name", "circle"),
]


@contextmanager
def fleet(num_decoders: int) -> Iterator[Child]:
    """A gateway before one encoder and so many decoders, with a Redis between them."""
    children: list[Child] = []
    with LocalRedis() as redis, tempfile.TemporaryDirectory() as folder:
        common = {"DIPTYCH_MODEL": MODEL, "DIPTYCH_THREADS": "1", "DIPTYCH_CACHE_URL": redis.url}
        try:
            for name in ["encoder", *(f"decoder-{number}" for number in range(num_decoders))]:
                settings = {**common, "DIPTYCH_DECODER_KV_CACHE_TOKENS": "40000"}
                children.append(Child(name, f"services.{name.partition('-')[0]}", settings, Path(folder)))
            encoder, *decoders = [asyncio.run(_address(child)) for child in children]
            addresses = {"DIPTYCH_GATEWAY_ENCODER": encoder, "DIPTYCH_GATEWAY_DECODER": ",".join(decoders)}
            children.append(Child("gateway", "gateway", {**common, **addresses}, Path(folder)))
            asyncio.run(_address(children[-1]))
            yield children[-1]
        finally:
            for child in children:
                child.kill()


async def _address(child: Child) -> str:
    async with asyncio.timeout(120):
        while (address := child.address) is None:  # noqa: ASYNC110 -- another process writes it
            await asyncio.sleep(POLL_S)
    return address


async def hit_rate(address: str) -> float:
    """Tokens found in a prefix cache, of all tokens of all prompts."""
    gate, found = asyncio.Semaphore(NUM_AT_ONCE), []
    async with gateway(address) as stub:

        async def talk(user: int) -> None:
            async with gate:
                found.extend([usage async for usage in _usages(stub, user)])

        await asyncio.gather(*(talk(user) for user in range(NUM_USERS)))
    return sum(usage.num_cached_tokens for usage in found) / sum(usage.num_prompt_tokens for usage in found)


async def _usages(stub: ChatServiceStub, user: int) -> AsyncIterator[chat.Usage]:
    words, conversation = random.Random(user), content.Conversation()
    for turn in range(NUM_TURNS):
        parts = [picture(112, seed=user)] if user % 2 and not turn else []
        parts.append(content.Part(text=" ".join(words.choices(WORDS, k=40))))
        conversation.messages.append(content.Message(role=content.ROLE_USER, parts=parts))
        options = generation.Generation(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
        answer: chat.ChatResponse = await stub.Chat(chat.ChatRequest(conversation=conversation, generation=options))
        yield answer.usage
        said = content.Part(text=answer.choices[0].text or "-")
        conversation.messages.append(content.Message(role=content.ROLE_ASSISTANT, parts=[said]))


def main() -> None:
    """Print the hit rate of one decoder and of four."""
    for num_decoders in (1, 4):
        with fleet(num_decoders) as front:
            rate = asyncio.run(hit_rate(front.address or ""))
            print(f"decoders: {num_decoders}; share of the prompts' tokens found cached: {rate:.3f}")


if __name__ == "__main__":
    main()
