"""`python -m tests.settings_page`: writes docs/configuration.md from the settings that the processes read."""

from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from cli.client import ClientSettings
from gateway.settings import GatewaySettings
from services.common.settings import variable_name
from services.decoder.settings import DecoderSettings
from services.encoder.settings import EncoderSettings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
SERVICES: dict[str, type[BaseSettings]] = {
    "gateway": GatewaySettings,
    "encoder": EncoderSettings,
    "decoder": DecoderSettings,
}
HEAD = """\
# Configuration

<!-- Written by `python -m tests.settings_page` from the settings in the code. -->

Every variable that a process reads. A service takes each as a flag too, `--max-media` for `DIPTYCH_GATEWAY_MAX_MEDIA`,
except secrets, which every user of a machine could read there. An empty variable is one that is not set. A wrong value
ends the process at its start with the name of the variable.

`DIPTYCH_READY_FILE` names a file into which a service writes its address once it listens; `diptych up` uses it. Traces
are configured by OpenTelemetry's own `OTEL_*` variables ([monitoring.md](monitoring.md)).
"""
NUMBERS = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def page() -> str:
    """The page's whole text."""
    shared = [name for name in _variables(GatewaySettings) if all(name in _variables(cls) for cls in SERVICES.values())]
    parts = [HEAD, "## All services\n", _table(GatewaySettings, shared)]
    for service, cls in SERVICES.items():
        own = [name for name in _variables(cls) if name not in shared]
        parts += [f"## The {service}\n", _table(cls, own)]
    intro = "`diptych chat` and the other commands that call a gateway.\n"
    parts += ["## Clients\n", intro, _table(ClientSettings, list(_variables(ClientSettings)))]
    return "\n".join(parts)


def _variables(cls: type[BaseSettings]) -> dict[str, FieldInfo]:
    return {variable_name(cls, name): field for name, field in cls.model_fields.items()}


def _table(cls: type[BaseSettings], names: list[str]) -> str:
    fields = _variables(cls)
    rows = [_row(name, fields[name]) for name in names]
    return "\n".join(["| variable | type | default | meaning |", "|---|---|---|---|", *rows, ""])


def _row(name: str, field: FieldInfo) -> str:
    meaning = (field.description or "").replace("|", r"\|")
    return f"| `{name}` | {_type(field)} | {_default(field)} | {meaning} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*required*"
    if isinstance(field.default, SecretStr) or field.default in (None, "", ()):
        return ""
    value = str(field.default).lower() if isinstance(field.default, bool) else field.default
    return f"`{value}`"


def _type(field: FieldInfo) -> str:
    bounds = ", ".join(_bounds(field))
    return f"{_name(field.annotation)} {bounds}".strip()


def _name(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _name(get_args(annotation)[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (Union, UnionType):
        return _name(next(one for one in get_args(annotation) if one is not type(None)))
    if origin is tuple:
        return "list, with commas"
    if annotation is SecretStr:
        return "secret"
    return "file" if annotation is Path else NUMBERS[annotation]


def _bounds(field: FieldInfo) -> Iterator[str]:
    for sign, attribute in (("≥", "ge"), (">", "gt"), ("≤", "le"), ("<", "lt")):
        for rule in field.metadata:
            if (bound := getattr(rule, attribute, None)) is not None:
                yield f"{sign} {bound}"


if __name__ == "__main__":
    PAGE.write_text(page())
