"""What a decoder has just refused is refused without asking it: to who asks as much, while nothing has ended."""

import weakref
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import grpc
import pytest
from diptych.v1 import chat_service_pb2 as pb
from diptych.v1 import generation_pb2

from gateway.reach.refusals import REMEMBERED_S, Refusals, Wish
from services.common.checkpoint import Checkpoint
from services.common.errors import Overloaded, from_rpc_error
from tests.gateway.client import says
from tests.gateway.fakes import FakeDecoder, FakeEncoder
from tests.gateway.reach.crowd import Crowd, crowded

WISH = Wish(patience_s=2.0, max_tokens=100)


class Clock:
    """Time that tests set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def refusals(clock: Clock) -> Refusals:
    """One refusal: of WISH, beside five calls."""
    refusals = Refusals(clock)
    refusals.note(WISH, 5, Overloaded("no", retry_after_s=3.0))
    return refusals


def test_who_asks_as_much_hears_the_same(refusals: Refusals) -> None:
    """As much: no more time, as many tokens, beside as many calls."""
    for wish in (WISH, Wish(1.0, 100), Wish(2.01, 1000)):
        again = refusals.of(wish, 5)
        assert again is not None
        assert (again.message, again.retry_after_s) == ("no", 3.0)


@pytest.mark.parametrize("wish", [Wish(3.0, 100), Wish(2.0, 99)])
def test_who_asks_for_less_may_ask(refusals: Refusals, wish: Wish) -> None:
    """More patience, or a shorter answer: whoever has neither cannot keep others from asking."""
    assert refusals.of(wish, 5) is None


def test_nothing_of_the_refused_request_is_kept(clock: Clock) -> None:
    """An error's traceback holds the request, media and all: what is remembered is what it says."""
    error = Overloaded("no", retry_after_s=3.0)
    alive, refusals = weakref.ref(error), Refusals(clock)
    refusals.note(WISH, 5, error)
    del error
    assert alive() is None
    assert refusals.of(WISH, 5) is not None


def test_the_end_of_a_call_lets_one_ask(refusals: Refusals) -> None:
    """So that as many are under way as the endpoint can bear."""
    assert refusals.of(WISH, 4) is None
    assert refusals.of(WISH, 6) is not None


def test_a_refusal_holds_for_a_moment(refusals: Refusals, clock: Clock) -> None:
    """Other gateways' calls may have ended."""
    clock.now = REMEMBERED_S
    assert refusals.of(WISH, 5) is None


def test_a_refusal_beside_no_call_is_not_remembered(clock: Clock) -> None:
    """No end of a call here would tell that there is room again."""
    refusals = Refusals(clock)
    refusals.note(WISH, 0, Overloaded())
    assert refusals.of(WISH, 0) is None


@pytest.fixture
def long_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is."""
    monkeypatch.setattr("gateway.reach.refusals.REMEMBERED_S", 600.0)


@asynccontextmanager
async def busy(model: Checkpoint, num_decoders: int) -> AsyncIterator[tuple[Crowd, ExitStack]]:
    """Decoders that have a call each, until the stack is closed."""
    decoders = [FakeDecoder(model) for _ in range(num_decoders)]
    async with crowded(model, [FakeEncoder(model)], decoders) as crowd:
        with ExitStack() as calls:
            for endpoint in crowd.pools.decoders.endpoints:
                calls.enter_context(endpoint.call())
            yield crowd, calls


def refuse(decoder: FakeDecoder) -> None:
    """From now on, whatever comes."""
    decoder.refusal = Overloaded("no", retry_after_s=3.0)
    decoder.may_refuse.set()


async def ask(crowd: Crowd, timeout_s: float = 20.0) -> str:
    """What an answer's text, or a refusal's, is."""
    wanted = generation_pb2.Generation(max_tokens=10)
    request = pb.ChatRequest(conversation=says("Are you there?"), generation=wanted)
    try:
        await crowd.stub.Chat(request, timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        known = from_rpc_error(error, "gateway")
        assert isinstance(known, Overloaded)
        return f"{known.message}, {known.retry_after_s:g} s"
    return "answered"


@pytest.mark.usefixtures("long_memory")
async def test_a_decoder_that_has_just_refused_is_not_asked_the_same(model: Checkpoint) -> None:
    """The second refusal is the gateway's own, with the decoder's word and time; who has more patience is heard."""
    async with busy(model, 1) as (crowd, _calls):
        [decoder] = crowd.decoders
        refuse(decoder)
        assert [await ask(crowd) for _ in range(5)] == ["no, 3 s"] * 5
        assert len(decoder.prompts) == 1
        assert await ask(crowd, timeout_s=40) == "no, 3 s"
        assert len(decoder.prompts) == 2


@pytest.mark.usefixtures("long_memory")
async def test_a_decoder_is_asked_again_when_a_call_has_ended(model: Checkpoint) -> None:
    """It may have room now."""
    async with busy(model, 1) as (crowd, calls):
        [decoder] = crowd.decoders
        refuse(decoder)
        assert await ask(crowd) == "no, 3 s"
        decoder.refusal = None
        assert await ask(crowd) == "no, 3 s"
        calls.close()
        assert await ask(crowd) == "answered"


@pytest.mark.usefixtures("long_memory")
async def test_another_decoder_is_asked_instead(model: Checkpoint) -> None:
    """One that refuses is passed over while another has not, though it has the prompt's beginning."""
    async with busy(model, 2) as (crowd, _calls):
        assert await ask(crowd) == "answered"
        [chosen] = [decoder for decoder in crowd.decoders if decoder.prompts]
        refuse(chosen)
        assert [await ask(crowd) for _ in range(4)] == ["no, 3 s", "answered", "answered", "answered"]
        assert len(chosen.prompts) == 2
