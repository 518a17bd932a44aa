"""Who asks, and until when."""

import secrets
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from services.common.identity import CertificateInterceptor, TokenFile, TokenInterceptor, current_identity
from services.common.keys import Owner

from .deadline import Deadline
from .settings import GatewaySettings

DEADLINE_MARGIN_S = 0.05  # what remains for the gateway's own last words


@dataclass(frozen=True, slots=True)
class Caller:
    """One request's identity: an id made here, whose it is, and its deadline, `patience_s` after it came."""

    request_id: str
    owner: Owner
    deadline: Deadline
    patience_s: float

    @property
    def tenant(self) -> str:
        """The tenant it belongs to."""
        return self.owner.tenant


def caller_of(context: "grpc.aio.ServicerContext[Any, Any]", longest_s: float) -> Caller:
    """The caller behind an RPC; without a deadline of its own it gets `longest_s` seconds."""
    remaining = context.time_remaining()
    seconds = (longest_s if remaining is None else min(remaining, longest_s)) - DEADLINE_MARGIN_S
    return Caller(secrets.token_hex(16), Owner(current_identity().tenant), Deadline.after(seconds), seconds)


def guards_of(settings: GatewaySettings) -> list[grpc.aio.ServerInterceptor]:
    """What finds out who calls: tokens, else certificates, else nothing, and all callers are one tenant.

    Raises TokenFileError.
    """
    if settings.tokens_file is not None:
        open_services = [health.SERVICE_NAME, *([reflection.SERVICE_NAME] if settings.allow_reflection else [])]
        return [TokenInterceptor(TokenFile(settings.tokens_file), open_services)]
    return [CertificateInterceptor()] if settings.tls_client_ca is not None else []
