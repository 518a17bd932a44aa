"""Run by hatchling when the project is installed: compiles the kernels, where there is a compiler for them."""

import runpy
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelsBuildHook(BuildHookInterface[Any]):
    """Puts the libraries beside their sources, and into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 -- hatchling's signature
        """Before the wheel is written, an editable one too."""
        root = Path(self.root)
        try:
            built = runpy.run_path(str(root / "services/common/native/build.py"))["compile_kernels"]()
        except subprocess.CalledProcessError as error:  # an older compiler; it has said on standard error what it lacks
            self.app.display_warning(f"diptych: {error}")
            built = []
        if not built:
            self.app.display_warning("diptych: without compiled kernels; PyTorch's operators compute everything")
            return
        build_data["artifacts"] += [f"/{path.relative_to(root)}" for path in built]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
