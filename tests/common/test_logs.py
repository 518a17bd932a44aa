"""What reaches the logs."""

import ast
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import structlog

import gateway
import services
from services.common.logs import ALLOWED_FIELDS, configure_logging

Written: TypeAlias = Callable[[Callable[[], object]], list[dict[str, Any]]]


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Iterator[Written]:
    """What an action writes to the log of a process that has configured it, as objects."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def lines(action: Callable[[], object]) -> list[dict[str, Any]]:
        configure_logging("test")
        action()
        return [json.loads(line) for line in capsys.readouterr().err.splitlines()]

    yield lines
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_allowed_fields_are_written(written: Written) -> None:
    """A line is JSON with the process's name, the event and its fields."""
    (line,) = written(lambda: structlog.get_logger().info("listening", address="127.0.0.1:1"))
    assert line.items() >= {"event": "listening", "service": "test", "level": "info", "address": "127.0.0.1:1"}.items()


def test_other_fields_are_dropped_by_name(written: Written) -> None:
    """A field that is not on the list loses its value, and the line says which."""
    (line,) = written(lambda: structlog.get_logger().info("asked", prompt="canary", url="http://canary"))
    assert line["dropped_fields"] == ["prompt", "url"]
    assert "canary" not in json.dumps(line)


def test_exceptions_lose_their_text(written: Written) -> None:
    """An exception is logged by type and lines of code: its text may quote a request."""

    def fail() -> None:
        try:
            raise ValueError("canary")
        except ValueError:
            structlog.get_logger().exception("failed")

    (line,) = written(fail)
    assert line["exception"] == "ValueError"
    assert line["stack"][-1].endswith(" fail")
    assert "canary" not in json.dumps(line)


def test_other_libraries_lose_their_text(written: Written) -> None:
    """A library's warning is known by place, not by its words."""
    (line,) = written(lambda: logging.getLogger("some.library").warning("canary %s", "canary"))
    assert (line["logger"], line["level"]) == ("some.library", "warning")
    assert "canary" not in json.dumps(line)


def test_no_event_of_ours_loses_a_field() -> None:
    """Each field that the services log stands on the list."""
    lost = {
        f"{path}:{call.lineno}: {keyword.arg}"
        for package in (gateway, services)
        for path in Path(str(package.__file__)).parent.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
        if isinstance(call.func.value, ast.Name) and call.func.value.id == "log"
        for keyword in call.keywords
        if keyword.arg not in ALLOWED_FIELDS | {"exc_info"}
    }
    assert not lost
