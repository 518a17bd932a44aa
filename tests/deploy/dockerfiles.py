"""A Dockerfile as a list of instructions: enough of the language to follow what is copied and run."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.manifests import ROOT

FOLDER = ROOT / "deploy" / "docker"
ROLES = {"gateway": "gateway", "encoder": "services.encoder", "decoder": "services.decoder"}  # and the module each runs


@dataclass(frozen=True)
class Step:
    """One instruction: its name in capitals, and what follows it."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """The arguments, options left out."""
        return [word for word in shlex.split(self.text) if not word.startswith("--")]


@dataclass(frozen=True)
class Stage:
    """The steps from one FROM to the next."""

    image: str
    name: str
    steps: list[Step]


def stages(path: Path) -> list[Stage]:
    """The file's stages, in order."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE)
    found: list[Stage] = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        name, _, rest = line.partition(" ")
        if name == "FROM":
            image, _, stage = rest.partition(" AS ")
            found.append(Stage(image, stage, []))
        elif name:
            found[-1].steps.append(Step(name, rest))
    return found


def chain(path: Path, target: str) -> list[Stage]:
    """A stage and those it is built on, first to last. An empty name is the last stage, which is built by default."""
    every = stages(path)
    stage: Stage | None = next((s for s in every if s.name == target), None) if target else every[-1]
    found: list[Stage] = []
    while stage is not None:
        found.insert(0, stage)
        stage = next((s for s in every if s.name == stage.image), None)
    return found


def copied_from_context(path: Path) -> list[str]:
    """Files, folders and patterns that are taken from the repository, variables filled in."""
    steps = [step for stage in stages(path) for step in stage.steps]
    variables = dict(step.text.split("=", 1) for step in steps if step.name == "ARG" and "=" in step.text)
    sources = [word for step in steps if step.name == "COPY" and "--from" not in step.text for word in step.words[:-1]]
    return [re.sub(r"\$\{(\w+)\}", lambda match: variables[match[1]], source) for source in sources]


def installed(path: Path) -> list[str]:
    """What `pip install` is given, in order, options left out."""
    commands = [part for stage in stages(path) for step in stage.steps for part in step.text.split("&&")]
    words = [shlex.split(command) for command in commands if "pip install" in command]
    without_options = [re.sub(r"--constraint \S+|--\S+", "", shlex.join(line)) for line in words]
    return [word for line in without_options for word in shlex.split(line.partition("install")[2])]
