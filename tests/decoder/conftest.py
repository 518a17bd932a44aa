"""Checkpoints and engines for the tests."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.checkpoints import CheckpointSpec, build_checkpoint
from tests.decoder.harness import Case, Harness, Model, Start
from tests.decoder.serving import Service, serving

SHAPES = {
    "tied-gqa": CheckpointSpec(tied=True, heads=4, kv_heads=2),
    "untied-mqa": CheckpointSpec(tied=False, heads=4, kv_heads=1, layout="nested", weight_names="new", num_shards=2),
    "untied-mha": CheckpointSpec(tied=False, hidden=96, heads=3, kv_heads=3, seed=2),
}


@pytest.fixture(scope="session", params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Each shape of checkpoint."""
    return Model(build_checkpoint(tmp_path_factory.mktemp("model"), SHAPES[request.param]))


@pytest.fixture(scope="session")
def gqa_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The usual shape alone."""
    return Model(build_checkpoint(tmp_path_factory.mktemp("gqa"), SHAPES["tied-gqa"]))


@pytest.fixture
def start() -> Iterator[Start]:
    """Start engines, and stop them after the test."""
    started: list[Harness] = []

    def make(model: Model, *, paused: bool = False, **settings: Any) -> Harness:
        started.append(Harness(model, **settings))
        if not paused:
            started[-1].engine.start()
        return started[-1]

    yield make
    for harness in started:
        harness.engine.stop()


@pytest.fixture
async def service(gqa_model: Model) -> AsyncIterator[Service]:
    """A decoder with default settings."""
    async with serving(gqa_model) as service:
        yield service


@pytest.fixture
def mixed(gqa_model: Model) -> Case:
    """A prompt with a video and an image."""
    return gqa_model.case(3, ("video", (3, 3, 4)), 2, ("image", (1, 5, 2)), 9)
