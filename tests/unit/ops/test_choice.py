"""Which implementation a wish comes to, and what is never done silently."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import focus_lab.ops
from focus_lab.ops import CompiledOpError, LibraryState, choose_implementation


def library(monkeypatch: pytest.MonkeyPatch, status: str, gpu: bool = False) -> None:
    build = {"cuda": "none"}
    state = LibraryState(status, Path("library.so"), "it is gone", "build it", build)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(focus_lab.ops, "library_state", lambda: state)

    def load() -> LibraryState:
        if not state.ok:
            raise CompiledOpError(state.reason)
        return state

    monkeypatch.setattr(focus_lab.ops, "load", load)


@pytest.mark.parametrize("status", ["ok", "missing", "stale", "broken"])
def test_the_reference_needs_no_library(monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    library(monkeypatch, status)
    assert choose_implementation("reference") == "reference"


@pytest.mark.parametrize(("status", "taken"), [("ok", "compiled"), ("missing", "reference")])
def test_auto_takes_what_there_is(monkeypatch: pytest.MonkeyPatch, status: str, taken: str) -> None:
    library(monkeypatch, status)
    assert choose_implementation("auto") == taken


def test_auto_takes_the_reference_on_a_gpu_without_cuda_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library(monkeypatch, "ok", gpu=True)
    assert choose_implementation("auto") == "reference"
    assert choose_implementation("compiled") == "compiled"


@pytest.mark.parametrize("status", ["stale", "broken"])
def test_auto_never_passes_over_a_library_that_is_out_of_date_or_broken(
    monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    library(monkeypatch, status)
    with pytest.raises(CompiledOpError):
        choose_implementation("auto")


@pytest.mark.parametrize("status", ["missing", "stale", "broken"])
def test_compiled_insists(monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    library(monkeypatch, status)
    with pytest.raises(CompiledOpError):
        choose_implementation("compiled")
