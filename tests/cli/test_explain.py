"""The picture that `diptych explain --png` draws."""

import io

from diptych.v1 import content_pb2 as content
from PIL import Image

from cli.explain import THICK, draw_grid


def test_grid_is_drawn_at_the_size_the_model_sees() -> None:
    """Bold lines stand where one token ends and the next begins, and cells between lines keep their colour."""
    source = io.BytesIO()
    Image.new("RGB", (50, 30), (0, 0, 200)).save(source, "PNG")
    report = content.MediaReport(resized_width=112, resized_height=56)
    drawn = Image.open(io.BytesIO(draw_grid(source.getvalue(), report, patch_size=14, merge_size=2)))
    assert drawn.size == (112, 56)
    assert drawn.getpixel((7, 7)) == (0, 0, 200)
    for x in (28, 56, 84):
        pixel = drawn.getpixel((x, 7))
        assert isinstance(pixel, tuple)
        assert pixel[0] > THICK[0] // 2
