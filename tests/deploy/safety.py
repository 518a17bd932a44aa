"""What keeps a break-in small, of every render. A property yields a line for each thing that is wrong."""

import re
import tomllib
from collections.abc import Iterator
from urllib.parse import urlsplit

from tests.deploy.manifests import (
    ROOT,
    SETTINGS,
    Render,
    container_of,
    containers_of,
    labels_of,
    mounted,
    name_of,
    pod_of,
)
from tests.deploy.network import edges, matches

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


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
    """Clients and a route's Gateway reach the gateway, it both models' servers, all of them Redis and DNS; no more."""
    store = "redis" if render.find("Deployment", "redis") else "private address"
    wanted = {("client", "gateway", "TCP", 50051)}
    wanted |= {("router", "gateway", "TCP", 50051) for _ in render.of("GRPCRoute")}
    wanted |= {("prometheus", name, "TCP", 9464) for name in SETTINGS for _ in render.of("PodMonitor")}
    wanted |= {("gateway", name, "TCP", 50051) for name in ("encoder", "decoder")}
    wanted |= {(name, store, "TCP", 6379) for name in SETTINGS}
    pods = [workload["metadata"]["name"] for workload in render.of("Deployment")]
    wanted |= {(name, "dns", protocol, 53) for name in pods for protocol in ("TCP", "UDP")}
    allowed = edges(render)
    yield from (f"open, and not meant to be: {edge}" for edge in sorted(allowed - wanted))
    yield from (f"closed, and needed: {edge}" for edge in sorted(wanted - allowed))


def keeps_the_secret(render: Render) -> Iterator[str]:
    """The cache's secret comes from a Secret, to those who seal and open with it and to no one else."""
    for workload in render.of("Deployment"):
        sources = {v["name"]: v["valueFrom"] for v in container_of(workload).get("env", []) if "valueFrom" in v}
        from_secret = "secretKeyRef" in sources.get("DIPTYCH_CACHE_SECRET", {})
        if from_secret != (workload["metadata"]["name"] in SETTINGS):
            yield f"{name_of(workload)}: the cache's secret is {'given' if from_secret else 'missing'}"
    for config in render.of("ConfigMap"):
        if any(re.search("(SECRET|PASSWORD|TOKEN)$", key) for key in config["data"]):
            yield f"{name_of(config)}: holds a secret"


def closes_every_connection(render: Render) -> Iterator[str]:
    """With mTLS nothing is in the clear but health; each end shows a certificate and asks for the other's."""
    if not render.of("Certificate"):
        return
    for workload in render.servers:
        name = workload["metadata"]["name"]
        settings, own = render.settings(name), f"diptych-{name}-tls"
        caller = "clients" if name == "gateway" else "services"
        if settings.allow_insecure:
            yield f"{name_of(workload)}: may listen in the clear"
        wanted = {"tls_cert": (own, "tls.crt"), "tls_key": (own, "tls.key"), "tls_client_ca": _trusted(caller, own)}
        if name == "gateway":
            wanted["tls_ca"] = _trusted("services", own)
        for field, place in wanted.items():
            if mounted(workload, str(getattr(settings, field))) != place:
                yield f"{name_of(workload)}: {field} is not {place}"
        if render.get("Service", name)["spec"]["ports"][0]["appProtocol"] != "https":
            yield f"{name_of(workload)}: its Service says that it is in the clear"


def has_certificates_for_its_names(render: Render) -> Iterator[str]:
    """Each server's certificate is of the services' authority, names what is called, and is renewed in time."""
    for workload in render.servers if render.of("Certificate") else []:
        name = workload["metadata"]["name"]
        spec = render.get("Certificate", name)["spec"]
        target = "dns:///gateway:50051" if name == "gateway" else getattr(render.settings("gateway"), name)
        called = urlsplit(target).path.strip("/").rpartition(":")[0]
        usages = {"digital signature", "server auth", *(["client auth"] if name == "gateway" else [])}
        if called not in spec["dnsNames"]:
            yield f"{name}: its certificate does not say {called}"
        if set(spec["usages"]) != usages or spec["issuerRef"] != {"kind": "Issuer", "name": "services"}:
            yield f"{name}: its certificate is for something else"
    for certificate in render.of("Certificate"):
        lasts, early = (int(certificate["spec"][key].removesuffix("h")) for key in ("duration", "renewBefore"))
        if not lasts / 4 <= early < lasts:
            yield f"{name_of(certificate)}: is renewed {early} h before its end"


def keeps_signing_keys_from_pods(render: Render) -> Iterator[str]:
    """No pod mounts the key of an authority, and the two authorities are two."""
    signing = {issuer["spec"]["ca"]["secretName"] for issuer in render.of("Issuer") if "ca" in issuer["spec"]}
    if render.of("Issuer") and len(signing) != 2:
        yield "clients and services have one authority"
    for workload in render.of("Deployment"):
        for volume in pod_of(workload)["volumes"]:
            secret = volume.get("secret", {})
            keys = {item["key"] for item in secret.get("items", [{"key": "tls.key"}])}
            if secret.get("secretName") in signing and "tls.key" in keys:
                yield f"{name_of(workload)}: can sign as {secret['secretName']}"


def pins_its_images(render: Render) -> Iterator[str]:
    """Images have tags that stand still; the project's own are of its version."""
    for workload in render.of("Deployment"):
        for container in containers_of(workload):
            name, _, tag = container["image"].partition(":")
            if not tag or tag == "latest":
                yield f"{name_of(workload)}: {container['image']} may change"
            if name.removeprefix("diptych-") in SETTINGS and tag.removesuffix("-cuda") != VERSION:
                yield f"{name_of(workload)}: {container['image']} is not of version {VERSION}"


def _trusted(authority: str, own: str) -> tuple[str, str]:
    """Where an authority's certificate is: the services' comes with each certificate that it has signed."""
    return (own, "ca.crt") if authority == "services" else ("diptych-clients-authority", "tls.crt")
