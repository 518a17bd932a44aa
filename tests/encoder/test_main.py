import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
from diptych.v1 import encoder_service_pb2, encoder_service_pb2_grpc

from tests.harness import wait_until

COMMAND = [sys.executable, "-m", "services.encoder"]


def test_a_process_serves_and_drains(model: Path, tmp_path: Path) -> None:
    """Started with a folder and port 0, it tells its address, answers, and exits with 0 at SIGTERM."""
    ready = tmp_path / "ready"
    environment = {**os.environ, "DIPTYCH_READY_FILE": str(ready), "DIPTYCH_THREADS": "1"}
    process = subprocess.Popen([*COMMAND, "--model", str(model), "--listen", "127.0.0.1:0"], env=environment)
    try:
        wait_until(ready.exists, "the encoder is ready", 60)
        with grpc.insecure_channel(ready.read_text().strip()) as channel:
            stub = encoder_service_pb2_grpc.EncoderServiceStub(channel)
            reply = stub.GetEncoderCapabilities(encoder_service_pb2.GetEncoderCapabilitiesRequest(), timeout=10)
        assert reply.cache == "memory"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_a_queue_smaller_than_an_item_is_refused(model: Path) -> None:
    """Limits that contradict each other fail at start by name."""
    done = subprocess.run(
        [*COMMAND, "--model", str(model), "--max-queued-patches", "10"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "DIPTYCH_ENCODER_MAX_QUEUED_PATCHES" in done.stderr
