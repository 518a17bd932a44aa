"""The rules of the storm can be broken: each is told from what holds it."""

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
        [LATE | {"elapsed_s": 11.9}],
        [LATE | {"elapsed_s": 10.2, "reason": "DEADLINE_EXCEEDED"}],
        [{"code": "CANCELLED", "num_ends": 1, "cancel_after_s": 0.1}, RIGHT],
    ],
)
def test_what_holds_every_rule(gateway: Replica, attempts: list[dict[str, Any]]) -> None:
    """Right answers, typed failures, beginnings of the answer, and ends soon after the deadline."""
    assert problems(gateway, *attempts) == []


@pytest.mark.parametrize(
    ("attempt", "problem"),
    [
        (RIGHT | {"num_ends": 0}, "ended 0 times"),
        (RIGHT | {"num_ends": 2}, "ended 2 times"),
        (LATE | {"elapsed_s": 12.5}, "ended 2.500 s after its deadline"),
        (LATE | {"reason": "DEADLINE_EXCEEDED"}, "ended 0.500 s after its deadline"),
        (RIGHT | {"elapsed_s": 10.5}, "ended 0.500 s after its deadline"),
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
