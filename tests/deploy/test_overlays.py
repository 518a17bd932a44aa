"""What an overlay adds, what each component does, and the one place for the time that pods may take to leave."""

import socket
import subprocess
from pathlib import Path

import redis
from redis.asyncio import ConnectionPool

from cli.local_redis import find_server
from tests.deploy.manifests import (
    K8S,
    OVERLAYS,
    SECRETS,
    Render,
    container_of,
    kustomization,
    pod_of,
    render,
)
from tests.harness import wait_until


def named(renders: list[Render], name: str) -> Render:
    """One of the renders."""
    return next(render for render in renders if render.name == name)


def test_overlays_live_in_a_restricted_namespace(renders: list[Render]) -> None:
    """Kubernetes itself refuses pods that are not restricted, and everything is in that one namespace."""
    for overlay in OVERLAYS:
        found = named(renders, overlay)
        (namespace,) = found.of("Namespace")
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
        others = [manifest for manifest in found.manifests if manifest is not namespace]
        assert {manifest["metadata"]["namespace"] for manifest in others} == {namespace["metadata"]["name"]}


def test_local_needs_nothing_else(local: Render) -> None:
    """The overlay for one machine brings its secret and its checkpoint."""
    assert [secret["metadata"]["name"].rpartition("-")[0] for secret in local.of("Secret")] == ["diptych-cache"]
    assert local.of("PersistentVolumeClaim") == []
    assert local.settings("gateway").model == "/models/demo"


def test_local_fits_a_small_machine(local: Render) -> None:
    """One pod of each service."""
    assert {workload["spec"]["replicas"] for workload in local.of("Deployment")} == {1}


def test_production_keeps_pods_apart(production: Render) -> None:
    """Different nodes and zones are preferred for the pods of a service."""
    for workload in production.servers:
        (term,) = pod_of(workload)["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
        assert term["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
        assert term["podAffinityTerm"]["matchLabelKeys"] == ["app.kubernetes.io/name"]
        zones = [constraint["topologyKey"] for constraint in pod_of(workload)["topologySpreadConstraints"]]
        assert "topology.kubernetes.io/zone" in zones


def test_production_survives_a_pod(production: Render) -> None:
    """No service is a single pod."""
    scaled = {
        scaler["metadata"]["name"]: scaler["spec"]["minReplicas"] for scaler in production.of("HorizontalPodAutoscaler")
    }
    replicas = {w["metadata"]["name"]: w["spec"].get("replicas") for w in production.servers} | scaled
    assert all(number >= 2 for number in replicas.values()), replicas


def test_production_brings_no_secret(production: Render) -> None:
    """Secrets are the operator's, and not the repository's."""
    assert production.of("Secret") == []


def test_gpu_gives_one_to_each(renders: list[Render]) -> None:
    """Encoder and decoder get a GPU, and the KV cache what that has left."""
    found = named(renders, "gpu")
    for name in ("encoder", "decoder"):
        assert container_of(found.get("Deployment", name))["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert found.settings("decoder").kv_cache_bytes == 0


def test_external_redis_takes_the_place_of_the_own(renders: list[Render]) -> None:
    """Nothing of the server in the cluster stays, and its address comes from the Secret."""
    found = named(renders, "external-redis")
    assert [manifest for manifest in found.manifests if manifest["metadata"]["name"].startswith("redis")] == []
    assert found.settings("decoder").cache_url == SECRETS["diptych-redis"]["url"]


def test_external_redis_finds_its_authority(renders: list[Render]) -> None:
    """The certificate that the documented URL names lies where the component mounts it."""
    workload = named(renders, "external-redis").get("Deployment", "gateway")
    options = ConnectionPool.from_url(SECRETS["diptych-redis"]["url"]).connection_kwargs
    folder, _, file = options["ssl_ca_certs"].rpartition("/")
    (volume,) = [v["name"] for v in container_of(workload)["volumeMounts"] if v["mountPath"] == folder]
    (secret,) = [v["secret"] for v in pod_of(workload)["volumes"] if v["name"] == volume]
    assert file in [item["path"] for item in secret["items"]]
    assert options["username"] == "user"


def test_autoscaling_scales_all_three(renders: list[Render]) -> None:
    """Gateway, encoder and decoder grow with their CPU."""
    scalers = named(renders, "autoscaling").of("HorizontalPodAutoscaler")
    assert sorted(scaler["spec"]["scaleTargetRef"]["name"] for scaler in scalers) == ["decoder", "encoder", "gateway"]


def test_weights_can_come_in_an_image(renders: list[Render]) -> None:
    """Mounted as they are, or copied to scratch space by an init container; either way there is no claim."""
    mounted, copied = named(renders, "weights-image"), named(renders, "weights-init")
    for workload in mounted.servers:
        assert pod_of(workload)["volumes"][0]["image"]["reference"].startswith("diptych-weights:")
    for workload in copied.servers:
        (first,) = pod_of(workload)["initContainers"]
        assert first["image"].startswith("diptych-weights:")
        assert first["volumeMounts"] == [{"name": "weights", "mountPath": "/models"}]
        assert "emptyDir" in pod_of(workload)["volumes"][0]
    assert mounted.of("PersistentVolumeClaim") == copied.of("PersistentVolumeClaim") == []


def test_the_time_to_leave_has_one_place(tmp_path: Path) -> None:
    """An overlay that patches the ConfigMap `drain` changes requests, drains, hooks and grace periods alike."""
    times = {"longest-stream": "1200", "pre-stop": "15", "grace-period": "1300"}
    patch = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "drain"}, "data": times}
    longer = kustomization(tmp_path / "longer", kind="Component", patches=[{"patch": str(patch)}])
    changed = render(
        kustomization(tmp_path / "overlay", resources=[K8S / "base"], components=[longer, K8S / "base" / "drain"])
    )
    assert changed.settings("gateway").max_request_s == 1200
    for workload in changed.servers:
        assert changed.settings(workload["metadata"]["name"]).drain_grace_s == 1200
        assert container_of(workload)["lifecycle"]["preStop"]["sleep"]["seconds"] == 15
        assert pod_of(workload)["terminationGracePeriodSeconds"] == 1300


def test_the_redis_server_takes_its_configuration(tmp_path: Path) -> None:
    """A real server starts with the file: bounded, evicting, and with nothing on disk."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(find_server()), str(K8S / "base" / "config" / "redis.conf")]
    overrides = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path)]
    server = subprocess.Popen([*command, *overrides], stdout=subprocess.DEVNULL)
    try:
        client = redis.Redis(port=port, decode_responses=True)
        wait_until(lambda: answers(client), "the server answers")
        wanted = {"maxmemory": str(1 << 30), "maxmemory-policy": "allkeys-lru", "save": "", "appendonly": "no"}
        assert client.config_get(*wanted) == wanted
    finally:
        server.kill()
        server.wait()


def answers(client: redis.Redis) -> bool:
    """Whether the server is there."""
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
