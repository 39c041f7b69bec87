"""How fast the compiled operator is: against the reference and every installed peer, in one run.

It needs torch alone, so that it also runs where the rest of the package is not installed:
`python -m focus_lab.ops.bench --json FILE` is `focus-lab bench ops` without its command line.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import math
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from focus_lab.errors import FocusLabError, UserError
from focus_lab.ops.bench_cases import CASES, Case, make_inputs
from focus_lab.ops.clock import Step, copy_bandwidth, device_name, interleaved
from focus_lab.ops.compiled import (
    CompiledOpError,
    compiled_deformable_attention,
    library_state,
    load,
)
from focus_lab.ops.peers import (
    Call,
    Inputs,
    NotInstalled,
    Peer,
    compiled_reference,
    peers,
    reference,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DIRECTIONS = ("forward", "backward", "forward+backward")

# Largest error, as the norm of the difference to the float64 reference over the norm of that, of
# the output and of each gradient. Rounding stays below it, any wrong head, level or corner does
# not, nor do 16-bit locations. A location's gradient jumps where a sample crosses a pixel's centre,
# and float32 puts a few on the other side.
_TOLERANCES = {
    torch.float32: (1e-4, 2e-2),
    torch.bfloat16: (2e-2, 6e-2),
    torch.float16: (5e-3, 6e-2),
}


@dataclass(frozen=True)
class _Contender:
    """An implementation that has passed the check on the inputs at hand."""

    name: str
    steps: dict[str, Step]
    """What is timed, by direction."""
    error: float


def bench_ops(
    device: str = "cpu",
    cases: Sequence[str] = (),
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    rounds: int | None = None,
    threads: int | None = None,
    compile_reference: bool = False,
    on_case: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Time the compiled operator and all others on the same inputs.

    A round runs every implementation once, in turn; times are medians over the rounds. Whoever
    fails, or differs from the reference in float64, is listed with the reason and not timed. On a
    GPU it is the device's time: what Python needs to start the work is hidden behind work that was
    queued before.

    Args:
        device: where.
        cases: names, or beginnings of names, of `bench_cases.CASES`; none means all.
        dtypes: of value, from `DTYPES`.
        rounds: how often each is timed; by default 5 on a CPU, 25 on a GPU.
        threads: of the CPU; by default torch's own number.
        compile_reference: measure the reference through torch.compile too; it compiles for a while.
        on_case: told what is being measured.

    Returns:
        The content of `bench ops --json`. Beside the common columns a row has `ratio_range` (least
        and greatest of the single rounds), `ours_gb_s` (the bytes that must be moved over our
        time), `copy_share` (of the bandwidth of a plain copy) and both relative errors.

    Raises:
        UserError: an argument names nothing.
        CompiledOpError: the compiled operator cannot be used on this device.
        FocusLabError: the compiled operator is wrong.
    """
    where = _checked_device(device)
    chosen = _matching(cases)
    if unknown := [name for name in dtypes if name not in DTYPES]:
        raise UserError(f"--dtypes: no such dtype, got {unknown[0]!r}; one of {', '.join(DTYPES)}")
    if rounds is not None and rounds < 1:
        raise UserError(f"--rounds: must be at least 1, got {rounds}")
    if threads is not None and threads < 1:
        raise UserError(f"--threads: must be at least 1, got {threads}")
    build = _usable_library(where)
    others = [reference(), *([compiled_reference()] if compile_reference else []), *peers(where)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        rows, skipped = measure(
            chosen, [DTYPES[name] for name in dtypes], others, where,
            rounds or (25 if where.type == "cuda" else 5), on_case,
        )  # fmt: skip
        bandwidth = copy_bandwidth(where)
        used_threads = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    for row in rows:
        row["copy_share"] = row["ours_gb_s"] / bandwidth
    return {
        "bench": "ops",
        "device": device_name(where),
        "threads": used_threads,
        "versions": _versions(),
        "library": build,
        "copy_gb_s": bandwidth,
        "rows": rows,
        "skipped": skipped,
    }


def measure(
    cases: Iterable[Case],
    dtypes: Sequence[torch.dtype],
    others: Sequence[Peer],
    device: torch.device,
    rounds: int,
    on_case: Callable[[str], None] = lambda text: None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows, and who is in none of them and why; see `bench_ops`."""
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    absent: set[str] = set()
    for case, dtype in itertools.product(cases, dtypes):
        name = str(dtype).removeprefix("torch.")
        on_case(f"{case.name}, {name}")
        inputs, grad_output = make_inputs(case, dtype, device)
        expected = _results(*reference().bind(inputs.to(torch.float64)), grad_output.double())
        ours = _contender(_ours(), inputs, grad_output, expected)
        if isinstance(ours, str):
            raise FocusLabError(f"bench ops: {case.name}, {name}: the compiled operator {ours}")
        contenders = [ours]
        for peer in others:
            if peer.name in absent:
                continue
            try:
                found = _contender(peer, inputs, grad_output, expected)
            except NotInstalled as error:
                absent.add(peer.name)
                skipped.append(
                    {"against": peer.name, "case": None, "dtype": None, "reason": str(error)}
                )
                continue
            if isinstance(found, _Contender):
                contenders.append(found)
            else:
                skipped.append(
                    {"against": peer.name, "case": case.name, "dtype": name, "reason": found}
                )
        del expected
        for direction in DIRECTIONS:
            steps = [contender.steps[direction] for contender in contenders]
            times = interleaved(steps, device, rounds)
            ours_ms = statistics.median(times[0])
            for contender, theirs in zip(contenders[1:], times[1:], strict=True):
                against_ms = statistics.median(theirs)
                ratios = [b / a for a, b in zip(times[0], theirs, strict=True)]
                rows.append(
                    {
                        "case": case.name,
                        "dtype": name,
                        "direction": direction,
                        "against": contender.name,
                        "ours_ms": ours_ms,
                        "against_ms": against_ms,
                        "ratio": against_ms / ours_ms,
                        "ratio_range": [min(ratios), max(ratios)],
                        "ours_gb_s": compulsory_bytes(inputs, direction) / ours_ms / 1e6,
                        "ours_error": ours.error,
                        "against_error": contender.error,
                    }
                )
    return rows, skipped


def _ours() -> Peer:
    def bind(inputs: Inputs) -> tuple[Call, Inputs]:
        shapes = inputs.spatial_shapes
        return lambda v, x, w: compiled_deformable_attention(v, shapes, x, w), inputs

    return Peer("compiled", bind)


def _contender(
    peer: Peer, inputs: Inputs, grad_output: Tensor, expected: Sequence[Tensor]
) -> _Contender | str:
    """What is to be timed, or why it is not."""
    try:
        call, wanted = peer.bind(inputs)
        results = _results(call, wanted, grad_output)
    except NotInstalled:
        raise
    except Exception as error:  # whatever somebody else's code raises is a finding
        first = (str(error).strip() or "no message").splitlines()[0]
        return f"fails with {type(error).__name__}: {first}"
    limits = _TOLERANCES[inputs.value.dtype]
    errors = [_relative_error(ours, theirs) for ours, theirs in zip(results, expected, strict=True)]
    names = ("output", "gradient of value", "gradient of locations", "gradient of weights")
    for name, found, limit in zip(names, errors, (limits[0], *limits[1:] * 3), strict=True):
        if not found <= limit:  # a NaN is no agreement
            return f"differs from the reference, {name} by {found:.2g} of its norm"
    return _Contender(peer.name, _steps(call, wanted, grad_output), errors[0])


def _results(call: Call, inputs: Inputs, grad_output: Tensor) -> tuple[Tensor, ...]:
    """Output and the three gradients."""
    leaves = _leaves(inputs)
    output = call(*leaves)
    gradients = torch.autograd.grad(output, leaves, grad_output.to(output.dtype))
    return output.detach(), *gradients


def _steps(call: Call, inputs: Inputs, grad_output: Tensor) -> dict[str, Step]:
    leaves = _leaves(inputs)
    output = call(*leaves)
    upstream = grad_output.to(output.dtype)

    def forward() -> Tensor:
        with torch.no_grad():
            return call(*inputs.tensors)

    return {
        "forward": forward,
        "backward": lambda: torch.autograd.grad(output, leaves, upstream, retain_graph=True),
        "forward+backward": lambda: torch.autograd.grad(call(*leaves), leaves, upstream),
    }


def _leaves(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    value, locations, weights = (tensor.detach().requires_grad_() for tensor in inputs.tensors)
    return value, locations, weights


def _relative_error(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return math.inf
    difference = (found.double() - expected).norm() / expected.norm().clamp_min(1e-30)
    return float(difference)


def compulsory_bytes(inputs: Inputs, direction: str) -> int:
    """What must be moved at least, everything once and gradients of value summed in float32."""
    value, locations, weights = (t.numel() * t.element_size() for t in inputs.tensors)
    batch, queries = inputs.locations.shape[:2]
    output = batch * queries * math.prod(inputs.value.shape[2:]) * inputs.value.element_size()
    forward = value + locations + weights + output
    sums = 4 * inputs.value.numel()
    # Zeroed and written; in 16 bits read again and rounded.
    of_value = 2 * sums + (sums + value if inputs.value.element_size() == 2 else 0)
    backward = value + 2 * locations + 2 * weights + output + of_value
    return {"forward": forward, "backward": backward}.get(direction, forward + backward)


def _checked_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device: no such device, got {name!r}; cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device: torch sees no GPU, got {name!r}; use --device cpu")
    if device.type == "cuda" and device.index not in (None, torch.cuda.current_device()):
        # Peers and clocks use the current device.
        raise UserError(
            f"--device: must be the current GPU, got {name!r}; choose one by CUDA_VISIBLE_DEVICES"
        )
    return device


def _matching(names: Sequence[str]) -> list[Case]:
    for name in names:
        if not any(case.name.startswith(name) for case in CASES):
            known = ", ".join(case.name for case in CASES)
            raise UserError(f"--cases: no such case, got {name!r}; beginnings of {known}")
    return [case for case in CASES if not names or case.name.startswith(tuple(names))]


def _usable_library(device: torch.device) -> dict[str, Any]:
    """Facts of the build.

    Raises:
        CompiledOpError: there is none to measure.
    """
    state = library_state()
    if not state.ok:
        raise CompiledOpError(
            f"bench ops: {state.path.name} is {state.status}, {state.reason}; "
            "build it with `python csrc/build.py`"
        )
    state = load()
    if device.type == "cuda" and state.build["cuda"] == "none":
        raise CompiledOpError(
            f"bench ops: {state.path.name} has no CUDA kernels; build it where nvcc is, with "
            "`FOCUS_LAB_CUDA=on python csrc/build.py`"
        )
    level = ctypes.CDLL(str(state.path)).focus_lab_ops_cpu_level
    level.restype = ctypes.c_char_p
    return {**state.build, "cpu_level": level().decode()}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("deformops", "torch-ms-deform-attn", "transformers", "kernels", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def as_text(result: dict[str, Any]) -> str:
    """The rows as a table, then who was not timed and why."""
    headings = ("case", "dtype", "direction", "against", "ours ms", "theirs ms", "ratio",
                "range", "GB/s", "of copy")  # fmt: skip
    lines = [headings]
    for row in result["rows"]:
        low, high = row["ratio_range"]
        lines.append(
            (
                row["case"], row["dtype"], row["direction"], row["against"],
                f"{row['ours_ms']:.4g}", f"{row['against_ms']:.4g}", f"{row['ratio']:.2f}",
                f"{low:.2f}-{high:.2f}", f"{row['ours_gb_s']:.1f}", f"{row['copy_share']:.0%}",
            )
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for line in lines:
        cells = [
            cell.ljust(width) if number < 4 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip())
    text.append(
        f"\n{result['device']}, {result['threads']} threads, torch {result['versions']['torch']}, "
        f"plain copy {result['copy_gb_s']:.1f} GB/s; ratio = theirs / ours"
    )
    reasons: dict[tuple[str, str], list[str]] = {}
    for skip in result["skipped"]:
        place = f"{skip['case']} {skip['dtype']}" if skip["case"] else "all cases"
        reasons.setdefault((skip["against"], skip["reason"]), []).append(place)
    for (against, reason), places in reasons.items():
        text.append(f"not timed: {against}: {reason} ({', '.join(places)})")
    return "\n".join(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m focus_lab.ops.bench`."""
    parser = argparse.ArgumentParser(prog="python -m focus_lab.ops.bench", description=__doc__)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the result there too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", default="", help="names or their beginnings, with commas")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--compile-reference", action="store_true")
    given = parser.parse_args(arguments)
    try:
        result = bench_ops(
            given.device, split(given.cases), split(given.dtypes), given.rounds, given.threads,
            given.compile_reference, lambda text: _say(sys.stderr, text),
        )  # fmt: skip
    except FocusLabError as error:
        _say(sys.stderr, f"error: {error}")
        return error.exit_code
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))
    _say(sys.stdout, as_text(result))
    return 0


def split(text: str) -> list[str]:
    """The words of a list with commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _say(stream: Any, text: str) -> None:
    stream.write(text + "\n")
    stream.flush()


if __name__ == "__main__":
    sys.exit(main())
