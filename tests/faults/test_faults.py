"""The storm in short; `make faults` is the whole of it."""

import pytest

from tests.faults.faults import weather

pytestmark = pytest.mark.soak  # it needs a quiet machine


async def test_no_fault_breaks_a_rule() -> None:
    """Whatever is broken, an RPC ends once, in time and typed, with the right tokens of its own tenant or with none."""
    outcome = await weather(200, interval_s=0.7, seed=5, num_questions=8)
    assert outcome.problems == []
    assert outcome.faults.total() > 2
    assert outcome.share_answered > 0.95
