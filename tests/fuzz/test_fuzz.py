"""A few seconds of `make fuzz`, and the inputs that it has found."""

import dataclasses
from pathlib import Path

from tests.fuzz.supervise import all_targets
from tests.fuzz.worker import Notebook, fuzz

SECONDS = 0.4
REFUSED = {"URL", "data URI"}  # which are about what is refused


def test_mutated_inputs_raise_only_declared_errors(checkpoint: Path, tmp_path: Path) -> None:
    """Whatever bytes come from outside, a parser returns or raises an error of its own."""
    for number, target in enumerate(all_targets(checkpoint)):
        findings = fuzz(target, 10_000, SECONDS, seed=number, notebook=Notebook(tmp_path / str(number)))
        assert findings == [], target.name


def test_seeds_are_valid(checkpoint: Path) -> None:
    """Every target takes its own seeds, so that mutations start beyond the first check."""
    for target in all_targets(checkpoint):
        for seed in target.seeds if target.name not in REFUSED else ():
            target.run(seed)


def test_a_finding_is_told(checkpoint: Path, tmp_path: Path) -> None:
    """The loop itself notices an error that was not declared."""
    target = next(target for target in all_targets(checkpoint) if target.name == "cached slice")
    strict = dataclasses.replace(target, errors=())
    assert fuzz(strict, 1000, 5.0, seed=0, notebook=Notebook(tmp_path / "notes"))
