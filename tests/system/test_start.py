"""Services that cannot start: exit code 2, and a line that names the variable."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SERVICES = {"gateway": "gateway", "encoder": "services.encoder", "decoder": "services.decoder"}
BEHIND = ["--encoder", "127.0.0.1:1", "--decoder", "127.0.0.1:1"]


@pytest.fixture
def taken() -> Iterator[str]:
    """An address where somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def broken(tmp_path: Path) -> str:
    """A file that is no certificate."""
    path = tmp_path / "broken.pem"
    path.write_text("nothing of use")
    return str(path)


def refused(service: str, model: Path, *arguments: str) -> str:
    """What a service says that cannot start."""
    command = [sys.executable, "-m", SERVICES[service], "--model", str(model), *arguments]
    command += BEHIND if service == "gateway" else []
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("service", SERVICES)
def test_an_address_that_is_taken(service: str, checkpoint: Path, taken: str) -> None:
    """The last line, after those of the log, says which."""
    variable = f"DIPTYCH_{service.upper()}_LISTEN"
    assert refused(service, checkpoint, "--listen", taken).startswith(f"{variable}: cannot listen on {taken}: ")


@pytest.mark.parametrize("service", SERVICES)
def test_a_folder_that_is_no_checkpoint(service: str, tmp_path: Path) -> None:
    """It is the model that is wrong."""
    assert refused(service, tmp_path).startswith(f"DIPTYCH_MODEL: {tmp_path}")


@pytest.mark.parametrize("service", SERVICES)
def test_a_certificate_that_cannot_be_used(service: str, checkpoint: Path, broken: str) -> None:
    """It is not the address that is wrong."""
    assert "DIPTYCH_TLS_CERT" in refused(service, checkpoint, "--tls-cert", broken, "--tls-key", broken)
