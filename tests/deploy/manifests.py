"""What kustomize renders, as objects that tests can ask."""

import copy
import functools
import math
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import pytest
import yaml

from gateway.settings import GatewaySettings
from services.common.server import ServerSettings
from services.decoder.settings import DecoderSettings
from services.encoder.settings import EncoderSettings

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "deploy" / "k8s"
OVERLAYS = ("local", "production")
SETTINGS: dict[str, type[ServerSettings]] = {
    "gateway": GatewaySettings,
    "encoder": EncoderSettings,
    "decoder": DecoderSettings,
}
# What an operator brings: the Secrets, and their keys with a value such as it may be.
SECRETS = {
    "diptych-cache": {"secret": "a secret"},
    "diptych-redis": {"url": "rediss://user:password@cache.example:6379/0?ssl_ca_certs=/etc/diptych/redis/ca.crt"},
}
RENDERS_AT_ONCE = 8  # a process costs a tenth of a second, and its time grows with the square of its objects
_VERSIONS = {"Kustomization": "v1beta1", "Component": "v1alpha1"}
_UNITS = {"m": 1e-3, "": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}

Manifest: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Render:
    """Everything that one `kubectl apply -k` would create."""

    name: str
    manifests: list[Manifest]

    def of(self, *kinds: str) -> list[Manifest]:
        """All objects of these kinds."""
        return [manifest for manifest in self.manifests if manifest["kind"] in kinds]

    def find(self, kind: str, name: str) -> Manifest | None:
        """The object of that name; None where there is none."""
        return next((manifest for manifest in self.of(kind) if manifest["metadata"]["name"] == name), None)

    def generated(self, name: str) -> Manifest:
        """The ConfigMap of that name and a hash."""
        return next(config for config in self.of("ConfigMap") if config["metadata"]["name"].startswith(f"{name}-"))

    def get(self, kind: str, name: str) -> Manifest:
        """The object of that name, or a failure."""
        found = self.find(kind, name)
        assert found is not None, f"{self.name} has no {kind}/{name}"
        return found

    @property
    def servers(self) -> list[Manifest]:
        """The Deployments of gateway, encoder and decoder."""
        return [self.get("Deployment", name) for name in SETTINGS]

    def environment(self, workload: Manifest) -> dict[str, str]:
        """The variables that a workload's container sees."""
        container = container_of(workload)
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            found |= self.get("ConfigMap", source["configMapRef"]["name"])["data"]
        for variable in container.get("env", []):
            found[variable["name"]] = _value(variable["valueFrom"], container)
        return found

    def settings(self, name: str) -> Any:
        """A server's settings as the process itself reads them. ValidationError when it would not start."""
        return _settings(name, tuple(self.environment(self.get("Deployment", name)).items()))

    def edited(self, kind: str, name: str, path: str, value: Any = None) -> "Render":
        """A copy with one field of one object set to `value`, or taken out when that is None."""
        changed = Render(f"{self.name}, {kind}/{name} {path}", copy.deepcopy(self.manifests))
        *parents, last = path.split("/")
        place: Any = changed.generated(name) if kind == "ConfigMap" else changed.get(kind, name)
        for key in parents:
            place = place[int(key)] if isinstance(place, list) else place[key]
        index = int(last) if isinstance(place, list) else last
        if value is None:
            del place[index]
        else:
            place[index] = value
        return changed


def pod_of(workload: Manifest) -> Manifest:
    """The spec of a workload's pods."""
    spec: Manifest = workload["spec"]["template"]["spec"]
    return spec


def container_of(workload: Manifest) -> Manifest:
    """A workload's one container."""
    (container,) = pod_of(workload)["containers"]
    found: Manifest = container
    return found


def ports_of(workload: Manifest) -> dict[str, int]:
    """The ports of a workload's container by name; the first is what it is there for."""
    return {port["name"]: port["containerPort"] for port in container_of(workload)["ports"]}


def containers_of(workload: Manifest) -> list[Manifest]:
    """A workload's container, and those that run before it."""
    return [*pod_of(workload).get("initContainers", []), *pod_of(workload)["containers"]]


def labels_of(workload: Manifest) -> dict[str, str]:
    """The labels of a workload's pods."""
    labels: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def name_of(manifest: Manifest) -> str:
    """Kind and name, for a message."""
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def mounted(workload: Manifest, path: str) -> tuple[str, str] | None:
    """The Secret and its key that a workload's container sees at `path`; None where no Secret is mounted there."""
    folder, _, file = path.rpartition("/")
    volumes = {volume["name"]: volume.get("secret") for volume in pod_of(workload)["volumes"]}
    for mount in container_of(workload)["volumeMounts"]:
        if mount["mountPath"] == folder and (secret := volumes[mount["name"]]):
            keys = {item["path"]: item["key"] for item in secret["items"]} if "items" in secret else {file: file}
            return (secret["secretName"], keys[file]) if file in keys else None
    return None


def quantity(text: str) -> float:
    """A Kubernetes quantity such as 500m or 2Gi as a number."""
    number = text.rstrip("mKMGi")
    return float(number) * _UNITS[text[len(number) :]]


def render(folder: Path) -> Render:
    """The folder's objects, as `kubectl kustomize` writes them."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed, so the manifests cannot be rendered")
    environment = {**os.environ, "GOGC": "off"}  # a process this short is faster without collecting garbage
    command = ["kubectl", "kustomize", str(folder)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return Render(folder.name, list(yaml.load_all(result.stdout, Loader=loader)))


def kustomization(folder: Path, **fields: Any) -> Path:
    """Writes a kustomization to a new folder. The paths in `resources` and `components` are made relative to it."""
    folder.mkdir()
    for paths in ("resources", "components"):
        fields[paths] = [os.path.relpath(path, folder.resolve()) for path in fields.get(paths, [])]
    kind = fields.get("kind", "Kustomization")
    header = {"apiVersion": f"kustomize.config.k8s.io/{_VERSIONS[kind]}", "kind": kind}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(header | fields))
    return folder


def render_combinations(folder: Path, combinations: Iterable[tuple[str, ...]]) -> list[Render]:
    """The base with each combination of components: several by one process, apart by their namespaces."""
    names = {"-and-".join(components) or "base": components for components in combinations}
    parts = [
        kustomization(
            folder / name,
            namespace=name,
            resources=[K8S / "base"],
            components=[K8S / "components" / component for component in components],
        )
        for name, components in names.items()
    ]
    everything: list[Manifest] = []
    for start in range(0, len(parts), RENDERS_AT_ONCE):
        some = parts[start : start + RENDERS_AT_ONCE]
        everything += render(kustomization(folder / f"from-{start}", resources=some)).manifests
    return [Render(name, [m for m in everything if m["metadata"]["namespace"] == name]) for name in names]


@functools.cache
def _settings(name: str, environment: tuple[tuple[str, str], ...]) -> ServerSettings:
    with (
        mock.patch.dict(os.environ, dict(environment), clear=True),
        mock.patch.object(Path, "is_file", lambda path: path.is_relative_to("/etc/diptych")),  # of the pod, not of here
    ):
        return SETTINGS[name]()


def _value(source: Manifest, container: Manifest) -> str:
    if "secretKeyRef" in source:
        reference = source["secretKeyRef"]
        secret = next(name for name in SECRETS if reference["name"].startswith(name))  # a generated one ends in a hash
        return SECRETS[secret][reference["key"]]
    section, resource = source["resourceFieldRef"]["resource"].split(".")
    return str(math.ceil(quantity(container["resources"][section][resource])))
