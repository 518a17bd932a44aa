"""`python -m tests.system.failpoints`: a service that fails where FAILPOINT says, at a sign of the test's.

Signs are files in a folder that both know.
"""

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from services.common.embedding import CachedManifest, Slice
from services.common.media.frames import Frames
from services.decoder import __main__ as decoder
from services.decoder.runner import ModelRunner
from services.decoder.scheduler import Chunk
from services.encoder import __main__ as encoder
from services.encoder.embedder import Embedder
from services.encoder.tiers import Tiers
from tests.harness import wait_until

MODULE = "tests.system.failpoints"
NAME_VARIABLE, FOLDER_VARIABLE = "FAILPOINT", "FAILPOINT_FOLDER"
HELD, GO_ON = "held", "go on"  # signs: a batch waits; it may go on
FAIL, SLOW = "fail", "slow"  # signs: for as long as they are there
SLOW_STEP_S = 0.02
BREAKS, HOLDS = (255, 0, 255), (0, 255, 255)  # colours of pictures


def _batch() -> None:
    """A batch of the vision model with a picture in one colour fails as a whole, one with another waits for a sign."""
    embed = Embedder.embed

    def frail_embed(embedder: Embedder, slices: Sequence[Frames]) -> list[Slice | Exception]:
        colours = {tuple(frames[0][0, 0].tolist()) for frames in slices}
        if HOLDS in colours:
            _sign(HELD).touch()
            wait_until(_sign(GO_ON).exists, "the test lets the batch go on")
        if BREAKS in colours:
            raise RuntimeError("the model cannot compute this batch")
        return embed(embedder, slices)

    Embedder.embed = frail_embed  # type: ignore[assignment,method-assign]
    encoder.main()


def _manifest() -> None:
    """The encoder is gone when all slices of an item are stored and its manifest is not."""

    async def die(_tiers: Tiers, _media_key: bytes, _manifest: CachedManifest) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    Tiers.store_manifest = die  # type: ignore[assignment,method-assign]
    encoder.main()


def _step() -> None:
    """Steps of the decoder fail, or take longer, for as long as there is a sign."""
    run = ModelRunner.run

    def frail_run(runner: ModelRunner, chunks: Sequence[Chunk]) -> torch.Tensor:
        if _sign(FAIL).exists():
            raise RuntimeError("the model cannot compute this step")
        if _sign(SLOW).exists():
            time.sleep(SLOW_STEP_S)
        return run(runner, chunks)

    ModelRunner.run = frail_run  # type: ignore[assignment,method-assign]
    decoder.main()


FAILPOINTS: dict[str, Callable[[], None]] = {
    "encoder.batch": _batch,
    "encoder.manifest": _manifest,
    "decoder.step": _step,
}


def _sign(name: str) -> Path:
    return Path(os.environ[FOLDER_VARIABLE]) / name


if __name__ == "__main__":
    FAILPOINTS[os.environ[NAME_VARIABLE]]()
