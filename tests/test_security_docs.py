"""The examples in docs/security.md are ones that the services read."""

import re
from pathlib import Path

from pydantic_settings import BaseSettings

from cli.client import ClientSettings
from gateway.settings import GatewaySettings
from services.common.identity import Identity, parse_tokens
from services.common.settings import variable_name
from services.decoder.settings import DecoderSettings
from services.encoder.settings import EncoderSettings

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "security.md").read_text()
SETTINGS: tuple[type[BaseSettings], ...] = (GatewaySettings, EncoderSettings, DecoderSettings, ClientSettings)


def blocks(language: str) -> str:
    """All examples in one language."""
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL))


def test_every_variable_is_a_setting() -> None:
    """Each variable on the page is read by a service or a client."""
    known = {variable_name(cls, name) for cls in SETTINGS for name in cls.model_fields}
    named = set(re.findall(r"\bDIPTYCH_[A-Z_]+", PAGE))
    assert len(named) > 8
    assert named - known == set()
    assert all(re.fullmatch(r"#.*|[A-Z_]+=\S*|", line) for line in blocks("sh").splitlines())


def test_the_example_of_a_file_of_tokens_is_one() -> None:
    """It reads as the two callers that it describes."""
    assert list(parse_tokens(blocks("tokens")).values()) == [Identity("acme"), Identity("globex", "admin")]
