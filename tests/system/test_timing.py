"""No time tells a tenant what another has sent: samples taken by turns, a rank test, and a control that sees one's own.

Times need a machine for themselves: `pytest -m soak -s tests/system/test_timing.py`, a part of `make soak`.
However slow that is, a test ends after its seconds, with the bound that the rounds until then allow.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import grpc
import numpy as np
import pytest
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1 import generation_pb2 as generation
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub

from tests.faults.results import Figure, figure, keep, show
from tests.system.neighbours import (
    RANDOM,
    Neighbours,
    by_digest,
    nobodys_digest,
    picture,
    text,
)

pytestmark = [pytest.mark.soak]

MAX_ROUNDS, MIN_ROUNDS, MAX_S = 200, 30, 45.0
NUM_WARM = 3
DEVIATIONS = 3.29  # 99.9 % of what chance does lie within
MIN_SEEN = 0.9
SIDE = 448
FIRST, LAST = 0, 1
EVENTS = {FIRST: "first event", LAST: "end"}

New = Callable[[], content.Conversation]
Times = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Samples:
    """Seconds to the first event and to the end, of each kind of request; taken in rounds of one of each."""

    theirs: list[Times] = field(default_factory=list)
    unseen: list[Times] = field(default_factory=list)
    own: list[Times] = field(default_factory=list)

    def figures(self, what: str, event: int) -> list[Figure]:
        """How well a time tells theirs, and one's own, from unseen: by area, with the medians."""
        theirs, unseen, own = ([times[event] for times in kind] for kind in (self.theirs, self.unseen, self.own))
        medians = [f"{1000 * float(np.median(kind)):.2f} ms" for kind in (theirs, unseen, own)]
        found, control = area(theirs, unseen), area(own, unseen)
        until, proof = f"time to the {EVENTS[event]}, {len(theirs)} rounds", f"timing, {what}"
        bar = f"{0.5 - self.chance:.3f} to {0.5 + self.chance:.3f}"
        told = figure(
            proof,
            f"{until}: how often another's is faster than unseen",
            f"{found:.3f} (medians {medians[0]} and {medians[1]})",
            bar,
            abs(found - 0.5) < self.chance,
        )
        seen = figure(
            proof,
            f"{until}: how well one's own is told from unseen",
            f"{max(control, 1 - control):.3f} (median {medians[2]})",
            f"{MIN_SEEN}",
            max(control, 1 - control) > MIN_SEEN,
        )
        return [told, seen] if event == LAST else [told]

    @property
    def chance(self) -> float:
        """How far from 0.5 the area of so many samples comes if both kinds take the same time."""
        count = len(self.theirs)
        return DEVIATIONS * math.sqrt((2 * count + 1) / (12 * count * count))


def area(one: list[float], other: list[float]) -> float:
    """How often one of the first is faster than one of the second: Mann and Whitney's U as a share, 0.5 by chance."""
    first, second = np.array(one)[:, None], np.array(other)
    return float(np.mean((first < second) + 0.5 * (first == second)))


def rounds() -> Iterator[bool]:
    """Whether each round counts: the first ones do not, and the last one begins within the test's seconds."""
    yield from [False] * NUM_WARM
    ends_at = time.monotonic() + MAX_S
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and time.monotonic() > ends_at:
            return
        yield True


async def times(stub: ChatServiceStub, conversation: content.Conversation) -> Times:
    """Of an answer of one token; media that is not found ends it, too."""
    options = generation.Generation(max_tokens=1, temperature=0.0)
    started, first = time.perf_counter(), math.inf
    call = stub.StreamChat(chat.StreamChatRequest(conversation=conversation, generation=options))
    with suppress(grpc.aio.AioRpcError):
        async for _ in call:
            first = min(first, time.perf_counter())
    ended = time.perf_counter()
    assert await call.code() in {grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND}
    return min(first, ended) - started, ended - started


async def sampled(neighbours: Neighbours, new: New) -> Samples:
    """Rounds: the victim asks, then the spy the same and something unseen in random order, then the same again."""
    samples = Samples()
    for counts in rounds():
        theirs, unseen = new(), new()
        await times(neighbours.victim, theirs)
        asked = [(theirs, samples.theirs), (unseen, samples.unseen)]
        RANDOM.shuffle(asked)
        for conversation, kind in [*asked, (theirs, samples.own)]:
            taken = await times(neighbours.spy, conversation)
            if counts:
                kind.append(taken)
    return samples


def require(figures: list[Figure]) -> None:
    """Print and keep them; all must hold."""
    show(figures)
    keep(figures)
    assert all(line.holds for line in figures)


@pytest.mark.parametrize("new", [lambda: picture(SIDE), text], ids=["picture", "text"])
async def test_what_another_has_sent_looks_unseen(
    neighbours: Neighbours, new: New, request: pytest.FixtureRequest
) -> None:
    """Pictures in all tiers of the cache, and texts whose blocks the decoder keeps: only what is one's own is seen."""
    samples = await sampled(neighbours, new)
    require([line for event in EVENTS for line in samples.figures(request.node.callspec.id, event)])


async def test_anothers_digest_is_like_one_of_nothing(neighbours: Neighbours) -> None:
    """Both are not found, in the same time; one's own is found, which takes longer."""
    samples = Samples()
    for counts in rounds():
        sent = picture(SIDE)
        await times(neighbours.victim, sent)
        asked = [
            (neighbours.spy, by_digest(sent), samples.theirs),
            (neighbours.spy, nobodys_digest(), samples.unseen),
            (neighbours.victim, by_digest(sent), samples.own),
        ]
        RANDOM.shuffle(asked)
        for stub, conversation, kind in asked:
            taken = await times(stub, conversation)
            if counts:
                kind.append(taken)
    require(samples.figures("digest", LAST))
