import numpy as np

from services.common.embedding import Slice
from services.common.media.frames import Frames
from services.encoder.build import Loaded
from tests.common.media.files import photo


def slices() -> list[Frames]:
    """Slices of mixed sizes, stills and moving ones, equal sizes apart from each other."""
    sizes = [(56, 84), (112, 112), (56, 84), (84, 56), (28, 28), (112, 112)]
    stills = [np.asarray(photo().resize((width, height))) for height, width in sizes]
    moving = (stills[1], np.asarray(photo().rotate(30).resize((112, 112))))
    return [(still, still) for still in stills] + [moving]


def test_a_mixed_batch_gives_what_each_slice_gives_alone(loaded: Loaded) -> None:
    """Slices come back in the order they were given, whatever was packed beside them."""
    together = loaded.embedder.embed(slices())
    for frames, packed in zip(slices(), together, strict=True):
        (alone,) = loaded.embedder.embed([frames])
        assert isinstance(packed, Slice)
        assert isinstance(alone, Slice)
        assert packed.num_rows == frames[0].shape[0] * frames[0].shape[1] // 28**2
        np.testing.assert_allclose(np.frombuffer(packed.data, "f4"), np.frombuffer(alone.data, "f4"), atol=1e-5)
