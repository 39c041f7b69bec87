"""Which toolkit csrc/build.py takes, and that one of no use keeps nobody from installing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

_SCRIPT = Path(__file__).parents[3] / "csrc" / "build.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """csrc/build.py, on a machine without a toolkit."""
    spec = importlib.util.spec_from_file_location("build_script", _SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    for name in ("FOCUS_LAB_OPS", "FOCUS_LAB_CUDA", "FOCUS_LAB_CUDA_ARCHS", "CUDA_HOME", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "_USUAL_HOME", Path("/nowhere"))
    monkeypatch.setattr(
        module.shutil, "which", lambda name: "/usr/bin/g++" if name == "c++" else None
    )
    monkeypatch.setattr(module.sysconfig, "get_paths", lambda: {"purelib": "/nowhere"})
    monkeypatch.setattr(module, "find_torch", lambda: Path("/torch"))
    return module


def toolkit(home: Path, version: str = "13.0", archs: str = "compute_75 compute_90") -> Path:
    """A folder with a program that answers as nvcc does."""
    nvcc = home / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "release {version}, V{version}"\n'
        f'[ "$1" = --list-gpu-arch ] && echo "{archs}"\nexit 0\n'
    )
    nvcc.chmod(0o755)
    (home / "lib64").mkdir()
    (home / "lib64" / "libcudart_static.a").touch()
    return home


def test_cuda_home_comes_first_then_the_path_then_the_usual_place_then_packages(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = {
        name: toolkit(tmp_path / name) for name in ("named", "path", "usual", "site/nvidia/cu13")
    }
    assert script.find_cuda() is None
    monkeypatch.setattr(script.sysconfig, "get_paths", lambda: {"purelib": str(tmp_path / "site")})
    assert script.find_cuda().nvcc == homes["site/nvidia/cu13"] / "bin" / "nvcc"
    monkeypatch.setattr(script, "_USUAL_HOME", homes["usual"])
    assert script.find_cuda().nvcc == homes["usual"] / "bin" / "nvcc"
    on_path = str(homes["path"] / "bin" / "nvcc")
    monkeypatch.setattr(script.shutil, "which", lambda name: on_path if name == "nvcc" else None)
    assert script.find_cuda().nvcc == homes["path"] / "bin" / "nvcc"
    monkeypatch.setenv("CUDA_HOME", str(homes["named"]))
    found = script.find_cuda()
    assert (found.nvcc, found.version) == (homes["named"] / "bin" / "nvcc", "13.0")
    assert found.runtime == homes["named"] / "lib64" / "libcudart_static.a"
    monkeypatch.setenv("FOCUS_LAB_CUDA", "off")
    assert script.find_cuda() is None


def test_a_toolkit_without_its_runtime_is_passed_over_with_a_word(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home = toolkit(tmp_path / "half")
    (home / "lib64" / "libcudart_static.a").unlink()
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert script.find_cuda() is None
    assert "for the CPU only" in capsys.readouterr().err
    monkeypatch.setenv("FOCUS_LAB_CUDA", "on")
    with pytest.raises(script.BuildError, match=r"no libcudart_static\.a"):
        script.find_cuda()


def test_an_older_nvcc_is_asked_for_what_it_knows(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "CUDA_HOME", str(toolkit(tmp_path / "old", "12.4", "compute_80 compute_90a compute_90"))
    )
    cuda = script.find_cuda()
    assert script.architectures(cuda) == ("80", "90")
    monkeypatch.setenv("FOCUS_LAB_CUDA_ARCHS", "9.0; 120")
    assert script.architectures(cuda) == ("90", "120")
    monkeypatch.delenv("FOCUS_LAB_CUDA_ARCHS")
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "ancient", "9.0", "compute_30")))
    with pytest.raises(script.BuildError, match="knows none of the architectures"):
        script.architectures(script.find_cuda())


def test_a_toolkit_that_fails_leaves_the_kernels_for_the_cpu(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "cuda")))

    def build(place: Path, compiler: list[str], torch: Path, cuda: object) -> Path:
        if cuda is not None:
            raise script.BuildError("nvcc: failed, got exit 1")
        return place / "library"

    monkeypatch.setattr(script, "_build", build)
    assert script.build(tmp_path) == tmp_path / "library"
    assert "for the CPU only: nvcc: failed" in capsys.readouterr().err
    assert not script.is_asked_for()
    monkeypatch.setenv("FOCUS_LAB_CUDA", "on")
    assert script.is_asked_for()
    with pytest.raises(script.BuildError, match="nvcc: failed"):
        script.build(tmp_path)
