"""Logs: one JSON object a line on stderr, with fields from an allow-list only.

Media, prompts, answers, URLs and secrets are personal data and never logged: a field must stand on the list, and of an
exception only its type and its lines of code are kept, because its text may quote what a user sent.
"""

import logging
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

ALLOWED_FIELDS = frozenset(
    {
        # who and when
        "event", "level", "timestamp", "service", "logger", "request_id", "trace_id", "method", "peer",
        # what happened
        "address", "attempt", "cache", "code", "device", "digest", "dropped_fields", "dtype", "exception", "field",
        "finish_reason", "frames", "grid", "job", "kernels", "kind", "model", "operation",
        "pid", "reason", "signal", "stack", "version",
        # how much and how long
        "bytes", "duration_ms", "encode_ms", "queue_ms", "total_ms", "time_to_first_token_ms", "memory_bytes",
        "num_blocks", "num_bytes", "num_cached", "num_cached_tokens",
        "num_items", "num_media", "num_patches", "num_rows",
        "num_running", "num_slices", "num_tensors", "num_threads", "num_tokens", "num_waiting",
    }
)  # fmt: skip


def configure_logging(service: str) -> None:
    """Send structlog's events, and the bare facts of other libraries' warnings, to stderr as JSON."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            add_service(service),
            describe_exception,
            keep_allowed_fields,
            structlog.processors.JSONRenderer(sort_keys=True),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [ForeignHandler()]
    root.setLevel(logging.WARNING)


def add_service(service: str) -> structlog.typing.Processor:
    """A processor that names the process."""

    def add(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {**event, "service": service}

    return add


def keep_allowed_fields(_: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Drop the values of fields that are not on the list, and say which ones."""
    dropped = sorted(event.keys() - ALLOWED_FIELDS)
    kept = {name: value for name, value in event.items() if name in ALLOWED_FIELDS}
    return {**kept, "dropped_fields": dropped} if dropped else kept


def describe_exception(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace `exc_info` by the exception's type and its stack, never its text."""
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        frames = traceback.extract_tb(error.__traceback__)
        event["exception"] = type(error).__name__
        event["stack"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return event


class ForeignHandler(logging.Handler):
    """Other libraries' records: who warned and where, without the text, which may quote a request."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        structlog.get_logger().warning(
            "library warning", logger=record.name, kind=f"{record.module}:{record.lineno}", exc_info=error
        )
