"""Each process holds only its own part of the model."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from cli.children import Child
from cli.stack import Stack
from tests.checkpoints import LARGE_LANGUAGE, LARGE_VISION, CheckpointSpec, build_checkpoint
from tests.exactness import cases
from tests.harness import ask, running

MIB = 1 << 20
CASE = cases.user("", cases.picture(1), "Describe.").to_conversation()


async def resident_bytes(spec: CheckpointSpec, folder: Path) -> Mapping[str, int]:
    """Resident memory of each service after one answer."""
    model = build_checkpoint(folder / "model", spec)
    with running(model, folder / "logs", redis=False) as stack:
        await ask(stack.address, CASE, max_tokens=2)
        return {name: resident(child) for name, child in stack.children.items()}


def resident(child: Child) -> int:
    """VmRSS of a process, in bytes."""
    lines = process_file(child, "status").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024


def process_file(child: Child, name: str) -> str:
    """What the kernel tells of a process."""
    return Path(f"/proc/{child.process.pid}/{name}").read_text()


async def test_encoder_and_decoder_hold_only_their_half(tmp_path: Path) -> None:
    """Moving about 100 MiB of weights from one half of the checkpoint to the other moves them between the processes."""
    vision = await resident_bytes(LARGE_VISION, tmp_path / "vision")
    language = await resident_bytes(LARGE_LANGUAGE, tmp_path / "language")
    assert vision["encoder"] - language["encoder"] > 70 * MIB
    assert language["decoder"] - vision["decoder"] > 70 * MIB
    assert vision["gateway"] == pytest.approx(language["gateway"], abs=32 * MIB)


async def test_the_gateway_has_no_torch(inline_stack: Stack) -> None:
    """A gateway that has answered about a picture has mapped no library of torch."""
    await ask(inline_stack.address, CASE, max_tokens=2)
    assert "libtorch" not in process_file(inline_stack.children["gateway"], "maps")
    assert "libtorch" in process_file(inline_stack.children["decoder"], "maps")
