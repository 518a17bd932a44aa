"""Every render, made once."""

import pytest

from tests.deploy.combinations import ADDING, covering_combinations, every_combination
from tests.deploy.manifests import K8S, OVERLAYS, Render, render, render_combinations


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make manifests` renders all there is."""
    parser.addoption("--every-combination", action="store_true", help="render every combination of components")


@pytest.fixture(scope="session")
def renders(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> list[Render]:
    """Each overlay, and the base with combinations of components: those that cover all pairs, or every one."""
    overlays = [render(K8S / "overlays" / name) for name in OVERLAYS]
    everything = pytestconfig.getoption("--every-combination", default=False)  # unknown in a run of all tests
    combinations = every_combination() if everything else covering_combinations()
    return overlays + render_combinations(tmp_path_factory.mktemp("combinations"), combinations)


@pytest.fixture(scope="session")
def most(renders: list[Render]) -> Render:
    """The base with the components that add objects and take none away."""
    return next(render for render in renders if render.name == "-and-".join(ADDING))


@pytest.fixture(scope="session")
def local(renders: list[Render]) -> Render:
    """The overlay for one machine."""
    return next(render for render in renders if render.name == "local")


@pytest.fixture(scope="session")
def production(renders: list[Render]) -> Render:
    """The overlay for a cluster with GPUs."""
    return next(render for render in renders if render.name == "production")
