"""One process of a service: its channel, whether it is well, what it runs and how much it has to do."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Generic, Protocol, TypeVar

import grpc
import structlog

from services.common.errors import DiptychError, Overloaded, ServiceUnavailable, from_rpc_error

from .breaker import CircuitBreaker
from .refusals import Refusals, Wish

StubT = TypeVar("StubT")


class Info(Protocol):
    """What every service says of itself."""

    @property
    def checkpoint_digest(self) -> str: ...


InfoT = TypeVar("InfoT", bound=Info)

POLL_S = 1.0
PROBE_TIMEOUT_S = 2.0
FULL_SHARE = 0.95

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Load:
    """What an endpoint has to do for everybody: sequences that run or wait, and the share of memory they hold."""

    num_sequences: int = 0
    memory_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Kind(Generic[StubT, InfoT]):
    """A service as its callers know it.

    `describe` asks what it runs and what the process calls itself ("" if it does not), `measure` how busy it is; each
    may fail.
    """

    name: str
    make_stub: Callable[[grpc.aio.Channel], StubT]
    describe: Callable[[StubT, float], Awaitable[tuple[InfoT, str]]]
    measure: Callable[[StubT, float], Awaitable[Load]]


class Status(Enum):
    """SETTLING: nobody knows yet, but soon. USABLE: connected, serving, described. FAILING: connected only."""

    SETTLING = "settling"
    USABLE = "usable"
    FAILING = "failing"
    UNREACHABLE = "unreachable"


class Endpoint(Generic[StubT, InfoT]):
    """Watches one address.

    `info` is what it last said of itself over the present connection, with `instance` the name of its process; `lost`
    is set at the connection's end. `is_needed` says whether there is nobody else to call: then an open breaker does not
    keep it from being asked how it is.
    """

    def __init__(
        self,
        kind: Kind[StubT, InfoT],
        address: str,
        channel: grpc.aio.Channel,
        on_change: Callable[[], None],
        is_needed: Callable[[], bool],
    ) -> None:
        self.address = address
        self.info: InfoT | None = None
        self.instance = ""
        self.breaker = CircuitBreaker()
        self.lost = asyncio.Event()
        self.lost.set()
        self._kind, self._channel, self._on_change, self._is_needed = kind, channel, on_change, is_needed
        self.stub = kind.make_stub(channel)
        self._num_calls = 0
        self._refusals = Refusals()
        self._load, self._num_calls_then = Load(), 0
        self._state = grpc.ChannelConnectivity.IDLE
        self._polling: asyncio.Task[None] | None = None
        self._has_failed_probe = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    @property
    def status(self) -> Status:
        """Whether calls may go here."""
        if self._state is grpc.ChannelConnectivity.READY:
            if self.info is not None and not self.breaker.is_open:
                return Status.USABLE
            return Status.FAILING if self._has_failed_probe or self.breaker.is_open else Status.SETTLING
        settling = (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING)
        return Status.SETTLING if self._state in settling else Status.UNREACHABLE

    @property
    def load(self) -> float:
        """Calls that it works on: what it said last, and how this gateway's own have changed since."""
        return max(self._num_calls, self._load.num_sequences + self._num_calls - self._num_calls_then)

    @property
    def is_full(self) -> bool:
        """Whether hardly any of its memory is free."""
        return self._load.memory_share > FULL_SHARE

    def refusal(self, wish: Wish, num_expected: int = 0) -> Overloaded | None:
        """What it would say to that, after `num_expected` more calls, as far as it has said so lately."""
        return self._refusals.of(wish, self._num_calls + num_expected)

    @contextmanager
    def call(self, wish: Wish | None = None) -> Iterator[StubT]:
        """One call: counted while it runs, and its end noted. A failed one raises its domain error.

        With a `wish`, its refusal is remembered for others.
        """
        self._num_calls += 1
        self._is_idle.clear()
        try:
            yield self.stub
            self.breaker.succeeded()
        except grpc.aio.AioRpcError as error:
            known = self._noted(from_rpc_error(error, self._kind.name), error.code().name)
            if wish is not None and isinstance(known, Overloaded):
                self._refusals.note(wish, self._num_calls - 1, known)
            raise known from error
        except ServiceUnavailable as error:
            if error.service == self._kind.name:
                self._noted(error, error.code.name)
            raise
        finally:
            self._num_calls -= 1
            if not self._num_calls:
                self._is_idle.set()

    async def watch(self) -> None:
        """Follow the connection and ask how it is, until cancelled."""
        try:
            while True:
                self._note_state(self._channel.get_state(try_to_connect=True))
                await self._channel.wait_for_state_change(self._state)
        finally:
            self._stop_polling()

    async def idle(self) -> None:
        """Wait until no call is under way."""
        await self._is_idle.wait()

    async def close(self) -> None:
        """Give up the connection."""
        await self._channel.close()

    def _noted(self, error: DiptychError, code: str) -> DiptychError:
        log.info("call failed", kind=self._kind.name, address=self.address, code=code, reason=error.reason)
        if isinstance(error, ServiceUnavailable):
            self.breaker.failed()
            self._on_change()
        return error

    def _note_state(self, state: grpc.ChannelConnectivity) -> None:
        if state is self._state:
            return
        ready = grpc.ChannelConnectivity.READY
        if state is ready:
            self.breaker.probed()
            self._has_failed_probe = False
            self.lost = asyncio.Event()
            self._polling = asyncio.create_task(self._poll())
        elif self._state is ready:  # whoever answers here next may run something else
            self.info, self.instance, self._load = None, "", Load()
            self.lost.set()
            self._stop_polling()
        self._state = state
        self._on_change()

    def _stop_polling(self) -> None:
        if self._polling is not None:
            self._polling.cancel()

    async def _poll(self) -> None:
        while True:
            if self.breaker.may_probe or self._is_needed():
                await self._probe()
            await asyncio.sleep(POLL_S)

    async def _probe(self) -> None:
        try:
            info, instance = await self._kind.describe(self.stub, PROBE_TIMEOUT_S)
            load = await self._kind.measure(self.stub, PROBE_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            self._has_failed_probe = True
            self.breaker.failed()
            log.info("probe failed", kind=self._kind.name, address=self.address, code=error.code().name)
        else:
            self._learn(info, instance, load)
        self._on_change()

    def _learn(self, info: InfoT, instance: str, load: Load) -> None:
        if info != self.info:
            log.info("endpoint described", kind=self._kind.name, address=self.address, digest=info.checkpoint_digest)
        self.info, self.instance = info, instance
        self._load, self._num_calls_then = load, self._num_calls
        self._has_failed_probe = False
        self.breaker.probed()
