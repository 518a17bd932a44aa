"""The checkpoint that ships with the project, through the services."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.questions import encode_png
from cli.stack import Stack
from models.demo.heldout import cases
from tests.exactness.cases import Case, Frames, Picture, user
from tests.exactness.reference import Reference
from tests.harness import ask, running

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"
NUM_TOKENS = 40


@pytest.fixture(scope="module")
def demo_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The services with models/demo."""
    with running(DEMO, tmp_path_factory.mktemp("demo")) as stack:
        yield stack


@pytest.fixture(scope="module")
def demo_reference() -> Reference:
    """models/demo in transformers."""
    return Reference(DEMO)


def question(skill: str) -> Case:
    """A held-out case of one skill, as the exactness suite writes conversations."""
    case = next(cases(skill, 1, seed=1))
    pictures = [Picture(encode_png(image)) for image in case.images]
    frames = [Frames(tuple(encode_png(frame) for frame in case.video_frames))] if case.video_frames else []
    return user(skill, *pictures, *frames, case.question)


@pytest.mark.parametrize("skill", ["shapes", "cards", "pairs", "videos", "text"])
async def test_greedy_tokens_equal_transformers(demo_stack: Stack, demo_reference: Reference, skill: str) -> None:
    """One image, a card, two images, a video and text alone: the ids of transformers' own `generate`."""
    case = question(skill)
    _, expected = demo_reference.generate(case, NUM_TOKENS)
    answer = await ask(demo_stack.address, case.to_conversation(), max_tokens=NUM_TOKENS, temperature=0.0)
    assert answer.token_ids == expected


def test_make_demo_answers_rightly_and_stops_cleanly() -> None:
    """`diptych demo` exits with 0, with four right answers or more and a cache hit at the end."""
    command = [str(Path(sys.executable).with_name("diptych")), "demo", "--model", str(DEMO)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("   right") >= 4, run.stdout
    assert "the encoder was not called" in run.stdout
    assert "Everything is stopped" in run.stdout
