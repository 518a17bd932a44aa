"""`python -m tests.system.frail_encoder`: the encoder, except that a batch with a picture in one colour fails as a
whole, and a batch with one in another waits for a file to appear.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from services.common.embedding import Slice
from services.common.media.frames import Frames
from services.encoder.__main__ import main
from services.encoder.embedder import Embedder
from tests.harness import wait_until

BREAKS, HOLDS = (255, 0, 255), (0, 255, 255)
FOLDER_VARIABLE = "FRAIL_ENCODER_FOLDER"
HELD, GO_ON = "held", "go on"  # files: it has come to the picture that holds; it may go on


_embed = Embedder.embed


def frail_embed(embedder: Embedder, slices: Sequence[Frames]) -> list[Slice | Exception]:
    """What the model's thread does. RuntimeError for a batch with BREAKS in it."""
    colours = {tuple(frames[0][0, 0].tolist()) for frames in slices}
    if HOLDS in colours:
        folder = Path(os.environ[FOLDER_VARIABLE])
        (folder / HELD).touch()
        wait_until((folder / GO_ON).exists, "the test lets the batch go on")
    if BREAKS in colours:
        raise RuntimeError("the model cannot compute this batch")
    return _embed(embedder, slices)


if __name__ == "__main__":
    Embedder.embed = frail_embed  # type: ignore[assignment,method-assign]
    main()
