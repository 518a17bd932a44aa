"""Certificates that change while the gateway calls: a real server that asks for them, and files written over."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from diptych.v1 import decoder_service_pb2 as pb

from gateway.reach.kinds import DECODERS, DecoderPool, open_pools
from gateway.settings import GatewaySettings
from services.common.checkpoint import Checkpoint
from tests.certificates import Authority, Files
from tests.gateway.client import until
from tests.gateway.reach.decoders import Decoders

HOST = "127.0.0.1"


@dataclass
class Site:
    """A decoder that trusts the authorities in `client_ca`, and a pool that trusts those in `ca`."""

    decoders: Decoders
    pool: DecoderPool
    old: Authority
    new: Authority
    server: Files
    client: Files
    client_ca: Path
    ca: Path

    async def restart(self) -> None:
        """Another process at the same address, with the files as they are now."""
        await self.decoders.stop(HOST)
        server = self.server
        await self.decoders.start(HOST, tls_cert=server.cert, tls_key=server.key, tls_client_ca=self.client_ca)

    async def ask(self) -> None:
        """One call as requests make it. Raises when it fails."""
        [endpoint] = await self.pool.settled()
        with endpoint.call() as stub:
            await DECODERS.describe(stub, 5)

    async def ask_until(self, over: asyncio.Event) -> int:
        """One call after another; how many."""
        num_calls = 0
        while not over.is_set():
            await self.ask()
            num_calls += 1
        return num_calls

    async def renewed(self) -> None:
        """Wait until calls go over another connection than now."""
        [before] = self.pool.usable
        await until(lambda: self.pool.usable not in ([], [before]))


@pytest.fixture
async def site(model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """All signed by the old authority, and known to each other."""
    monkeypatch.setattr("gateway.reach.kinds.LOOK_S", 0.02)
    monkeypatch.setattr("services.common.watched_files.LOOK_INTERVAL_S", 0.02)
    old, new = Authority(tmp_path / "old", "old"), Authority(tmp_path / "new", "new")
    server, client = old.issue("server"), old.issue("gateway")
    client_ca, ca = tmp_path / "clients.pem", tmp_path / "services.pem"
    trust(client_ca, old)
    trust(ca, old)
    decoders = Decoders(model)
    decoders.hosts = [HOST]
    await decoders.start(HOST, tls_cert=server.cert, tls_key=server.key, tls_client_ca=client_ca)
    values: dict[str, Any] = {"encoder": "127.0.0.1:1", "tls_ca": ca, "tls_cert": client.cert, "tls_key": client.key}
    settings = GatewaySettings(model=str(model.path), decoder=f"localhost:{decoders.port}", **values)
    async with open_pools(settings, decoders.resolve) as pools:
        yield Site(decoders, pools.decoders, old, new, server, client, client_ca, ca)
    await decoders.stop_all()


def trust(path: Path, *authorities: Authority) -> None:
    """Write a file of those whose certificates hold."""
    path.write_bytes(b"".join(authority.ca.read_bytes() for authority in authorities))


def reissue(files: Files, authority: Authority) -> None:
    """Write another certificate and key over those in `files`."""
    fresh = authority.issue("fresh")
    files.key.write_bytes(fresh.key.read_bytes())
    files.cert.write_bytes(fresh.cert.read_bytes())


async def test_no_call_fails_while_all_certificates_change(site: Site) -> None:
    """From one authority to another in the order of docs/operations.md; then only the new one is of any use."""
    await site.ask()
    asking = asyncio.create_task(site.ask_until(over := asyncio.Event()))
    trust(site.client_ca, site.old, site.new)
    trust(site.ca, site.old, site.new)
    await site.renewed()
    reissue(site.server, site.new)
    reissue(site.client, site.new)
    await site.renewed()
    trust(site.client_ca, site.new)
    trust(site.ca, site.new)
    await site.renewed()
    over.set()
    assert await asking > 0
    await site.restart()  # no connection of before is left
    await until(lambda: bool(site.pool.usable))
    await site.ask()


async def test_a_call_under_way_ends_on_its_own_connection(site: Site) -> None:
    """It goes on when others have moved, and its connection is given up once it has ended."""
    [first] = await site.pool.settled()
    site.decoders.fakes[HOST].endless = True
    with first.call() as stub:
        call = stub.Generate()
        await call.write(pb.GenerateRequest(prompt=pb.Prompt(request_id="r")))
        assert (await call.read()).WhichOneof("event") == "begun"
        reissue(site.client, site.old)
        await site.renewed()
        await site.ask()
        assert not call.done()
        assert first._channel.get_state() is grpc.ChannelConnectivity.READY
        call.cancel()
    await until(lambda: first._channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN)


async def test_files_that_no_server_takes_are_not_moved_to(site: Site) -> None:
    """While a connection with the new files fails, calls stay on the old one; they move once the server takes them."""
    first = await site.pool.settled()
    reissue(site.client, site.new)
    await until(lambda: bool(site.pool._renewals))
    await site.ask()
    assert site.pool.usable == first
    renewed = asyncio.create_task(site.renewed())
    trust(site.client_ca, site.old, site.new)
    await renewed
    await site.ask()
