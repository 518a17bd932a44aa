"""Settings from the environment and from flags."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.server import ServerSettings, is_local
from services.common.settings import CommaSeparated, CommonSettings, describe, load, parse_command_line


class WidgetSettings(CommonSettings, ServerSettings):
    """A service's settings, as the services write theirs."""

    model_config = SettingsConfigDict(env_prefix="DIPTYCH_WIDGET_")

    roots: CommaSeparated = Field(default=(), description="Folders.")
    max_items: int = Field(default=3, ge=1, description="Most items.")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A model is named, as everywhere."""
    monkeypatch.setenv("DIPTYCH_MODEL", "models/demo")
    return monkeypatch


def test_reads_common_and_own_variables(environment: pytest.MonkeyPatch) -> None:
    """Common variables have one name everywhere, a service's own have its prefix."""
    environment.setenv("DIPTYCH_CACHE_TTL_S", "60")
    environment.setenv("DIPTYCH_WIDGET_LISTEN", "0.0.0.0:50051")
    environment.setenv("DIPTYCH_WIDGET_ROOTS", "/a, /b")
    environment.setenv("DIPTYCH_ALLOW_INSECURE", "true")
    settings = load(WidgetSettings)
    assert (settings.model, settings.cache_ttl_s, settings.listen) == ("models/demo", 60, "0.0.0.0:50051")
    assert settings.roots == ("/a", "/b")


def test_flags_win(environment: pytest.MonkeyPatch) -> None:
    """A flag overrides its variable."""
    environment.setenv("DIPTYCH_WIDGET_MAX_ITEMS", "4")
    settings = parse_command_line(WidgetSettings, "Widgets.", ["--max-items", "5", "--model", "x", "--roots", "/a,/b"])
    assert (settings.max_items, settings.model, settings.roots) == (5, "x", ("/a", "/b"))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DIPTYCH_CACHE_TTL_S", "soon"),
        ("DIPTYCH_WIDGET_MAX_ITEMS", "0"),
        ("DIPTYCH_DTYPE", "int4"),
        ("DIPTYCH_MODEL", ""),
    ],
)
def test_a_wrong_value_is_named(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str, value: str
) -> None:
    """A wrong or missing value ends the start with exactly one line, which begins with its variable."""
    environment.setenv(variable, value)
    with pytest.raises(SystemExit) as ended:
        load(WidgetSettings)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{variable}: ")


def test_a_wrong_flag_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A flag's wrong value is reported under its variable, all of them at once."""
    with pytest.raises(SystemExit):
        parse_command_line(WidgetSettings, "Widgets.", ["--max-items", "x", "--cache-ttl-s", "-1"])
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == ["DIPTYCH_CACHE_TTL_S", "DIPTYCH_WIDGET_MAX_ITEMS"]


def test_wrong_values_are_not_repeated(environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A value that may hold a password does not come back in the error."""
    environment.setenv("DIPTYCH_CACHE_MAX_BYTES", "hunter2")
    with pytest.raises(SystemExit):
        load(WidgetSettings)
    assert "hunter2" not in capsys.readouterr().err


def test_help_shows_every_variable(capsys: pytest.CaptureFixture[str]) -> None:
    """--help lists each variable with its flag, default and meaning."""
    with pytest.raises(SystemExit) as ended:
        parse_command_line(WidgetSettings, "Widgets.", ["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for name in ("DIPTYCH_MODEL, --model", "DIPTYCH_WIDGET_MAX_ITEMS, --max-items", "Most items. [default: 3]"):
        assert name in text
    assert text.endswith(describe(WidgetSettings) + "\n")


def test_secrets_have_no_flag() -> None:
    """A secret on a command line would be seen by everybody on the machine."""
    assert "--cache-secret" not in describe(WidgetSettings)
    with pytest.raises(SystemExit):
        parse_command_line(WidgetSettings, "Widgets.", ["--cache-secret", "x"])


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "unix:/run/x"])
def test_this_machine_alone_needs_no_guard(listen: str) -> None:
    """A loopback address or a socket file is listened on with no configuration."""
    assert load(WidgetSettings, listen=listen).listen == listen
    assert is_local(load(WidgetSettings).listen)


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "example:1", ":1", "[::ffff:0.0.0.0]:1"])
def test_other_machines_need_a_guard(capsys: pytest.CaptureFixture[str], listen: str) -> None:
    """An address that others reach is refused by name, unless the operator says that it is meant."""
    with pytest.raises(SystemExit) as ended:
        load(WidgetSettings, listen=listen)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("DIPTYCH_WIDGET_LISTEN: ")
    assert "DIPTYCH_TLS_CLIENT_CA" in line
    assert "DIPTYCH_ALLOW_INSECURE" in line
    assert load(WidgetSettings, listen=listen, allow_insecure=True).listen == listen


def test_certificates_guard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TLS without client certificates is not enough; with them it is. Half a certificate is refused."""
    pem = tmp_path / "a.pem"
    pem.write_text("")
    with pytest.raises(SystemExit):
        load(WidgetSettings, listen="0.0.0.0:1", tls_cert=pem, tls_key=pem)
    assert load(WidgetSettings, listen="0.0.0.0:1", tls_cert=pem, tls_key=pem, tls_client_ca=pem).knows_callers
    for half in ({"tls_cert": pem}, {"tls_key": pem}, {"tls_client_ca": pem}):
        with pytest.raises(SystemExit):
            load(WidgetSettings, **half)
    assert "DIPTYCH_TLS_CERT" in capsys.readouterr().err


def test_settings_are_frozen() -> None:
    """Nothing changes a setting after the start."""
    settings: Any = load(WidgetSettings)
    with pytest.raises(ValueError, match="frozen"):
        settings.max_items = 9
