from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from services.encoder.patchify import Patchifier
from tests.common.media.files import photo, preprocessor

PHOTO = np.asarray(photo())


def patchify(frames: tuple[np.ndarray, ...], patchifier: Patchifier) -> np.ndarray:
    out = np.full((patchifier.num_patches(frames), patchifier.patch_dim), np.nan, np.float32)
    patchifier.write(frames, out)
    return out


@pytest.mark.parametrize(("patch", "merge", "tp"), [(14, 2, 2), (8, 3, 2), (16, 1, 1), (14, 2, 3)])
def test_pictures_are_bit_equal_to_transformers(patch: int, merge: int, tp: int) -> None:
    """Rows of a resized picture are Qwen2VLImageProcessorPil's, to the last bit."""
    factor = patch * merge
    image = Image.fromarray(PHOTO).resize((5 * factor, 3 * factor), Image.Resampling.BICUBIC)
    processor = Qwen2VLImageProcessorPil(patch_size=patch, merge_size=merge, temporal_patch_size=tp)
    expected = processor(images=[image], do_resize=False, return_tensors="np")["pixel_values"]
    rows = patchify((np.asarray(image),) * tp, Patchifier(preprocessor(patch, merge, tp)))
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, expected)


def test_other_means_and_scales_are_followed() -> None:
    """A checkpoint's own mean, std and rescale factor hold."""
    pre = replace(preprocessor(), image_mean=(0.5, 0.4, 0.3), image_std=(0.5, 0.25, 0.125), rescale_factor=1 / 128)
    image = PHOTO[:56, :84]
    processor = Qwen2VLImageProcessorPil(
        image_mean=list(pre.image_mean), image_std=list(pre.image_std), rescale_factor=1 / 128
    )
    expected = processor(images=[image], do_resize=False, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(patchify((image, image), Patchifier(pre)), expected)


def test_the_frames_of_a_slice_lie_side_by_side_in_a_row() -> None:
    """Each row holds (channel, time, row, column): both frames of its place."""
    first, second = PHOTO[:56, :56], PHOTO[100:156, 100:156]
    patchifier = Patchifier(preprocessor())
    both = patchify((first, second), patchifier).reshape(16, 3, 2, 196)
    for time, frame in enumerate((first, second)):
        alone = patchify((frame, frame), patchifier).reshape(16, 3, 2, 196)
        np.testing.assert_array_equal(both[:, :, time], alone[:, :, 0])
