"""What is installed and usable, what is wrong, and how to mend it."""

from __future__ import annotations

import importlib
import importlib.metadata
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from focus_lab.errors import FocusLabError
from focus_lab.lab.database import NoStoreError
from focus_lab.lab.lab import open_lab
from focus_lab.training.folder import make_folder

if TYPE_CHECKING:
    from focus_lab.ops import LibraryState

_LEAST_FREE_GIB = 2

Check = Callable[[Path], "Iterator[Finding]"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    ok: bool
    state: str
    remedy: str = ""


def examine(home: Path) -> list[Finding]:
    """Look at Python, packages, GPU, op, folder, store and tracker."""
    return [finding for check in _CHECKS for finding in _guarded(check, home)]


def _guarded(check: Check, home: Path) -> list[Finding]:
    """A check that cannot even run is a finding too."""
    try:
        return list(check(home))
    except Exception as error:
        subject = check.__name__.strip("_").replace("_", " ")
        return [Finding(subject, False, f"cannot be checked, got {error}", "mend what is above")]


def _python(home: Path) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info >= (3, 11)
    yield Finding("Python", ok, version, "" if ok else "install Python 3.11 or newer")


def _packages(home: Path) -> Iterator[Finding]:
    for name in (
        "torch",
        "torchvision",
        "timm",
        "pycocotools",
        "faster_coco_eval",
        "ray",
        "mlflow",
    ):
        try:
            importlib.import_module(name)
            yield Finding(name, True, importlib.metadata.version(name))
        except Exception as error:
            remedy = f"install it again: pip install --force-reinstall {name}"
            if "nms" in str(error):
                remedy = "install torch and torchvision together: both for CPUs or both for CUDA"
            yield Finding(name, False, f"does not import, got {error}", remedy)


def _gpu(home: Path) -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        yield Finding("GPU", True, f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}")
    elif torch.version.cuda is None:
        yield Finding("GPU", True, "none; this torch is built for CPUs")
    else:
        yield Finding("GPU", True, f"none found (torch is built for CUDA {torch.version.cuda})")


def _op(home: Path) -> Iterator[Finding]:
    """Whether the operators were compiled, and whether they give the reference's numbers."""
    import torch

    from focus_lab.ops import library_state

    state = library_state()
    subject = "deformable attention"
    if not state.ok:
        # Missing is slow; what is out of date or broken stops every training.
        missing = state.status == "missing"
        now = "the reference (plain PyTorch) is active" if missing else "nothing can train"
        yield Finding(subject, missing, f"{now}: {state.reason}", state.remedy)
        return
    devices = ["cpu", "cuda"] if torch.cuda.is_available() and _built_for_cuda(state) else ["cpu"]
    for device in devices:
        ok = _equals_the_reference(device)
        built = f"torch {state.build['torch']}, CUDA {state.build['cuda']}"
        found = "compiled, equals the reference" if ok else "compiled, but gives wrong numbers"
        remedy = "" if ok else f"report it, and set model.ops.implementation: reference on {device}"
        yield Finding(f"{subject} ({device})", ok, f"{found} (built with {built})", remedy)
    if torch.cuda.is_available() and not _built_for_cuda(state):
        yield Finding(
            f"{subject} (cuda)",
            False,
            "built without CUDA kernels",
            "install the CUDA toolkit (nvcc) and build again: python csrc/build.py",
        )


def _equals_the_reference(device: str) -> bool:
    """Whether both operators have the reference's outputs and gradients."""
    import torch

    from focus_lab.ops import deformable_attention, projected_deformable_attention

    shapes = ((4, 6), (2, 3))
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> torch.Tensor:
        return torch.rand(*size, generator=generator).to(device)

    value = random(1, 30, 2, 4)
    given = (value, random(1, 5, 2, 2, 3, 2) * 1.4 - 0.2, random(1, 5, 2, 2, 3))
    projected = (value, random(1, 5, 2, 2), random(1, 5, 2, 2, 3, 2) * 4 - 2, random(1, 5, 2, 6))
    operators: list[tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]] = [
        (deformable_attention, given),
        (projected_deformable_attention, projected),
    ]
    found = []
    for implementation in ("compiled", "reference"):
        for operator, inputs in operators:
            leaves = [tensor.clone().requires_grad_() for tensor in inputs]
            output = operator(leaves[0], shapes, *leaves[1:], implementation=implementation)
            found += [output, *torch.autograd.grad(output.square().sum(), leaves)]
    half = len(found) // 2
    return all(
        torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(found[:half], found[half:], strict=True)
    )


def _built_for_cuda(state: LibraryState) -> bool:
    return bool(state.build["cuda"] != "none")


def _folder(home: Path) -> Iterator[Finding]:
    existing = next(place for place in (home.resolve(), *home.resolve().parents) if place.exists())
    try:
        make_folder(existing)
    except FocusLabError as error:
        yield Finding("folder", False, str(error), "choose another --out DIR")
        return
    free = shutil.disk_usage(existing).free / 2**30
    ok = free > _LEAST_FREE_GIB
    made = "" if home.exists() else ", not made yet"
    state = f"{home.resolve()}{made}, {free:.0f} GiB free"
    yield Finding("folder", ok, state, "" if ok else "free space")


def _stores(home: Path) -> Iterator[Finding]:
    try:
        with open_lab(home, create=False) as lab:
            count = len(lab.store.experiments())
        yield Finding("store and MLflow", True, f"{count} experiments")
    except NoStoreError:
        yield Finding("store and MLflow", True, "none yet; the first sweep makes them")
    except FocusLabError as error:
        yield Finding("store and MLflow", False, str(error), "see the sentence")


_CHECKS: tuple[Check, ...] = (
    _python, _packages, _gpu, _op, _folder, _stores,
)  # fmt: skip
