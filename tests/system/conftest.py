"""Running stacks for the system tests; each is started once."""

from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest

from cli.stack import Stack
from tests.exactness.reference import Reference
from tests.harness import running
from tests.system.neighbours import Neighbours, closed_stack, connected


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows the ends of the logs of the stacks that it used."""
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        for stack in (value for value in item.funcargs.values() if isinstance(value, Stack)):
            report.sections += [(f"log of the {name}", child.log_tail()) for name, child in stack.children.items()]
    return report


@pytest.fixture(scope="session")
def stack(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Gateway, encoder and decoder with a Redis between them."""
    with running(checkpoint, tmp_path_factory.mktemp("stack")) as stack:
        yield stack


@pytest.fixture(scope="session")
def inline_stack(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The same without Redis: embeddings travel in the calls."""
    with running(checkpoint, tmp_path_factory.mktemp("inline"), redis=False) as stack:
        yield stack


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> Reference:
    """The same checkpoint in transformers."""
    return Reference(checkpoint)


@pytest.fixture(scope="module")
def closed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of several tenants."""
    with closed_stack(checkpoint, tmp_path_factory.mktemp("closed")) as stack:
        yield stack


@pytest.fixture
async def neighbours(closed: Stack, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Neighbours]:
    """Its tenants, each with a connection."""
    async with connected(closed, monkeypatch) as neighbours:
        yield neighbours
