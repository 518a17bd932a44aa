"""Kubernetes' own schemas, strictly: a field that it does not know is an error."""

import functools
import json
from collections.abc import Iterator

import kubernetes_validate
from kubernetes_validate import utils

from tests.deploy.manifests import Render, name_of

SCHEMA_VERSIONS = ("1.31", "1.37")  # the oldest that docs/kubernetes.md names, and the newest at hand

utils.schema_contents = functools.cache(utils.schema_contents)  # or each object reads five megabytes of JSON again


def follows_the_schemas(render: Render) -> Iterator[str]:
    """Kubernetes knows every field, and every value has its type."""
    for manifest in render.manifests:
        metadata = {key: value for key, value in manifest["metadata"].items() if key != "namespace"}
        for error in _schema_errors(json.dumps(manifest | {"metadata": metadata})):
            yield f"{name_of(manifest)}: {error}"


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
