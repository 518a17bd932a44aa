"""Starts workers ahead of need and gives each one job."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Self

import structlog

from services.common.workers.confinement import Limits
from services.common.workers.errors import NoWorkers, WorkerCrashed, WorkerError
from services.common.workers.files import FileBundle
from services.common.workers.settings import WorkerSettings
from services.common.workers.suspects import Suspects
from services.common.workers.wire import HEAD_BYTES, packet_pair
from services.common.workers.worker import Costs, Job, Order, Worker

log = structlog.get_logger()

_MAX_STARTS = 3


class WorkerPool:
    """A fresh process for every job, so that what one has done to its process cannot reach another.

    `jobs` names the module whose `JOBS` the workers can do and whose `warm_up` prepares them. At most
    `settings.workers` jobs compute at a time; a job that is not being asked for anything holds no place.
    """

    def __init__(self, jobs: str, settings: WorkerSettings) -> None:
        self._settings = settings
        self._zygote = _Zygote(
            jobs,
            Limits(
                memory_bytes=settings.worker_memory_bytes,
                cpu_s=settings.worker_cpu_s,
                slack_s=settings.worker_slack_s,
                nice=settings.worker_nice,
            ),
        )
        self._costs = Costs(settings.worker_timeout_s, settings.worker_cpu_s)
        self._places = asyncio.Semaphore(settings.workers)
        self._spares: list[asyncio.Task[Worker]] = []
        self._suspects = Suspects()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    def start(self) -> None:
        """Start in the background: nobody waits for it before the first job. Needs a running loop."""
        self._spares = [self._start() for _ in range(self._settings.workers)]

    async def close(self) -> None:
        """End all processes; jobs that still run fail."""
        for spare in self._spares:
            spare.cancel()
            with suppress(asyncio.CancelledError, NoWorkers):
                (await spare).kill()
        self._zygote.stop()

    @asynccontextmanager
    async def job(self, order: Order, files: FileBundle, *, key: bytes, out_bytes: int) -> AsyncIterator[Job]:
        """Do a job on the files of a bundle; leaving ends its process. `key` stands for tenant and content.

        Its replies fill at most `out_bytes` at a time. Raises WorkerError at once for what has ended two workers.
        """
        self._suspects.require_innocent(key)
        out = os.memfd_create("diptych-replies", os.MFD_CLOEXEC)
        job = Job(lambda count: self._hire(order, files, out, count), self._places, out, self._costs)
        try:
            os.ftruncate(out, HEAD_BYTES + out_bytes)
            yield job
        except WorkerError as error:
            self._suspects.note(key, error)
            log.warning("worker ended", job=order.job, reason=error.reason)
            raise
        finally:
            job.end()
            os.close(out)

    async def _hire(self, order: Order, files: FileBundle, out: int, count: int) -> Worker:
        """A worker that does its job and has been asked for `count` replies. Raises NoWorkers when none starts."""
        for _ in range(len(self._spares) + _MAX_STARTS):
            worker = await self._spare()
            try:
                await worker.give(order, files, out, count)
            except OSError:  # it has died before it had anything to do, with its zygote perhaps
                worker.kill()
            except BaseException:
                worker.kill()
                raise
            else:
                return worker
            finally:
                self._spares.append(self._start())  # not before: the job is what somebody waits for
        raise NoWorkers("no process could be started to read media")

    async def _spare(self) -> Worker:
        """One that is ready. Raises NoWorkers."""
        spare = self._spares.pop(0) if self._spares else self._start()
        try:
            return await asyncio.shield(spare)
        except asyncio.CancelledError:
            self._spares.insert(0, spare)  # whether it has started by now or not, somebody else can have it
            raise

    def _start(self) -> asyncio.Task[Worker]:
        starting = asyncio.create_task(self._zygote.fork())
        starting.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever takes it will hear
        return starting


class _Zygote:
    """The process that workers are forked from; started when it is needed and again when it has died."""

    def __init__(self, jobs: str, limits: Limits) -> None:
        self._jobs, self._limits = jobs, limits
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    async def fork(self) -> Worker:
        """A new worker that is ready. Raises NoWorkers."""
        for _ in range(_MAX_STARTS):
            ours, theirs = packet_pair()
            worker, control = Worker(ours), self._started()
            try:
                with theirs:
                    socket.send_fds(control, [b"fork"], [theirs.fileno()])
                await worker.ready()
            except (OSError, TimeoutError, WorkerCrashed):
                worker.kill()
                if self._control is control:  # else another has started a new one meanwhile
                    self.stop()
            except BaseException:
                worker.kill()
                raise
            else:
                return worker
        raise NoWorkers("no process could be started to read media")

    def stop(self) -> None:
        """End it and, with it, every worker."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _started(self) -> socket.socket:
        if self._control is None:
            self._control, theirs = packet_pair()
            with theirs:
                self._process = _spawn(theirs.fileno(), self._jobs, self._limits)
        return self._control


def _spawn(descriptor: int, jobs: str, limits: Limits) -> "subprocess.Popen[bytes]":
    """Start anew, never fork: this process has threads. Of its environment only what an import needs goes along, so
    no secret; a session of its own, so that ctrl-C at a terminal leaves it to the service to end it.
    """
    arguments = [str(descriptor), jobs, json.dumps(asdict(limits))]
    path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
    return subprocess.Popen(  # noqa: S603 -- this project's own module
        [sys.executable, "-m", "services.common.workers.zygote", *arguments],
        env={
            "PYTHONPATH": path,
            "OPENBLAS_NUM_THREADS": "1",
            "LC_ALL": "C.UTF-8",
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # a new process takes each page of its pictures anew
        },
        pass_fds=[descriptor],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
    )
