"""The proofs in short, on one fleet."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.faults import cancels, deaths
from tests.faults.results import Figure
from tests.faults.stage import METRICS, Stage, stage

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.soak]  # they need a quiet machine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def played() -> AsyncIterator[Stage]:
    """Two of each service."""
    async with stage(2, METRICS) as found:
        yield found


def failed(figures: list[Figure]) -> list[Figure]:
    """Those that miss their bar."""
    return [item for item in figures if not item.holds]


async def test_cancelled_streams_leave_nothing(played: Stage) -> None:
    """After hundreds of cancelled streams nothing is held: no slot, no block, no descriptor, no memory."""
    memory_and_files = [item for item in await cancels.prove(played, 300) if "until slot" not in item.what]
    assert failed(memory_and_files) == []


async def test_an_encoder_that_dies_is_replaced(played: Stage) -> None:
    """Requests in an encoder that is killed are answered by the other one."""
    assert failed(await deaths.prove_encoder(played)) == []


async def test_a_decoder_that_dies_never_ends_a_stream_silently(played: Stage) -> None:
    """Streams whose decoder is killed end with UNAVAILABLE and its name."""
    assert failed(await deaths.prove_decoder(played)) == []
