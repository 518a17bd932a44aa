"""What a job may take, and what it costs others when it takes more."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import pytest

from services.common.workers.errors import JobRefused, WorkerCrashed, WorkerError, WorkerTooCostly
from services.common.workers.files import FileBundle
from services.common.workers.pool import WorkerPool
from services.common.workers.settings import WorkerSettings
from services.common.workers.suspects import Suspects
from services.common.workers.worker import Order, Worker
from tests.harness import wait_until

JOBS = "tests.common.workers.jobs"
SLACK = WorkerSettings(workers=1, worker_cpu_s=20, worker_slack_s=0.1)
SETTINGS = WorkerSettings(workers=2, worker_memory_bytes=64 << 20, worker_cpu_s=0.5, worker_timeout_s=20)


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    async with WorkerPool(JOBS, SETTINGS) as pool:
        yield pool


async def run(pool: WorkerPool, job: str, *files: bytes, count: int = 1, key: bytes = b"", **arguments: Any) -> Any:
    """The replies of one job, with the bulk data of each."""
    with FileBundle() as bundle:
        await bundle.extend(files)
        order = Order(job, arguments, [len(file) for file in files])
        async with (
            pool.job(order, bundle, key=key or job.encode(), out_bytes=0) as under_way,
            aclosing(under_way.take(count)) as answers,
        ):
            return [
                (answer.values, os.pread(under_way.out, answer.num_bytes, answer.offset)) async for answer in answers
            ]


def num_handles() -> int:
    """Handles of processes that this one has open."""
    names = []
    for file in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the folder's own
            names.append(str(file.readlink()))
    return names.count("anon_inode:[pidfd]")


async def test_files_go_in_and_bytes_come_out(pool: WorkerPool) -> None:
    """A job sees its files whole, and its bulk data comes back through shared memory; fewer replies mean the end."""
    files = [b"one", os.urandom(3 << 20)]
    replies = await run(pool, "echo", *files, count=5)
    assert [data for _, data in replies] == files


async def test_every_job_has_a_process_of_its_own(pool: WorkerPool) -> None:
    """What one job does to its process cannot reach the next."""
    replies = [await run(pool, "echo", b"x") for _ in range(3)]
    assert len({reply[0][0]["pid"] for reply in replies}) == 3


async def test_a_jobs_own_error_is_told(pool: WorkerPool) -> None:
    """Replies before it are lost with it, and the error is plain values."""
    with pytest.raises(JobRefused) as caught:
        await run(pool, "refuse", count=2)
    assert caught.value.error == {"reason": "BAD"}


@pytest.mark.parametrize(
    ("job", "arguments", "kind"),
    [("crash", {}, WorkerCrashed), ("spin", {}, WorkerTooCostly), ("hoard", {"num_bytes": 68 << 20}, WorkerTooCostly)],
)
async def test_a_runaway_costs_one_job(
    pool: WorkerPool, job: str, arguments: dict[str, Any], kind: type[WorkerError]
) -> None:
    """A crash, a loop and a hoard of memory end one process; a job beside it and the next one are served."""
    beside = asyncio.create_task(run(pool, "echo", b"beside"))
    with pytest.raises(kind):
        await run(pool, job, **arguments)
    assert (await beside)[0][1] == b"beside"
    assert (await run(pool, "echo", b"next"))[0][1] == b"next"


@pytest.mark.parametrize(
    ("num_steps", "step_s", "last_s", "worth_s"),
    [(20, 0.02, 0.0, 0.01), (600, 0.001, 0.0, 0.0), (0, 0.0, 0.3, 0.01), (20, 0.0, 0.3, 0.1)],
    ids=["steps that are not worth their time", "short steps", "no progress", "time saved up"],
)
async def test_a_runaway_is_ended_by_what_its_work_is_worth(
    num_steps: int, step_s: float, last_s: float, worth_s: float
) -> None:
    """Long before the limit of the whole: slack and the worth of one step are all that a step may take."""
    async with WorkerPool(JOBS, SLACK) as pool:
        with pytest.raises(WorkerTooCostly):
            await run(pool, "toil", num_steps=num_steps, step_s=step_s, last_s=last_s, worth_s=worth_s)


async def test_long_work_gets_the_time_that_it_is_worth() -> None:
    """Steps that are worth what they take may go on, many times longer than the slack."""
    async with WorkerPool(JOBS, SLACK) as pool:
        assert await run(pool, "toil", num_steps=20, step_s=0.02, last_s=0.0, worth_s=0.025)


async def test_memory_within_the_limit_is_given(pool: WorkerPool) -> None:
    """The limit counts what the job takes and not what its process began with."""
    assert (await run(pool, "hoard", num_bytes=50 << 20))[0][0] == {"taken": 50 << 20}


async def test_a_worker_that_rests_for_ever_is_ended() -> None:
    """The clock ends what the CPU's limit does not."""
    settings = SETTINGS.model_copy(update={"worker_timeout_s": 0.2})
    async with WorkerPool(JOBS, settings) as pool:
        with pytest.raises(WorkerTooCostly):
            await run(pool, "sleep")


async def test_a_worker_can_reach_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file, no network, no process, no secret of the service's environment."""
    monkeypatch.setenv("DIPTYCH_CACHE_SECRET", "hidden")
    async with WorkerPool(JOBS, SETTINGS) as fresh:
        [(values, _)] = await run(fresh, "escape")
    assert values == {"done": [], "secrets": []}


async def test_what_has_ended_two_workers_is_refused_at_once(pool: WorkerPool) -> None:
    """The third time the same content starts no process, and other content is served."""
    for _ in range(2):
        with pytest.raises(WorkerCrashed):
            await run(pool, "crash", key=b"bad")
    with pytest.raises(WorkerCrashed):
        await run(pool, "echo", b"harmless, but for its key", key=b"bad")
    assert await run(pool, "echo", b"x", key=b"good")


def test_suspicion_ends() -> None:
    """Ten minutes after its last death, content is tried again."""
    now = 0.0
    suspects = Suspects(clock=lambda: now)
    for _ in range(2):
        suspects.note(b"k", WorkerCrashed(""))
    with pytest.raises(WorkerCrashed):
        suspects.require_innocent(b"k")
    now = 601.0
    suspects.require_innocent(b"k")


async def test_a_cancelled_job_is_ended(pool: WorkerPool) -> None:
    """Nobody waits for it any more, so its process is gone at once and its place is free."""
    waiting = [asyncio.create_task(run(pool, "sleep")) for _ in range(SETTINGS.workers)]
    await asyncio.to_thread(wait_until, pool._places.locked, "no place is free")
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert await asyncio.wait_for(run(pool, "echo", b"y"), 10)


async def test_a_job_that_is_cancelled_as_its_process_becomes_ready_keeps_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process is there, its job is not: the service keeps no handle of it."""
    before = num_handles()
    loop, become_ready = asyncio.get_running_loop(), Worker.ready

    async def ready_then_cancel(worker: Worker) -> None:
        await become_ready(worker)
        loop.call_soon(job.cancel)  # before the job hears of the process

    async with WorkerPool(JOBS, SLACK) as pool:
        monkeypatch.setattr(Worker, "ready", ready_then_cancel)
        job = asyncio.create_task(run(pool, "echo", b"x"))
        with pytest.raises(asyncio.CancelledError):
            await job
        monkeypatch.setattr(Worker, "ready", become_ready)
        assert (await run(pool, "echo", b"next"))[0][1] == b"next"
    assert num_handles() == before


async def test_a_dead_zygote_is_replaced(pool: WorkerPool) -> None:
    """When everything has been killed from outside, the next job starts it anew."""
    await run(pool, "echo", b"x")
    assert pool._zygote._process is not None
    pool._zygote._process.kill()
    pool._zygote._process.wait()
    assert (await run(pool, "echo", b"y"))[0][1] == b"y"


def test_no_process_outlives_the_service(tmp_path: Path) -> None:
    """Killed without warning in the middle of a job, the service leaves no worker behind."""
    code = f"""
import asyncio, os
from tests.common.workers.test_pool import *
async def main():
    async with WorkerPool(JOBS, SETTINGS) as pool:
        await run(pool, "echo", b"x")
        task = asyncio.create_task(run(pool, "sleep"))
        while len(children()) < 3: await asyncio.sleep(0.01)
        open({str(tmp_path / "pids")!r}, "w").write(" ".join(map(str, children())))
        os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False)
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) >= 3
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "workers gone")


def children() -> list[int]:
    """This process's zygotes and their workers."""
    found, rest = [], [os.getpid()]
    while rest:
        pid = rest.pop()
        below = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        found += below
        rest += below
    return found
