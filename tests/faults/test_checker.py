"""The rules of the storm can be broken: each is told from what holds it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.exactness import cases
from tests.faults import checker
from tests.faults.fleet import Replica
from tests.faults.questions import Question
from tests.faults.traffic import Attempt, Record

QUESTION = Question("alpha", cases.user("asked", "What can you see?"), 2, (5, 7), "a cat")
RIGHT: dict[str, Any] = {
    "code": "OK", "num_ends": 1, "events": ["started", "text_delta", "finished"], "text": "a cat", "token_ids": (5, 7)
}  # fmt: skip
REFUSED: dict[str, Any] = {"code": "UNAVAILABLE", "num_ends": 1, "reason": "DECODER_UNAVAILABLE"}
LATE: dict[str, Any] = {"code": "DEADLINE_EXCEEDED", "num_ends": 1, "elapsed_s": 10.5}
ENDLESS = float("inf")


@pytest.fixture
def gateway(tmp_path: Path) -> Replica:
    """One that nothing has happened to."""
    return Replica("gateway0", "gateway", {}, tmp_path)


def problems(gateway: Replica, *values: dict[str, Any]) -> list[str]:
    """What is wrong with attempts at one question."""
    attempts = [Attempt(gateway, True, 10.0) for _ in values]
    for attempt, changes in zip(attempts, values, strict=True):
        for name, value in changes.items():
            setattr(attempt, name, value)
    return [problem.rpartition(": ")[2] for problem in checker.violations(Record(QUESTION, "plain", attempts))]


@pytest.mark.parametrize(
    "attempts",
    [
        [RIGHT],
        [REFUSED, RIGHT],
        [REFUSED | {"events": ["started", "text_delta"], "text": "a c"}, RIGHT],
        [LATE | {"elapsed_s": 10.2}],
        [LATE | {"timer_late_s": 0.3}],
        [{"code": "CANCELLED", "num_ends": 1, "cancel_after_s": 0.1}, RIGHT],
    ],
)
def test_what_holds_every_rule(gateway: Replica, attempts: list[dict[str, Any]]) -> None:
    """Right answers, typed failures, beginnings of the answer, and ends by the client's own timer as late as it is."""
    assert problems(gateway, *attempts) == []


@pytest.mark.parametrize(
    ("attempt", "problem"),
    [
        (RIGHT | {"num_ends": 0}, "ended 0 times"),
        (RIGHT | {"num_ends": 2}, "ended 2 times"),
        (LATE, "ended 0.500 s after its deadline, with the client's own timers 0.000 s late"),
        (REFUSED | {"reason": "MODEL_MISMATCH"}, "a reason that does not belong here"),
        (REFUSED | {"reason": ""}, "a status without an ErrorInfo"),
        (LATE | {"elapsed_s": 9.0}, "a status without an ErrorInfo"),
        (RIGHT | {"text": "a dog"}, "text that is no beginning of the right answer"),
        (RIGHT | {"text": "a c"}, "another answer than the right one"),
        (RIGHT | {"token_ids": (5, 8)}, "another answer than the right one"),
        (RIGHT | {"events": ["started"]}, "a silent end"),
        (RIGHT | {"events": ["finished", "started"]}, "['finished', 'started']"),
        ({"code": "INTERNAL", "num_ends": 1, "reason": "INTERNAL"}, "failed for good with INTERNAL"),
    ],
)
def test_what_breaks_one(gateway: Replica, attempt: dict[str, Any], problem: str) -> None:
    """It is named."""
    assert problem in problems(gateway, attempt)


def test_a_connection_that_was_disturbed_may_fail_without_a_reason(gateway: Replica) -> None:
    """The client's own gRPC made that status."""
    gateway.disturbed_until = ENDLESS
    assert problems(gateway, REFUSED | {"reason": ""}, RIGHT) == []


async def test_how_late_the_clients_timers_are(gateway: Replica) -> None:
    """It is seen by a timer for the deadline, and is nothing for an RPC that ends before."""
    busy, early = Attempt(gateway, True, 0.01), Attempt(gateway, True, 60.0)
    with busy.under_way(), early.under_way():
        while not busy.timer_late_s:  # noqa: ASYNC110 -- the timer tells nobody else
            await asyncio.sleep(0)
    assert 0 < busy.timer_late_s < 60.0
    assert early.timer_late_s == 0
