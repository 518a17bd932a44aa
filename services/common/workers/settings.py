"""What a worker process may take."""

from pydantic import Field
from pydantic_settings import BaseSettings


class WorkerSettings(BaseSettings):
    """Limits of the processes that read media. A service's own settings inherit this under their prefix."""

    workers: int = Field(default=2, ge=1, description="Processes that read media at the same time.")
    worker_memory_bytes: int = Field(
        default=1 << 30, ge=1 << 20, description="Memory that reading one item may take, beyond the process's own."
    )
    worker_cpu_s: float = Field(default=2.0, gt=0, description="Seconds of CPU that reading one item may take.")
    worker_slack_s: float = Field(
        default=0.5,
        gt=0,
        description="Seconds of CPU that reading one item may take beyond what its pixels are worth. A runaway takes"
        " them before it is refused; a slower machine needs more.",
    )
    worker_timeout_s: float = Field(
        default=20.0, gt=0, description="Seconds on the clock that a worker may take for one reply."
    )
    worker_nice: int = Field(default=5, ge=0, le=19, description="Niceness of the processes that read media.")
