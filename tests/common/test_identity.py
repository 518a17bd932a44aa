"""Who may call, and whose data a call works with."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.common.channels import open_channel
from services.common.identity import (
    CertificateInterceptor,
    Identity,
    TokenFile,
    TokenFileError,
    TokenInterceptor,
    current_identity,
    hash_token,
    identity_of_peer,
    token_line,
)
from services.common.tls import TlsSettings, channel_credentials
from services.common.watched_files import LOOK_INTERVAL_S
from tests.certificates import Authority
from tests.harness import failure

SHAPES = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]
ACME, ADMIN = Identity("acme"), Identity("globex", "admin")


async def answer(request: Any, _: Any) -> bytes:
    """The tenant that the handler runs as, after all that the caller sends."""
    if not isinstance(request, bytes):
        assert [part async for part in request] == [b"x"] * 3
    return current_identity().tenant.encode()


async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
    """The same as a stream."""
    yield await answer(request, context)


HANDLERS = {
    shape: getattr(grpc, f"{shape}_rpc_method_handler")(stream if shape.endswith("stream") else answer)
    for shape in SHAPES
}


async def call(channel: grpc.aio.Channel, shape: str, *metadata: tuple[str, str], method: str | None = None) -> bytes:
    """The first answer of the method named like its shape."""
    start: Any = getattr(channel, shape)(f"/test.Service/{method or shape}")
    request = iter([b"x"] * 3) if shape.startswith("stream") else b"x"
    running = start(request, metadata=metadata, timeout=5)
    return b"".join([part async for part in running]) if shape.endswith("stream") else await running


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """A file with a user's and an administrator's token."""
    path = tmp_path / "tokens"
    path.write_text(f"# who may call\n{token_line('one', ACME)}  # a comment\n\n{token_line('two', ADMIN)}\n")
    return path


def guard(tokens: Path) -> TokenInterceptor:
    """Lets in the file's callers, and everybody to health."""
    return TokenInterceptor(TokenFile(tokens), [health.SERVICE_NAME])


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_known_token_names_the_tenant(serving: Any, tokens: Path, shape: str) -> None:
    """Handlers of every shape run as the tenant of the token that the client's channel carries."""
    async with serving(HANDLERS, guards=[guard(tokens)]) as server:
        for token, tenant in (("one", b"acme"), ("two", b"globex")):
            async with open_channel(server.address, token=token) as channel:
                assert await call(channel, shape) == tenant


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer ", "Basic one", "one", hash_token("one")])
async def test_all_others_are_unauthenticated(serving: Any, tokens: Path, shape: str, header: str | None) -> None:
    """No token, a wrong one or its hash: UNAUTHENTICATED with an ErrorInfo, in every shape."""
    metadata = [("authorization", header)] if header else []
    async with serving(HANDLERS, guards=[guard(tokens)]) as server, open_channel(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, shape, *metadata)
    found = failure(caught.value)
    assert (found.code, found.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")


async def test_a_tenant_in_the_metadata_is_nothing(serving: Any, tokens: Path) -> None:
    """A request cannot name its tenant, and two tokens in one call are none."""
    async with (
        serving(HANDLERS, guards=[guard(tokens)]) as server,
        open_channel(server.address, token="one") as channel,  # noqa: S106 -- no secret
    ):
        assert await call(channel, "unary_unary", ("tenant", "globex"), ("x-tenant", "globex")) == b"acme"
        with pytest.raises(grpc.aio.AioRpcError):
            await call(channel, "unary_unary", ("authorization", "Bearer two"))


async def test_unknown_methods_and_reflection_are_denied_too(serving: Any, tokens: Path) -> None:
    """Without a token only health answers; with one, a method that does not exist is UNIMPLEMENTED."""
    async with serving(HANDLERS, guards=[guard(tokens)]) as server, open_channel(server.address) as channel:
        status = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert status.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await call(channel, "unary_unary", method="nothing")
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        with pytest.raises(grpc.aio.AioRpcError) as shown:
            [_ async for _ in reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(asked)]
        with pytest.raises(grpc.aio.AioRpcError) as known:
            await call(channel, "unary_unary", ("authorization", "Bearer one"), method="nothing")
    codes = [caught.value.code().name for caught in (unknown, shown, known)]
    assert codes == ["UNAUTHENTICATED", "UNAUTHENTICATED", "UNIMPLEMENTED"]


async def test_callers_do_not_mix(serving: Any, tokens: Path) -> None:
    """Calls one after another on one server each have their own tenant, and ANYBODY stays outside."""
    async with serving(HANDLERS, guards=[guard(tokens)]) as server, open_channel(server.address) as channel:
        for token, tenant in (("one", b"acme"), ("two", b"globex")) * 3:
            assert await call(channel, "unary_stream", ("authorization", f"Bearer {token}")) == tenant
    assert current_identity().tenant == "default"


def test_a_changed_file_is_read_again(tokens: Path) -> None:
    """A token taken out is refused within a second; a file that is broken or gone changes nothing."""
    now = 0.0
    known = TokenFile(tokens, clock=lambda: now)
    assert known.find("one") == ACME
    tokens.write_text(token_line("new", ACME))
    assert known.find("new") is None
    now += LOOK_INTERVAL_S
    assert (known.find("new"), known.find("one")) == (ACME, None)
    tokens.write_text("broken")
    now += LOOK_INTERVAL_S
    assert known.find("new") == ACME
    os.unlink(tokens)  # noqa: PTH108
    now += LOOK_INTERVAL_S
    assert known.find("new") == ACME


@pytest.mark.parametrize(
    "line", ["acme", "acme user", "acme root " + "0" * 64, "a/b user " + "0" * 64, "acme user hunter2"]
)
def test_a_wrong_line_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    """What stands in a wrong line, perhaps a token, is not repeated."""
    path = tmp_path / "tokens"
    path.write_text(f"\n{line}\n")
    with pytest.raises(TokenFileError, match="line 2") as caught:
        TokenFile(path)
    assert "hunter2" not in str(caught.value)


async def test_a_certificate_names_the_tenant(serving: Any, tmp_path: Path) -> None:
    """The first URI of a verified client certificate is the tenant, else its common name."""
    authority = Authority(tmp_path / "certificates")
    server_files = authority.issue("server")
    callers = {
        "spiffe://example/acme": authority.issue("a", "spiffe://example/acme"),
        "globex": authority.issue("globex"),
    }
    guarded = {"tls_cert": server_files.cert, "tls_key": server_files.key, "tls_client_ca": authority.ca}
    async with serving(HANDLERS, guards=[CertificateInterceptor()], **guarded) as server:
        for tenant, files in callers.items():
            tls = TlsSettings(tls_ca=authority.ca, tls_cert=files.cert, tls_key=files.key)
            async with open_channel(server.address, channel_credentials(tls)) as channel:
                for shape in SHAPES:
                    assert await call(channel, shape) == tenant.encode()


def test_a_nameless_certificate_is_nobody() -> None:
    """Without a URI and a common name there is no tenant."""
    with pytest.raises(Exception, match="known caller"):
        identity_of_peer({"peer_dns": [b"example"], "x509_common_name": [b""]})
