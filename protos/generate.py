"""Writes the Python stubs of protos/diptych/v1: the only code-generation command of the project.

python protos/generate.py                  # the committed stubs, beside their .proto files
python protos/generate.py --out FOLDER     # elsewhere, to compare
python protos/generate.py --image FILE     # a descriptor image instead, for buf, which then needs no network
"""

import argparse
import sys
from importlib import resources
from pathlib import Path

from google.rpc import status_pb2
from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent
SOURCES = sorted(path.relative_to(PROTOS).as_posix() for path in (PROTOS / "diptych").rglob("*.proto"))
# google/rpc/*.proto come with googleapis-common-protos, google/protobuf/*.proto with grpcio-tools.
GOOGLE_RPC = Path(status_pb2.__file__).parents[2]
GOOGLE_PROTOBUF = str(resources.files("grpc_tools") / "_proto")


def run_protoc(*outputs: str) -> None:
    """Runs protoc over all sources; exits with its status when it fails, after it has printed why."""
    includes = [f"-I{folder}" for folder in (PROTOS, GOOGLE_RPC, GOOGLE_PROTOBUF)]
    status = protoc.main(["protoc", *includes, *outputs, *SOURCES])
    if status != 0:
        sys.exit(status)


def write_stubs(folder: Path) -> None:
    """Writes `*_pb2.py`, `*_pb2.pyi` and `*_pb2_grpc.py` under `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    run_protoc(f"--python_out={folder}", f"--pyi_out={folder}", f"--grpc_python_out={folder}")


def write_image(path: Path) -> None:
    """Writes one descriptor set with all imports and comments."""
    run_protoc("--include_imports", "--include_source_info", f"--descriptor_set_out={path}")


def main() -> None:
    """Parses the command line and writes what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PROTOS)
    parser.add_argument("--image", type=Path)
    arguments = parser.parse_args()
    if arguments.image:
        write_image(arguments.image)
    else:
        write_stubs(arguments.out)


if __name__ == "__main__":
    main()
