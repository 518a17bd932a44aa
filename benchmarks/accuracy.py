"""What int8 costs in right answers: the demo checkpoint's held-out cases, through the services, in both precisions."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean

from benchmarks.figures import PERCENT, Result

DIPTYCH = "from cli.main import main; main()"
NAME = "demo int8: right answers to held-out cases"


def measure_accuracy(model: Path, root: Path, count: int) -> Result:
    """The mean over all skills, `count` cases each, decoder and encoder in int8 beside fp32."""
    fp32, int8 = (_percent_right(model, root, count, kind) for kind in ("none", "int8"))
    return Result(NAME, int8, PERCENT, "diptych fp32", fp32, int8 / fp32)


def _percent_right(model: Path, root: Path, count: int, quantization: str) -> float:
    command = [sys.executable, "-c", DIPTYCH, "eval", "--model", str(model), "--count", str(count), "--json"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "protos")]),
        "DIPTYCH_DECODER_QUANTIZE": quantization,
        "DIPTYCH_ENCODER_QUANTIZE": quantization,
    }
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=root, env=environment)  # noqa: S603 -- our own program
    return 100 * mean(float(skill["accuracy"]) for skill in json.loads(done.stdout))
