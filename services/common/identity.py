"""Who calls: a tenant and a scope, from a bearer token or from a client certificate, never from the request.

A server that is given one of the interceptors denies by default: who is not known gets UNAUTHENTICATED, whatever the
method, and only the services named as open answer everybody.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import grpc

from services.common.errors import DiptychError
from services.common.interceptors import Context, Handler, behaviour_of, with_behaviour
from services.common.watched_files import watched_text

Scope = Literal["user", "admin"]

TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller: whose data it works with, and whether it may administer."""

    tenant: str
    scope: Scope = "user"


ANYBODY = Identity("default")
_identity: ContextVar[Identity] = ContextVar("identity", default=ANYBODY)


def current_identity() -> Identity:
    """Who makes the call that runs now; ANYBODY where callers need not be known."""
    return _identity.get()


class Unauthenticated(DiptychError):  # noqa: N818 -- gRPC's own name
    """The caller is not known. Says the same of a missing and of a wrong token."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"

    def __init__(self) -> None:
        super().__init__("a known caller is needed: authorization: Bearer TOKEN, or a client certificate")


class TokenFileError(ValueError):
    """A file of tokens cannot be used. Says the line's number, never what stands there."""


class TokenFile:
    """The tokens in a file, a line each: tenant, scope (user or admin), SHA-256 of the token. `#` starts a comment.

    The file is read again when it has changed (see watched_files.py). Raises TokenFileError or OSError at first.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = watched_text(path, parse_tokens, "tokens", clock=clock)

    def find(self, token: str) -> Identity | None:
        """The caller with that token. Compares with every line in constant time."""
        digest, found = hash_token(token), None
        for known, identity in self._file.read().items():
            if hmac.compare_digest(known, digest):
                found = identity
        return found


def parse_tokens(text: str) -> dict[str, Identity]:
    """Callers by the hash of their token. Raises TokenFileError."""
    callers: dict[str, Identity] = {}
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        if len(fields) != 3 or not TENANT.fullmatch(fields[0]) or not _DIGEST.fullmatch(fields[2]):
            raise TokenFileError(f"line {number} is not: tenant, user or admin, sha256 in hexadecimal")
        scope = next((scope for scope in get_args(Scope) if scope == fields[1]), None)
        if scope is None:
            raise TokenFileError(f"line {number}: the scope is neither user nor admin")
        callers[fields[2]] = Identity(fields[0], scope)
    return callers


def new_token() -> str:
    """256 random bits, with a prefix by which scanners of secrets may know it."""
    return f"diptych_{secrets.token_urlsafe(32)}"


def hash_token(token: str) -> str:
    """What is kept of a token. It is random, so that one round of SHA-256 cannot be guessed backwards."""
    return hashlib.sha256(token.encode()).hexdigest()


def token_line(token: str, identity: Identity) -> str:
    """The token's line in the file."""
    return f"{identity.tenant} {identity.scope} {hash_token(token)}"


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Lets in who shows a known token, and everybody to `open_services`. Stands behind ErrorInterceptor."""

    def __init__(self, tokens: TokenFile, open_services: Collection[str]) -> None:
        self._tokens, self._open_services = tokens, frozenset(open_services)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        service = handler_call_details.method.removeprefix("/").partition("/")[0]
        if service in self._open_services:
            return await continuation(handler_call_details)
        identity = self._tokens.find(_bearer(handler_call_details.invocation_metadata or ()))
        if identity is None:
            return _REFUSAL
        handler = await continuation(handler_call_details)
        return handler and _identified(handler, lambda _: identity)


class CertificateInterceptor(grpc.aio.ServerInterceptor):
    """Takes the tenant from the client's certificate, which the handshake has verified."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        return handler and _identified(handler, lambda context: identity_of_peer(context.auth_context()))


def identity_of_peer(names: Mapping[str, Iterable[bytes]]) -> Identity:
    """The tenant that a certificate names: its first URI (SPIFFE's place for a name), else its common name."""
    for kind in ("peer_uri", "x509_common_name"):
        if name := next(iter(names.get(kind, ())), b""):
            return Identity(name.decode())
    raise Unauthenticated


def _bearer(metadata: Sequence[tuple[str, str | bytes]]) -> str:
    """The token in a call's metadata; empty, which no token is, unless there is exactly one."""
    values = [value for name, value in metadata if name == "authorization"]
    scheme, _, token = str(values[0]).partition(" ") if len(values) == 1 else ("", "", "")
    return token.strip() if scheme.lower() == "bearer" else ""


def _identified(handler: Handler, identify: Callable[[Context], Identity]) -> Handler:
    """The same handler, run as the caller that `identify` finds."""
    behaviour = behaviour_of(handler)

    def run(request: Any, context: Context) -> Any:
        _identity.set(identify(context))  # of this call alone: gRPC runs each in a task of its own
        return behaviour(request, context)

    return with_behaviour(handler, run)


async def _refuse(_requests: Any, _: Context) -> bytes:
    raise Unauthenticated


_REFUSAL: Handler = grpc.stream_unary_rpc_method_handler(_refuse)  # fits callers of all four shapes: it never answers
