"""`diptych token`."""

import pytest

from cli import token
from services.common.identity import Identity, parse_tokens, token_line


@pytest.mark.parametrize("admin", [False, True])
def test_the_line_lets_the_token_in(capsys: pytest.CaptureFixture[str], admin: bool) -> None:
    """The token comes first, then the line that the gateway reads, which holds only its hash."""
    assert token.run("acme", admin=admin) == 0
    made, line = capsys.readouterr().out.splitlines()
    (identity,) = parse_tokens(line).values()
    assert identity == Identity("acme", "admin" if admin else "user")
    assert line == token_line(made, identity)
    assert made not in line
    assert len(made) > 40


def test_a_name_that_would_break_the_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """White space and comments are no names."""
    assert token.run("a b#c", admin=False) == 2
    assert "tenant's name" in capsys.readouterr().err
