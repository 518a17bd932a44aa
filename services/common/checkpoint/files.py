"""Finding a checkpoint's files and reading their fields, with errors that name the file and the field."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.txt"]


class CheckpointError(Exception):
    """A checkpoint cannot be used. The text names the file, and the field if there is one."""


class Section:
    """One JSON object of a checkpoint's file. A field that is absent or of another type is a CheckpointError."""

    def __init__(self, path: Path, data: Mapping[str, Any], prefix: str = "") -> None:
        self.path, self._data, self._prefix = path, data, prefix

    def __contains__(self, name: str) -> bool:
        return self._data.get(name) is not None

    def raw(self, name: str) -> Any:
        """The value as it stands, None when absent."""
        return self._data.get(name)

    def values(self) -> list[Any]:
        """All values of the object."""
        return list(self._data.values())

    def section(self, name: str) -> "Section":
        """A nested object; empty when absent."""
        return Section(self.path, self._read(name, dict, {}), f"{self._prefix}{name}.")

    def integer(self, name: str, default: int | None = None) -> int:
        return self._read(name, int, default)

    def number(self, name: str, default: float | None = None) -> float:
        value: int | float = self._read(name, (int, float), default)
        return float(value)

    def text(self, name: str, default: str | None = None) -> str:
        return self._read(name, str, default)

    def flag(self, name: str, default: bool) -> bool:
        return self._read(name, bool, default)

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        """A list of `length` numbers; required."""
        values: list[Any] = self._read(name, list, None)
        if len(values) != length or not all(_is(value, (int, float)) for value in values):
            raise self.error(name, f"must be {length} numbers")
        return tuple(float(value) for value in values)

    def error(self, name: str, problem: str) -> CheckpointError:
        """An error about one field, to be raised."""
        return CheckpointError(f"{self.path}: {self._prefix}{name} {problem}")

    def _read(self, name: str, kind: type[T] | tuple[type[T], ...], default: T | None) -> T:
        value = self._data.get(name)
        value = default if value is None else value
        if value is None:
            raise self.error(name, "is missing")
        if not _is(value, kind):
            raise self.error(name, f"is {value!r}, which is not of the right type")
        return value


def read_json(path: Path) -> Section:
    """The object in a JSON file; CheckpointError names a file that is missing or no JSON object."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: is no JSON object")
    return Section(path, data)


def read_json_if_present(path: Path) -> Section:
    """Like `read_json`, but an absent file is an empty object."""
    return read_json(path) if path.is_file() else Section(path, {})


def resolve(model: str) -> Path:
    """The folder of a checkpoint: a path, or the id of a model on the Hugging Face hub, downloaded when not cached."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise CheckpointError(f"{model}: no such folder, and no id of a model on the Hugging Face hub")
    # Imported for ids only: it takes half a second that a folder need not pay.
    from huggingface_hub import snapshot_download  # noqa: PLC0415

    try:
        return Path(snapshot_download(model, allow_patterns=_WANTED))
    except (OSError, ValueError) as error:  # huggingface_hub's errors are subclasses of these two
        raise CheckpointError(
            f"{model}: no such folder, and the Hugging Face hub did not give it: {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error


def _is(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
