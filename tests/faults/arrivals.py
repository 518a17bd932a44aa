"""`python -m tests.faults.arrivals TARGET RATE SECONDS`: questions at random moments, answered or not so far.

Prints one JSON object, `Offered`. The caller's token is in DIPTYCH_TOKEN.
"""

import asyncio
import json
import math
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import grpc
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import generation_pb2 as generation
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub
from google.rpc import error_details_pb2 as details

from services.common.channels import open_channel
from services.common.collector import spare_what_is_loaded
from services.common.errors import rich_status
from tests.exactness import cases

DEADLINE_S = 2.0
WARM_S = 2.0  # not counted: the load is still building up
NUM_TOKENS = 96
PICTURE_SHARE = 0.2


@dataclass
class Offered:
    """What became of the calls. `goodput`: answers within their deadline, a second."""

    goodput: float = 0.0
    codes: Counter[str] = field(default_factory=Counter)
    refused_ms: list[float] = field(default_factory=list)
    refused_with: Counter[str] = field(default_factory=Counter)  # whose refusals they were, in their own words
    behind_ms: list[float] = field(default_factory=list)  # how much later than meant each call was made
    num_untold: int = 0  # refused without a time to come back

    def __add__(self, other: "Offered") -> "Offered":
        """Both of them, one after the other."""
        return Offered(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


class Offering:
    """Calls at a mean `rate` a second (Poisson), for so many seconds."""

    def __init__(self, stub: ChatServiceStub, rate: float, seconds: float) -> None:
        self._stub, self._rate, self._seconds = stub, rate, seconds
        self._rng, self._offered, self._num_good = random.Random(), Offered(), 0  # no two of them ask the same
        self._started = math.inf

    async def run(self) -> Offered:
        """Ask until the time is over, and wait for the last answers."""
        calls: list[asyncio.Task[None]] = []
        coming = [(at_s, self._request(number)) for number, at_s in enumerate(self._arrivals())]
        spare_what_is_loaded()
        self._started = time.monotonic()
        for at_s, request in coming:
            await asyncio.sleep(self._started + at_s - time.monotonic())
            self._offered.behind_ms.append((time.monotonic() - self._started - at_s) * 1000)
            calls.append(asyncio.create_task(self._ask(request)))
        await asyncio.gather(*calls)
        self._offered.goodput = self._num_good / (self._seconds - WARM_S)
        return self._offered

    def _arrivals(self) -> Iterator[float]:
        """Seconds from the start."""
        at_s = 0.0
        while (at_s := at_s + self._rng.expovariate(self._rate)) < self._seconds:
            yield at_s

    def _request(self, number: int) -> chat.ChatRequest:
        """A question with a new picture or about nothing."""
        pictures = [cases.picture(self._rng.randrange(1 << 30))] if self._rng.random() < PICTURE_SHARE else []
        conversation = cases.user("", *pictures, f"{number} {self._rng.random()}").to_conversation()
        options = generation.Generation(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
        return chat.ChatRequest(conversation=conversation, generation=options)

    async def _ask(self, request: chat.ChatRequest) -> None:
        asked = time.monotonic()
        try:
            await self._stub.Chat(request, timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            self._offered.codes[error.code().name] += 1
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                self._offered.refused_ms.append((time.monotonic() - asked) * 1000)
                self._offered.refused_with[str(error.details())] += 1
                self._offered.num_untold += not _tells_when(error)
        else:
            self._offered.codes["OK"] += 1
            self._num_good += WARM_S <= time.monotonic() - self._started < self._seconds


def _tells_when(error: grpc.aio.AioRpcError) -> bool:
    status = rich_status(error)
    return status is not None and any(detail.Is(details.RetryInfo.DESCRIPTOR) for detail in status.details)


async def main() -> None:
    """The command."""
    target, rate, seconds = sys.argv[1:]
    async with open_channel(target, token=os.environ["DIPTYCH_TOKEN"]) as channel:
        offered = await Offering(ChatServiceStub(channel), float(rate), float(seconds)).run()
    print(json.dumps(vars(offered)))


if __name__ == "__main__":
    asyncio.run(main())
