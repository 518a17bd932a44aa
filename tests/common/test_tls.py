"""Connections that are sealed, and known at both ends."""

from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest

from services.common.channels import open_channel
from services.common.tls import TlsSettings, channel_credentials, watched_credentials
from tests.certificates import Authority, Files

Handlers: TypeAlias = "dict[str, grpc.RpcMethodHandler[bytes, bytes]]"


async def common_name(_: bytes, context: Any) -> bytes:
    """Whom the server takes the caller for."""
    return b"".join(context.auth_context().get("x509_common_name", ()))


HANDLERS: Handlers = {"who": grpc.unary_unary_rpc_method_handler(common_name)}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Whom both sides trust."""
    return Authority(tmp_path / "certificates")


def server_tls(authority: Authority, *, mutual: bool) -> dict[str, Path]:
    """A server's settings."""
    files = authority.issue("server")
    return {"tls_cert": files.cert, "tls_key": files.key, **({"tls_client_ca": authority.ca} if mutual else {})}


async def ask(address: str, ca: Path, own: Files | None = None) -> bytes:
    """One call over a connection of its own."""
    tls = TlsSettings(tls_ca=ca, tls_cert=own.cert if own else None, tls_key=own.key if own else None)
    async with open_channel(address, channel_credentials(tls)) as channel:
        who: Any = channel.unary_unary("/test.Service/who")
        answered: bytes = await who(b"", timeout=5)
        return answered


async def code_of(call: Any) -> grpc.StatusCode:
    """How a call fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def test_a_server_with_a_certificate_speaks_tls_alone(serving: Any, authority: Authority) -> None:
    """Who trusts its authority gets through; plain text and those who trust another do not."""
    async with serving(HANDLERS, **server_tls(authority, mutual=False)) as server:
        assert await ask(server.address, authority.ca) == b""
        other = Authority(authority.ca.parent, "other")
        assert await code_of(ask(server.address, other.ca)) is grpc.StatusCode.UNAVAILABLE
        async with open_channel(server.address) as plain:
            who: Any = plain.unary_unary("/test.Service/who")
            assert await code_of(who(b"", timeout=5)) is grpc.StatusCode.UNAVAILABLE


async def test_client_certificates_are_required_where_asked_for(serving: Any, authority: Authority) -> None:
    """With a client authority only callers that it has signed get through."""
    stranger = Authority(authority.ca.parent, "other").issue("stranger")
    async with serving(HANDLERS, **server_tls(authority, mutual=True)) as server:
        assert await ask(server.address, authority.ca, authority.issue("gateway")) == b"gateway"
        assert await code_of(ask(server.address, authority.ca)) is grpc.StatusCode.UNAVAILABLE
        assert await code_of(ask(server.address, authority.ca, stranger)) is grpc.StatusCode.UNAVAILABLE


def test_a_clients_files_are_taken_up_as_a_pair(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key whose certificate is not there yet changes nothing; both together make new credentials."""
    monkeypatch.setattr("services.common.watched_files.LOOK_INTERVAL_S", 0)
    own, fresh = authority.issue("gateway"), authority.issue("fresh")
    watched = watched_credentials(TlsSettings(tls_ca=authority.ca, tls_cert=own.cert, tls_key=own.key))
    first = watched.read()
    own.key.write_bytes(fresh.key.read_bytes())
    assert watched.read() is first
    own.cert.write_bytes(fresh.cert.read_bytes())
    assert watched.read() is not first


def test_a_client_does_not_start_with_half_a_pair(authority: Authority) -> None:
    """The variables are named."""
    own, other = authority.issue("gateway"), authority.issue("other")
    with pytest.raises(OSError, match="DIPTYCH_TLS_CERT or DIPTYCH_TLS_KEY: KEY_VALUES_MISMATCH"):
        watched_credentials(TlsSettings(tls_ca=authority.ca, tls_cert=own.cert, tls_key=other.key))


async def test_changed_files_hold_from_the_next_connection_on(serving: Any, authority: Authority) -> None:
    """A new certificate and a new client authority are taken up without a restart; a file half written is not."""
    settings = server_tls(authority, mutual=True)
    old_client = authority.issue("old")
    async with serving(HANDLERS, **settings) as server:
        assert await ask(server.address, authority.ca, old_client) == b"old"
        settings["tls_cert"].write_text("-----BEGIN")
        assert await ask(server.address, authority.ca, old_client) == b"old"
        successor = Authority(authority.ca.parent, "successor")
        successor.issue("server")
        settings["tls_client_ca"].write_bytes(successor.ca.read_bytes())
        assert await ask(server.address, successor.ca, successor.issue("client")) == b"client"
        assert await code_of(ask(server.address, successor.ca, old_client)) is grpc.StatusCode.UNAVAILABLE
