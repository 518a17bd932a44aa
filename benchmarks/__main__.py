"""`make bench`: measures this machine's limits, the engine, its peers and the services, and writes down what came out.

Writes benchmarks/results.json, docs/performance.md and its plots. `VLLM_VENV` names an environment with vLLM for the
CPU, `LLAMA_CPP` the folder that llama.cpp was built in; without them these are left out.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks import long_video, reuse, serve, storm, transfer, warm
from benchmarks.accuracy import measure_accuracy
from benchmarks.checkpoints import SHAPES, ensure_checkpoint
from benchmarks.figures import PERCENT, Result, compared, write_results
from benchmarks.layers import measure_layers
from benchmarks.limits import measure_limits
from benchmarks.plots import draw_plots
from benchmarks.report import Conditions, results_table, write_report
from benchmarks.shapes import effort, measure_encoder, measure_shape
from benchmarks.turns import ROOT, Runner

DOCS = ROOT / "docs"
DEMO = ROOT / "models" / "demo"

Part = Callable[[], list[Result]]

SECOND_SHARE = "second question, share of the first with its encoding"


def main() -> None:
    """Measures, prints, writes."""
    arguments = _parse()
    console = Console(width=None if sys.stdout.isatty() else 140)
    conditions = Conditions.now(quick=arguments.quick)
    results = [Result(figure.name, figure.value, figure.unit) for figure in measure_limits().figures]
    for name, part in _parts(arguments):
        console.print(name)
        results += _attempt(part)
        _write(results, conditions)  # what there is, should the run be cut short
    console.print(results_table(results + second_questions(results)))
    if Runner.failures:
        sys.exit("\n".join(Runner.failures))


def _parts(arguments: argparse.Namespace) -> Iterator[tuple[str, Part]]:
    """What is measured, by name; the longest comes last."""
    quick, folder = arguments.quick, arguments.checkpoints
    for name in arguments.shapes:
        if name == arguments.shapes[-1]:
            yield "int8 on the demo checkpoint", partial(measure_demo, quick=quick)
            yield "layers", partial(measure_layers, 10 if quick else 40)
            if not arguments.without_services:
                yield "sharing", partial(measure_sharing, folder / "small-vision", quick=quick)
                yield "transfer", partial(transfer.measure_transfer, num_repeats=3 if quick else 9)
                yield "long video", partial(measure_long_video, folder / "small-vision")
                yield "warm", partial(warm.measure_warm, str(DEMO), num_repeats=5 if quick else 21)
                yield "services", partial(serve.measure_services, str(DEMO), num_repeats=2 if quick else 5)
        yield f"{name}: encoder", partial(measure_encoder, name, folder / f"{name}-vision", quick=quick)
        yield f"{name}: engine", partial(measure_shape, name, folder / name, quick=quick)


def _write(results: list[Result], conditions: Conditions) -> None:
    """The results so far, and everything that is made of them."""
    lines = results + second_questions(results)
    write_results(ROOT / "benchmarks" / "results.json", lines)
    draw_plots(lines, DOCS)
    write_report(lines, conditions, DOCS / "performance.md")


def measure_demo(*, quick: bool) -> list[Result]:
    """What int8 changes in the answers of the demo checkpoint."""
    figures = Runner("diptych", "benchmarks.agreement").run(DEMO, *effort(quick=quick))
    agreement = [Result(f"demo int8: {figure.name}", figure.value, figure.unit) for figure in figures]
    return [*agreement, measure_accuracy(DEMO, ROOT, 10 if quick else 40)]


def _attempt(part: Part) -> list[Result]:
    """A part's results; none if it fails, which is told at the end."""
    try:
        return part()
    except Exception as error:
        Runner.failures.append(f"{type(error).__name__}: {error}")
        return []


def measure_sharing(tower: Path, *, quick: bool) -> list[Result]:
    """What services give that one process does not: streams beside a storm of pictures, and clips that overlap."""
    checkpoint = ensure_checkpoint(tower, SHAPES["small"].for_vision())
    clips = reuse.measure_reuse(checkpoint, num_repeats=1 if quick else 9)
    if len(os.sched_getaffinity(0)) < 2:
        return clips  # a storm needs a core of its own
    theirs = Runner("transformers fp32", "benchmarks.peers.storm_in_transformers").run(DEMO, *effort(quick=quick))
    ours = storm.measure_storm(str(DEMO))
    peers = {"transformers fp32": [*theirs, storm.slowdown(theirs)]}
    figures = (*ours, storm.slowdown(ours))
    return clips + [line for figure in figures for line in compared(figure.name, figure, peers)]


def measure_long_video(tower: Path) -> list[Result]:
    """What an encoder holds of a video of ten minutes."""
    return long_video.measure_long_video(ensure_checkpoint(tower, SHAPES["small"].for_vision()))


def second_questions(results: Sequence[Result]) -> list[Result]:
    """A second question's time to the first token as a share of the first's, the picture's encoding included."""
    value = {result.name: result.value for result in results}
    shares = []
    for name in SHAPES:
        lines = (f"{name} fp32: second question about it", f"{name} fp32: question about a picture", _encoding(name))
        if all(line in value for line in lines):
            second, *first = (value[line] for line in lines)
            shares.append(Result(f"{name} fp32: {SECOND_SHARE}", 100 * second / sum(first), PERCENT))
    return shares


def _encoding(shape: str) -> str:
    return f"{shape} tower fp32: encode 448 x 448"  # the size of benchmarks/engine.py's picture


def _parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(SHAPES), help="which models; default: all")
    parser.add_argument("--quick", action="store_true", help="the small shape alone, with few repeats")
    parser.add_argument("--without-services", action="store_true", help="the engine alone")
    parser.add_argument(
        "--checkpoints",
        type=Path,
        default=Path(tempfile.gettempdir()) / "diptych-benchmarks",
        help="where random checkpoints are kept between runs",
    )
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.shapes = ["small"]
    return arguments


if __name__ == "__main__":
    main()
