"""A stop signal that comes while a service still loads."""

import array
import fcntl
import os
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.harness import wait_until


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("gateway", signal.SIGINT),
        ("gateway", signal.SIGTERM),
        ("services.encoder", signal.SIGTERM),
        ("services.decoder", signal.SIGTERM),
    ],
)
def test_stops_while_it_loads(module: str, number: signal.Signals, tmp_path: Path) -> None:
    """A service whose checkpoint is still being read ends with 0 at once, and says nothing of it."""
    config = tmp_path / "config.json"
    os.mkfifo(config)  # whoever reads it waits, as for a slow disk
    pipe = os.open(config, os.O_RDWR)
    os.write(pipe, b"{")
    environment = {
        **os.environ,
        "DIPTYCH_MODEL": str(tmp_path),
        "DIPTYCH_GATEWAY_ENCODER": "127.0.0.1:1",
        "DIPTYCH_GATEWAY_DECODER": "127.0.0.1:1",
    }
    process = subprocess.Popen([sys.executable, "-m", module], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: is_empty(pipe) and is_waiting(process.pid), f"{module} reads its checkpoint", 60)
        process.send_signal(number)
        _, said = process.communicate(timeout=10)
        assert process.returncode == 0
        assert "Traceback" not in said
    finally:
        process.kill()
        process.wait()
        os.close(pipe)


def is_empty(pipe: int) -> bool:
    """Whether all that was written has been read."""
    num_unread = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, num_unread)
    return num_unread[0] == 0


def is_waiting(pid: int) -> bool:
    """Whether the process sleeps in a system call."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"
