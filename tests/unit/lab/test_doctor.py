"""The doctor finds what is wrong, and says how to mend it."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from focus_lab.lab import doctor


def found(checks: Any, home: Path) -> list[tuple[str, bool]]:
    return [(finding.subject, finding.ok) for finding in checks(home)]


def test_a_sound_machine_has_nothing_to_mend(tmp_path: Path) -> None:
    for check in (doctor._python, doctor._gpu, doctor._op, doctor._folder):
        for finding in check(tmp_path):
            assert finding.ok, finding
            assert finding.remedy == ""


def test_a_folder_that_cannot_be_written_is_found(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    [finding] = doctor._folder(tmp_path / "file" / "runs")
    assert not finding.ok
    assert "--out" in finding.remedy


def test_a_full_disk_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**29))
    [finding] = doctor._folder(tmp_path)
    assert not finding.ok
    assert finding.remedy == "free space"


def test_a_package_that_does_not_import_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        if name == "ray":
            raise ImportError("no module named ray")

    monkeypatch.setattr(importlib, "import_module", broken)
    findings = {finding.subject: finding for finding in doctor._packages(tmp_path)}
    assert [name for name, finding in findings.items() if not finding.ok] == ["torchvision", "ray"]
    assert "together" in findings["torchvision"].remedy
    assert findings["ray"].remedy == "install it again: pip install --force-reinstall ray"


@pytest.mark.parametrize("operator", ["deformable_attention", "projected_deformable_attention"])
@pytest.mark.parametrize("wrong", ["output", "gradient"])
def test_wrong_numbers_of_the_operation_are_found(
    wrong: str, operator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import focus_lab.ops

    def broken(value: Any, shapes: Any, *inputs: Any, implementation: str) -> Any:
        output = right(value, shapes, *inputs, "reference")
        if implementation == "reference":
            return output
        # The last input's gradient alone, or the output with all gradients.
        return output + inputs[-1].sum() - inputs[-1].sum().detach() * (wrong == "gradient")

    good = focus_lab.ops.LibraryState("ok", tmp_path, build={"torch": "2.11", "cuda": "none"})
    monkeypatch.setattr(focus_lab.ops, "library_state", lambda: good)
    right = getattr(focus_lab.ops, operator)
    for name in ("deformable_attention", "projected_deformable_attention"):
        plain = getattr(focus_lab.ops, name)
        monkeypatch.setattr(
            focus_lab.ops,
            name,
            lambda *inputs, implementation, plain=plain: plain(*inputs, "reference"),
        )
    assert next(doctor._op(tmp_path)).ok
    monkeypatch.setattr(focus_lab.ops, operator, broken)
    finding = next(doctor._op(tmp_path))
    assert not finding.ok
    assert "wrong numbers" in finding.state


@pytest.mark.parametrize(("status", "usable"), [("missing", True), ("stale", False)])
def test_the_remedy_for_operators_that_are_not_built_is_shown(
    status: Any, usable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import focus_lab.ops

    state = focus_lab.ops.LibraryState(status, tmp_path, "it is gone", "build it")
    monkeypatch.setattr(focus_lab.ops, "library_state", lambda: state)
    [finding] = doctor._op(tmp_path)
    assert finding.ok is usable
    assert "it is gone" in finding.state
    assert finding.remedy == "build it"


def test_where_nothing_is_yet_nothing_is_made(tmp_path: Path) -> None:
    home = tmp_path / "a" / "runs"
    [folder] = doctor._folder(home)
    [stores] = doctor._stores(home)
    assert folder.ok
    assert "not made yet" in folder.state
    assert stores.ok
    assert stores.state == "none yet; the first sweep makes them"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_broken_store_is_found(tmp_path: Path) -> None:
    (tmp_path / "lab.db").write_text("this is a text " * 100)
    [finding] = doctor._stores(tmp_path)
    assert not finding.ok
    assert "is not a focus_lab store" in finding.state
    (tmp_path / "lab.db").unlink()
    assert found(doctor._stores, tmp_path) == [("store and MLflow", True)]
