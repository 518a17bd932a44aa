"""`diptych explain`: what a request becomes before anything is generated."""

import io
import sys
from collections.abc import Sequence
from pathlib import Path

from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub
from google.protobuf.json_format import MessageToJson
from rich.console import Console
from rich.table import Table

from cli.chat import CACHE_WORDS, describe_media
from cli.client import build_conversation, run_request
from cli.media import Media, Turn

THIN, THICK = (255, 255, 255, 90), (255, 64, 64, 220)  # lines of patches, and of the merged cells that are tokens


def run(address: str, turn: Turn, png: Path | None, *, as_json: bool) -> int:
    """Prints the explanation; with `png`, also draws the patch grid of the first picture."""
    if png is not None and not any(item.kind == "image" and item.data is not None for item in turn.media):
        print("error: --png needs an --image that is a file", file=sys.stderr)
        return 2

    async def show(stub: ChatServiceStub) -> None:
        conversation = await build_conversation(stub, turn)
        explained = await stub.Explain(chat.ExplainRequest(conversation=conversation))
        model = await stub.GetModel(chat.GetModelRequest())
        if as_json:
            print(MessageToJson(explained, preserving_proto_field_name=True, indent=None))
        else:
            print_explanation(explained)
        if png is not None:
            write_first_grid(png, turn.media, explained, model.patch_size, model.merge_size)

    return run_request(address, show)


def print_explanation(explained: chat.ExplainResponse) -> None:
    """The prompt, then each media item, then the positions, then the totals."""
    console = Console(highlight=False)
    console.print(explained.rendered_prompt, style="dim", markup=False, soft_wrap=True)
    for span in explained.media:
        console.print("\n".join(media_lines(span)), markup=False, soft_wrap=True)
    console.print(position_table(explained.positions))
    counts = f"{explained.num_text_tokens} text + {explained.num_media_tokens} media"
    console.print(f"{len(explained.token_ids)} tokens ({counts}); position delta {explained.position_delta}")


def media_lines(span: chat.ExplainResponse.MediaSpan) -> list[str]:
    """One media item: where its tokens stand, its grid and its key in the cache."""
    report, last = span.report, span.offset + span.report.num_tokens - 1
    cached = "not cached" if span.cached == content.CACHE_RESULT_MISS else CACHE_WORDS[span.cached]
    frames = f", frames {', '.join(map(str, report.frame_indices))}" if report.frame_indices else ""
    return [
        report.field,
        f"  {describe_media(report)} at {span.offset} to {last}, grid {grid_text(report.grid)}{frames}",
        f"  {cached}, key {span.cache_key}",
    ]


def position_table(runs: Sequence[chat.ExplainResponse.PositionRun]) -> Table:
    """One row a run of tokens: the M-RoPE positions on the time, height and width axes."""
    table = Table("tokens", "what", "time", "height", "width", title="positions", title_justify="left")
    for run in runs:
        tokens = f"{run.offset} to {run.offset + run.length - 1}"
        if run.HasField("merged_grid"):
            sides = (run.merged_grid.t, run.merged_grid.h, run.merged_grid.w)
            table.add_row(tokens, f"media {grid_text(run.merged_grid)}", *(axis(run.start, side) for side in sides))
        else:
            table.add_row(tokens, "text", *[axis(run.start, run.length)] * 3)
    return table


def axis(start: int, length: int) -> str:
    """The positions of one axis."""
    return f"{start} to {start + length - 1}"


def grid_text(grid: content.Grid) -> str:
    """`t x h x w`."""
    return f"{grid.t} x {grid.h} x {grid.w}"


def write_first_grid(
    path: Path, media: Sequence[Media], explained: chat.ExplainResponse, patch_size: int, merge_size: int
) -> None:
    """Draws the first picture that came as a file, resized as the model sees it, under its patches and tokens."""
    pairs = zip(media, explained.media, strict=True)
    data, report = next((item.data, span.report) for item, span in pairs if item.kind == "image" and item.data)
    path.write_bytes(draw_grid(data, report, patch_size, merge_size))


def draw_grid(data: bytes, report: content.MediaReport, patch_size: int, merge_size: int) -> bytes:
    """A PNG at the size the model sees, each patch outlined thinly and each token boldly."""
    from PIL import Image, ImageDraw, ImageOps  # noqa: PLC0415 (only for --png)

    size = (report.resized_width, report.resized_height)
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGBA").resize(size)
    lines = Image.new("RGBA", size)
    draw = ImageDraw.Draw(lines)
    for step, colour in ((patch_size, THIN), (patch_size * merge_size, THICK)):
        for x in range(0, size[0], step):
            draw.line((x, 0, x, size[1]), fill=colour)
        for y in range(0, size[1], step):
            draw.line((0, y, size[0], y), fill=colour)
    out = io.BytesIO()
    Image.alpha_composite(image, lines).convert("RGB").save(out, "PNG")
    return out.getvalue()
