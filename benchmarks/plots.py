"""The pictures of docs/performance.md, drawn from the results alone."""

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures import Result

Point = tuple[float, float]
BETWEEN = re.compile(r"between tokens, p99, (.+)")

mpl.use("Agg")


def draw_plots(results: Sequence[Result], folder: Path) -> list[Path]:
    """One picture for each shape that was measured."""
    shapes = dict.fromkeys(result.name.split()[0] for result in results if re.match(r"\S+ fp32: ", result.name))
    return [_draw_shape(shape, results, folder / f"performance-{shape}.png") for shape in shapes]


def _draw_shape(shape: str, results: Sequence[Result], path: Path) -> Path:
    own = [result for result in results if re.match(rf"{shape} \S+: ", result.name)]
    figure = Figure(figsize=(11, 9), layout="constrained")
    decode, prefill, stutter, batch, context = figure.subplot_mosaic("AABB;AABB;CCDE;CCDE").values()
    _draw_series(decode, own, r"decode, batch (\d+)", "tokens/s over batch")
    _draw_series(prefill, own, r"prefill (\d+)", "time to first token (ms) over prompt")
    _draw_between(stutter, own)
    _draw_series(batch, own, r"step, batch (\d+), context 256", "step (ms) over batch")
    _draw_series(context, own, r"step, batch 1, context (\d+)", "step (ms) over context")
    figure.suptitle(f"shape {shape}")
    figure.savefig(path, dpi=90)
    return path


def _draw_series(axes: Axes, results: Sequence[Result], pattern: str, title: str) -> None:
    """A line for each precision of ours and for each peer."""
    for label, points in _series(results, pattern).items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
    axes.set_title(title, fontsize=10)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8)


def _series(results: Sequence[Result], pattern: str) -> dict[str, set[Point]]:
    series: dict[str, set[Point]] = {}
    for result in results:
        who, name = result.name.split(": ", 1)
        if found := re.fullmatch(pattern, name):
            at = float(found[1])
            series.setdefault(f"diptych {who.split()[1]}", set()).add((at, result.value))
            if result.peer is not None and result.peer_value is not None:
                series.setdefault(result.peer, set()).add((at, result.peer_value))
    return series


def _draw_between(axes: Axes, results: Sequence[Result]) -> None:
    """Bars: the 99th percentile of the time between tokens, idle and beside a long prompt."""
    bars = {found[1]: result.value for result in results if (found := BETWEEN.search(result.name))}
    drawn = axes.barh(list(bars), list(bars.values()))
    axes.bar_label(drawn, fmt="%.0f")
    if bars:  # a run that was cut short has none
        axes.set_xscale("log")
    axes.set_title("time between tokens, 99th percentile (ms)", fontsize=10)
