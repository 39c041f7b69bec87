"""The command line: what it offers, and a sentence for whatever is wrong with what it is given."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import typer
import yaml
from PIL import Image

from focus_lab import cli
from focus_lab.cli import terminal
from focus_lab.lab.store import Store
from focus_lab.specs.compose import merge, override
from focus_lab.specs.load import load_experiment

COMMANDS = [
    "bench", "cancel", "convert", "data", "dispatch", "doctor", "evaluate", "list", "logs",
    "migrate", "pause", "plan", "profile", "promote", "report", "resume", "retry", "serve",
    "status", "sweep", "token", "train", "ui",
]  # fmt: skip


class Done(NamedTuple):
    code: Any
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def call(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["focus-lab", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return Done(stop.value.code, captured.out, captured.err)

    return call


@pytest.fixture
def write(tmp_path: Path, tiny_content: dict[str, Any]) -> Callable[..., Path]:
    """Writes a tiny experiment, with dotted overrides, to a file."""

    def make(**overrides: Any) -> Path:
        content = merge(tiny_content, {"name": "tiny", "training": {"epochs": 1}})
        for path, value in overrides.items():
            content = override(content, path.replace("__", "."), value)
        file = tmp_path / "spec.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    return make


def sentence(done: Done) -> str:
    """The errors that were told; nothing else may stand on stdout, and no traceback anywhere."""
    assert "Traceback" not in done.err
    assert done.out == ""
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert errors, done.err
    return "\n".join(errors)


def test_the_commands_are_these() -> None:
    command = typer.main.get_command(cli.app)
    assert sorted(command.commands) == COMMANDS  # type: ignore[attr-defined]


def test_help_names_every_command(run: Callable[..., Done]) -> None:
    done = run("--help")
    assert done.code == 0
    assert all(name in done.out for name in COMMANDS)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model__num_querys": 3}, ["model.num_querys: is not a known key; did you mean num_quer"]),
        ({"training__epochs": "many"}, ["training.epochs: must be a whole number, got 'many'"]),
        (
            {"model__token_selection__keep_ratio": 0},
            ["model.token_selection.keep_ratio: must be greater than 0"],
        ),
        (
            {"model__token_selection__keep_ratio": 1.5},
            ["model.token_selection.keep_ratio: must be at most 1"],
        ),
        (
            {"model__token_selection__cascade": [1.0, 0.5]},
            ["token_selection.cascade: needs one value an encoder layer, got 2 values"],
        ),
        (
            {"sweep": {"cells": {"same": {"model.token_selection.keep_ratio": 0.5}}}},
            ["cell same: equals baseline"],
        ),
        (
            {"training__epochs": 0, "model__num_heads": "x"},
            ["training.epochs: must be greater than 0, got 0", "model.num_heads: must be a whole"],
        ),
        ({"name": "Not A Slug"}, ["name: must be 1 to 63 of a-z"]),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("command", ["sweep", "plan"])
def test_mistakes_in_a_spec_are_told_with_file_and_line(
    run: Callable[..., Done],
    write: Callable[..., Path],
    tmp_path: Path,
    command: str,
    overrides: dict[str, Any],
    words: list[str],
) -> None:
    place = ("--out", tmp_path / "runs") if command == "sweep" else ()
    done = run(command, write(**overrides), *place)
    assert done.code == 2
    told = sentence(done)
    for text in words:
        assert text in told
    assert "spec.yaml:" in told
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--set", "training.epochs"], "--set: must be path=value, got 'training.epochs'"),
        (["--set", "training.epoch=3"], "training.epoch: is not a known key; did you mean epochs?"),
        (["--only", "nothing"], "--only: no such cell, got 'nothing'; cells are baseline"),
    ],
)
def test_mistakes_on_the_command_line_are_told(
    run: Callable[..., Done],
    write: Callable[..., Path],
    tmp_path: Path,
    words: list[str],
    text: str,
) -> None:
    done = run("sweep", write(), "--out", tmp_path / "runs", *words)
    assert done.code == 2
    assert text in sentence(done)
    assert not (tmp_path / "runs").exists()


def test_a_missing_file_and_a_missing_command_are_told(run: Callable[..., Done]) -> None:
    done = run("sweep", "nowhere.yaml")
    assert done.code == 2
    assert "nowhere.yaml: no such file" in sentence(done)
    assert run("swepe").code == 2
    assert run("sweep").code == 2


def coco_folder(root: Path, annotations: str) -> dict[str, Any]:
    (root / "images").mkdir(parents=True)
    (root / "instances.json").write_text(annotations)
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    for number in range(1, 9):
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
    split = {"images": "images", "annotations": "instances.json"}
    return {
        "kind": "coco",
        "root": str(root),
        "train": split,
        "val": split,
        "augmentation": {"sizes": [], "crop": {"probability": 0}},
        "evaluation": {"size": None},
    }


def one_category(image_ids: range, box: list[float]) -> str:
    return json.dumps(
        {
            "images": [
                {"id": n, "file_name": f"{n}.png", "width": 32, "height": 32} for n in image_ids
            ],
            "annotations": [
                {"id": n, "image_id": n, "category_id": 1, "bbox": box, "area": 64, "iscrowd": 0}
                for n in image_ids
            ],
            "categories": [{"id": 1, "name": "fish"}],
        }
    )


@pytest.mark.parametrize("command", ["sweep", "train"])
@pytest.mark.parametrize(
    ("annotations", "text"),
    [
        (None, "nowhere"),
        ('{"images": [', "instances.json"),
        ('{"images": []}', "instances.json"),
        (one_category(range(1, 3), [4, 4, 8, 8]), "training.batch_size: a batch needs more images"),
    ],
    ids=["missing folder", "broken JSON", "no annotations", "too few images"],
)
def test_data_that_cannot_be_used_is_told_before_anything_is_made(
    run: Callable[..., Done],
    write: Callable[..., Path],
    tmp_path: Path,
    command: str,
    annotations: str | None,
    text: str,
) -> None:
    if annotations is None:
        data: dict[str, Any] = {"kind": "coco", "root": str(tmp_path / "nowhere")}
    else:
        data = coco_folder(tmp_path / "data", annotations)
    executor = ("--executor", "in-process") if command == "sweep" else ()
    done = run(command, write(data=data), "--out", tmp_path / "runs", *executor)
    assert done.code == 2
    assert text in sentence(done)
    assert not (tmp_path / "runs").exists()


def test_weights_of_another_network_are_told(
    run: Callable[..., Done], write: Callable[..., Path], tmp_path: Path
) -> None:
    import torch

    from focus_lab.model.focus_detr import build_backbone
    from focus_lab.specs.model import ResNetBackbone

    path = tmp_path / "resnet18.pth"
    other = build_backbone(ResNetBackbone(kind="resnet", depth=18))
    torch.save(other.state_dict(), path)
    backbone = {"kind": "resnet", "depth": 34, "weights": str(path)}
    spec = write(model__backbone=backbone)
    done = run("sweep", spec, "--out", tmp_path / "runs", "--executor", "in-process")
    assert done.code == 2
    assert "model.backbone.weights: tensors are missing, got none for layer1.2" in sentence(done)
    assert not (tmp_path / "runs").exists()


def test_a_place_that_cannot_be_written_is_told(
    run: Callable[..., Done], write: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    done = run("sweep", write(), "--out", tmp_path / "file" / "runs", "--executor", "in-process")
    assert done.code == 2
    assert "cannot be written, got" in sentence(done)
    assert "--out" in sentence(done)


def newer_store(home: Path) -> None:
    Store(f"sqlite:///{home / 'lab.db'}").close()
    with sqlite3.connect(home / "lab.db") as connection:
        connection.execute("UPDATE focus_lab_version SET version_num = '9999'")
    connection.close()


def foreign_file(home: Path) -> None:
    (home / "lab.db").write_text("not a database " * 200)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (newer_store, "was made by a newer focus_lab, got"),
        (foreign_file, "is not a focus_lab store, got file is not a database"),
    ],
)
@pytest.mark.parametrize("command", ["list", "status", "sweep"])
def test_a_store_that_cannot_be_used_is_told(
    run: Callable[..., Done],
    write: Callable[..., Path],
    tmp_path: Path,
    command: str,
    damage: Callable[[Path], None],
    text: str,
) -> None:
    home = tmp_path / "runs"
    home.mkdir()
    damage(home)
    before = sorted(path.name for path in home.iterdir())
    words = {
        "list": ["list"],
        "status": ["status", "tiny"],
        "sweep": ["sweep", write(), "--executor", "in-process"],
    }[command]
    done = run(*words, "--out", home)
    assert done.code == 2
    assert text in sentence(done)
    assert sorted(path.name for path in home.iterdir()) == before


def test_a_locked_store_is_told(
    run: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("focus_lab.lab.database._BUSY_MS", 50)
    other = sqlite3.connect(tmp_path / "lab.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    done = run("list", "--out", tmp_path)
    other.close()
    assert done.code == 2
    assert "database is locked; close the process that locks it" in sentence(done)


@pytest.mark.parametrize("words", [["report", "x"], ["status", "x"], ["ui", "x"], ["ui"]])
def test_where_nothing_is_yet_that_is_told_and_nothing_is_made(
    run: Callable[..., Done], tmp_path: Path, words: list[str]
) -> None:
    done = run(*words, "--out", tmp_path / "runs")
    assert done.code == 2
    assert "lab.db: there is none yet; run `focus-lab sweep FILE` first" in sentence(done)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_experiment_is_told(run: Callable[..., Done], tmp_path: Path) -> None:
    Store(f"sqlite:///{tmp_path / 'lab.db'}").close()
    done = run("report", "nothing", "--out", tmp_path)
    assert done.code == 2
    assert "experiment: no such name or id, got 'nothing'; known are none yet" in sentence(done)


@pytest.mark.parametrize("ratios", ["0", "1.5", "a", "0.5,", "0.1,2"])
def test_ratios_that_are_none_are_told(run: Callable[..., Done], ratios: str) -> None:
    done = run("evaluate", "checkpoint.pt", "--keep-ratio", ratios)
    assert done.code == 2
    assert f"--keep-ratio: must be numbers in (0, 1], got {ratios!r}" in sentence(done)


def test_a_checkpoint_that_is_none_is_told(run: Callable[..., Done], tmp_path: Path) -> None:
    done = run("evaluate", tmp_path / "no.pt")
    assert done.code == 2
    assert "no such checkpoint" in sentence(done)
    (tmp_path / "text.pt").write_text("text")
    done = run("evaluate", tmp_path / "text.pt")
    assert done.code == 2
    assert "is not a whole checkpoint of focus_lab" in sentence(done)


def test_an_interruption_is_told_and_has_its_own_code(
    run: Callable[..., Done], write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("focus_lab.specs.load.load_experiment", interrupted)
    done = run("plan", write())
    assert done.code == 130
    assert done.err == "interrupted; run the same command to continue\n"


def test_what_nobody_thought_of_is_one_line_and_debug_shows_more(
    run: Callable[..., Done], write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("focus_lab.specs.load.load_experiment", broken)
    done = run("plan", write())
    assert done.code == 1
    assert sentence(done).startswith("error: unexpected ZeroDivisionError, got oops; run again")
    assert "Traceback" in run("plan", write(), "--debug").err


def test_an_empty_lab_lists_nothing(run: Callable[..., Done], tmp_path: Path) -> None:
    assert run("list", "--out", tmp_path, "--json") == (0, "[]\n", "")
    assert "no experiments yet" in run("list", "--out", tmp_path).out
    assert list(tmp_path.iterdir()) == []


def test_a_plan_is_json_and_runs_nothing(
    run: Callable[..., Done], write: Callable[..., Path], tmp_path: Path
) -> None:
    spec = write(sweep={"axes": {"model.token_selection.keep_ratio": [0.2, 0.5]}, "seeds": [0, 1]})
    done = run("plan", spec, "--no-time", "--json")
    assert done.code == 0
    content = json.loads(done.out)
    assert content["trials"] == 4
    assert [cell["cell"] for cell in content["cells"]] == ["keep_ratio=0.2", "keep_ratio=0.5"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spec.yaml"]


def test_a_composed_spec_is_the_same_experiment_without_its_parents(
    run: Callable[..., Done], tmp_path: Path
) -> None:
    file = Path(__file__).parents[2] / "experiments" / "keep_ratio.yaml"
    done = run("plan", file, "--spec", "--set", "training.epochs=2")
    assert done.code == 0
    alone = tmp_path / "alone.json"
    alone.write_text(done.out)
    spec, planned = load_experiment(alone)
    assert spec.training.epochs == 2
    assert (spec, planned) == load_experiment(file, ["training.epochs=2"])


def test_the_bench_of_evaluators_prints_rows_as_json(run: Callable[..., Done]) -> None:
    done = run("bench", "evaluate", "--images", 3, "--detections", 5, "--classes", 2, "--json")
    content = json.loads(done.out)
    assert content["bench"] == "evaluate"
    assert {"case", "dtype", "direction", "against", "ours_ms", "against_ms", "ratio"} <= set(
        content["rows"][0]
    )
    assert "ratio" in run("bench", "evaluate", "--images", 3, "--detections", 5).out


def test_the_bench_of_training_prints_rows_as_json_or_a_table(
    run: Callable[..., Done], write: Callable[..., Path]
) -> None:
    words = ("bench", "train", write(), "--steps", 1, "--rounds", 1)
    content = json.loads(run(*words, "--json").out)
    assert content["bench"] == "train"
    assert {"case", "dtype", "direction", "against", "ours_ms", "against_ms", "ratio"} <= set(
        content["rows"][0]
    )
    assert "images/s, idle" in run(*words).out


@pytest.mark.slow
def test_from_a_sweep_to_its_curve(
    run: Callable[..., Done], write: Callable[..., Path], tmp_path: Path
) -> None:
    home = ("--out", tmp_path / "runs")
    spec = write()
    done = run("sweep", spec, *home, "--executor", "in-process", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    [trial] = result["trials"]
    assert set(result) >= {"experiment", "trials", "cells"}
    assert {"id", "cell", "seed", "overrides", "status", "metrics", "mlflow_run_id"} <= set(trial)
    assert "coco/AP" in trial["metrics"]

    again = run("sweep", spec, *home, "--executor", "in-process")
    assert again.code == 0
    assert "report: " in again.out
    status = json.loads(run("status", "tiny", *home, "--json").out)
    assert status["trials"][0]["attempts"] == 1
    assert json.loads(run("list", *home, "--json").out)[0]["states"] == {"SUCCEEDED": 1}
    assert run("report", "tiny", *home).code == 0

    [folder] = (tmp_path / "runs" / "tiny" / "trials").iterdir()
    rows = json.loads(run("evaluate", folder, "--keep-ratio", "0.2,1", "--json").out)
    assert [row["tokens/keep_ratio"] for row in rows] == [0.2, 1.0]


@pytest.mark.slow
def test_a_sweep_beyond_its_budget_runs_only_when_asked_to(
    run: Callable[..., Done], write: Callable[..., Path], tmp_path: Path
) -> None:
    home = tmp_path / "runs"
    # Less than a second of training; two steps are enough to measure it.
    spec = write(compute__budget_hours=1e-9)
    words = ("sweep", spec, "--out", home, "--executor", "in-process")
    refused = run(*words)
    assert refused.code == 2
    told = sentence(refused)
    assert "error: compute.budget_hours: the trials may train for " in told
    assert "got a budget of 1e-09" in told
    assert "or add --over-budget" in told
    assert not home.exists()

    # A plan costs nothing: it is shown whatever the budget.
    planned = run("plan", spec, "--json")
    assert planned.code == 0
    assert json.loads(planned.out)["trials"]
    assert not home.exists()

    done = run(*words, "--over-budget", "--json")
    assert done.code == 0, done.err
    assert [trial["status"] for trial in json.loads(done.out)["trials"]] == ["SUCCEEDED"]
    # Finished, it still is beyond its budget: all of its trials count, done ones too.
    assert run(*words).code == 2


@pytest.mark.slow
def test_a_sweep_whose_trials_fail_says_why(
    run: Callable[..., Done], write: Callable[..., Path], tmp_path: Path
) -> None:
    spec = write(training__optimizer={"lr": 1e30, "clip_norm": None}, data__num_train=64)
    done = run("sweep", spec, "--out", tmp_path / "runs", "--executor", "in-process")
    assert done.code == 1
    assert "failed: baseline-seed0: training: " in done.err
    assert "lower training.optimizer.lr" in done.err.replace("\n", " ")


@pytest.mark.parametrize(("limit", "warns"), [(64.0, True), (16.0, False)])
def test_objects_that_are_all_the_finest_levels_are_told(
    run: Callable[..., Done], write: Callable[..., Path], limit: float, warns: bool
) -> None:
    spec = write(
        data__image_size=[96, 96], data__object_size=[20, 40],
        model__foreground_targets={"finest_limit": limit},
    )  # fmt: skip
    done = run("data", "check", spec, "--no-decode")
    assert done.code == 0
    assert "longer side of a box" in done.out
    assert ("model.foreground_targets: no box is longer than" in done.out) is warns


def test_what_libraries_print_is_talk_and_not_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.results_alone_on_stdout():
        sys.stdout.write("(raylet) a node has died\n")
        terminal.out.print("result")
    terminal.out.print("later")
    captured = capsys.readouterr()
    assert captured.out == "result\nlater\n"
    assert captured.err == "(raylet) a node has died\n"
