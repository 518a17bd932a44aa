"""Who may import whom."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("gateway", "services.encoder", "services.decoder", "services.common", "cli", "models", "benchmarks", "tests")
# Each room and what it may import of the others.
ALLOWED = {
    "gateway": {"services.common"},
    "services.encoder": {"services.common"},
    "services.decoder": {"services.common"},
    "services.common": set(),
    "cli": {"services.common", "models"},
}


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_what_they_may(room: str) -> None:
    """gateway, encoder and decoder share services.common alone; services.common knows none of them."""
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / room.replace(".", "/")).rglob("*.py"))
        for name in imports(path)
        if (other := room_of(name)) and other != room and other not in ALLOWED[room]
    ]
    assert wrong == []


@pytest.mark.parametrize("module", ["gateway.__main__", "services.common", "cli.main"])
def test_imports_without_torch(module: str) -> None:
    """The gateway and the command line start without torch and transformers."""
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_no_file_is_a_list_of_contents() -> None:
    """No module of the services and the command line is longer than 400 lines."""
    sources = [path for room in ALLOWED for path in (ROOT / room.replace(".", "/")).rglob("*.py")]
    assert [path for path in sources if len(path.read_text().splitlines()) > 400] == []


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, relative ones resolved."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
            yield from (f"{base}.{node.module or ''}.{alias.name}" for alias in node.names)


def room_of(name: str) -> str | None:
    """The room that a module belongs to."""
    return next((room for room in ROOMS if name == room or name.startswith(room + ".")), None)
