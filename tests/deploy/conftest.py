"""Every render, made once."""

import pytest

from tests.deploy.manifests import K8S, OVERLAYS, Render, render, render_combinations


@pytest.fixture(scope="session")
def renders(tmp_path_factory: pytest.TempPathFactory) -> list[Render]:
    """Each overlay, and the base with each combination of components."""
    overlays = [render(K8S / "overlays" / name) for name in OVERLAYS]
    return overlays + render_combinations(tmp_path_factory.mktemp("combinations"))


@pytest.fixture(scope="session")
def base(renders: list[Render]) -> Render:
    """The base with no component."""
    return next(render for render in renders if render.name == "base")


@pytest.fixture(scope="session")
def local(renders: list[Render]) -> Render:
    """The overlay for one machine."""
    return next(render for render in renders if render.name == "local")


@pytest.fixture(scope="session")
def production(renders: list[Render]) -> Render:
    """The overlay for a cluster with GPUs."""
    return next(render for render in renders if render.name == "production")
