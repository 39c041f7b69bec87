"""Builds the compiled operators when the package is installed; all else is in pyproject.toml."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent / "csrc"))
from build import LIBRARY, BuildError, build, is_asked_for


class BuildWithOperators(build_py):
    """Python files as ever, and the library beside `focus_lab/ops`."""

    def run(self) -> None:
        """Build; without a compiler the package is whole but for the library."""
        super().run()
        here = Path(__file__).parent if self.editable_mode else Path(self.build_lib)
        place = here / "focus_lab" / "ops"
        # A wheel must not carry a library that some earlier build left in the tree.
        if not self.editable_mode:
            (place / LIBRARY).unlink(missing_ok=True)
        try:
            build(place)
        except BuildError as error:
            # The plain PyTorch reference serves, and every sweep and `doctor` say so.
            if is_asked_for():
                raise
            self.warn(f"operators are not compiled: {error}")


class WheelForEveryPython(bdist_wheel):
    """The library knows no Python and only torch's stable interface: the tag names a C library."""

    def run(self) -> None:
        """Build, then pack as code for one platform, unless nothing was compiled."""
        self.run_command("build")
        built = Path(self.get_finalized_command("build").build_lib)
        compiled = any(built.rglob(LIBRARY))
        self.root_is_pure = not compiled
        # Where the package goes in the wheel: setuptools knows of no extension, only we do.
        self.distribution.has_ext_modules = lambda: compiled
        self.skip_build = True
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """`py3-none-manylinux_…`, by the newest glibc symbol that the library asks for."""
        library = next(Path(self.bdist_dir).rglob(LIBRARY), None)
        if library is None:
            return "py3", "none", "any"
        platform = super().get_tag()[2]
        said = subprocess.run(["objdump", "-T", str(library)], capture_output=True, text=True)
        needed = [int(minor) for minor in re.findall(r"GLIBC_2\.(\d+)", said.stdout)]
        if platform.startswith("linux_") and needed:
            platform = f"manylinux_2_{max(*needed, 28)}_{platform.removeprefix('linux_')}"
        return "py3", "none", platform


setup(cmdclass={"build_py": BuildWithOperators, "bdist_wheel": WheelForEveryPython})
