"""Where a trial runs."""

from __future__ import annotations

import json

import pytest
import torch

from focus_lab.errors import UserError
from focus_lab.specs.training import ComputeSpec
from focus_lab.training import environment
from focus_lab.training.environment import choose_device, describe


def test_a_missing_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(ComputeSpec(device="auto")).type == "cpu"
    assert choose_device(ComputeSpec(device="cpu")).type == "cpu"
    with pytest.raises(UserError, match=r"compute\.device: no usable GPU, got 'cuda'; set it to"):
        choose_device(ComputeSpec(device="cuda"))


def test_the_description_is_json_and_names_versions() -> None:
    found = json.loads(json.dumps(describe()))
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0] or found["versions"][
        "torch"
    ].startswith(torch.__version__.partition("+")[0])
    assert found["cpu_count"] >= 1


def test_outside_a_checkout_there_is_no_code_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert environment._git_state() is None
