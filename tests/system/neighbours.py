"""Two tenants of one stack, what they ask, and a third who asks nothing else."""

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from diptych.v1 import content_pb2 as content
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub

from cli.stack import Stack
from services.common.identity import Identity, token_line
from services.common.keys import digest_of
from tests.exactness import cases
from tests.harness import gateway, running

TENANTS = ("victim", "spy", "third")
NUM_WORDS = 700
RANDOM = random.Random(6)  # noqa: S311 -- samples, and no secrets


@dataclass(frozen=True, slots=True)
class Neighbours:
    """A connection of each tenant."""

    victim: ChatServiceStub
    spy: ChatServiceStub
    third: ChatServiceStub


@contextmanager
def closed_stack(checkpoint: Path, folder: Path) -> Iterator[Stack]:
    """The three services with tokens, a Redis with sealed values, and all tiers of the cache."""
    (folder / "tokens").write_text("\n".join(token_line(name, Identity(name)) for name in TENANTS))
    settings = {
        "DIPTYCH_GATEWAY_TOKENS_FILE": str(folder / "tokens"),
        "DIPTYCH_CACHE_SECRET": "a secret",
        "DIPTYCH_DECODER_LOCAL_CACHE_BYTES": str(256 << 20),
    }
    with running(checkpoint, folder / "logs", redis=True, cache_url=None, **settings) as stack:
        yield stack


@asynccontextmanager
async def connected(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Neighbours]:
    """All of them, each with its token."""
    async with AsyncExitStack() as connections:
        stubs = []
        for name in TENANTS:
            monkeypatch.setenv("DIPTYCH_TOKEN", name)
            stubs.append(await connections.enter_async_context(gateway(stack.address)))
        yield Neighbours(*stubs)


def picture(side: int = 112) -> content.Conversation:
    """A question about a picture that nobody has seen, of always the same size."""
    pixels = cases.picture(RANDOM.getrandbits(31), side, side, max_pixels=side * side)
    return cases.user("", pixels, "What is this?").to_conversation()


def text() -> content.Conversation:
    """A long question that nobody has asked, of always as many tokens."""
    return cases.user("", " ".join(str(RANDOM.randrange(10)) for _ in range(NUM_WORDS))).to_conversation()


def named(digest: str) -> content.Conversation:
    """A question about media by its digest alone."""
    parts = [content.Part(image=content.Image(digest=digest))]
    return content.Conversation(messages=[content.Message(role=content.ROLE_USER, parts=parts)])


def by_digest(conversation: content.Conversation) -> content.Conversation:
    """A question that names the picture of a conversation."""
    return named(digest_of(conversation.messages[0].parts[0].image.data))


def nobodys_digest() -> content.Conversation:
    """A question that names what nobody has sent."""
    return named(digest_of(RANDOM.randbytes(32)))
