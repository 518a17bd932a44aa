"""Settings: one frozen object per process, from the environment, each value overridable by a flag.

A service's own settings subclass `CommonSettings` (and `server.ServerSettings`) with its `env_prefix`; a wrong value
ends the process at its start with the name of the variable.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from services.common.cache_url import parse_cache_url

S = TypeVar("S", bound=BaseSettings)


def _split(value: object) -> object:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""A list written as "a,b,c" in a variable or a flag."""


class CommonSettings(BaseSettings):
    """What gateway, encoder and decoder must agree on. The variables are the same for all three."""

    model_config = SettingsConfigDict(frozen=True, validate_by_name=True, extra="forbid", env_ignore_empty=True)

    model: str = Field(
        validation_alias="DIPTYCH_MODEL", description="Checkpoint: a folder, or an id on the Hugging Face hub."
    )
    cache_url: str = Field(
        default="memory://",
        validation_alias="DIPTYCH_CACHE_URL",
        description="Embedding cache: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// to share it,"
        " memory:// for this process alone.",
    )
    cache_ttl_s: int = Field(
        default=900,
        gt=0,
        validation_alias="DIPTYCH_CACHE_TTL_S",
        description="Seconds for which values are cached.",
    )
    cache_timeout_s: float = Field(
        0.008,
        gt=0,
        validation_alias="DIPTYCH_CACHE_TIMEOUT_S",
        description="Seconds that a shared cache may take to answer before a request goes on without it.",
    )
    cache_max_bytes: int = Field(
        default=1 << 30,
        gt=0,
        validation_alias="DIPTYCH_CACHE_MAX_BYTES",
        description="Most bytes in a memory:// cache.",
    )
    cache_secret: SecretStr = Field(
        default=SecretStr(""),
        validation_alias="DIPTYCH_CACHE_SECRET",
        description="Secret for each tenant's cache keys and to seal what is cached, such as 32 random bytes in"
        " hexadecimal; the same in all services.",
    )
    cache_secret_previous: SecretStr = Field(
        default=SecretStr(""),
        validation_alias="DIPTYCH_CACHE_SECRET_PREVIOUS",
        description="Another secret whose sealed values are opened too: the last one, or at first the next one.",
    )
    dtype: str = Field(
        default="auto",
        pattern="^(auto|float32|bfloat16|float16)$",
        validation_alias="DIPTYCH_DTYPE",
        description="Arithmetic: float32, bfloat16 or float16; auto is the checkpoint's own where it runs well.",
    )
    device: str = Field(
        default="auto", validation_alias="DIPTYCH_DEVICE", description="cpu, cuda, cuda:N; auto is CUDA where present."
    )
    threads: int = Field(
        default=0,
        ge=0,
        validation_alias="DIPTYCH_THREADS",
        description="Threads for arithmetic; 0 is one a core, and one for a decoder of a small model.",
    )

    @field_validator("cache_url")
    @classmethod
    def _cache_url(cls, url: str) -> str:
        parse_cache_url(url)
        return url

    @property
    def cache_secrets(self) -> list[bytes]:
        """The secrets to open with, the one to seal with first; none when there is none to seal with."""
        secrets = [field.get_secret_value().encode() for field in (self.cache_secret, self.cache_secret_previous)]
        return [secret for secret in secrets if secret] if secrets[0] else []


def load(cls: type[S], **overrides: Any) -> S:
    """Settings from the environment, `overrides` by field name first. Names each wrong variable and exits with 2."""
    try:
        return cls(**overrides)
    except ValidationError as error:
        _refuse(cls, error)


def parse_command_line(cls: type[S], description: str, argv: Sequence[str] | None = None) -> S:
    """The settings of a `python -m` service: the environment, then one flag a setting; `--help` shows them all."""
    module = sys.modules["__main__"].__spec__
    parser = argparse.ArgumentParser(
        prog=f"python -m {module.parent}" if module and module.parent else None,
        description=description,
        usage="%(prog)s [--help] [--SETTING VALUE ...]",
        epilog=describe(cls),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, field in cls.model_fields.items():
        if _has_flag(field):
            parser.add_argument(_flag(name), dest=name, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return load(cls, **vars(parser.parse_args(argv)))


def describe(cls: type[BaseSettings]) -> str:
    """Each variable of `cls` with its flag, default and meaning, as text for a terminal."""
    lines = ["settings, as environment variables or flags:"]
    for name, field in cls.model_fields.items():
        flag = f", {_flag(name)}" if _has_flag(field) else ""
        lines += [f"  {variable_name(cls, name)}{flag}", f"      {field.description or ''} [{_default(field)}]"]
    return "\n".join(lines)


def variable_name(cls: type[BaseSettings], name: str) -> str:
    """The environment variable of one field."""
    alias = cls.model_fields[name].validation_alias
    return alias if isinstance(alias, str) else f"{cls.model_config.get('env_prefix', '')}{name}".upper()


def _refuse(cls: type[BaseSettings], error: ValidationError) -> NoReturn:
    fields = {variable_name(cls, name): name for name in cls.model_fields}
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        place = str(problem["loc"][0]) if problem["loc"] else ""
        name = fields.get(place, place)
        where = variable_name(cls, name) if name in cls.model_fields else place
        text = "is not set" if problem["type"] == "missing" else problem["msg"].removeprefix("Value error, ")
        print(f"{where}: {text}" if where else text, file=sys.stderr)
    raise SystemExit(2)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _has_flag(field: FieldInfo) -> bool:
    return field.annotation is not SecretStr  # a flag can be read by every user of the machine


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if field.annotation is SecretStr:
        return "default: not set"
    value = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    return "default: not set" if value in (None, "") else f"default: {value}"
