"""Imports point down, and what must start fast imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_contracts_of_the_layers_hold() -> None:
    done = run(str(Path(sys.executable).parent / "lint-imports"), "--no-cache")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("focus_lab.specs.load", {"torch", "numpy", "ray", "mlflow", "sqlalchemy"}),
        ("focus_lab.cli", {"torch", "numpy", "ray", "mlflow", "sqlalchemy", "matplotlib"}),
        ("focus_lab.lab.store", {"torch", "ray", "mlflow"}),
        ("focus_lab.lab.driver", {"torch", "ray", "mlflow"}),
        ("focus_lab.lab.launch", {"torch", "ray", "mlflow"}),
        ("focus_lab.lab.tune_executor", {"torch", "ray", "mlflow"}),
    ],
)
def test_it_imports_nothing_heavy(module: str, forbidden: set[str]) -> None:
    program = f"import sys, {module}; print(*sorted({forbidden!r} & set(sys.modules)))"
    done = run(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_nothing_happens_at_import(tmp_path: Path) -> None:
    program = "import focus_lab.cli, focus_lab.lab.store, focus_lab.lab.tune_executor"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == done.stderr == ""
    assert list(tmp_path.iterdir()) == []
