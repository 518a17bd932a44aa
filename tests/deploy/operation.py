"""What makes it run, and keep running, of every render. A property yields a line for each thing that is wrong."""

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from diptych.v1 import chat_service_pb2, decoder_service_pb2, encoder_service_pb2

from cli.stack import START_TIMEOUT_S
from services.common.settings import variable_name
from services.common.telemetry.catalogue import CATALOGUE
from tests.deploy.manifests import (
    SECRETS,
    SETTINGS,
    Manifest,
    Render,
    container_of,
    containers_of,
    labels_of,
    name_of,
    pod_of,
    ports_of,
    quantity,
)
from tests.deploy.network import matches

_SERIES = {series for metric in CATALOGUE for series in metric.series}
SERVICES = {
    "gateway": chat_service_pb2.DESCRIPTOR.services_by_name["ChatService"].full_name,
    "encoder": encoder_service_pb2.DESCRIPTOR.services_by_name["EncoderService"].full_name,
    "decoder": decoder_service_pb2.DESCRIPTOR.services_by_name["DecoderService"].full_name,
}


def is_probed_over_grpc(render: Render) -> Iterator[str]:
    """At the plain port, start and readiness ask for the service, and liveness for the process: never for Redis.

    A gateway has started before it is ready, which needs an encoder and a decoder.
    """
    for workload in render.servers:
        name, container = workload["metadata"]["name"], container_of(workload)
        port = ports_of(workload)["health"]
        if render.settings(name).health_listen != f"0.0.0.0:{port}":
            yield f"{name_of(workload)}: answers no probe at {port}"
        wanted = {
            "startupProbe": {"port": port, **({} if name == "gateway" else {"service": SERVICES[name]})},
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
    """The server is not PID 1, which would ignore SIGTERM until it has a handler, after its imports."""
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
    """A headless Service selects exactly its pods, at the port they listen on; the gateway looks where they are."""
    for workload in render.of("Deployment"):
        service = render.get("Service", workload["metadata"]["name"])["spec"]
        if service["clusterIP"] != "None":
            yield f"{name_of(workload)}: its Service is not headless"
        selected = [w for w in render.of("Deployment") if matches({"matchLabels": service["selector"]}, labels_of(w))]
        if selected != [workload]:
            yield f"{name_of(workload)}: its Service selects {[name_of(w) for w in selected]}"
        if service["ports"][0]["port"] != next(iter(ports_of(workload).values())):
            yield f"{name_of(workload)}: its Service has another port"
    for workload in render.servers:
        name, port = workload["metadata"]["name"], next(iter(ports_of(workload).values()))
        if render.settings(name).listen != f"0.0.0.0:{port}":
            yield f"{name_of(workload)}: listens on {render.settings(name).listen}"
        if name != "gateway" and getattr(render.settings("gateway"), name) != f"dns:///{name}:{port}":
            yield f"{name_of(workload)}: is not where the gateway looks"


def is_scraped_where_it_listens(render: Render) -> Iterator[str]:
    """Where there is a PodMonitor, each server has its metrics at the port it names, over TLS where it has any."""
    for monitor in render.of("PodMonitor"):
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        for workload in render.servers:
            settings = render.settings(workload["metadata"]["name"])
            if not matches(monitor["spec"]["selector"], labels_of(workload)):
                yield f"{name_of(workload)}: is not scraped"
            if settings.metrics_listen != f"0.0.0.0:{ports_of(workload).get(endpoint['port'])}":
                yield f"{name_of(workload)}: has metrics at {settings.metrics_listen}"
            if (labels_of(workload).get("diptych-metrics") == "https") != (settings.tls_cert is not None):
                yield f"{name_of(workload)}: is scraped in the other scheme"


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
    """ConfigMaps, Secrets and claims exist or are the operator's; changed settings roll their pods, by a hash."""
    claims = set()
    secrets = {*SECRETS, *(certificate["spec"]["secretName"] for certificate in render.of("Certificate"))}
    for workload in render.of("Deployment"):
        for kind, name in _references(workload):
            claims |= {name} if kind == "PersistentVolumeClaim" else set()
            if kind == "ConfigMap" and not re.fullmatch(r"[a-z]+-[a-z0-9]{10}", name):
                yield f"{name_of(workload)}: a change of {name} does not roll it"
            if render.find(kind, name) is None and not (kind == "Secret" and name in secrets):
                yield f"{name_of(workload)}: there is no {kind}/{name}"
    for route in render.of("GRPCRoute"):
        for backend in route["spec"]["rules"][0]["backendRefs"]:
            service = render.find("Service", backend["name"])
            if service is None or backend["port"] not in [port["port"] for port in service["spec"]["ports"]]:
                yield f"{name_of(route)}: leads nowhere"
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
    scalers = render.of("HorizontalPodAutoscaler", "ScaledObject")
    scaled = {scaler["spec"]["scaleTargetRef"]["name"] for scaler in scalers}
    names = {workload["metadata"]["name"] for workload in render.of("Deployment")}
    yield from (f"there is no {name} to scale" for name in sorted(scaled - names))
    for workload in render.of("Deployment"):
        if ("replicas" in workload["spec"]) == (workload["metadata"]["name"] in scaled):
            yield f"{name_of(workload)}: {'two' if 'replicas' in workload['spec'] else 'none'} say how many"


def scales_by_what_is_measured(render: Render) -> Iterator[str]:
    """KEDA asks for series that the scaled service has, of each pod the same share, and knows what to do without."""
    for scaler in render.of("ScaledObject"):
        role = scaler["spec"]["scaleTargetRef"]["name"]
        asked = [trigger for trigger in scaler["spec"]["triggers"] if trigger["type"] == "prometheus"]
        named = {series for trigger in asked for series in re.findall(r"\w+(?={)", trigger["metadata"]["query"])}
        if any(not series.startswith(f"diptych_{role}_") for series in named) or not named <= _SERIES:
            yield f"{name_of(scaler)}: nothing measures all of {sorted(named)}"
        if {trigger.get("metricType") for trigger in asked} - {"AverageValue"}:
            yield f"{name_of(scaler)}: is not by the pod"
        if asked and "fallback" not in scaler["spec"]:
            yield f"{name_of(scaler)}: hangs on Prometheus"


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
