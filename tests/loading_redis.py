"""A Redis that starts from its dump: until it has read all of it, it refuses every command with LOADING."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis

from cli.local_redis import LocalRedis

# The server answers once for so many bytes of its dump, which is once a filler, so a LOADING takes 2 ms.
EVENT_BYTES = 1024
FILLER_BYTES = 1100
KEY_DELAY_US = 2000
FILLERS_PER_S = 1_000_000 // KEY_DELAY_US


@contextmanager
def loading(server: LocalRedis, folder: Path, seconds: float) -> Iterator[LocalRedis]:
    """Kill `server`; yields one at its address that reads its dump for `seconds` or until the block ends.

    After the block it has what the first one had. Raises AssertionError when it had read all before.
    """
    _dump(server, folder, round(seconds * FILLERS_PER_S))
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    options = {"dir": folder, "key-load-delay": KEY_DELAY_US, "loading-process-events-interval-bytes": EVENT_BYTES}
    slow = LocalRedis(
        port=server.port, arguments=[word for name, value in options.items() for word in (f"--{name}", str(value))]
    )
    slow.start()
    yield slow
    with Redis.from_url(slow.url) as admin:
        assert _is_loading(admin), f"it has read its dump within {seconds:g} s"
        admin.config_set("key-load-delay", "0")
        while _is_loading(admin):
            pass


def _is_loading(admin: Redis) -> bool:
    return bool(admin.info("persistence")["loading"])


def _dump(server: LocalRedis, folder: Path, num_fillers: int) -> None:
    """What the server has, and more, as a dump in `folder`."""
    with Redis.from_url(server.url) as admin:
        with admin.pipeline(transaction=False) as pipe:
            for number in range(num_fillers):
                pipe.set(f"filler:{number}", os.urandom(FILLER_BYTES))
            pipe.execute()
        admin.save()
        found = Path(admin.config_get("dir")["dir"]) / "dump.rdb"
    if found.parent != folder.resolve():
        shutil.copy(found, folder)
