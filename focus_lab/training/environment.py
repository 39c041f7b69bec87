"""Where a trial runs: device, and the facts that its manifest records."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from focus_lab.errors import UserError
from focus_lab.specs.training import ComputeSpec

_PACKAGES = (
    "torch", "torchvision", "timm", "numpy", "pycocotools", "faster-coco-eval", "ray", "mlflow",
    "focus-lab",
)  # fmt: skip


def choose_device(compute: ComputeSpec) -> torch.device:
    """The device that the spec asks for.

    Raises:
        UserError: it asks for a GPU and there is none.
    """
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise UserError("compute.device: no usable GPU, got 'cuda'; set it to cpu or auto")
    return torch.device("cuda" if compute.device != "cpu" and torch.cuda.is_available() else "cpu")


def describe() -> dict[str, Any]:
    """Versions, device and code state, as JSON data for the manifest."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda,
        "versions": versions,
        "git": _git_state(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _git_state() -> dict[str, Any] | None:
    """Commit and uncommitted changes of the code that runs, or None outside a checkout."""
    root = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "branch": git("rev-parse", "--abbrev-ref", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
            "diff": git("diff", "HEAD")[:200_000],
        }
    except (OSError, subprocess.SubprocessError):
        return None
