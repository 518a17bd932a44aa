"""From uint8 frames to the rows that the vision transformer reads.

Bit-equal to transformers' `Qwen2VLImageProcessorPil`: a channel has only 256 values, so the reference's rescaling
(float64, rounded to float32) and normalising (float32) are done once a value and looked up.
"""

import numpy as np
import numpy.typing as npt

from services.common.checkpoint import Preprocessor
from services.common.media.frames import Frames

Rows = npt.NDArray[np.float32]


class Patchifier:
    """Cuts the frames of a temporal slice into patches, by the mean, std and sizes of one checkpoint."""

    def __init__(self, pre: Preprocessor) -> None:
        self._pre = pre
        rescaled = (np.arange(256, dtype=np.float64) * pre.rescale_factor).astype(np.float32)
        mean, std = np.array(pre.image_mean, np.float32), np.array(pre.image_std, np.float32)
        self._levels = (rescaled[None] - mean[:, None]) / std[:, None]

    @property
    def patch_dim(self) -> int:
        """Values in a row: channels x temporal patch size x patch size squared."""
        return len(self._levels) * self._pre.temporal_patch_size * self._pre.patch_size**2

    def num_patches(self, frames: Frames) -> int:
        """Rows that a slice becomes."""
        pixels: int = frames[0].shape[0] * frames[0].shape[1]
        return pixels // self._pre.patch_size**2

    def write(self, frames: Frames, out: Rows) -> None:
        """Fill `out` [num_patches, patch_dim] from one slice.

        Rows are ordered (h/merge, w/merge, merge, merge) and hold (channel, time, row, column).
        """
        cells = out.reshape(len(out), len(self._levels), self._pre.temporal_patch_size, self._pre.patch_size**2)
        for time, frame in enumerate(frames):
            if time > 0 and frame is frames[time - 1]:
                cells[:, :, time] = cells[:, :, time - 1]
            else:
                self._write_frame(frame, cells[:, :, time])

    def _write_frame(self, frame: npt.NDArray[np.uint8], cells: Rows) -> None:
        """Fill `cells` [num_patches, channels, patch_size^2], strided, from one frame."""
        ps, merge = self._pre.patch_size, self._pre.merge_size
        height, width, channels = frame.shape
        tiles = frame.reshape(height // (ps * merge), merge, ps, width // (ps * merge), merge, ps, channels)
        # moving bytes first is four times cheaper than moving floats
        patches = np.ascontiguousarray(tiles.transpose(0, 3, 1, 4, 6, 2, 5)).reshape(-1, channels, ps * ps)
        for channel, levels in enumerate(self._levels):
            cells[:, channel] = levels[patches[:, channel]]
