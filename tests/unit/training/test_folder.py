"""A trial's folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from focus_lab.errors import DataError, OutputError
from focus_lab.training.folder import MANIFEST, check_same_inputs, make_folder


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/runs: cannot be written, got .*choose another"):
        make_folder(tmp_path / "file" / "runs")


def test_a_made_folder_is_empty(tmp_path: Path) -> None:
    assert list(make_folder(tmp_path / "a" / "b").iterdir()) == []


def test_changed_inputs_are_named_with_both_digests(tmp_path: Path) -> None:
    began = {"data.train": "a" * 64, "model.backbone.weights": "b" * 64}
    (tmp_path / MANIFEST).write_text(json.dumps({"inputs": began}))
    check_same_inputs(tmp_path, began)
    with pytest.raises(
        DataError, match=r"^model\.backbone\.weights: has changed .* got digest c{12} "
    ):
        check_same_inputs(tmp_path, began | {"model.backbone.weights": "c" * 64})


@pytest.mark.parametrize("content", [None, "{", "{}", '{"inputs": {}}'])
def test_where_nothing_is_recorded_nothing_has_changed(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / MANIFEST).write_text(content)
    check_same_inputs(tmp_path, {"data.train": "a"})
