"""The shipped checkpoint's answers depend on where things are: a wrong merge or wrong positions would show."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cli.questions import encode_png
from models.demo.heldout import cases
from services.common.mrope import Span
from services.decoder.sequence import Request
from tests.decoder.harness import Case, Harness, Model
from tests.exactness.cases import Picture, user
from tests.exactness.reference import Reference

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"
NUM_CASES = 60
MIN_FALL = 0.1
Change = Callable[[Request], None]


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    """An engine with the shipped checkpoint."""
    harness = Harness(Model(DEMO), kv_cache_tokens=32768, max_step_tokens=1024)
    harness.engine.start()
    yield harness
    harness.engine.stop()


@pytest.fixture(scope="module")
def reference() -> Reference:
    """transformers, for prompts and embeddings."""
    return Reference(DEMO)


def as_is(_request: Request) -> None:
    """The request as it should be."""


def with_axes_swapped(request: Request) -> None:
    """Heights for widths, and the reverse."""
    request.positions = request.positions[[0, 2, 1]]


def with_pictures_exchanged(request: Request) -> None:
    """Each of two pictures of one size shows what the other shows."""
    first, second = request.media
    first.rows, second.rows = second.rows, first.rows


def accuracy(harness: Harness, reference: Reference, skill: str, change: Change) -> float:
    """Share of a skill's held-out questions answered rightly by requests that `change` has seen."""
    asked = [case for case in cases(skill, NUM_CASES, seed=7) if len({image.size for image in case.images}) == 1]
    answers = []
    for case in asked:
        answer = harness.request(as_tokens(reference, case.question, [encode_png(image) for image in case.images]))
        change(answer.request)
        harness.engine.submit(answer.request)
        answers.append(answer)
    texts: list[str] = [reference.tokenizer.decode(answer.wait().ids) for answer in answers]
    return sum(text.strip() == case.answer for text, case in zip(texts, asked, strict=True)) / len(asked)


def as_tokens(reference: Reference, question: str, images: list[bytes]) -> Case:
    """A question about pictures as the decoder gets it."""
    pictures = [Picture(image) for image in images]
    prompt = reference.prompt(user("", *pictures, question))
    case = Case(prompt.ids)
    offset = -1
    for picture, pixels in zip(pictures, prompt.media, strict=True):
        offset = prompt.kinds.index(1, offset + 1)
        case.spans.append(Span(offset, pixels.grid, reference.merge))
        case.rows.append(torch.from_numpy(reference.embeddings(picture)))
        case.keys.append(secrets.token_bytes(32))  # nothing is shared between the runs that are compared
        offset += case.spans[-1].num_tokens
    return case


@pytest.mark.parametrize(
    ("skill", "change"), [("shapes", with_axes_swapped), ("pairs", with_pictures_exchanged)], ids=["axes", "pictures"]
)
def test_accuracy_falls(harness: Harness, reference: Reference, skill: str, change: Change) -> None:
    """With M-RoPE's axes swapped, or two pictures' embeddings exchanged, held-out answers get worse."""
    right = accuracy(harness, reference, skill, as_is)
    wrong = accuracy(harness, reference, skill, change)
    assert wrong < right - MIN_FALL, f"{right:.2f} as it is, {wrong:.2f} changed"
