"""Errors as one line: reason, field, message."""

import grpc
from grpc_status import rpc_status

from cli.client import error_lines
from services.common.errors import DiptychError, InvalidRequest, ServiceUnavailable, Violation, to_status


def failed(error: DiptychError) -> grpc.aio.AioRpcError:
    """The error as a client gets it."""
    rich = rpc_status.to_status(to_status(error))
    trailing = grpc.aio.Metadata(*rich.trailing_metadata)
    return grpc.aio.AioRpcError(rich.code, grpc.aio.Metadata(), trailing, details=rich.details)


def test_each_bad_field_is_a_line() -> None:
    """Reason, path and message of every violation."""
    first = Violation("conversation.messages[0].parts[0].image", "is not a picture", "UNREADABLE")
    second = Violation("generation.top_p", "must be between 0 and 1, not 7", "OUT_OF_RANGE")
    assert list(error_lines(failed(InvalidRequest([first, second])), "host:1")) == [
        "UNREADABLE conversation.messages[0].parts[0].image: is not a picture",
        "OUT_OF_RANGE generation.top_p: must be between 0 and 1, not 7",
    ]


def test_a_service_that_is_down_is_a_line() -> None:
    """The reason names the service."""
    lines = list(error_lines(failed(ServiceUnavailable("encoder")), "host:1"))
    assert lines == ["ENCODER_UNAVAILABLE: the encoder cannot be reached"]


def test_no_gateway_at_all_names_the_address() -> None:
    """A status that gRPC made itself is told with the address."""
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details="connection refused"
    )
    assert list(error_lines(error, "host:1")) == ["UNAVAILABLE: connection refused (host:1)"]
