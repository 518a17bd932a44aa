"""Who asks, and until when."""

import secrets
from dataclasses import dataclass
from typing import Any

import grpc

from .deadline import Deadline

DEADLINE_MARGIN_S = 0.05  # what remains for the gateway's own last words


@dataclass(frozen=True, slots=True)
class Caller:
    """One request's identity: an id made here, the tenant it belongs to, and its deadline."""

    request_id: str
    tenant: str
    deadline: Deadline


def caller_of(context: "grpc.aio.ServicerContext[Any, Any]", longest_s: float) -> Caller:
    """The caller behind an RPC; without a deadline of its own it gets `longest_s` seconds."""
    remaining = context.time_remaining()
    seconds = longest_s if remaining is None else min(remaining, longest_s)
    return Caller(secrets.token_hex(16), tenant_of(context), Deadline.after(seconds - DEADLINE_MARGIN_S))


def tenant_of(_context: "grpc.aio.ServicerContext[Any, Any]") -> str:
    """The authenticated tenant; one for all until callers are authenticated."""
    return "default"
