"""What holds of every render. A property yields a line for each thing that is wrong."""

import functools
import json
import re
import tomllib
from collections.abc import Iterator
from urllib.parse import urlsplit

import kubernetes_validate
from diptych.v1 import chat_service_pb2, decoder_service_pb2, encoder_service_pb2
from kubernetes_validate import utils

from cli.stack import START_TIMEOUT_S
from services.common.settings import variable_name
from tests.deploy.manifests import (
    ROOT,
    SECRETS,
    SETTINGS,
    Manifest,
    Render,
    container_of,
    containers_of,
    labels_of,
    name_of,
    pod_of,
    quantity,
)
from tests.deploy.network import edges, matches

SERVICES = {
    "gateway": chat_service_pb2.DESCRIPTOR.services_by_name["ChatService"].full_name,
    "encoder": encoder_service_pb2.DESCRIPTOR.services_by_name["EncoderService"].full_name,
    "decoder": decoder_service_pb2.DESCRIPTOR.services_by_name["DecoderService"].full_name,
}
SCHEMA_VERSIONS = ("1.31", "1.37")  # the oldest that docs/kubernetes.md names, and the newest at hand
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

utils.schema_contents = functools.cache(utils.schema_contents)  # or each object reads five megabytes of JSON again


def follows_the_schemas(render: Render) -> Iterator[str]:
    """Kubernetes knows every field, and every value has its type."""
    for manifest in render.manifests:
        metadata = {key: value for key, value in manifest["metadata"].items() if key != "namespace"}
        for error in _schema_errors(json.dumps(manifest | {"metadata": metadata})):
            yield f"{name_of(manifest)}: {error}"


def is_unprivileged(render: Render) -> Iterator[str]:
    """Pod security "restricted": no root, no capabilities, no escalation, the runtime's seccomp profile."""
    for workload in render.of("Deployment"):
        pod = pod_of(workload)
        context = pod.get("securityContext", {})
        if not (context.get("runAsNonRoot") and context.get("runAsUser", 0) > 0):
            yield f"{name_of(workload)}: may run as root"
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{name_of(workload)}: has no seccomp profile"
        if any(pod.get(sharing) for sharing in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{name_of(workload)}: shares the node's namespaces"
        for container in containers_of(workload):
            wanted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            if not wanted.items() <= container.get("securityContext", {}).items():
                yield f"{name_of(workload)}: {container['name']} has privileges"


def writes_only_to_scratch(render: Render) -> Iterator[str]:
    """Root file systems are read-only; what is mounted to be written is an emptyDir, and /tmp is one."""
    for workload in render.of("Deployment"):
        volumes = {volume["name"]: volume for volume in pod_of(workload)["volumes"]}
        for container in containers_of(workload):
            if not container.get("securityContext", {}).get("readOnlyRootFilesystem"):
                yield f"{name_of(workload)}: {container['name']} can write to its root"
            for mount in container["volumeMounts"]:
                if not mount.get("readOnly") and "emptyDir" not in volumes[mount["name"]]:
                    yield f"{name_of(workload)}: {mount['mountPath']} can be written"
        if "/tmp" not in [mount["mountPath"] for mount in container_of(workload)["volumeMounts"]]:  # noqa: S108
            yield f"{name_of(workload)}: has no /tmp"


def has_no_api_token(render: Render) -> Iterator[str]:
    """Each workload has an account of its own, and no token of it."""
    for workload in render.of("Deployment"):
        pod, name = pod_of(workload), workload["metadata"]["name"]
        account = render.find("ServiceAccount", pod.get("serviceAccountName", ""))
        if account is None or account["metadata"]["name"] != name:
            yield f"{name_of(workload)}: has no account of its own"
        elif account.get("automountServiceAccountToken", True) or pod.get("automountServiceAccountToken", True):
            yield f"{name_of(workload)}: mounts a token"


def denies_by_default(render: Render) -> Iterator[str]:
    """One policy is about every pod, for both directions, and lets nothing through."""
    deny = render.get("NetworkPolicy", "default-deny")["spec"]
    if set(deny) != {"podSelector", "policyTypes"} or set(deny["policyTypes"]) != {"Ingress", "Egress"}:
        yield "the default lets something through"
    for workload in render.of("Deployment"):
        if not matches(deny["podSelector"], labels_of(workload)):
            yield f"{name_of(workload)}: is not denied anything"


def has_the_edges_of_the_journey(render: Render) -> Iterator[str]:
    """Clients reach the gateway, it the encoder and the decoder, these three Redis and DNS; nothing else is open."""
    store = "redis" if render.find("Deployment", "redis") else "private address"
    wanted = {("client", "gateway", "TCP", 50051)}
    wanted |= {("gateway", name, "TCP", 50051) for name in ("encoder", "decoder")}
    wanted |= {(name, store, "TCP", 6379) for name in SETTINGS}
    pods = [workload["metadata"]["name"] for workload in render.of("Deployment")]
    wanted |= {(name, "dns", protocol, 53) for name in pods for protocol in ("TCP", "UDP")}
    allowed = edges(render)
    yield from (f"open, and not meant to be: {edge}" for edge in sorted(allowed - wanted))
    yield from (f"closed, and needed: {edge}" for edge in sorted(wanted - allowed))


def is_probed_over_grpc(render: Render) -> Iterator[str]:
    """Start and readiness ask for the service by its name; liveness asks for the process alone, so never for Redis."""
    for workload in render.servers:
        name, container = workload["metadata"]["name"], container_of(workload)
        port = container["ports"][0]["containerPort"]
        wanted = {
            "startupProbe": {"port": port, "service": SERVICES[name]},
            "readinessProbe": {"port": port, "service": SERVICES[name]},
            "livenessProbe": {"port": port},
        }
        yield from (
            f"{name_of(workload)}: {probe} is not {grpc}"
            for probe, grpc in wanted.items()
            if container.get(probe, {}).get("grpc") != grpc
        )


def has_time_to_load(render: Render) -> Iterator[str]:
    """Encoder and decoder get at least the time that `diptych up` gives them, and a roll-out waits for longer."""
    for name in ("encoder", "decoder"):
        workload = render.get("Deployment", name)
        probe = container_of(workload)["startupProbe"]
        seconds = probe["periodSeconds"] * probe["failureThreshold"]
        if seconds < START_TIMEOUT_S:
            yield f"{name_of(workload)}: is given {seconds} s to start"
        if workload["spec"].get("progressDeadlineSeconds", 600) <= seconds:
            yield f"{name_of(workload)}: its roll-out gives up before its start does"


def lets_streams_finish(render: Render) -> Iterator[str]:
    """The longest request fits in the drain, and pre-stop, notice and drain fit in the grace period."""
    longest_s = render.settings("gateway").max_request_s
    for workload in render.servers:
        settings = render.settings(workload["metadata"]["name"])
        pod, hook = pod_of(workload), container_of(workload).get("lifecycle", {}).get("preStop", {})
        pre_stop_s = hook.get("sleep", {}).get("seconds", 0)
        if pre_stop_s <= 0:
            yield f"{name_of(workload)}: stops before its clients can know"
        if settings.drain_grace_s < longest_s:
            yield f"{name_of(workload)}: drains for {settings.drain_grace_s} s, and a request takes up to {longest_s} s"
        needed_s = pre_stop_s + settings.drain_notice_s + settings.drain_grace_s
        if pod.get("terminationGracePeriodSeconds", 30) <= needed_s:
            yield f"{name_of(workload)}: is killed before its {needed_s} s are over"


def stops_while_it_loads(render: Render) -> Iterator[str]:
    """The server is not PID 1, which would ignore SIGTERM until it has a handler."""
    for workload in render.servers:
        if not pod_of(workload).get("shareProcessNamespace"):
            yield f"{name_of(workload)}: is PID 1"


def sets_what_exists(render: Render) -> Iterator[str]:
    """Every DIPTYCH_ variable is a setting, the settings can be read, and the cache's URL is one."""
    for workload in render.servers:
        name = workload["metadata"]["name"]
        known = {variable_name(SETTINGS[name], field) for field in SETTINGS[name].model_fields}
        for variable in sorted(render.environment(workload)):
            if variable.startswith("DIPTYCH_") and variable not in known:
                yield f"{name_of(workload)}: {variable} is no setting"
        try:
            if urlsplit(render.settings(name).cache_url).scheme not in {"redis", "rediss"}:
                yield f"{name_of(workload)}: shares no cache"
        except ValueError as error:
            yield f"{name_of(workload)}: {error}"


def listens_where_it_is_called(render: Render) -> Iterator[str]:
    """A headless Service selects exactly its pods, its port is the one they listen on, and the gateway's targets exist."""
    for workload in render.of("Deployment"):
        service = render.get("Service", workload["metadata"]["name"])["spec"]
        if service["clusterIP"] != "None":
            yield f"{name_of(workload)}: its Service is not headless"
        selected = [w for w in render.of("Deployment") if matches({"matchLabels": service["selector"]}, labels_of(w))]
        if selected != [workload]:
            yield f"{name_of(workload)}: its Service selects {[name_of(w) for w in selected]}"
        if service["ports"][0]["port"] != container_of(workload)["ports"][0]["containerPort"]:
            yield f"{name_of(workload)}: its Service has another port"
    for workload in render.servers:
        name, port = workload["metadata"]["name"], container_of(workload)["ports"][0]["containerPort"]
        if render.settings(name).listen != f"0.0.0.0:{port}":
            yield f"{name_of(workload)}: listens on {render.settings(name).listen}"
        if name != "gateway" and getattr(render.settings("gateway"), name) != f"dns:///{name}:{port}":
            yield f"{name_of(workload)}: is not where the gateway looks"


def survives_evictions(render: Render) -> Iterator[str]:
    """One pod of each workload at a time may be evicted, and one that is not ready always."""
    for workload in render.of("Deployment"):
        budget = (render.find("PodDisruptionBudget", workload["metadata"]["name"]) or {}).get("spec", {})
        wanted = {"maxUnavailable": 1, "unhealthyPodEvictionPolicy": "AlwaysAllow"}
        if not wanted.items() <= budget.items() or not matches(budget["selector"], labels_of(workload)):
            yield f"{name_of(workload)}: has no budget"


def spreads_over_nodes(render: Render) -> Iterator[str]:
    """The pods of one service and revision go to different nodes where there are some."""
    for workload in render.servers:
        constraints = pod_of(workload).get("topologySpreadConstraints", [])
        if not any(
            constraint["topologyKey"] == "kubernetes.io/hostname"
            and matches(constraint["labelSelector"], labels_of(workload))
            and constraint["matchLabelKeys"] == ["app.kubernetes.io/name", "pod-template-hash"]
            for constraint in constraints
        ):
            yield f"{name_of(workload)}: may all be on one node"


def says_what_it_needs(render: Render) -> Iterator[str]:
    """CPU and memory are requested and memory is bounded; threads, KV cache and Redis keep to their pod's."""
    for workload in render.of("Deployment"):
        for container in containers_of(workload):
            resources = container.get("resources", {})
            if {"cpu", "memory"} - resources.get("requests", {}).keys() or "memory" not in resources.get("limits", {}):
                yield f"{name_of(workload)}: {container['name']} does not say what it needs"
            elif quantity(resources["limits"]["memory"]) < quantity(resources["requests"]["memory"]):
                yield f"{name_of(workload)}: {container['name']} may have less than it asks for"
    for name in ("encoder", "decoder"):
        requests = container_of(render.get("Deployment", name))["resources"]["requests"]
        if render.settings(name).threads != quantity(requests["cpu"]):
            yield f"{name}: has other than its request's threads"
    yield from _memory_beyond_the_pod(render)


def keeps_the_secret(render: Render) -> Iterator[str]:
    """The cache's secret comes from a Secret, to those who make keys of it and to no one else."""
    for workload in render.of("Deployment"):
        sources = {v["name"]: v["valueFrom"] for v in container_of(workload).get("env", []) if "valueFrom" in v}
        from_secret = "secretKeyRef" in sources.get("DIPTYCH_CACHE_SECRET", {})
        if from_secret != (workload["metadata"]["name"] in {"gateway", "encoder"}):
            yield f"{name_of(workload)}: the cache's secret is {'given' if from_secret else 'missing'}"
    for config in render.of("ConfigMap"):
        if any(re.search("SECRET|PASSWORD|TOKEN", key) for key in config["data"]):
            yield f"{name_of(config)}: holds a secret"


def pins_its_images(render: Render) -> Iterator[str]:
    """Images have tags that stand still; the project's own are of its version."""
    for workload in render.of("Deployment"):
        for container in containers_of(workload):
            name, _, tag = container["image"].partition(":")
            if not tag or tag == "latest":
                yield f"{name_of(workload)}: {container['image']} may change"
            if name.removeprefix("diptych-") in SETTINGS and tag.removesuffix("-cuda") != VERSION:
                yield f"{name_of(workload)}: {container['image']} is not of version {VERSION}"


def mounts_the_model(render: Render) -> Iterator[str]:
    """All three servers find the same checkpoint below /models, read-only, and no hub is asked."""
    models = {render.settings(name).model for name in SETTINGS}
    if len(models) > 1 or not models.pop().startswith("/models/"):
        yield "the servers have different models, or one that is not mounted"
    for workload in render.servers:
        if render.environment(workload).get("HF_HUB_OFFLINE") != "1":
            yield f"{name_of(workload)}: may ask the hub"
        mounts = [mount for mount in container_of(workload)["volumeMounts"] if mount["mountPath"] == "/models"]
        if [mount.get("readOnly") for mount in mounts] != [True]:
            yield f"{name_of(workload)}: does not mount /models read-only"


def names_what_exists(render: Render) -> Iterator[str]:
    """ConfigMaps, Secrets and claims that are named exist, or are the operator's; settings roll their pods by a hash."""
    claims = set()
    for workload in render.of("Deployment"):
        for kind, name in _references(workload):
            claims |= {name} if kind == "PersistentVolumeClaim" else set()
            if kind == "ConfigMap" and not re.fullmatch(r"[a-z]+-[a-z0-9]{10}", name):
                yield f"{name_of(workload)}: a change of {name} does not roll it"
            if render.find(kind, name) is None and not (kind == "Secret" and name in SECRETS):
                yield f"{name_of(workload)}: there is no {kind}/{name}"
    unused = {claim["metadata"]["name"] for claim in render.of("PersistentVolumeClaim")} - claims
    yield from (f"nothing uses the claim {name}" for name in sorted(unused))


def uses_gpus_wholly_or_not(render: Render) -> Iterator[str]:
    """An encoder or decoder with a GPU has the image, the device and the roll-out for it; one without has none."""
    for workload in render.servers:
        name, container = workload["metadata"]["name"], container_of(workload)
        facts = {
            "nvidia.com/gpu" in container["resources"]["limits"],
            container["image"].endswith("-cuda"),
            render.settings(name).device == "cuda",
            "nodeSelector" in pod_of(workload),
            workload["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0,
        }
        if len(facts) > 1 or (name == "gateway" and True in facts):
            yield f"{name_of(workload)}: is half of a GPU's"


def leaves_replicas_to_autoscalers(render: Render) -> Iterator[str]:
    """What is scaled has no number of its own; what is not scaled has one."""
    scaled = {scaler["spec"]["scaleTargetRef"]["name"] for scaler in render.of("HorizontalPodAutoscaler")}
    names = {workload["metadata"]["name"] for workload in render.of("Deployment")}
    yield from (f"there is no {name} to scale" for name in sorted(scaled - names))
    for workload in render.of("Deployment"):
        if ("replicas" in workload["spec"]) == (workload["metadata"]["name"] in scaled):
            yield f"{name_of(workload)}: {'two' if 'replicas' in workload['spec'] else 'none'} say how many"


PROPERTIES = (
    follows_the_schemas,
    is_unprivileged,
    writes_only_to_scratch,
    has_no_api_token,
    denies_by_default,
    has_the_edges_of_the_journey,
    is_probed_over_grpc,
    has_time_to_load,
    lets_streams_finish,
    stops_while_it_loads,
    sets_what_exists,
    listens_where_it_is_called,
    survives_evictions,
    spreads_over_nodes,
    says_what_it_needs,
    keeps_the_secret,
    pins_its_images,
    mounts_the_model,
    names_what_exists,
    uses_gpus_wholly_or_not,
    leaves_replicas_to_autoscalers,
)


@functools.cache
def _schema_errors(manifest: str) -> list[str]:
    """What each version says against an object. Most objects are the same in many renders."""
    found = []
    for version in SCHEMA_VERSIONS:
        try:
            kubernetes_validate.validate(json.loads(manifest), version, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            found.append(f"{version}: {error.message}")
    return found


def _memory_beyond_the_pod(render: Render) -> Iterator[str]:
    decoder = render.settings("decoder")
    memory = quantity(container_of(render.get("Deployment", "decoder"))["resources"]["requests"]["memory"])
    if decoder.device != "cuda" and not 0 < decoder.kv_cache_bytes < memory / 2:
        yield f"decoder: {decoder.kv_cache_bytes} bytes of KV cache in {memory:.0f} bytes of memory"
    if redis := render.find("Deployment", "redis"):
        config = next(config for config in render.of("ConfigMap") if "redis.conf" in config["data"])
        found = re.search(r"^maxmemory (\d+)gb$", config["data"]["redis.conf"], re.MULTILINE)
        memory = quantity(container_of(redis)["resources"]["limits"]["memory"])
        if found is None or int(found[1]) * (1 << 30) > memory * 0.75:
            yield "redis: may hold more than its pod"


def _references(workload: Manifest) -> Iterator[tuple[str, str]]:
    container = container_of(workload)
    yield from (("ConfigMap", source["configMapRef"]["name"]) for source in container.get("envFrom", []))
    for variable in container.get("env", []):
        if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
            yield "Secret", reference["name"]
    for volume in pod_of(workload)["volumes"]:
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
