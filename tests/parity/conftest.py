"""What the parity tests share: golden tensors, and the formulas of their weights and inputs."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
FIXTURES = HERE / "fixtures"


@pytest.fixture(scope="session")
def formula():
    """The module formula_weights; tests are no package, so it is loaded by its path."""
    spec = importlib.util.spec_from_file_location("formula_weights", HERE / "formula_weights.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden():
    """Reads a fixture: tensors (the float64 run where there is one), config, and a check."""
    manifest = json.loads((FIXTURES / "manifest_forward.json").read_text())

    def read(name):
        entry = manifest[name]
        tensors = {}
        for key, tensor in sorted(load_file(FIXTURES / f"{name}.safetensors").items()):
            tensors[key.removesuffix(".f64")] = tensor

        def check(key, actual, atol=None, expected=None):
            """Compare with tensor `key`: float32 within its noise bound, float64 within `atol`."""
            expected = tensors[key] if expected is None else expected
            bound = atol if actual.dtype == torch.float64 and atol else entry["atol"][key]
            torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=bound)

        return SimpleNamespace(tensors=tensors, config=entry["config"], check=check)

    return read
