"""A server that was stopped (SIGSTOP) and goes on: nobody is blamed for the time in between."""

import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

import grpc
import pytest

from tests.common.conftest import SERVICE
from tests.common.endless import MESSAGE, SLOW_READER_S

STOP_S = 2 * SLOW_READER_S
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY, ACK = 4, 6, 7, 1  # https://www.rfc-editor.org/rfc/rfc9113#section-6


@pytest.fixture
def server() -> Iterator[tuple[int, str]]:
    """The pid and the address of an endless server."""
    command = [sys.executable, "-m", "tests.common.endless"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            port = next(int(line) for line in process.stdout if line.strip().isdigit())  # between log lines
            yield process.pid, f"127.0.0.1:{port}"
        finally:
            process.kill()


def stop_for_a_while(pid: int) -> None:
    """Longer than a slow reader is given."""
    os.kill(pid, signal.SIGSTOP)
    time.sleep(STOP_S)
    os.kill(pid, signal.SIGCONT)


def test_its_reader_is_not_called_slow(server: tuple[int, str]) -> None:
    """The time in which the server did not run does not count against who reads its stream all along."""
    pid, address = server
    with grpc.insecure_channel(address) as channel:
        endless: Any = channel.unary_stream(f"/{SERVICE}/endless")
        call = endless(b"", timeout=30)
        assert next(call) == MESSAGE
        for _ in range(2):
            stop_for_a_while(pid)
            for _ in range(200):  # more than was on its way
                assert next(call) == MESSAGE
        call.cancel()


def frame(kind: int, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame of the connection."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, 0]) + bytes(4) + payload


def pings_answered(stream: BufferedReader) -> Iterator[int]:
    """1 for each answer to a ping, until the server hangs up."""
    while len(head := stream.read(9)) == 9:
        stream.read(int.from_bytes(head[:3]))
        assert head[3] != GOAWAY
        if (head[3], head[4]) == (PING, ACK):
            yield 1


def test_pings_that_piled_up_are_answered(server: tuple[int, str]) -> None:
    """Keepalive pings that a stopped server finds all at once are answered, not taken for a flood (GOAWAY)."""
    pid, address = server
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(PREFACE + frame(SETTINGS))
        answers = pings_answered(connection.makefile("rb"))
        for num_pings in (10, 1, 1):  # the connection that is hung up takes no more
            os.kill(pid, signal.SIGSTOP)
            connection.sendall(frame(PING, bytes(8)) * num_pings)
            os.kill(pid, signal.SIGCONT)
            assert sum(itertools.islice(answers, num_pings)) == num_pings
