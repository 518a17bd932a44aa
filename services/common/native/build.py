"""Compiles the C sources beside this file, one library for each kind of processor.

`hatch_build.py` runs this when the project is installed; `python services/common/native/build.py` after a change to a
source. Without a C compiler nothing is built, and the services compute with PyTorch's operators alone.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).resolve().parent
# Products and sums may be fused, in whatever order the source says; errno and traps are nobody's concern here.
FLAGS: Final = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno",
                "-fno-trapping-math", "-Wall", "-Wextra")  # fmt: skip


@dataclass(frozen=True)
class Level:
    """A kind of processor: how to compile for it, and which features it must have by the names of /proc/cpuinfo."""

    name: str
    flags: tuple[str, ...]
    features: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Of its library."""
        return FOLDER / f"kernels-{self.name}.so"


_AVX512 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "fma", "f16c", "bmi2")
# The first that a processor can run is the best one.
LEVELS: Final = (
    Level(
        "avx512-bf16",
        ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16"),
        (*_AVX512, "avx512_vnni", "avx512_bf16"),
    ),
    Level("avx512", ("-march=x86-64-v4",), _AVX512),
)


def sources_digest() -> str:
    """Of the C sources and of how they are compiled."""
    digest = hashlib.sha256(repr((FLAGS, LEVELS)).encode())
    for path in sorted(FOLDER.glob("*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def compile_kernels() -> list[Path]:
    """The libraries, made anew: all of them on 64-bit x86 under Linux where there is a compiler, else none.

    Raises subprocess.CalledProcessError when the compiler refuses a source; what it says goes to standard error.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or sys.platform != "linux" or platform.machine() != "x86_64":
        return []
    sources = [str(path) for path in sorted(FOLDER.glob("*.c"))]
    digest = f'-DSOURCES_DIGEST="{sources_digest()}"'
    for level in LEVELS:
        part = level.path.with_suffix(".part")
        subprocess.run([compiler, *FLAGS, *level.flags, digest, *sources, "-lm", "-o", str(part)], check=True)  # noqa: S603
        part.replace(level.path)  # at once: a process may be loading the one before
    return [level.path for level in LEVELS]


if __name__ == "__main__":
    built = compile_kernels()
    print("\n".join(str(path) for path in built) or "No kernels: they need a C compiler, Linux and a 64-bit x86.")
