"""Real processes for the tests: a stack of services on free ports, and requests to it."""

import asyncio
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1 import generation_pb2 as generation
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2
from grpc_status import rpc_status
from prometheus_client.parser import text_string_to_metric_families

from cli.children import Child
from cli.client import gateway
from cli.stack import Stack, StackOptions

__all__ = ["Answer", "Failure", "ask", "failure", "failure_of", "gateway", "metrics", "running", "wait_until"]

CALL_TIMEOUT_S = 60.0
NUM_KV_TOKENS = "40000"  # one context of the small checkpoints, and not a share of this machine's memory


@contextmanager
def running(
    model: Path, logs: Path, *, redis: bool = True, cache_url: str | None = None, **environment: str
) -> Iterator[Stack]:
    """All services on free ports with one thread each; a failure inside carries the ends of their logs."""
    settings = {
        "DIPTYCH_THREADS": "1",
        "DIPTYCH_CACHE_TIMEOUT_S": "2",
        "DIPTYCH_DECODER_KV_CACHE_TOKENS": NUM_KV_TOKENS,
        **environment,
    }
    options = StackOptions(str(model), cache_url, redis=redis, dtype="float32", logs=logs, environment=settings)
    with Stack(options) as stack:
        try:
            stack.start()
            yield stack
        except BaseException as error:
            for child in stack.children.values():
                error.add_note(f"--- {child.name}, exit code {child.exit_code}\n{child.log_tail()}")
            raise


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    """Returns once `condition` holds; fails with `what` when it never does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.02)


def metrics(child: Child) -> dict[str, float]:
    """A service's own metrics by name and labels."""
    with urllib.request.urlopen(f"http://{child.metrics_address}/metrics", timeout=5) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    found = {}
    for family in families:
        for sample in family.samples:
            if sample.name.startswith("diptych_"):
                labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
                found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


@dataclass(slots=True)
class Answer:
    """A streamed answer: its first and last event, and the text between them."""

    started: chat.Started = field(default_factory=chat.Started)
    text: str = ""
    finished: chat.Finished = field(default_factory=chat.Finished)

    @property
    def token_ids(self) -> list[int]:
        """The ids of the first choice, the ending id left out."""
        return list(self.finished.choices[0].token_ids)

    @property
    def cache(self) -> list[content.CacheResult]:
        """How each media item was served."""
        return list(self.finished.media_cache)


async def ask(address: str, conversation: content.Conversation, **options: object) -> Answer:
    """Streams one answer from the gateway at `address`; `options` are Generation's fields."""
    wanted = generation.Generation(**options)  # type: ignore[arg-type]
    request = chat.StreamChatRequest(conversation=conversation, generation=wanted)
    async with gateway(address) as stub:
        return await collect(stub.StreamChat(request, timeout=CALL_TIMEOUT_S))


async def ask_until_back(address: str, conversation: content.Conversation, **options: object) -> Answer:
    """The same, once the gateway has found the services again."""
    for _ in range(200):
        try:
            return await ask(address, conversation, **options)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017 -- it is asked again
            await asyncio.sleep(0.1)
    raise AssertionError("the gateway did not find them")


async def collect(events: AsyncIterator[chat.StreamChatResponse]) -> Answer:
    """One answer from its events; `started` must come first and `finished` once and last."""
    answer = Answer()
    order = []
    async for event in events:
        order.append(event.WhichOneof("event"))
        match event.WhichOneof("event"):
            case "started":
                answer.started = event.started
            case "text_delta":
                answer.text += event.text_delta.text
            case "finished":
                answer.finished = event.finished
    assert order[0] == "started"
    assert order[-1] == "finished"
    assert set(order[1:-1]) <= {"text_delta"}
    return answer


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed call: code, reason, and for each bad field its path and reason."""

    code: grpc.StatusCode
    reason: str
    message: str
    fields: dict[str, str]
    metadata: dict[str, str]


def failure(error: grpc.aio.AioRpcError) -> Failure:
    """What a failed call says, from its rich status."""
    status = rpc_status.from_call(error)
    assert status is not None, f"no rich status: {error.code()} {error.details()}"
    return failure_of(status)


def failure_of(status: status_pb2.Status) -> Failure:
    """What a rich status says."""
    info, bad = details.ErrorInfo(), details.BadRequest()
    assert any(detail.Unpack(info) for detail in status.details), "no ErrorInfo"
    assert info.domain == "diptych"
    any(detail.Unpack(bad) for detail in status.details)
    fields = {item.field: item.reason for item in bad.field_violations}
    [code] = [code for code in grpc.StatusCode if code.value[0] == status.code]
    return Failure(code, info.reason, status.message, fields, dict(info.metadata))
