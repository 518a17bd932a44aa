"""Domain errors and their one translation to `google.rpc.Status`, both ways.

Handlers raise these; `interceptors.ErrorInterceptor` answers with `to_status`; a service that calls another one turns
what it gets back into the same errors with `from_rpc_error`. The layout follows https://google.aip.dev/193: one
ErrorInfo in every status, and the detail that fits the code beside it.
"""
# ruff: noqa: N818 -- the names are gRPC's own, and read well in a `raise`

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2
from grpc_status import rpc_status

CUT_WRITE = "Internal error from Core"  # grpc.aio's words when a message cannot be written (set_internal_error)
DOMAIN = "diptych"
INTERNAL_MESSAGE = "internal error"
MAX_MESSAGE_CHARS = 1000
MAX_VIOLATION_CHARS = 300
MAX_VIOLATION_BYTES = 3000  # a status travels in trailers, and clients refuse more than 8 KiB of them

M = TypeVar("M", bound=Message)

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class Violation:
    """One wrong field: its path in the request, what is wrong, and an UPPER_SNAKE reason such as OUT_OF_RANGE."""

    field: str
    description: str
    reason: str


class DiptychError(Exception):
    """Base of all errors that a caller is told about. `metadata` must hold nothing of the request's content."""

    code: grpc.StatusCode = grpc.StatusCode.INTERNAL
    reason: str = "INTERNAL"

    def __init__(self, message: str = INTERNAL_MESSAGE, *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})

    def details(self) -> list[Message]:
        """The details that stand beside the ErrorInfo; none unless a subclass has some."""
        return []


class RemoteError(DiptychError):
    """An error of another service whose code and reason are passed on as they are."""

    def __init__(
        self, code: grpc.StatusCode, reason: str, message: str, *, metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, metadata=metadata)
        self.code, self.reason = code, reason


class InvalidRequest(DiptychError):
    """The request cannot be served as it is. Carries every violation found, at least one."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"

    def __init__(
        self,
        violations: Sequence[Violation],
        message: str | None = None,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.violations = tuple(violations)
        self.reason = reason or self.reason
        super().__init__(message or _summary(self.violations), metadata=metadata)

    def details(self) -> list[Message]:
        return [details.BadRequest(field_violations=_bounded(self.violations))]


class PromptTooLong(InvalidRequest):
    """The prompt does not fit the context."""

    reason = "PROMPT_TOO_LONG"

    def __init__(self, num_tokens: int, max_tokens: int, *, field: str = "conversation") -> None:
        text = f"the prompt takes {num_tokens} tokens; at most {max_tokens} fit"
        metadata = {"num_tokens": str(num_tokens), "max_tokens": str(max_tokens)}
        super().__init__([Violation(field, text, self.reason)], metadata=metadata)


class MediaNotFound(DiptychError):
    """Media named by digest or URI is not there. `field` is its path in the request."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "MEDIA_NOT_FOUND"

    def __init__(self, field: str, message: str = "media not found; send it again") -> None:
        super().__init__(f"{field}: {message}", metadata={"field": field})
        self.field = field


class PermissionDenied(DiptychError):
    """The caller is known and may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class Overloaded(DiptychError):
    """A queue is full. The caller may try again after `retry_after_s`."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"

    def __init__(
        self, message: str = "too much work is waiting; try again later", *, retry_after_s: float = 1.0
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def details(self) -> list[Message]:
        info = details.RetryInfo()
        info.retry_delay.FromMilliseconds(round(self.retry_after_s * 1000))
        return [info]


class QuotaExceeded(Overloaded):
    """The tenant has as much under way, or in the cache, as it may: `quota` names what."""

    reason = "QUOTA_EXCEEDED"

    def __init__(self, quota: str, limit: int, *, retry_after_s: float = 1.0) -> None:
        super().__init__(f"the tenant's quota of {quota} is used up: {limit}", retry_after_s=retry_after_s)
        self.metadata = {"quota": quota, "limit": str(limit)}


class ServiceUnavailable(DiptychError):
    """A service behind this one cannot be reached: "encoder" or "decoder"."""

    code = grpc.StatusCode.UNAVAILABLE

    def __init__(self, service: str, message: str | None = None) -> None:
        super().__init__(message or f"the {service} cannot be reached", metadata={"service": service})
        self.service = service
        self.reason = f"{service.upper()}_UNAVAILABLE"


class VersionMismatch(DiptychError):
    """Two services run different things, such as checkpoints. `subject` says what differs."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "VERSION_MISMATCH"

    def __init__(self, subject: str, expected: str, actual: str) -> None:
        super().__init__(
            f"{subject} differs: expected {expected}, found {actual}",
            metadata={"subject": subject, "expected": expected, "actual": actual},
        )
        self.subject = subject

    def details(self) -> list[Message]:
        violation = details.PreconditionFailure.Violation(
            type=self.reason, subject=self.subject, description=self.message
        )
        return [details.PreconditionFailure(violations=[violation])]


class DeadlineExceeded(DiptychError):
    """The caller's time is over, or too short for the work."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"

    def __init__(self, message: str = "the deadline has passed", *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message, metadata=metadata)


class SlowReader(DiptychError):
    """The caller does not read its stream."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "SLOW_READER"

    def __init__(self) -> None:
        super().__init__("the stream was not read")


def to_status(error: BaseException) -> status_pb2.Status:
    """The status for an error. What is no DiptychError becomes INTERNAL with a fixed text, never its own."""
    known = error if isinstance(error, DiptychError) else DiptychError()
    info = details.ErrorInfo(reason=known.reason, domain=DOMAIN, metadata=known.metadata)
    return status_pb2.Status(
        code=known.code.value[0],
        message=known.message[:MAX_MESSAGE_CHARS],
        details=[_packed(detail) for detail in (info, *known.details())],
    )


def from_rpc_error(error: grpc.aio.AioRpcError, service: str) -> DiptychError:
    """The domain error behind a failed call to `service`. Code, reason, metadata and violations survive.

    A status without our ErrorInfo was made by gRPC itself: UNAVAILABLE and DEADLINE_EXCEEDED mean what they say,
    CANCELLED that the service has stopped, a cut write that it is gone, and any other is a fault between the services
    and becomes INTERNAL.
    """
    status = rich_status(error)
    info = _detail(status, details.ErrorInfo) if status is not None else None
    if status is None or info is None or info.domain != DOMAIN:
        return ServiceUnavailable(service) if _is_cut_write(error) else _from_bare_code(error.code(), service)
    return _from_status(status, info, service)


def _is_cut_write(error: grpc.aio.AioRpcError) -> bool:
    """Whether the service ended the call, or itself, while it was written to: grpc.aio then loses the true status."""
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == CUT_WRITE


def rich_status(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    """The status with details behind a failed call; None when gRPC itself has ended it.

    A deadline that passes while the server's own status arrives leaves a mixture of both: the code counts, alone.
    """
    try:
        return rpc_status.from_call(error)
    except ValueError:
        return None


def _from_bare_code(code: grpc.StatusCode, service: str) -> DiptychError:
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return ServiceUnavailable(service)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(metadata={"service": service})
    return DiptychError(metadata={"service": service})


def _from_status(status: status_pb2.Status, info: details.ErrorInfo, service: str) -> DiptychError:
    metadata = {"service": service, **info.metadata}
    bad, retry = _detail(status, details.BadRequest), _detail(status, details.RetryInfo)
    if bad is not None:
        violations = [Violation(v.field, v.description, v.reason) for v in bad.field_violations]
        return InvalidRequest(violations, status.message, reason=info.reason, metadata=metadata)
    if retry is not None:
        return Overloaded(status.message, retry_after_s=retry.retry_delay.ToMilliseconds() / 1000)
    if info.reason == VersionMismatch.reason:
        return VersionMismatch(metadata.get("subject", ""), metadata.get("expected", ""), metadata.get("actual", ""))
    return RemoteError(_CODES[status.code], info.reason, status.message, metadata=metadata)


def _detail(status: status_pb2.Status, kind: type[M]) -> M | None:
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            return message
    return None


def _packed(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def _summary(violations: Sequence[Violation]) -> str:
    first = violations[0]
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    return f"{first.field}: {first.description}{more}"


def _bounded(violations: Iterable[Violation]) -> list[details.BadRequest.FieldViolation]:
    """As many violations as fit in a status, the first ones first."""
    kept: list[details.BadRequest.FieldViolation] = []
    size = 0
    for violation in violations:
        message = details.BadRequest.FieldViolation(
            field=violation.field[:MAX_VIOLATION_CHARS],
            description=violation.description[:MAX_VIOLATION_CHARS],
            reason=violation.reason,
        )
        size += message.ByteSize()
        if kept and size > MAX_VIOLATION_BYTES:
            break
        kept.append(message)
    return kept
