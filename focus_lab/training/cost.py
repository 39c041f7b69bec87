"""What a model costs: parameters, MACs and FLOPs split by part, latency, peak memory.

The protocol: one forward pass of one image in evaluation, counted by torch's FlopCounterMode with
the attention fast path off and the math attention kernel, which is right on every supported torch.
One multiply-accumulate is 1 MAC and 2 FLOPs. Convolutions, matrix products and attention products
count; bilinear sampling, top-k, gather, norms and activations count 0. Published GFLOPs of the DETR
family are usually MACs.
"""

from __future__ import annotations

import contextlib
import copy
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from focus_lab.data.dataset import DetectionDataset
from focus_lab.data.transforms import EvalTransform
from focus_lab.model.focus_detr import FocusDETR, build_model
from focus_lab.model.output import Target
from focus_lab.specs.data import DataSpec
from focus_lab.specs.experiment import TrialSpec
from focus_lab.specs.model import ModelSpec
from focus_lab.training.reporter import Metrics

_COST_IMAGES = 32
PAPER_SHAPE = (800, 1333)
"""(height, width) at which the DETR family reports its cost."""

_PARTS = {
    "backbone": ("backbone",),
    "neck": ("neck",),
    "scorer": ("token_selector",),
    "encoder": ("encoder",),
    "decoder": ("decoder",),
}
"""Part of the report -> top-level modules of the model; what is left are the heads. A pass through
the proposals' projection that a scorer asks for happens within the scorer and counts there."""

_NO_BOXES: Target = {
    "labels": torch.empty(0, dtype=torch.int64, device="meta"),
    "boxes": torch.empty(0, 4, device="meta"),
}
"""What oracle scoring looks at; nothing multiplies."""


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of one forward pass of one image, by part."""

    parameters: int
    macs: dict[str, int]
    """backbone, neck, scorer, encoder, decoder, heads."""

    @property
    def total_macs(self) -> int:
        """All parts together."""
        return sum(self.macs.values())

    def metrics(self) -> dict[str, float]:
        """As `cost/*`: GFLOPs (2 per MAC), GMACs, and parameters."""
        result = {
            "cost/params": float(self.parameters),
            "cost/gflops": 2 * self.total_macs / 1e9,
            "cost/gmacs": self.total_macs / 1e9,
        }
        return result | {f"cost/{part}_gflops": 2 * macs / 1e9 for part, macs in self.macs.items()}


def count_parameters(model: torch.nn.Module) -> int:
    """Numbers that training may change, plus those that are frozen."""
    return sum(parameter.numel() for parameter in model.parameters())


def model_without_memory(spec: ModelSpec, num_classes: int) -> FocusDETR:
    """The model on the meta device: shapes without numbers, to count before anything is trained."""
    with torch.device("meta"):
        return build_model(spec, num_classes, load_backbone=False)


def count(model: FocusDETR, shape: tuple[int, int]) -> Cost:
    """Cost of one image of `shape` (height, width), without running a single multiplication."""
    shadow = copy.deepcopy(model).to("meta").eval().requires_grad_(False)
    counter = FlopCounterMode(display=False)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            shadow(torch.empty(1, 3, *shape, device="meta"), targets=[_NO_BOXES])
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    flops = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    root = type(shadow).__name__
    macs = {
        part: sum(flops.get(f"{root}.{module}", 0) for module in modules) // 2
        for part, modules in _PARTS.items()
    }
    macs["heads"] = flops.get("Global", 0) // 2 - sum(macs.values())
    return Cost(count_parameters(model), macs)


def mean_cost(model: FocusDETR, shapes: Sequence[tuple[int, int]]) -> Cost:
    """Mean cost over image shapes; each distinct shape is counted once."""
    counted = {shape: count(model, shape) for shape in set(shapes)}
    macs = {
        part: round(statistics.fmean(counted[shape].macs[part] for shape in shapes))
        for part in next(iter(counted.values())).macs
    }
    return Cost(count_parameters(model), macs)


def trial_costs(model: FocusDETR, val_set: DetectionDataset, spec: TrialSpec) -> Metrics:
    """Cost metrics of a trial: at its own sizes, and FLOPs at the paper's."""
    metrics = mean_cost(model, evaluation_shapes(val_set, spec.data)).metrics()
    paper = count(model, PAPER_SHAPE)
    metrics["cost/gflops_800x1333"] = 2 * paper.total_macs / 1e9
    metrics["cost/gmacs_800x1333"] = paper.total_macs / 1e9
    return metrics


def evaluation_shapes(dataset: DetectionDataset, spec: DataSpec) -> list[tuple[int, int]]:
    """(height, width) of a data set's first images as the model sees them: cost is their mean."""
    resize = EvalTransform(spec.evaluation).size
    return [resize(*size) for size in dataset.sizes[:_COST_IMAGES]]


@dataclass(frozen=True)
class Latency:
    """Seconds of repeated forward passes of one image."""

    seconds: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Median, in milliseconds."""
        return 1000 * statistics.median(self.seconds)

    @property
    def p95_ms(self) -> float:
        """95th percentile, in milliseconds."""
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]


def measure_latency(
    calls: dict[str, Callable[[], object]], device: torch.device, repeats: int = 20, warmup: int = 3
) -> dict[str, Latency]:
    """Time several calls in turn (A B C A B C …), so that a drifting machine hits all alike.

    Args:
        calls: name -> call; each runs one forward pass.
        device: where they run; a GPU is waited for.
        repeats: counted rounds.
        warmup: rounds before, not counted.
    """

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for round_number in range(-warmup, repeats):
            for name, call in calls.items():
                wait()
                start = time.perf_counter()
                call()
                wait()
                if round_number >= 0:
                    seconds[name].append(time.perf_counter() - start)
    return {name: Latency(tuple(values)) for name, values in seconds.items()}


def reset_peak_memory(device: torch.device) -> None:
    """Forget earlier peaks: a process may carry out several trials."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        # Linux: 5 resets the high-water mark of resident memory (proc(5)).
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib(device: torch.device) -> float:
    """Largest memory since the reset, in MiB: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
