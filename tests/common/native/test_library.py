"""Which library of kernels a process takes."""

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common import native
from services.common.native import build

CAN_BUILD = sys.platform == "linux" and platform.machine() == "x86_64" and shutil.which("cc") is not None
needs_compiler = pytest.mark.skipif(not CAN_BUILD, reason="kernels need a C compiler, Linux and a 64-bit x86")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Forget what was found, before and after."""
    finders = (native.best_level, native.load, native._features)
    for finder in finders:
        finder.cache_clear()
    yield
    native.use_kernels("auto")
    for finder in finders:
        finder.cache_clear()


@pytest.fixture
def processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc/cpuinfo to write."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(native, "_CPUINFO", path)
    return path


@needs_compiler
@pytest.mark.parametrize("level", build.LEVELS, ids=lambda level: level.name)
def test_installing_compiles_each_level(level: build.Level) -> None:
    """Where there is a compiler, the libraries are there and made from the sources of now."""
    assert native.load(level) is not None


@needs_compiler
def test_the_best_that_the_processor_can_run(processor: Path) -> None:
    """Instructions that a processor lacks are never chosen."""
    best, plain = build.LEVELS
    processor.write_text(f"flags\t\t: fpu {' '.join(plain.features)}\n")
    assert native.best_level() is plain
    native.best_level.cache_clear()
    native._features.cache_clear()
    processor.write_text(f"flags\t\t: fpu {' '.join(best.features)}\n")
    assert native.best_level() is best


@pytest.mark.parametrize("text", ["flags\t\t: fpu sse2 avx2 fma\n", "Features : asimd\n", ""])
def test_no_kernels_for_other_processors(processor: Path, text: str) -> None:
    """A processor without the instructions has none."""
    processor.write_text(text)
    assert native.library() is None


def test_no_kernels_when_they_were_not_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No library, no kernels, and no error."""
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    assert native.library() is None


def test_no_kernels_of_other_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that was left over is not used: a kernel may take other arguments by now."""
    monkeypatch.setattr(native, "sources_digest", lambda: "another")
    assert native.library() is None


def test_the_operator_may_do_without() -> None:
    """`kernels` = torch leaves everything to PyTorch."""
    native.use_kernels("torch")
    assert native.library() is None


@needs_compiler
@pytest.mark.parametrize("level", build.LEVELS, ids=lambda level: level.name)
def test_sources_compile_without_a_warning(level: build.Level) -> None:
    """A warning is a mistake until it is looked at."""
    sources = [str(path) for path in sorted(build.FOLDER.glob("*.c"))]
    flags = [*build.FLAGS, *level.flags, "-Werror", '-DSOURCES_DIGEST=""']
    subprocess.run(["cc", *flags, "-fsyntax-only", *sources], check=True)


@needs_compiler
def test_a_source_that_does_not_compile_leaves_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller is told, and nothing half made can be loaded."""
    (tmp_path / "broken.c").write_text("int half(")
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    with pytest.raises(subprocess.CalledProcessError):
        build.compile_kernels()
    assert list(tmp_path.glob("*.so")) == []


def test_without_a_compiler_nothing_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing fails."""
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    monkeypatch.setenv("CC", "no-such-compiler")
    assert build.compile_kernels() == []
