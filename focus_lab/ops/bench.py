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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

import torch

from focus_lab.errors import FocusLabError, UserError
from focus_lab.ops.bench_cases import CASES, Case, make_inputs
from focus_lab.ops.bench_table import as_text as as_text
from focus_lab.ops.clock import copy_bandwidth, device_name, interleaved
from focus_lab.ops.compiled import CompiledOpError, library_state, load
from focus_lab.ops.contenders import Contender, contender, glue_and_compiled, ours, results
from focus_lab.ops.peers import Inputs, NotInstalled, Peer, compiled_reference, peers, reference

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DIRECTIONS = ("forward", "backward", "forward+backward")

Result: TypeAlias = dict[str, Any]
"""The content of `bench ops --json`."""


def bench_ops(
    device: str = "cpu",
    cases: Sequence[str] = (),
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    rounds: int | None = None,
    threads: int | None = None,
    compile_reference: bool = False,
    on_case: Callable[[str], None] = lambda text: None,
    on_result: Callable[[Result], None] = lambda result: None,
) -> Result:
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
        on_result: told all that has been found, again after each row: a run of an hour that is cut
            off has then left what it had.

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
        bandwidth = copy_bandwidth(where)
        result: Result = {
            "bench": "ops",
            "device": device_name(where),
            "threads": torch.get_num_threads(),
            "versions": _versions(),
            "library": build,
            "copy_gb_s": bandwidth,
            "rows": [],
            "skipped": [],
        }

        def on_row(row: dict[str, Any]) -> None:
            row["copy_share"] = row["ours_gb_s"] / bandwidth
            on_result(result)

        measure(
            chosen, [DTYPES[name] for name in dtypes], others, where,
            rounds or (25 if where.type == "cuda" else 5), result, on_case, on_row,
        )  # fmt: skip
    finally:
        torch.set_num_threads(before)
    return result


def measure(
    cases: Iterable[Case],
    dtypes: Sequence[torch.dtype],
    others: Sequence[Peer],
    device: torch.device,
    rounds: int,
    result: Result,
    on_case: Callable[[str], None] = lambda text: None,
    on_row: Callable[[dict[str, Any]], None] = lambda row: None,
) -> None:
    """Fill in `rows`, and in `skipped` who is in none of them and why; see `bench_ops`."""
    rows, skipped = result["rows"], result["skipped"]
    absent: set[str] = set()
    for case, dtype in itertools.product(cases, dtypes):
        name = str(dtype).removeprefix("torch.")
        on_case(f"{case.name}, {name}")
        inputs, grad_output = make_inputs(case, dtype, device)
        expected = results(*reference().bind(inputs.to(torch.float64)), grad_output.double())
        own = contender(ours(), inputs, grad_output, expected)
        if isinstance(own, str):
            raise FocusLabError(f"bench ops: {case.name}, {name}: the compiled operator {own}")
        contenders = [own]
        # No other takes projections.
        for peer in (reference(), glue_and_compiled()) if case.projected else others:
            if peer.name in absent:
                continue
            try:
                found = contender(peer, inputs, grad_output, expected)
            except NotInstalled as error:
                absent.add(peer.name)
                skipped.append(
                    {"against": peer.name, "case": None, "dtype": None, "reason": str(error)}
                )
                continue
            if isinstance(found, Contender):
                contenders.append(found)
            else:
                skipped.append(
                    {"against": peer.name, "case": case.name, "dtype": name, "reason": found}
                )
        del expected
        for direction in DIRECTIONS:
            steps = [each.steps[direction] for each in contenders]
            times = interleaved(steps, device, rounds)
            ours_ms = statistics.median(times[0])
            for against, theirs in zip(contenders[1:], times[1:], strict=True):
                against_ms = statistics.median(theirs)
                ratios = [b / a for a, b in zip(times[0], theirs, strict=True)]
                rows.append(
                    {
                        "case": case.name,
                        "dtype": name,
                        "direction": direction,
                        "against": against.name,
                        "ours_ms": ours_ms,
                        "against_ms": against_ms,
                        "ratio": against_ms / ours_ms,
                        "ratio_range": [min(ratios), max(ratios)],
                        "ours_gb_s": compulsory_bytes(inputs, direction) / ours_ms / 1e6,
                        "ours_error": own.error,
                        "against_error": against.error,
                    }
                )
                on_row(rows[-1])


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


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m focus_lab.ops.bench`."""
    parser = argparse.ArgumentParser(prog="python -m focus_lab.ops.bench", description=__doc__)
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="write the result there too, after each row"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", default="", help="names or their beginnings, with commas")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--compile-reference", action="store_true")
    given = parser.parse_args(arguments)

    def write(result: Result) -> None:
        if given.json:
            partial = given.json.with_name(given.json.name + ".part")
            partial.write_text(json.dumps(result, indent=1))
            partial.replace(given.json)

    try:
        result = bench_ops(
            given.device, split(given.cases), split(given.dtypes), given.rounds, given.threads,
            given.compile_reference, lambda text: _say(sys.stderr, text), write,
        )  # fmt: skip
    except FocusLabError as error:
        _say(sys.stderr, f"error: {error}")
        return error.exit_code
    write(result)
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
