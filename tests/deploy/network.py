"""Who may talk to whom, by the rules of NetworkPolicy."""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.deploy.manifests import Manifest, Render, labels_of

HERE = "here"
PORTS = (("TCP", 50051), ("TCP", 50052), ("TCP", 9464), ("TCP", 6379), ("TCP", 53), ("UDP", 53), ("TCP", 443))


@dataclass(frozen=True)
class Peer:
    """A pod, or an address that is none."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    namespace: str = HERE
    address: str = ""


# Those around the system that it may or must not talk with.
SURROUNDINGS = (
    Peer("dns", {"k8s-app": "kube-dns"}, "kube-system"),
    Peer("client", {"diptych-client": "true"}, "elsewhere"),
    Peer("stranger", {}, "elsewhere"),
    Peer("router", {}, "gateways"),
    Peer("prometheus", {"app.kubernetes.io/name": "prometheus"}, "monitoring"),
    Peer("neighbour", {"app.kubernetes.io/name": "redis"}),
    Peer("private address", address="10.20.30.40"),
    Peer("public address", address="198.51.100.7"),
)


def edges(render: Render) -> set[tuple[str, str, str, int]]:
    """(from, to, protocol, port) of everything that is allowed and has the system's pods at one end or both."""
    pods = [Peer(workload["metadata"]["name"], labels_of(workload)) for workload in render.of("Deployment")]
    policies = render.of("NetworkPolicy")
    return {
        (source.name, target.name, *port)
        for source in (*pods, *SURROUNDINGS)
        for target in (*pods, *SURROUNDINGS)
        for port in PORTS
        if (source in pods or target in pods)
        and source != target
        and _allows(policies, "Egress", source, target, port)
        and _allows(policies, "Ingress", target, source, port)
    }


def matches(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a label selector takes these labels. Of expressions it knows In."""
    wanted = selector.get("matchLabels", {}).items()
    return all(labels.get(key) == value for key, value in wanted) and all(
        expression["operator"] == "In" and labels.get(expression["key"]) in expression["values"]
        for expression in selector.get("matchExpressions", [])
    )


def _allows(policies: list[Manifest], direction: str, pod: Peer, other: Peer, port: tuple[str, int]) -> bool:
    """Whether `pod`'s end lets it through: it does when no policy of that direction is about it, or a rule names it."""
    about = [
        policy["spec"]
        for policy in policies
        if not pod.address
        and pod.namespace == HERE
        and direction in policy["spec"]["policyTypes"]
        and matches(policy["spec"]["podSelector"], pod.labels)
    ]
    return not about or any(_names(rule, other, port) for spec in about for rule in _rules(spec, direction))


def _rules(spec: Manifest, direction: str) -> Iterator[tuple[Manifest, list[Manifest]]]:
    for rule in spec.get(direction.lower(), []):
        yield rule, rule.get("to" if direction == "Egress" else "from", [])


def _names(rule: tuple[Manifest, list[Manifest]], other: Peer, port: tuple[str, int]) -> bool:
    ports, peers = rule[0].get("ports"), rule[1]
    right_port = ports is None or port in [(entry["protocol"], entry["port"]) for entry in ports]
    return right_port and (not peers or any(_is(peer, other) for peer in peers))


def _is(peer: Manifest, other: Peer) -> bool:
    if "ipBlock" in peer:
        network = ipaddress.ip_network(peer["ipBlock"]["cidr"])
        return bool(other.address) and ipaddress.ip_address(other.address) in network
    namespace = {"kubernetes.io/metadata.name": other.namespace}
    right_namespace = (
        matches(peer["namespaceSelector"], namespace) if "namespaceSelector" in peer else other.namespace == HERE
    )
    return not other.address and right_namespace and matches(peer.get("podSelector", {}), other.labels)
