"""Schemas of what other projects add to Kubernetes: strict, so that a field they do not know is an error.

Those of cert-manager, KEDA and the Prometheus operator come from their resource definitions, as models in packages. No
such package was found for the Gateway API, so what it says of the fields that are used here is written down below.
"""

from typing import Any

from cloudcoil.models.cert_manager import v1 as cert_manager
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as prometheus_operator
from pydantic import BaseModel

Schema = dict[str, Any]


def strict(schema: Any) -> Any:
    """The same schema, with no properties but those that it names."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if "properties" in schema and "additionalProperties" not in schema else {}
    return {key: strict(value) for key, value in schema.items()} | closed


def _of(model: type[BaseModel]) -> Schema:
    schema: Schema = strict(model.model_json_schema())
    return schema


def _object(required: str = "", **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}


def _list(items: Schema, most: int = 16) -> Schema:
    return {"type": "array", "items": items, "minItems": 1, "maxItems": most}


_NAME: Schema = {"type": "string", "minLength": 1, "maxLength": 253}
_PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
_HOST: Schema = {
    "type": "string",
    "pattern": r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
}
_METHOD = _object(type={"enum": ["Exact", "RegularExpression"]}, service=_NAME, method=_NAME)
_BACKEND = _object("name", group=_NAME, kind=_NAME, name=_NAME, namespace=_NAME, port=_PORT, weight={"type": "integer"})
_PARENT = _object("name", group=_NAME, kind=_NAME, name=_NAME, namespace=_NAME, sectionName=_NAME, port=_PORT)
_RULE = _object(name=_NAME, matches=_list(_object(method=_METHOD), 64), backendRefs=_list(_BACKEND))
_GRPC_ROUTE = _object(
    "apiVersion kind metadata spec",
    apiVersion={"const": "gateway.networking.k8s.io/v1"},
    kind={"const": "GRPCRoute"},
    metadata={"type": "object"},
    spec=_object("parentRefs rules", parentRefs=_list(_PARENT, 32), hostnames=_list(_HOST), rules=_list(_RULE)),
)

SCHEMAS: dict[tuple[str, str], Schema] = {
    ("cert-manager.io/v1", "Certificate"): _of(cert_manager.Certificate),
    ("cert-manager.io/v1", "Issuer"): _of(cert_manager.Issuer),
    ("keda.sh/v1alpha1", "ScaledObject"): _of(keda.ScaledObject),
    ("monitoring.coreos.com/v1", "PodMonitor"): _of(prometheus_operator.PodMonitor),
    ("monitoring.coreos.com/v1", "PrometheusRule"): _of(prometheus_operator.PrometheusRule),
    ("gateway.networking.k8s.io/v1", "GRPCRoute"): _GRPC_ROUTE,
}
