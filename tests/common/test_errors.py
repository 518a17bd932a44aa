"""Domain errors and statuses."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.common import errors
from services.common.errors import DiptychError, Violation, from_rpc_error, to_status

VIOLATIONS = [Violation("a.b[0]", "too small", "OUT_OF_RANGE"), Violation("c", "is empty", "REQUIRED")]
ALL = [
    errors.InvalidRequest(VIOLATIONS),
    errors.PromptTooLong(10, 5),
    errors.MediaNotFound("conversation.messages[0].parts[1].image"),
    errors.Overloaded(retry_after_s=0.25),
    errors.ServiceUnavailable("decoder"),
    errors.VersionMismatch("checkpoint", "sha256:1", "sha256:2"),
    errors.DeadlineExceeded(),
    errors.RemoteError(grpc.StatusCode.ABORTED, "LOST", "lost"),
]


def failed_call(status: status_pb2.Status) -> grpc.aio.AioRpcError:
    """What a client gets when a server answers with `status`."""
    code, message, trailers = rpc_status.to_status(status)
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details=message)


def bare(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    """What a client gets when gRPC itself fails a call."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details="secret detail")


def reasons(status: status_pb2.Status) -> list[str]:
    """The reason of every ErrorInfo in a status."""
    info = error_details_pb2.ErrorInfo()
    return [info.reason for detail in status.details if detail.Unpack(info)]


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_survives_the_way_to_a_client_and_back(error: DiptychError) -> None:
    """Code, reason, text and metadata of every error reach the calling service."""
    back = from_rpc_error(failed_call(to_status(error)), "encoder")
    assert (back.code, back.reason, back.message) == (error.code, error.reason, error.message)
    assert error.metadata.items() <= back.metadata.items()


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_carries_exactly_one_error_info(error: DiptychError) -> None:
    """Every status has one ErrorInfo, with the error's reason."""
    assert reasons(to_status(error)) == [error.reason]


def test_violations_survive() -> None:
    """A service can pass on which fields another one refused."""
    back = from_rpc_error(failed_call(to_status(errors.InvalidRequest(VIOLATIONS))), "encoder")
    assert isinstance(back, errors.InvalidRequest)
    assert back.violations == tuple(VIOLATIONS)


def test_retry_delay_survives() -> None:
    """A full service says when to come back."""
    back = from_rpc_error(failed_call(to_status(errors.Overloaded(retry_after_s=0.25))), "decoder")
    assert isinstance(back, errors.Overloaded)
    assert back.retry_after_s == 0.25


def test_unknown_exceptions_say_nothing() -> None:
    """INTERNAL has a fixed text: an exception's own may quote a request."""
    status = to_status(ValueError("the prompt was: secret"))
    assert (status.code, status.message) == (grpc.StatusCode.INTERNAL.value[0], "internal error")
    assert b"secret" not in status.SerializeToString()


def test_many_violations_fit_in_trailers() -> None:
    """However many fields are wrong, the status is small enough for a client to accept."""
    status = to_status(errors.InvalidRequest([Violation(f"f[{i}]" * 50, "x" * 5000, "BAD") for i in range(1000)]))
    assert 0 < status.ByteSize() < 6000


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.ServiceUnavailable),
        (grpc.StatusCode.CANCELLED, errors.ServiceUnavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, DiptychError),
        (grpc.StatusCode.UNKNOWN, DiptychError),
    ],
)
def test_grpcs_own_failures(code: grpc.StatusCode, expected: type[DiptychError]) -> None:
    """What gRPC itself says is an outage, a deadline, or else internal; its text is not passed on."""
    error = from_rpc_error(bare(code), "encoder")
    assert type(error) is expected
    assert "secret" not in error.message
    assert error.metadata["service"] == "encoder"


def test_names_the_service_that_is_gone() -> None:
    """The reason tells the encoder's outage from the decoder's."""
    assert from_rpc_error(bare(grpc.StatusCode.UNAVAILABLE), "encoder").reason == "ENCODER_UNAVAILABLE"


def test_a_deadline_that_meets_the_servers_own_status_is_a_deadline() -> None:
    """When gRPC's text stands over a server's details, the code alone is believed, and nothing raises."""
    theirs = failed_call(to_status(errors.DeadlineExceeded()))
    mixed = grpc.aio.AioRpcError(
        theirs.code(), grpc.aio.Metadata(), theirs.trailing_metadata(), details="Stream removed (Deadline Exceeded)"
    )
    assert type(from_rpc_error(mixed, "decoder")) is errors.DeadlineExceeded


async def test_a_service_that_goes_while_it_is_written_to_is_unavailable() -> None:
    """Whether the write or the status is noticed first, the caller hears of an outage and never of a fault of ours."""

    async def leave(requests: AsyncIterator[bytes], context: Any) -> None:
        await anext(requests)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    async def upload() -> AsyncIterator[bytes]:
        for _ in range(60):
            yield bytes(200_000)

    async def failure(channel: grpc.aio.Channel) -> tuple[grpc.StatusCode, DiptychError]:
        call: Any = channel.stream_stream("/a.Service/Upload")(upload())  # type: ignore[arg-type]  # raw bytes
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call.read()
        return failed.value.code(), from_rpc_error(failed.value, "encoder")

    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Upload": grpc.stream_stream_rpc_method_handler(leave)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.Service", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        failures = await asyncio.gather(*(failure(channel) for _ in range(40)))
    await server.stop(0)
    assert grpc.StatusCode.INTERNAL in {code for code, _ in failures}  # or there was nothing to find
    assert {error.reason for _, error in failures} == {"ENCODER_UNAVAILABLE"}
