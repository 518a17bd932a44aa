"""Requests to the gateways as clients send them, and a record of how each ended."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import grpc
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import generation_pb2 as generation
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub
from google.rpc import error_details_pb2 as details
from google.rpc.status_pb2 import Status

from services.common.channels import open_channel
from services.common.errors import rich_status
from tests.faults.fleet import TENANTS, Fleet, Replica
from tests.faults.questions import Question

ATTEMPT_TIMEOUT_S = 10.0
MAX_ATTEMPTS = 3  # a first one and two retries by the client
BACKOFF_S = (0.5, 1.5)
RETRIED = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})

Kind = Literal["plain", "cancelled", "hurried"]


@dataclass
class Attempt:
    """One RPC: what was asked for, what came, and how it ended."""

    gateway: Replica
    is_stream: bool
    timeout_s: float
    cancel_after_s: float | None = None
    resumes: bool = False
    started_at: float = field(default_factory=time.monotonic)
    elapsed_s: float = 0.0
    code: str = ""  # gRPC's name of the status; empty until it has ended
    num_ends: int = 0
    reason: str = ""  # ErrorInfo's, empty for a status that the client's own gRPC made
    message: str = ""
    retry_after_s: float = 0.0
    events: list[str] = field(default_factory=list)
    text: str = ""
    token_ids: tuple[int, ...] = ()
    cache: tuple[int, ...] = ()

    def end(self, code: grpc.StatusCode) -> None:
        """The RPC has a status."""
        self.num_ends += 1
        self.code, self.elapsed_s = code.name, time.monotonic() - self.started_at


@dataclass
class Record:
    """A question and the attempts to have it answered."""

    question: Question
    kind: Kind
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def is_answered(self) -> bool:
        return bool(self.attempts) and self.attempts[-1].code == "OK"

    @property
    def may_try(self) -> bool:
        """Whether the client tries once more."""
        most = MAX_ATTEMPTS if self.kind == "plain" else 1
        return len(self.attempts) < most and (not self.attempts or self.attempts[-1].code in RETRIED)


ANY = "any"


class Client:
    """Stubs of every gateway for every tenant, and one of each tenant that goes round those that are healthy."""

    def __init__(self, fleet: Fleet, stubs: dict[tuple[str, str], ChatServiceStub]) -> None:
        self._fleet, self._stubs = fleet, stubs

    def stub(self, gateway: Replica, tenant: str) -> ChatServiceStub:
        return self._stubs[gateway.name, tenant]

    async def ask(self, question: Question, rng: random.Random, kind: Kind = "plain", *, fresh: bool = False) -> Record:
        """Ask until it is answered, cancelled, or failed for good; the next try goes to the next gateway.

        `fresh`: the pictures are files that no cache has seen.
        """
        record = Record(question, kind)
        await self.pursue(record, rng, rng.randbytes(8).hex().encode() if fresh else b"")
        return record

    async def pursue(self, record: Record, rng: random.Random, nonce: bytes = b"") -> None:
        """Ask `record`'s question as often as it may still be tried."""
        first = rng.randrange(len(self._fleet.gateways))
        while record.may_try:
            if record.attempts:
                pause_s = rng.uniform(0.5, 1.0) * BACKOFF_S[len(record.attempts) - 1]
                await asyncio.sleep(record.attempts[-1].retry_after_s or pause_s)
            gateway = self._fleet.gateways[(first + len(record.attempts)) % len(self._fleet.gateways)]
            attempt = _attempt(gateway, rng, record.kind)
            record.attempts.append(attempt)
            await self._try(attempt, record.question, nonce)

    async def ask_together(self, asked: Sequence[Question], rng: random.Random) -> list[Record]:
        """Ask one tenant's questions in a batch; items that fail as calls do are tried again, each on its own."""
        gateway = rng.choice(self._fleet.gateways)
        attempts = [_attempt(gateway, rng, "plain") for _ in asked]
        records = [Record(question, "plain", [attempt]) for question, attempt in zip(asked, attempts, strict=True)]
        await ask_batch(self._stubs[gateway.name, asked[0].tenant], asked, attempts)
        await asyncio.gather(*(self.pursue(record, rng) for record in records))
        return records

    async def ask_once(self, question: Question, rng: random.Random, *, fresh: bool = False) -> Record:
        """Ask whichever gateway is healthy, and leave it at that."""
        attempt = _attempt(self._fleet.gateways[0], rng, "plain")
        await self._try(attempt, question, rng.randbytes(8).hex().encode() if fresh else b"", ANY)
        return Record(question, "plain", [attempt])

    async def cancel(self, question: Question, rng: random.Random, within_s: float) -> Attempt:
        """Ask for a stream and leave at some moment."""
        attempt = Attempt(self._fleet.gateways[0], True, ATTEMPT_TIMEOUT_S, rng.uniform(0.0, within_s))
        await self._try(attempt, question, b"")
        return attempt

    async def _try(self, attempt: Attempt, question: Question, nonce: bytes, gateway: str = "") -> None:
        stub = self._stubs[gateway or attempt.gateway.name, question.tenant]
        options = _options(attempt, question)
        conversation = question.to_conversation(nonce)
        attempt.started_at = time.monotonic()
        call: Any  # of two kinds, which end alike
        if attempt.is_stream:
            request = chat.StreamChatRequest(conversation=conversation, generation=options)
            call = stub.StreamChat(request, timeout=attempt.timeout_s)
            reading = _read_stream(call, attempt)
        else:
            whole = chat.ChatRequest(conversation=conversation, generation=options)
            call = stub.Chat(whole, timeout=attempt.timeout_s)
            reading = _read_answer(call, attempt)
        if attempt.cancel_after_s is not None:
            asyncio.get_running_loop().call_later(attempt.cancel_after_s, call.cancel)
        try:
            await reading
            attempt.end(await call.code())
        except asyncio.CancelledError:
            if not call.cancelled():
                raise  # it is this task that shall end
            attempt.end(grpc.StatusCode.CANCELLED)
        except grpc.aio.AioRpcError as error:
            attempt.end(error.code())
            _note_failure(attempt, rich_status(error))


@asynccontextmanager
async def client_of(fleet: Fleet) -> AsyncIterator[Client]:
    """A client with a connection to each gateway, by way of its proxy."""
    async with AsyncExitStack() as channels:
        stubs = {}
        targets = {gateway.name: gateway.proxy.address for gateway in fleet.gateways}
        targets[ANY] = "ipv4:" + ",".join(targets.values())
        for name, target in targets.items():
            for tenant in TENANTS:
                channel = await channels.enter_async_context(open_channel(target, token=fleet.tokens[tenant]))
                stubs[name, tenant] = ChatServiceStub(channel)
        yield Client(fleet, stubs)


def _attempt(gateway: Replica, rng: random.Random, kind: Kind) -> Attempt:
    timeout_s = rng.uniform(0.01, 0.3) if kind == "hurried" else ATTEMPT_TIMEOUT_S
    cancel_after_s = rng.uniform(0.0, 0.15) if kind == "cancelled" else None
    return Attempt(gateway, rng.random() < 0.8, timeout_s, cancel_after_s, resumes=rng.random() < 0.5)


def _options(attempt: Attempt, question: Question) -> generation.Generation:
    return generation.Generation(max_tokens=question.max_tokens, temperature=0.0, resume=attempt.resumes)


async def ask_batch(stub: ChatServiceStub, asked: Sequence[Question], attempts: Sequence[Attempt]) -> None:
    """One RPC for several questions; each item has an end of its own, the RPC's where it has not come to one."""
    items = [
        chat.BatchChatItem(conversation=question.to_conversation(), generation=_options(attempt, question))
        for question, attempt in zip(asked, attempts, strict=True)
    ]
    for attempt in attempts:
        attempt.is_stream, attempt.started_at = True, time.monotonic()
    try:
        async for event in stub.BatchChat(chat.BatchChatRequest(items=items), timeout=ATTEMPT_TIMEOUT_S):
            _note_event(attempts[event.index], event)
            if event.HasField("finished"):
                attempts[event.index].end(grpc.StatusCode.OK)
            elif event.HasField("failed"):
                attempts[event.index].end(_code_of(event.failed))
                _note_failure(attempts[event.index], event.failed)
    except grpc.aio.AioRpcError as error:
        for attempt in attempts:
            if not attempt.num_ends:
                attempt.end(error.code())
                _note_failure(attempt, rich_status(error))


async def _read_stream(call: "grpc.aio.UnaryStreamCall[object, chat.StreamChatResponse]", attempt: Attempt) -> None:
    async for event in call:
        _note_event(attempt, event)


def _note_event(attempt: Attempt, event: chat.StreamChatResponse | chat.BatchChatResponse) -> None:
    kind = event.WhichOneof("event")
    if kind == "failed":
        return
    attempt.events.append(str(kind))
    if kind == "text_delta":
        attempt.text += event.text_delta.text
    elif kind == "finished":
        attempt.token_ids = tuple(event.finished.choices[0].token_ids)
        attempt.cache = tuple(event.finished.media_cache)


async def _read_answer(call: "grpc.aio.UnaryUnaryCall[object, chat.ChatResponse]", attempt: Attempt) -> None:
    response = await call
    attempt.events += ["started", "finished"]
    attempt.text = response.choices[0].text
    attempt.token_ids = tuple(response.choices[0].end.token_ids)


def _note_failure(attempt: Attempt, status: Status | None) -> None:
    info, retry = details.ErrorInfo(), details.RetryInfo()
    if status is None or not any(detail.Unpack(info) for detail in status.details):
        return
    attempt.reason = info.reason if info.domain == "diptych" else f"foreign: {info.domain}"
    attempt.message = status.message
    if any(detail.Unpack(retry) for detail in status.details):
        attempt.retry_after_s = retry.retry_delay.ToMilliseconds() / 1000


def _code_of(status: Status) -> grpc.StatusCode:
    return next(code for code in grpc.StatusCode if code.value[0] == status.code)
