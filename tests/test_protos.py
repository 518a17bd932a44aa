"""The protocol's files: committed stubs, comments, lint."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet

ROOT = Path(__file__).resolve().parents[1]
GENERATE = [sys.executable, str(ROOT / "protos" / "generate.py")]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All descriptors with their comments, as buf reads them."""
    path = tmp_path_factory.mktemp("protos") / "protos.binpb"
    subprocess.run([*GENERATE, "--image", str(path)], check=True)
    return path


def test_committed_stubs_are_what_the_generator_writes(tmp_path: Path) -> None:
    """A change to a .proto file comes with its stubs, and nothing edits a stub by hand."""
    subprocess.run([*GENERATE, "--out", str(tmp_path)], check=True)
    generated, stubs = stubs_in(tmp_path), stubs_in(ROOT / "protos")
    assert sorted(stubs) == sorted(generated)
    assert [path for path in stubs if stubs[path] != generated[path]] == []


def stubs_in(folder: Path) -> dict[Path, str]:
    """Every stub's text; what Python has compiled beside them is no stub."""
    paths = [path for path in folder.rglob("*_pb2*") if path.suffix in {".py", ".pyi"}]
    return {path.relative_to(folder): path.read_text() for path in paths}


def test_buf_lint_holds(image: Path) -> None:
    """buf's STANDARD and COMMENTS rules find nothing."""
    buf = Path(sys.executable).with_name("buf")
    lint = [str(buf), "lint", str(image), "--config", str(ROOT / "buf.yaml"), "--path", "diptych"]
    result = subprocess.run(lint, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_field_is_explained(image: Path) -> None:
    """Each service, method, message, field, enum and value has a comment that ends a sentence."""
    files = FileDescriptorSet.FromString(image.read_bytes()).file
    silent = [name for file in files if file.package == "diptych.v1" for name in uncommented(file)]
    assert silent == []


def uncommented(file: FileDescriptorProto) -> Iterator[str]:
    """Names of the definitions in `file` whose leading comment is missing or not a sentence."""
    comments = {tuple(place.path): place.leading_comments.strip() for place in file.source_code_info.location}
    for path, name in definitions(file):
        if not comments.get(path, "").endswith("."):
            yield name


def definitions(file: FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    """(path in descriptor.proto's field numbers, name) of everything that `file` defines."""
    for index, message in enumerate(file.message_type):
        yield from message_definitions((4, index), message)
    for index, enum in enumerate(file.enum_type):
        yield (5, index), enum.name
        yield from (((5, index, 2, number), value.name) for number, value in enumerate(enum.value))
    for index, service in enumerate(file.service):
        yield (6, index), service.name
        yield from (((6, index, 2, number), method.name) for number, method in enumerate(service.method))


def message_definitions(path: tuple[int, ...], message: DescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    """The message itself, its fields and its nested messages; the entries of maps are protoc's own."""
    yield path, message.name
    yield from (((*path, 2, number), f"{message.name}.{field.name}") for number, field in enumerate(message.field))
    for number, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from message_definitions((*path, 3, number), nested)
