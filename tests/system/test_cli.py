"""The `diptych` command as people run it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from redis import Redis

from cli.stack import Stack
from tests.exactness import cases
from tests.exactness.reference import Reference
from tests.harness import wait_until

DIPTYCH = str(Path(sys.executable).with_name("diptych"))
PICTURE = cases.Picture(cases.drawing(84, 112, 400))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture as a file."""
    path = tmp_path / "picture.png"
    path.write_bytes(PICTURE.data)
    return path


def diptych(stack: Stack, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs one command against the stack."""
    command = [DIPTYCH, *map(str, arguments), "--address", stack.address]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_chat_prints_the_answer_and_what_it_cost(stack: Stack, reference: Reference, picture: Path) -> None:
    """The answer alone is on stdout; media, tokens and times are on stderr."""
    _, expected = reference.generate(cases.user("", PICTURE, "What?"), 8)
    run = diptych(stack, "chat", "--image", picture, "--max-tokens", 8, "--temperature", 0, "What?")
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"{reference.tokenizer.decode(expected, skip_special_tokens=True)}\n"
    assert "image 112x84 seen as 112x84, 12 tokens, encoded" in run.stderr
    assert "first token after" in run.stderr


def test_chat_as_json_is_one_event_a_line(stack: Stack, picture: Path) -> None:
    """Each line of --json is an event of the protocol, `finished` last."""
    run = diptych(stack, "chat", "--image", picture, "--max-tokens", 4, "--json", "What?")
    events = [json.loads(line) for line in run.stdout.splitlines()]
    assert "started" in events[0]
    assert "finished" in events[-1]


def test_chat_uploads_what_is_too_large_for_a_message(stack: Stack, tmp_path: Path) -> None:
    """A picture of several MiB is sent in chunks and named by its digest."""
    path = tmp_path / "large.png"
    Image.frombytes("RGB", (1200, 1200), os.urandom(1200 * 1200 * 3)).save(path)
    assert path.stat().st_size > 4 << 20
    run = diptych(stack, "chat", "--image", path, "--max-pixels", 13000, "--max-tokens", 1, "What?")
    assert run.returncode == 0, run.stderr
    assert "image 1200x1200 seen as 112x112" in run.stderr


def test_no_store_leaves_nothing_behind(stack: Stack, tmp_path: Path) -> None:
    """Neither asked nor explained, and what is otherwise uploaded goes in the request, too."""
    path = tmp_path / "large.png"
    Image.frombytes("RGB", (1200, 1200), os.urandom(1200 * 1200 * 3)).save(path)
    assert stack.redis is not None
    with Redis.from_url(stack.redis.url) as redis:
        before = set(redis.scan_iter())
        for command in (["chat", "--max-tokens", 1], ["explain"]):
            run = diptych(stack, *command, "--no-store", "--image", path, "--max-pixels", 13000, "What?")
            assert run.returncode == 0, run.stderr
        assert set(redis.scan_iter()) == before


def test_an_error_is_one_line(stack: Stack, tmp_path: Path) -> None:
    """Reason, field and message on stderr; the exit code is 1."""
    path = tmp_path / "broken.png"
    path.write_bytes(b"not a picture")
    run = diptych(stack, "chat", "--image", path, "What?")
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("error: UNSUPPORTED_IMAGE_FORMAT conversation.messages[0].parts[0].image")
    assert len(run.stderr.splitlines()) == 1


def test_explain_shows_spans_and_draws_the_grid(stack: Stack, picture: Path, tmp_path: Path) -> None:
    """Nothing is generated; the table says where the picture stands, and the PNG has the size the model sees."""
    out = tmp_path / "grid.png"
    run = diptych(stack, "explain", "--image", picture, "--png", out, "What?")
    assert run.returncode == 0, run.stderr
    assert "<|vision_start|><|image_pad|><|vision_end|>What?" in run.stdout
    assert "12 tokens at 20 to 31, grid 1 x 6 x 8" in run.stdout
    assert Image.open(out).size == (112, 84)


def test_model_shows_what_answers(stack: Stack) -> None:
    """For people as a table, for programs as JSON."""
    assert "32768 tokens" in diptych(stack, "model").stdout
    assert json.loads(diptych(stack, "model", "--json").stdout)["patch_size"] == 14


def test_purge_tells_what_is_gone(stack: Stack, picture: Path) -> None:
    """One line for people, JSON for programs; another tenant needs an administrator's token."""
    diptych(stack, "chat", "--image", picture, "--max-tokens", 1, "What?")
    run = diptych(stack, "purge")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("removed ")
    assert json.loads(diptych(stack, "purge", "--json").stdout).get("num_unreached", 0) == 0
    refused = diptych(stack, "purge", "--tenant", "globex")
    assert (refused.returncode, refused.stderr.split(":")[1]) == (1, " PERMISSION_DENIED")


def test_eval_measures_every_skill_through_the_gateway(stack: Stack, tmp_path: Path) -> None:
    """One case of each skill gives one row of each, and a table for the model card."""
    table = tmp_path / "table.md"
    run = diptych(stack, "eval", "--count", 1, "--json", "--markdown", table)
    assert run.returncode == 0, run.stderr
    skills = [row["skill"] for row in json.loads(run.stdout)]
    assert skills == ["shapes", "cards", "digits", "videos", "pairs", "text"]
    assert len(table.read_text().splitlines()) == 2 + len(skills)


@contextmanager
def up(model: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`diptych up`, killed at the end if it still runs; its output is in `folder`/output."""
    command = [DIPTYCH, "up", "--model", str(model), "--listen", "127.0.0.1:0", "--dtype", "float32"]
    environment = {**os.environ, "DIPTYCH_THREADS": "1", "COLUMNS": "200"}
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def children(process: subprocess.Popen[bytes]) -> dict[str, int]:
    """Command lines and ids of the processes that it started."""
    ids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return {Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "): int(pid) for pid in ids}


def test_up_runs_everything_until_interrupted(checkpoint: Path, tmp_path: Path) -> None:
    """Addresses and choices are printed once all listen; Ctrl-C ends with 0 and leaves no process behind."""
    with up(checkpoint, tmp_path) as process:
        output = tmp_path / "output"
        wait_until(lambda: "Stop: Ctrl-C" in output.read_text() or process.poll() is not None, "diptych up is up", 60)
        started = children(process)
        assert len(started) == 4, output.read_text()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, output.read_text()
        assert [pid for pid in started.values() if Path(f"/proc/{pid}").exists()] == []
        text = output.read_text()
    assert all(name in text for name in ("redis", "encoder", "decoder", "gateway", "float32, cpu", str(checkpoint)))


def test_up_stops_when_a_service_dies(checkpoint: Path, tmp_path: Path) -> None:
    """The death is told with the end of the log, everything else is stopped, and the exit code is 1."""
    with up(checkpoint, tmp_path) as process:
        output = tmp_path / "output"
        wait_until(lambda: "Stop: Ctrl-C" in output.read_text() or process.poll() is not None, "diptych up is up", 60)
        started = children(process)
        os.kill(next(pid for line, pid in started.items() if "services.encoder" in line), signal.SIGKILL)
        assert process.wait(30) == 1
        assert "error: the encoder ended with exit code -9" in output.read_text()
        assert '"service": "encoder"' in output.read_text()
        assert [pid for pid in started.values() if Path(f"/proc/{pid}").exists()] == []


def test_services_drain_when_up_itself_is_killed(checkpoint: Path, tmp_path: Path) -> None:
    """A launcher that is killed leaves no service behind."""
    with up(checkpoint, tmp_path) as process:
        output = tmp_path / "output"
        wait_until(lambda: "Stop: Ctrl-C" in output.read_text() or process.poll() is not None, "diptych up is up", 60)
        started = children(process)
        services = [pid for line, pid in started.items() if "-m" in line]
        assert len(services) == 3
        process.kill()
        os.kill(next(pid for pid in started.values() if pid not in services), signal.SIGTERM)  # Redis stays behind
        wait_until(
            lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in services), "the services have ended", 30
        )


def test_up_with_no_such_model_says_so(tmp_path: Path) -> None:
    """A model that is not there ends with 1 and the service's own words."""
    with up(tmp_path / "nothing-here", tmp_path) as process:
        assert process.wait(60) == 1
    assert "nothing-here" in (tmp_path / "output").read_text()
