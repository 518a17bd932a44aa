"""Kubernetes' own schemas, and those of what is added to it, strictly: a field that is not known is an error."""

import functools
import json
from collections.abc import Iterator

import jsonschema
import kubernetes_validate
from kubernetes_validate import utils

from tests.deploy.crds import SCHEMAS
from tests.deploy.manifests import Render, name_of

SCHEMA_VERSIONS = ("1.31", "1.37")  # the oldest that docs/kubernetes.md names, and the newest at hand

utils.schema_contents = functools.cache(utils.schema_contents)  # or each object reads five megabytes of JSON again


def follows_the_schemas(render: Render) -> Iterator[str]:
    """Every field is known, and every value has its type."""
    for manifest in render.manifests:
        metadata = {key: value for key, value in manifest["metadata"].items() if key != "namespace"}
        for error in _schema_errors(json.dumps(manifest | {"metadata": metadata})):
            yield f"{name_of(manifest)}: {error}"


@functools.cache
def _schema_errors(text: str) -> list[str]:
    """What is said against an object. Most objects are the same in many renders."""
    manifest = json.loads(text)
    if schema := SCHEMAS.get((manifest["apiVersion"], manifest["kind"])):
        errors = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
        return [f"{error.json_path}: {error.message}" for error in errors]
    found = []
    for version in SCHEMA_VERSIONS:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            found.append(f"{version}: {error.message}")
    return found
