"""How the command line names media."""

from pathlib import Path

import typer
from typer.testing import CliRunner

from cli.media import Media, MediaLimits, OrderedMedia

runner = CliRunner()


def parse(*arguments: str) -> list[Media]:
    """The media of a command line, as chat and explain parse it."""
    app, seen = typer.Typer(), list[Media]()

    @app.command(cls=OrderedMedia)
    def command(
        context: typer.Context,
        question: str,
        image: list[str] | None = None,
        video: list[str] | None = None,
        min_pixels: int | None = None,
    ) -> None:
        assert question == "What?"
        seen.extend(Media.in_order(context, image, video, MediaLimits(min_pixels)))

    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return seen


def test_media_keep_the_order_of_the_command_line(tmp_path: Path) -> None:
    """Images and videos that alternate are shown to the model as they were given, wherever the question stands."""
    files = [tmp_path / name for name in "abcd"]
    for file in files:
        file.write_bytes(file.name.encode())
    a, b, c, d = map(str, files)
    media = parse("--image", a, "--video", b, "What?", f"--image={c}", "--min-pixels", "9", "--video", d)
    assert [(item.kind, item.data) for item in media] == [
        ("image", b"a"),
        ("video", b"b"),
        ("image", b"c"),
        ("video", b"d"),
    ]
    assert {item.limits for item in media} == {MediaLimits(min_pixels=9)}


def test_uris_and_digests_are_left_to_the_gateway() -> None:
    """What is no file is passed on as it is."""
    names = ["sha256:" + "0" * 64, "https://example.org/a.png", "data:image/png;base64,AA=="]
    media = parse("What?", *(piece for name in names for piece in ("--image", name)))
    assert [(item.name, item.data) for item in media] == [(name, None) for name in names]


def test_a_missing_file_is_a_usage_error() -> None:
    """The command ends with 2 and names the file, before anything is sent."""
    from cli.main import app  # noqa: PLC0415 (imports nothing heavy)

    result = runner.invoke(app, ["chat", "--image", "no-such-file.png", "What?"])
    assert result.exit_code == 2
    assert "no-such-file.png" in result.output
