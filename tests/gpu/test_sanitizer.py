"""CUDA's own checkers watch the kernels: memory, races, barriers.

Needs what test_deformable_attention.py needs, and compute-sanitizer of the CUDA toolkit.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from focus_lab.ops import library_state

STATE = library_state()
_HOME = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
SANITIZER = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:{_HOME / 'bin'}")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.skipif(not STATE.ok, reason=f"compiled operators: {STATE.reason}"),
    pytest.mark.skipif(SANITIZER is None, reason="there is no compute-sanitizer"),
]

KERNELS = Path(__file__).with_name("test_deformable_attention.py")
# Every way to sum at two numbers of channels and all dtypes, and everything from projections.
CHOSEN = "(every_way_to_sum and (-12- or -32-)) or projections_give or strange_locations"


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_a_checker_of_cuda_finds_nothing(tool: str) -> None:
    assert SANITIZER is not None
    done = subprocess.run(
        [
            SANITIZER, f"--tool={tool}", "--error-exitcode=97",
            sys.executable, "-m", "pytest", "-c", os.devnull, "--noconftest", "-x", "-q",
            str(KERNELS), "-k", CHOSEN,
        ],
        cwd=KERNELS.parents[2],
        capture_output=True,
        text=True,
        # The caching allocator would hide what is read beyond a tensor's end.
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
