"""The process: what it imports, how it starts and stops, what it says when it cannot."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.harness import wait_until

IMPORT = """
import sys, time
import gateway.__main__
print(time.process_time(), *(name for name in ("torch", "transformers") if name in sys.modules))
"""


def test_no_torch_in_the_gateway() -> None:
    """Importing the gateway brings neither torch nor transformers, and takes little time of a processor."""
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True, timeout=60)
    seconds, *heavy = done.stdout.split()
    assert not heavy
    assert float(seconds) < 4  # about one on an idle machine


def test_wrong_settings_are_named() -> None:
    """A missing or wrong variable ends the process with its name."""
    environment = {**os.environ, "DIPTYCH_GATEWAY_MAX_MEDIA": "many", "DIPTYCH_GATEWAY_DECODER": "x:1"}
    done = subprocess.run(
        [sys.executable, "-m", "gateway"], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    for name in ("DIPTYCH_MODEL", "DIPTYCH_GATEWAY_ENCODER", "DIPTYCH_GATEWAY_MAX_MEDIA"):
        assert name in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--listen", "0.0.0.0:0"], "DIPTYCH_GATEWAY_LISTEN: "),
        (["--tokens-file", "/nowhere"], "DIPTYCH_GATEWAY_TOKENS_FILE: "),
        (["--tokens-file", __file__], "line 1 is not: tenant"),
    ],
)
def test_unsafe_settings_end_the_start(checkpoint: Path, arguments: list[str], named: str) -> None:
    """The gateway does not listen to other machines unguarded, nor with tokens that it cannot read."""
    command = [sys.executable, "-m", "gateway", "--model", str(checkpoint), "--encoder", "x:1", "--decoder", "x:1"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_serves_and_drains(checkpoint: Path, tmp_path: Path) -> None:
    """The process tells its address, is alive and not ready without its services, and stops at SIGTERM with 0."""
    ready = tmp_path / "ready"
    arguments = ["--model", str(checkpoint), "--encoder", "127.0.0.1:1", "--decoder", "127.0.0.1:1"]
    environment = {**os.environ, "DIPTYCH_READY_FILE": str(ready)}
    process = subprocess.Popen([sys.executable, "-m", "gateway", *arguments], env=environment)
    try:
        wait_until(ready.exists, "the gateway is ready")
        with grpc.insecure_channel(ready.read_text().strip()) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            names = ("", "diptych.v1.ChatService")
            answers = [stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10) for name in names]
            found = [health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status) for answer in answers]
            assert found == ["SERVING", "NOT_SERVING"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()
