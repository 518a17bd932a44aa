"""The command line starts quickly."""

import subprocess
import sys


def test_help_imports_no_grpc_and_no_pictures() -> None:
    """What a command needs is imported when it runs: --help waits for none of it."""
    code = "import sys, cli.main; print(sorted({'grpc', 'PIL', 'av', 'numpy', 'redis', 'torch'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
