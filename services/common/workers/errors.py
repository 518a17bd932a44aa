"""How a job ends badly. What a job itself has to say comes as `JobRefused`; the rest is said of the process."""

import grpc

from services.common.errors import DiptychError


class WorkerError(Exception):
    """A job's process did not get to its answer. `message` is fit for the caller."""

    reason = "WORKER_ERROR"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class WorkerCrashed(WorkerError):  # noqa: N818 -- read as "raises WorkerCrashed"
    """The process ended in the middle of its job, or spoke nonsense."""

    reason = "READER_CRASHED"


class WorkerTooCostly(WorkerError):  # noqa: N818
    """The job needed more memory or time than it may."""

    reason = "TOO_COSTLY"


class JobRefused(Exception):  # noqa: N818
    """The job's own error: plain values, as the worker has sent them."""

    def __init__(self, error: dict[str, object]) -> None:
        super().__init__()
        self.error = error


class NoWorkers(DiptychError):  # noqa: N818
    """No process could be started; nobody's media are to blame."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "NO_WORKERS"
