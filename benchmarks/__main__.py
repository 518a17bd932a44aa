"""`make bench`: measures this machine's limits, the engine, its peers and the services, and writes down what came out.

Writes benchmarks/results.json, docs/performance.md and its plots. `VLLM_VENV` names an environment with vLLM for the
CPU; without it vLLM is left out.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from rich.console import Console

from benchmarks import reuse, serve, storm
from benchmarks.accuracy import measure_accuracy
from benchmarks.checkpoints import SHAPES, Shape, ensure_checkpoint
from benchmarks.figures import CONTEXT, PERCENT, Figure, Result, heard, ratio_of, write_results
from benchmarks.limits import Limits, encode_work, measure_limits, prefill_work, step_work
from benchmarks.plots import draw_plots
from benchmarks.report import Conditions, results_table, write_report

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
DEMO = ROOT / "models" / "demo"


Part = Callable[[], list[Result]]

SECOND_SHARE = "second question, share of the first with its encoding"


@dataclass(frozen=True, slots=True)
class Precision:
    """What the engine computes in, and how a program is told."""

    name: str
    weight_bytes: int
    kv_bytes: int
    options: tuple[str, ...]


PRECISIONS = (
    Precision("fp32", 4, 4, ()),
    Precision("bf16", 2, 2, ("--dtype", "bfloat16", "--speed-alone")),
    Precision("int8", 1, 4, ("--quantize", "int8", "--speed-alone")),
)


@dataclass(frozen=True, slots=True)
class Runner:
    """A program that prints figures. `python`: the interpreter that has what it needs."""

    name: str
    module: str
    options: tuple[str, ...] = ()
    python: str = sys.executable
    failures: ClassVar[list[str]] = []  # of all, told at the end

    def run(self, checkpoint: Path, *, quick: bool) -> list[Figure]:
        """Its figures for a checkpoint; those up to there, if it fails."""
        command = [self.python, "-m", self.module, str(checkpoint), *self.options, *(["--quick"] if quick else [])]
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "protos")]),
        }
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT, env=environment)  # noqa: S603 -- our own programs
        if done.returncode:
            self.failures.append(f"{self.name} ({self.module}, {checkpoint.name}) ended with {done.returncode}")
        return [figure for line in done.stdout.splitlines() if (figure := heard(line)) is not None]


def main() -> None:
    """Measures, prints, writes."""
    arguments = _parse()
    console = Console(width=None if sys.stdout.isatty() else 140)
    conditions = Conditions.now(quick=arguments.quick)
    limits = measure_limits()
    results = [
        Result("memory read", limits.read_gb_per_s, "GB/s"),
        Result("fp32 matrix product", limits.gemm_gflop_per_s, "GFLOP/s"),
    ]
    for name, part in _parts(arguments, limits):
        console.print(name)
        results += _attempt(part)
        _write(results, conditions)  # what there is, should the run be cut short
    console.print(results_table(results + second_questions(results)))
    if Runner.failures:
        sys.exit("\n".join(Runner.failures))


def _parts(arguments: argparse.Namespace, limits: Limits) -> Iterator[tuple[str, Part]]:
    """What is measured, by name; the longest comes last."""
    quick, folder = arguments.quick, arguments.checkpoints
    for name in arguments.shapes:
        if name == arguments.shapes[-1]:
            yield "int8 on the demo checkpoint", partial(measure_demo, quick=quick)
            if not arguments.without_services:
                yield "sharing", partial(measure_sharing, folder / "small-vision", quick=quick)
                yield "services", partial(serve.measure_services, str(DEMO), num_repeats=2 if quick else 5)
        yield f"{name}: encoder", partial(measure_encoder, name, folder / f"{name}-vision", limits, quick=quick)
        yield f"{name}: engine", partial(measure_shape, name, folder / name, limits, quick=quick)


def _write(results: list[Result], conditions: Conditions) -> None:
    """The results so far, and everything that is made of them."""
    lines = results + second_questions(results)
    write_results(ROOT / "benchmarks" / "results.json", lines)
    draw_plots(lines, DOCS)
    write_report(lines, conditions, DOCS / "performance.md")


def measure_demo(*, quick: bool) -> list[Result]:
    """What int8 changes in the answers of the demo checkpoint."""
    figures = Runner("diptych", "benchmarks.agreement").run(DEMO, quick=quick)
    agreement = [Result(f"demo int8: {figure.name}", figure.value, figure.unit) for figure in figures]
    return [*agreement, measure_accuracy(DEMO, ROOT, 10 if quick else 40)]


def _attempt(part: Part) -> list[Result]:
    """A part's results; none if it fails, which is told at the end."""
    try:
        return part()
    except Exception as error:
        Runner.failures.append(f"{type(error).__name__}: {error}")
        return []


def measure_shape(name: str, folder: Path, limits: Limits, *, quick: bool) -> list[Result]:
    """The engine in each precision, each of its figures beside every peer's."""
    shape = SHAPES[name]
    checkpoint = ensure_checkpoint(folder, shape)
    size = () if name == "small" else ("--large",)
    peers = {peer.name: peer.run(checkpoint, quick=quick) for peer in _peers(size)}
    results = []
    for precision in PRECISIONS:
        figures = Runner("diptych", "benchmarks.engine", (*size, *precision.options)).run(checkpoint, quick=quick)
        for figure in figures:
            share = _limit_share(figure, shape, precision, limits)
            results += _compared(f"{name} {precision.name}: {figure.name}", figure, peers, share)
        peers.setdefault("diptych fp32", figures)  # the first: what the others are compared with too
    return results


def measure_encoder(name: str, folder: Path, limits: Limits, *, quick: bool) -> list[Result]:
    """The vision tower in each precision, beside transformers'. Of a large one only single pictures."""
    shape = SHAPES[name].for_vision()
    checkpoint = ensure_checkpoint(folder, shape)
    size = () if name == "small" else ("--large",)
    tower = Runner("transformers fp32", "benchmarks.peers.vision_in_transformers", size)
    peers = {tower.name: tower.run(checkpoint, quick=quick)}
    results = []
    for precision, options in (("fp32", ()), ("int8", ("--quantize", "int8"))):
        for figure in Runner("diptych", "benchmarks.encoder", (*size, *options)).run(checkpoint, quick=quick):
            side = re.fullmatch(r"encode (\d+) x \1", figure.name) if precision == "fp32" else None
            share = limits.share(encode_work(shape, int(side[1])), figure.value / 1000) if side else None
            results += _compared(f"{name} tower {precision}: {figure.name}", figure, peers, share)
    return results


def measure_sharing(tower: Path, *, quick: bool) -> list[Result]:
    """What services give that one process does not: streams beside a storm of pictures, and clips that overlap."""
    checkpoint = ensure_checkpoint(tower, SHAPES["small"].for_vision())
    clips = reuse.measure_reuse(checkpoint, num_repeats=1 if quick else 3)
    if len(os.sched_getaffinity(0)) < 2:
        return clips  # a storm needs a core of its own
    theirs = Runner("transformers fp32", "benchmarks.peers.storm_in_transformers").run(DEMO, quick=quick)
    ours = storm.measure_storm(str(DEMO))
    peers = {"transformers fp32": [*theirs, storm.slowdown(theirs)]}
    figures = (*ours, storm.slowdown(ours))
    return clips + [line for figure in figures for line in _compared(figure.name, figure, peers, None)]


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


def _peers(size: tuple[str, ...]) -> list[Runner]:
    peers = [Runner("transformers fp32", "benchmarks.peers.in_transformers", size)]
    if environment := os.environ.get("VLLM_VENV"):
        peers.append(Runner("vLLM fp32", "benchmarks.peers.in_vllm", size, python=f"{environment}/bin/python"))
    return peers


def _compared(name: str, figure: Figure, peers: dict[str, list[Figure]], share: float | None) -> list[Result]:
    """A result for each peer that measures the same, or one without."""
    found = [(peer, other) for peer, figures in peers.items() for other in figures if other.name == figure.name]
    if not found:
        return [Result(name, figure.value, figure.unit, limit_share=share)]
    return [
        Result(name, figure.value, figure.unit, peer, other.value, ratio_of(figure, other), share)
        for peer, other in found
    ]


def _limit_share(figure: Figure, shape: Shape, precision: Precision, limits: Limits) -> float | None:
    """How much of the machine's limit a figure reaches, for those that have one: a prompt's is fp32's alone."""
    num_bytes = (precision.weight_bytes, precision.kv_bytes)
    match figure.name.replace(",", "").split():
        case ["decode", "batch", batch]:
            return limits.share(step_work(shape, int(batch), CONTEXT, *num_bytes), int(batch) / figure.value)
        case ["step", "batch", batch, "context", context]:
            return limits.share(step_work(shape, int(batch), int(context), *num_bytes), figure.value / 1000)
        case ["prefill", num_tokens] if precision.name == "fp32":
            return limits.share(prefill_work(shape, int(num_tokens)), figure.value / 1000)
    return None


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
