"""Every property holds of every render, and sees a manifest that breaks it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.deploy import operation, safety, schemas
from tests.deploy.manifests import Render

Property = Callable[[Render], Iterator[str]]

PROPERTIES: tuple[Property, ...] = (
    schemas.follows_the_schemas,
    safety.is_unprivileged,
    safety.writes_only_to_scratch,
    safety.has_no_api_token,
    safety.denies_by_default,
    safety.has_the_edges_of_the_journey,
    operation.is_probed_over_grpc,
    operation.has_time_to_load,
    operation.lets_streams_finish,
    operation.stops_while_it_loads,
    operation.sets_what_exists,
    operation.listens_where_it_is_called,
    operation.is_scraped_where_it_listens,
    operation.survives_evictions,
    operation.spreads_over_nodes,
    operation.says_what_it_needs,
    safety.keeps_the_secret,
    safety.closes_every_connection,
    safety.has_certificates_for_its_names,
    safety.keeps_signing_keys_from_pods,
    safety.pins_its_images,
    operation.mounts_the_model,
    operation.names_what_exists,
    operation.uses_gpus_wholly_or_not,
    operation.leaves_replicas_to_autoscalers,
    operation.scales_by_what_is_measured,
)

POD = "spec/template/spec"
CONTAINER = f"{POD}/containers/0"
QUERY = "spec/triggers/0/metadata/query"
# A property, and the edit of one field (None takes it out) that it must see.
BROKEN: list[tuple[Property, str, str, str, Any]] = [
    (schemas.follows_the_schemas, "Deployment", "gateway", f"{POD}/dnsPolicies", "ClusterFirst"),
    (schemas.follows_the_schemas, "Deployment", "redis", "spec/replicas", "two"),
    (schemas.follows_the_schemas, "Certificate", "gateway", "spec/subjectAltNames", ["gateway"]),
    (schemas.follows_the_schemas, "Certificate", "gateway", "spec/issuerRef/name", None),
    (schemas.follows_the_schemas, "Issuer", "clients", "spec/ca/secret", "diptych-clients-authority"),
    (schemas.follows_the_schemas, "ScaledObject", "encoder", "spec/minReplicas", 1),
    (schemas.follows_the_schemas, "GRPCRoute", "gateway", "spec/rules/0/matches/0/method/type", "Prefix"),
    (schemas.follows_the_schemas, "GRPCRoute", "gateway", "spec/rules/0/timeouts", {"request": "10m"}),
    (safety.is_unprivileged, "Deployment", "gateway", f"{POD}/securityContext/runAsUser", 0),
    (safety.is_unprivileged, "Deployment", "encoder", f"{POD}/securityContext/seccompProfile", None),
    (safety.is_unprivileged, "Deployment", "redis", f"{CONTAINER}/securityContext/capabilities/drop", []),
    (safety.is_unprivileged, "Deployment", "decoder", f"{POD}/hostNetwork", True),
    (safety.writes_only_to_scratch, "Deployment", "redis", f"{CONTAINER}/securityContext", {}),
    (safety.writes_only_to_scratch, "Deployment", "decoder", f"{CONTAINER}/volumeMounts/0/readOnly", False),
    (safety.writes_only_to_scratch, "Deployment", "decoder", f"{CONTAINER}/volumeMounts/1", None),
    (safety.has_no_api_token, "ServiceAccount", "gateway", "automountServiceAccountToken", True),
    (safety.has_no_api_token, "Deployment", "gateway", f"{POD}/serviceAccountName", "default"),
    (safety.denies_by_default, "NetworkPolicy", "default-deny", "spec/podSelector", {"matchLabels": {"a": "b"}}),
    (safety.denies_by_default, "NetworkPolicy", "default-deny", "spec/egress", [{}]),
    (safety.has_the_edges_of_the_journey, "NetworkPolicy", "redis", "spec/ingress/0/from", []),
    (safety.has_the_edges_of_the_journey, "NetworkPolicy", "gateway", "spec/ingress/0/from/0/podSelector", {}),
    (safety.has_the_edges_of_the_journey, "NetworkPolicy", "gateway", "spec/ingress/0/ports", None),
    (safety.has_the_edges_of_the_journey, "NetworkPolicy", "from-routes", "spec/ingress/0/from", None),
    (safety.has_the_edges_of_the_journey, "NetworkPolicy", "to-redis", "spec/egress/0/ports/0/port", 6380),
    (
        operation.is_probed_over_grpc,
        "Deployment",
        "gateway",
        f"{CONTAINER}/readinessProbe/grpc/service",
        "ChatService",
    ),
    (operation.is_probed_over_grpc, "Deployment", "decoder", f"{CONTAINER}/livenessProbe/grpc/service", "cache"),
    (operation.is_probed_over_grpc, "ConfigMap", "encoder", "data/DIPTYCH_ENCODER_HEALTH_LISTEN", "127.0.0.1:50052"),
    (operation.has_time_to_load, "Deployment", "encoder", f"{CONTAINER}/startupProbe/failureThreshold", 3),
    (operation.has_time_to_load, "Deployment", "decoder", "spec/progressDeadlineSeconds", None),
    (operation.lets_streams_finish, "Deployment", "gateway", f"{POD}/terminationGracePeriodSeconds", 610),
    (operation.lets_streams_finish, "Deployment", "decoder", f"{CONTAINER}/lifecycle", None),
    (operation.stops_while_it_loads, "Deployment", "encoder", f"{POD}/shareProcessNamespace", None),
    (operation.sets_what_exists, "ConfigMap", "gateway", "data/DIPTYCH_GATEWAY_MAX_TURNS", "5"),
    (operation.sets_what_exists, "ConfigMap", "decoder", "data/DIPTYCH_DECODER_BLOCK_SIZE", "many"),
    (operation.sets_what_exists, "ConfigMap", "shared", "data/DIPTYCH_CACHE_URL", "memory://"),
    (operation.listens_where_it_is_called, "Service", "decoder", "spec/clusterIP", "10.0.0.1"),
    (
        operation.listens_where_it_is_called,
        "Service",
        "redis",
        "spec/selector",
        {"app.kubernetes.io/part-of": "diptych"},
    ),
    (operation.listens_where_it_is_called, "Service", "encoder", "spec/ports/0/port", 50052),
    (operation.listens_where_it_is_called, "ConfigMap", "encoder", "data/DIPTYCH_ENCODER_LISTEN", "127.0.0.1:50051"),
    (
        operation.listens_where_it_is_called,
        "ConfigMap",
        "gateway",
        "data/DIPTYCH_GATEWAY_ENCODER",
        "dns:///eyes:50051",
    ),
    (operation.is_scraped_where_it_listens, "PodMonitor", "diptych", "spec/podMetricsEndpoints/0/port", "grpc"),
    (operation.is_scraped_where_it_listens, "ConfigMap", "shared", "data/DIPTYCH_METRICS_LISTEN", None),
    (
        operation.is_scraped_where_it_listens,
        "Deployment",
        "gateway",
        "spec/template/metadata/labels/diptych-metrics",
        None,
    ),
    (safety.has_the_edges_of_the_journey, "NetworkPolicy", "from-prometheus", "spec/ingress/0/from", []),
    (schemas.follows_the_schemas, "PodMonitor", "diptych", "spec/podMetricsEndpoints/0/schema", "https"),
    (schemas.follows_the_schemas, "PrometheusRule", "diptych", "spec/groups/0/rules/0/expression", "up"),
    (operation.survives_evictions, "PodDisruptionBudget", "redis", "spec/maxUnavailable", 0),
    (operation.spreads_over_nodes, "Deployment", "decoder", f"{POD}/topologySpreadConstraints", []),
    (operation.says_what_it_needs, "Deployment", "redis", f"{CONTAINER}/resources/limits/memory", "1Gi"),
    (operation.says_what_it_needs, "Deployment", "gateway", f"{CONTAINER}/resources/requests/cpu", None),
    (operation.says_what_it_needs, "ConfigMap", "decoder", "data/DIPTYCH_DECODER_KV_CACHE_BYTES", "0"),
    (operation.says_what_it_needs, "Deployment", "encoder", f"{CONTAINER}/env/1", None),
    (safety.keeps_the_secret, "Deployment", "gateway", f"{CONTAINER}/env", []),
    (safety.keeps_the_secret, "ConfigMap", "shared", "data/DIPTYCH_CACHE_SECRET", "in the open"),
    (safety.closes_every_connection, "ConfigMap", "shared", "data/DIPTYCH_ALLOW_INSECURE", "true"),
    (safety.closes_every_connection, "ConfigMap", "encoder", "data/DIPTYCH_TLS_CLIENT_CA", "/etc/diptych/tls/tls.crt"),
    (safety.closes_every_connection, "ConfigMap", "gateway", "data/DIPTYCH_TLS_CLIENT_CA", "/etc/diptych/tls/ca.crt"),
    (safety.closes_every_connection, "Service", "decoder", "spec/ports/0/appProtocol", "kubernetes.io/h2c"),
    (safety.has_certificates_for_its_names, "Certificate", "encoder", "spec/dnsNames", ["eyes"]),
    (safety.has_certificates_for_its_names, "Certificate", "decoder", "spec/issuerRef/name", "clients"),
    (safety.has_certificates_for_its_names, "Certificate", "gateway", "spec/usages", ["server auth"]),
    (safety.has_certificates_for_its_names, "Certificate", "gateway", "spec/renewBefore", "1h"),
    (safety.keeps_signing_keys_from_pods, "Deployment", "gateway", f"{POD}/volumes/3/secret/items", None),
    (safety.keeps_signing_keys_from_pods, "Issuer", "clients", "spec/ca/secretName", "diptych-services-authority"),
    (safety.pins_its_images, "Deployment", "redis", f"{CONTAINER}/image", "valkey/valkey"),
    (safety.pins_its_images, "Deployment", "encoder", f"{CONTAINER}/image", "diptych-encoder:0.0.9"),
    (operation.mounts_the_model, "ConfigMap", "shared", "data/DIPTYCH_MODEL", "Qwen/Qwen2-VL-2B-Instruct"),
    (operation.mounts_the_model, "Deployment", "gateway", f"{CONTAINER}/volumeMounts/0/mountPath", "/weights"),
    (operation.names_what_exists, "PersistentVolumeClaim", "weights", "metadata/name", "scales"),
    (operation.names_what_exists, "Deployment", "gateway", f"{CONTAINER}/envFrom/0/configMapRef/name", "shared"),
    (operation.names_what_exists, "GRPCRoute", "gateway", "spec/rules/0/backendRefs/0/port", 443),
    (operation.uses_gpus_wholly_or_not, "Deployment", "encoder", f"{CONTAINER}/image", "diptych-encoder:0.1.0-cuda"),
    (operation.leaves_replicas_to_autoscalers, "Deployment", "redis", "spec/replicas", None),
    (operation.leaves_replicas_to_autoscalers, "Deployment", "decoder", "spec/replicas", 3),
    (operation.leaves_replicas_to_autoscalers, "ScaledObject", "decoder", "spec/scaleTargetRef/name", "decoders"),
    (operation.scales_by_what_is_measured, "ScaledObject", "encoder", QUERY, "sum(diptych_encoder_pictures{})"),
    (operation.scales_by_what_is_measured, "ScaledObject", "decoder", QUERY, "sum(diptych_encoder_queued_patches{})"),
    (operation.scales_by_what_is_measured, "ScaledObject", "decoder", "spec/triggers/1/metricType", "Value"),
    (operation.scales_by_what_is_measured, "ScaledObject", "encoder", "spec/fallback", None),
]


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_of_every_overlay_and_combination(holds: Property, renders: list[Render]) -> None:
    """A property holds of each overlay and of the base with each combination of components."""
    assert [f"{render.name}: {problem}" for render in renders for problem in holds(render)] == []


@pytest.mark.parametrize(("sees", "kind", "name", "path", "value"), BROKEN, ids=lambda v: getattr(v, "__name__", None))
def test_a_broken_manifest_fails(sees: Property, kind: str, name: str, path: str, value: Any, most: Render) -> None:
    """The base, with components that bring objects of other kinds, does not pass with one field changed."""
    assert list(sees(most)) == []
    assert list(sees(most.edited(kind, name, path, value))) != []


def test_every_property_has_a_broken_manifest() -> None:
    """No property is one that nothing breaks."""
    assert {sees for sees, *_ in BROKEN} == set(PROPERTIES)
