"""The recipes of docs/debugging.md work as they are written, with the real grpcurl and no proto files."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from cli.stack import Stack
from tests.exactness.cases import drawing

DOCS = Path(__file__).resolve().parents[2] / "docs" / "debugging.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def recipes() -> Iterator[tuple[str, str]]:
    """(shell commands, output that is promised) of each recipe."""
    blocks = FENCE.findall(DOCS.read_text())
    for (language, commands), (following, output) in pairwise(blocks):
        if language == "sh":
            assert following in {"text", "json"}, f"no output is promised for: {commands}"
            yield commands, output


def assert_promised(output: str, promised: str) -> None:
    """Each promised line is found, in order; `...` stands for anything, in a line or between lines."""
    lines = iter(output.splitlines())
    for line in (line for line in promised.splitlines() if line.strip() != "..."):
        wanted = re.compile(r"\s*" + ".*".join(map(re.escape, line.strip().split("..."))) + r"\s*")
        assert any(wanted.fullmatch(found) for found in lines), f"not found: {line}\nin:\n{output}"


@pytest.mark.parametrize(("commands", "promised"), list(recipes()))
def test_recipe_prints_what_it_promises(stack: Stack, tmp_path: Path, commands: str, promised: str) -> None:
    """A recipe runs in a shell beside a picture.png, and prints the lines that the page shows."""
    (tmp_path / "picture.png").write_bytes(drawing(84, 112, 1))
    addresses = {name.upper(): str(child.address) for name, child in stack.children.items()}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", "-euc", commands],
        cwd=tmp_path,
        env={**os.environ, **addresses, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert_promised(run.stdout + run.stderr, promised)
