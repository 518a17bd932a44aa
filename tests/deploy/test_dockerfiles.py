"""The images' files: linted, and their steps followed in a clean folder. Nothing here has a container engine."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.deploy.dockerfiles import FOLDER, ROLES, chain, copied_from_context, installed, stages
from tests.deploy.manifests import ROOT, Render, container_of, ports_of
from tests.harness import wait_until

FILES = sorted(FOLDER.glob("*.Dockerfile"))
SERVERS = [FOLDER / f"{role}.Dockerfile" for role in ROLES]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    """The linter on one file."""
    linter = Path(sys.executable).with_name("hadolint")
    return subprocess.run([linter, path], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_hadolint_finds_nothing(path: Path) -> None:
    """Each file is clean."""
    result = hadolint(path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_hadolint_finds_what_is_wrong(tmp_path: Path) -> None:
    """A base that is not pinned fails."""
    broken = tmp_path / "Dockerfile"
    broken.write_text((FOLDER / "gateway.Dockerfile").read_text().replace(":3.12.12-slim-bookworm", ":latest"))
    assert "DL3007" in hadolint(broken).stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_bases_are_pinned_by_version(path: Path) -> None:
    """Each base has a full version, and all images of one program the same one."""
    names = {stage.name for stage in stages(path)}
    bases = {stage.image for stage in stages(path)} - names
    assert all(re.search(r":\d+\.\d+\.\d+", base) for base in bases), bases
    assert {base for base in bases if base.startswith("python:")} <= {stages(SERVERS[0])[0].image}


@pytest.mark.parametrize(
    ("role", "target"), [*((role, "") for role in ROLES), ("encoder", "cuda"), ("decoder", "cuda")]
)
def test_images_run_their_module_as_nobody(role: str, target: str) -> None:
    """The last stage is no build stage; it sets a user by number, and runs the role's module."""
    last = chain(FOLDER / f"{role}.Dockerfile", target)
    steps = [step for stage in last for step in stage.steps]
    assert [step.text for step in steps if step.name == "USER"] == ["65532:65532"]
    assert [step.text for step in steps if step.name == "ENTRYPOINT"] == [f'["python", "-m", "{ROLES[role]}"]']
    assert [step for step in steps if step.name == "RUN"] == []


@pytest.mark.parametrize("role", ROLES)
def test_an_image_installs_its_extra(role: str) -> None:
    """pip gets the project with the role's extra, which exists, and otherwise only tools of a full version."""
    project = [name for name in installed(FOLDER / f"{role}.Dockerfile") if name.startswith(".")]
    others = set(installed(FOLDER / f"{role}.Dockerfile")) - set(project)
    cpu = f".[{role},telemetry]"
    assert project == ([cpu] if role == "gateway" else [cpu, f".[{role},cuda,telemetry]"])
    extras = {extra for name in project for extra in name.strip(".[]").split(",")}
    assert extras <= PROJECT["optional-dependencies"].keys()
    assert all("==" in name for name in others)
    assert {pin for pin in PINNED if pin.split("==")[0] in {name.split("==")[0] for name in others}} <= others


@pytest.mark.parametrize("role", ROLES)
def test_an_image_says_its_ports(role: str, local: Render) -> None:
    """EXPOSE names the ports that its pod has: calls, and health."""
    steps = [step for stage in stages(FOLDER / f"{role}.Dockerfile") for step in stage.steps]
    exposed = [step.text for step in steps if step.name == "EXPOSE"]
    ports = ports_of(local.get("Deployment", role)).values()
    assert exposed == [" ".join(map(str, ports))]


def test_the_gateway_has_no_torch() -> None:
    """Neither its own extra nor the project's dependencies ask for torch."""
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["gateway"]]
    assert [name for name in wanted if re.match("torch|transformers|diptych", name)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_copied_is_in_the_context(path: Path) -> None:
    """Each source exists and .dockerignore lets it through; only chat templates, which may be absent, match nothing."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in copied_from_context(path):
        if not source.endswith(".jinja"):
            assert list(ROOT.glob(source)), source
            assert source in allowed


def test_the_steps_build_a_gateway_that_starts(tmp_path: Path) -> None:
    """From only the copied files a wheel is built that has all roles, and the gateway runs from it."""
    source, wheels, run = tmp_path / "src", tmp_path / "wheels", tmp_path / "run"
    copy_context(FOLDER / "gateway.Dockerfile", source)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)]
    subprocess.run(build, cwd=source, capture_output=True, check=True)
    (wheel,) = wheels.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        modules = {
            str(path.relative_to(ROOT)) for room in ("gateway", "services") for path in (ROOT / room).rglob("*.py")
        }
        assert modules <= set(archive.namelist())
        archive.extractall(run)
    command = [sys.executable, "-m", "gateway", "--help"]
    result = subprocess.run(command, cwd=run, capture_output=True, text=True, check=False)
    assert "DIPTYCH_GATEWAY_LISTEN" in result.stdout, result.stderr


@pytest.mark.soak
@pytest.mark.parametrize("role", ROLES)
def test_the_steps_install_a_service_that_serves(role: str, tmp_path: Path) -> None:
    """The file's own commands, in a clean folder and an empty environment, end in a process that listens and drains."""
    source, place = tmp_path / "src", tmp_path / "opt"
    copy_context(FOLDER / f"{role}.Dockerfile", source)
    (step,) = (step for step in stages(FOLDER / f"{role}.Dockerfile")[0].steps if step.name == "RUN")
    commands = re.sub(r"--mount=\S+ ", "", step.text).replace("/opt/diptych", str(place))
    python = Path(sys.executable).resolve().parent
    clean = {"PATH": f"{python}:/usr/bin:/bin", "HOME": str(tmp_path)}
    subprocess.run(["/bin/sh", "-c", commands], cwd=source, env=clean, check=True, capture_output=True)

    ready, prefix = tmp_path / "ready", f"DIPTYCH_{role.upper()}_"
    settings = {"DIPTYCH_MODEL": str(ROOT / "models" / "demo"), "DIPTYCH_READY_FILE": str(ready)}
    behind = {f"{prefix}ENCODER": "127.0.0.1:1", f"{prefix}DECODER": "127.0.0.1:1"} if role == "gateway" else {}
    with subprocess.Popen(
        [place / "bin" / "python", "-m", ROLES[role]], cwd=tmp_path, env={**clean, **settings, **behind}
    ) as process:
        wait_until(lambda: ready.exists() or process.poll() is not None, f"the {role} listens", 60)
        process.terminate()
        assert process.wait(30) == 0


def copy_context(path: Path, folder: Path) -> None:
    """What a Dockerfile copies from the repository, and nothing else."""
    folder.mkdir()
    for name in copied_from_context(path):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)


def test_tags_are_those_that_the_manifests_name(production: Render, local: Render) -> None:
    """The commands at the top of each file make the images that the overlays run."""
    texts = "".join(path.read_text() for path in FILES) + (ROOT / "docs" / "kubernetes.md").read_text()
    images = {container_of(workload)["image"] for render in (production, local) for workload in render.servers}
    assert [image for image in images if f"-t {image} " not in texts] == []


def test_every_role_has_a_file() -> None:
    """One Dockerfile a role, and one for checkpoints."""
    assert [path.stem for path in FILES] == sorted([*ROLES, "weights"])
