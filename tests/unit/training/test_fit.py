"""A whole trial: resumed, it computes what an uninterrupted one does, bit for bit."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from focus_lab.data.dataset import DetectionDataset
from focus_lab.errors import DataError, EffectiveSpecError, OutputError, UserError, WeightsError
from focus_lab.model.focus_detr import FocusDETR
from focus_lab.model.token_selection import TokenSelector
from focus_lab.ops import library_state
from focus_lab.specs.experiment import TrialSpec
from focus_lab.specs.metrics import is_metric
from focus_lab.training import checkpoint as checkpoints
from focus_lab.training import evaluation
from focus_lab.training import fit as training_fit
from focus_lab.training.detector import build_start, load_model
from focus_lab.training.effective import check_kept
from focus_lab.training.fit import fit
from focus_lab.training.folder import STOPPED, checkpoint_folder
from focus_lab.training.reporter import MemoryReporter, Metrics
from focus_lab.training.scoring import Evaluator, Found, Scores, coco_scores

MakeTrial = Callable[..., TrialSpec]


@pytest.fixture(autouse=True)
def counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting a model's cost takes longer than training it here: each model is counted once."""
    original = training_fit.trial_costs

    def costs(model: FocusDETR, val_set: DetectionDataset, spec: TrialSpec) -> Metrics:
        key = spec.model.model_dump_json() + spec.data.model_dump_json()
        if key not in COUNTED:
            COUNTED[key] = original(model, val_set, spec)
        return COUNTED[key]

    monkeypatch.setattr(training_fit, "trial_costs", costs)


COUNTED: dict[str, Metrics] = {}


class KilledError(Exception):
    """Stands for the death of the process."""


class Killer(MemoryReporter):
    """Dies when an epoch has been reported, or at a step."""

    def __init__(self, epoch: int | None = None, step: int | None = None) -> None:
        super().__init__()
        self._epoch, self._step = epoch, step
        self.steps = 0

    def report(self, epoch: int, metrics: Metrics) -> None:
        super().report(epoch, metrics)
        if epoch == self._epoch:
            raise KilledError

    def progress(self, epoch: int, step: int, steps: int, loss: float) -> None:
        self.steps += 1
        if self.steps == self._step:
            raise KilledError


def exact(history: list[tuple[int, Metrics]]) -> list[tuple[int, Metrics]]:
    """Without what no two runs share: times and memory."""
    timed = ("train/images_per_second", "train/data_share", "train/seconds", "cost/peak_memory_mib")
    return [
        (
            epoch,
            {
                name: value
                for name, value in metrics.items()
                if name not in timed and not name.startswith("system/")
            },
        )
        for epoch, metrics in history
    ]


def weights(folder: Path) -> dict[str, Any]:
    saved = checkpoints.latest(checkpoint_folder(folder))
    assert saved is not None
    return {"model": saved.model, **({"ema": saved.ema} if saved.ema else {})}


def assert_equal_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for kind, state in first.items():
        for name, value in state.items():
            assert torch.equal(value, second[kind][name]), f"{kind} {name}"


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "averaged": {"ema": {"enabled": True, "decay": 0.9, "warmup_steps": 2}},
    "accumulated": {"accumulation": 2, "schedule": {"kind": "step", "milestones": [1.5]}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_after_an_epoch_equals_uninterrupted(
    tiny_trial: MakeTrial, tmp_path: Path, variant: str
) -> None:
    spec = tiny_trial(training={"epochs": 3, **VARIANTS[variant]})
    whole, whole_reporter = tmp_path / "whole", MemoryReporter()
    expected = fit(spec, whole_reporter, whole)
    assert expected.history == whole_reporter.epochs

    broken, killer = tmp_path / "broken", Killer(epoch=1)
    with pytest.raises(KilledError):
        fit(spec, killer, broken)
    torch.rand(100)  # another process has another random state
    resumed_reporter = MemoryReporter()
    resumed = fit(spec, resumed_reporter, broken)

    assert [epoch for epoch, _ in resumed_reporter.epochs] == [2, 3]
    assert exact(resumed.history) == exact(expected.history)
    assert_equal_weights(whole, broken)


@pytest.mark.parametrize(
    ("every", "death", "variant"), [(1, 3, "averaged"), (2, 4, "plain"), (1, 4, "accumulated")]
)
def test_resumed_within_an_epoch_equals_uninterrupted(
    tiny_trial: MakeTrial, tmp_path: Path, every: int, death: int, variant: str
) -> None:
    spec = tiny_trial(
        data={"num_train": 13},  # three steps an epoch, and one image that is left out
        training=VARIANTS[variant],
        compute={"checkpoint_every_steps": every},
    )
    expected = fit(spec, MemoryReporter(), tmp_path / "whole")
    with pytest.raises(KilledError):
        fit(spec, Killer(step=death), tmp_path / "broken")
    saved = checkpoints.latest(checkpoint_folder(tmp_path / "broken"))
    assert saved is not None
    assert saved.step >= death - every
    resumed = fit(spec, MemoryReporter(), tmp_path / "broken")
    assert exact(resumed.history) == exact(expected.history)
    assert_equal_weights(tmp_path / "whole", tmp_path / "broken")


def test_resumed_between_the_last_step_and_the_evaluation_equals_uninterrupted(
    tiny_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_trial(data={"num_train": 11}, compute={"checkpoint_every_steps": 1})
    expected = fit(spec, MemoryReporter(), tmp_path / "whole")

    def killed(*_: Any, **__: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("focus_lab.training.fit.evaluate", killed)
        with pytest.raises(KilledError):
            fit(spec, MemoryReporter(), tmp_path / "broken")
    resumed = fit(spec, MemoryReporter(), tmp_path / "broken")
    assert exact(resumed.history) == exact(expected.history)
    assert_equal_weights(tmp_path / "whole", tmp_path / "broken")


def test_a_broken_newest_checkpoint_costs_an_epoch_and_no_exactness(
    tiny_trial: MakeTrial, tmp_path: Path
) -> None:
    spec = tiny_trial(training={"epochs": 3})
    expected = fit(spec, MemoryReporter(), tmp_path / "whole")
    with pytest.raises(KilledError):
        fit(spec, Killer(epoch=2), tmp_path / "broken")
    newest = checkpoints.latest_path(checkpoint_folder(tmp_path / "broken"))
    assert newest is not None
    newest.write_bytes(b"torn")
    reporter = MemoryReporter()
    resumed = fit(spec, reporter, tmp_path / "broken")
    assert [epoch for epoch, _ in reporter.epochs] == [2, 3]
    assert exact(resumed.history) == exact(expected.history)


def test_a_complete_trial_called_again_trains_nothing(
    tiny_trial: MakeTrial, tmp_path: Path
) -> None:
    first = fit(tiny_trial(), MemoryReporter(), tmp_path)
    reporter = Killer(step=1)
    again = fit(tiny_trial(), reporter, tmp_path)
    assert reporter.epochs == []
    assert reporter.steps == 0
    assert again.history == first.history
    assert again.metrics == first.metrics


def test_the_seed_changes_the_result_and_threads_do_not(
    tiny_trial: MakeTrial, tmp_path: Path
) -> None:
    one = fit(tiny_trial(training={"epochs": 1}), MemoryReporter(), tmp_path / "one")
    other = fit(tiny_trial(1, training={"epochs": 1}), MemoryReporter(), tmp_path / "other")
    assert one.metrics["loss/total"] != other.metrics["loss/total"]
    loaders = fit(
        tiny_trial(training={"epochs": 1}, compute={"checkpoint_every": 5}),
        MemoryReporter(),
        tmp_path / "loaders",
    )
    assert exact(loaders.history) == exact(one.history)


def test_checkpoints_are_written_when_due_and_at_the_end(
    tiny_trial: MakeTrial, tmp_path: Path
) -> None:
    spec = tiny_trial(training={"epochs": 3}, compute={"checkpoint_every": 2})
    present: list[int] = []

    class Watcher(MemoryReporter):
        def report(self, epoch: int, metrics: Metrics) -> None:
            saved = checkpoints.latest(checkpoint_folder(tmp_path))
            present.append(saved.epoch if saved else 0)

    fit(spec, Watcher(), tmp_path)
    assert present == [0, 2, 3]


def test_evaluation_is_skipped_between_and_never_at_the_end(
    tiny_trial: MakeTrial, tmp_path: Path
) -> None:
    spec = tiny_trial(training={"epochs": 3, "evaluate_every": 2})
    history = fit(spec, MemoryReporter(), tmp_path).history
    assert ["coco/AP" in metrics for _, metrics in history] == [False, True, True]
    assert "coco/AP" in history[-1][1]


def test_metrics_manifest_and_samples_are_there(tiny_trial: MakeTrial, tmp_path: Path) -> None:
    spec = tiny_trial()
    result = fit(spec, MemoryReporter(), tmp_path)
    assert {
        "coco/AP", "coco/AR", "cost/gflops", "cost/encoder_gflops", "cost/params", "loss/total",
        "tokens/kept", "tokens/foreground_recall", "cost/gmacs_800x1333", "train/lr",
    } <= set(result.metrics)  # fmt: skip
    assert [name for name in result.metrics if not is_metric(name)] == []
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["fingerprint"] == spec.fingerprint
    assert manifest["effective_token_selection"] == {
        "keep_ratio": 0.5,
        "cascade": [1.0],
        "level_keep_ratios": None,
    }
    assert len(manifest["data"]["train"]["digest"]) == 64
    usable = library_state()
    assert manifest["ops_implementation"] == ("compiled" if usable.ok else "reference")
    assert manifest["ops_build"] == (usable.build if usable.ok else None)
    assert manifest["evaluator"] == {
        "name": "pycocotools",
        "version": manifest["environment"]["versions"]["pycocotools"],
    }
    assert (tmp_path / "samples" / "samples.json").is_file()
    breakdown = json.loads((tmp_path / "samples" / "breakdown.json").read_text())
    assert len(breakdown["precision"]["0.50"]) == 101
    assert sorted(path.suffix for path in (tmp_path / "samples").iterdir()) == sorted(
        [".json"] * 2 + [".jpg"] * 4
    )


def test_the_chosen_evaluator_is_the_one_that_is_used_and_recorded(
    tiny_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []

    def watched(truth: dict[str, Any], found: Found, evaluator: Evaluator) -> Scores:
        used.append(evaluator)
        return coco_scores(truth, found, evaluator)

    monkeypatch.setattr(evaluation, "coco_scores", watched)
    results = []
    for name in ("pycocotools", "faster-coco-eval"):
        spec = tiny_trial(training={"epochs": 1}, compute={"evaluator": name})
        metrics = fit(spec, MemoryReporter(), tmp_path / name).metrics
        results.append({key: value for key, value in metrics.items() if key.startswith("coco/")})
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        assert manifest["evaluator"]["name"] == name
        assert manifest["evaluator"]["version"] == manifest["environment"]["versions"][name]
    assert used == ["pycocotools", "faster-coco-eval"]
    assert results[0] == pytest.approx(results[1], rel=0, abs=1e-12)


def test_an_evaluator_that_is_not_installed_is_told_before_training(
    tiny_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(UserError, match=r"compute\.evaluator: faster-coco-eval cannot be used"):
        fit(
            tiny_trial(compute={"evaluator": "faster-coco-eval"}),
            MemoryReporter(),
            tmp_path / "trial",
        )
    assert not (tmp_path / "trial").exists()


def test_the_averaged_weights_are_those_that_are_evaluated_and_loaded(
    tiny_trial: MakeTrial, tmp_path: Path
) -> None:
    ema = {"enabled": True, "decay": 0.5, "warmup_steps": 0}
    fit(tiny_trial(training={"ema": ema}), MemoryReporter(), tmp_path)
    saved = checkpoints.latest(checkpoint_folder(tmp_path))
    assert saved is not None
    assert saved.ema is not None
    model = load_model(saved, torch.device("cpu"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, saved.ema[name])
    assert any(not torch.equal(saved.ema[name], saved.model[name]) for name in saved.model)


def test_a_model_that_ignores_its_cell_fails_the_trial(
    tiny_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TokenSelector.__init__

    def forgetful(self: TokenSelector, *args: Any, **settings: Any) -> None:
        original(self, *args, **settings)
        self.keep_ratio = 1.0

    monkeypatch.setattr(TokenSelector, "__init__", forgetful)
    with pytest.raises(EffectiveSpecError, match=r"other ratios than its cell, got .*keep_ratio"):
        fit(tiny_trial(), MemoryReporter(), tmp_path)


class Stopper(MemoryReporter):
    """Ends the trial with an epoch."""

    def __init__(self, folder: Path, epoch: int) -> None:
        super().__init__()
        self._folder, self._epoch = folder, epoch

    def report(self, epoch: int, metrics: Metrics) -> None:
        super().report(epoch, metrics)
        if epoch == self._epoch:
            (self._folder / STOPPED).touch()


def test_a_stopped_trial_ends_with_its_epoch_and_stays_so(
    tiny_trial: MakeTrial, tmp_path: Path
) -> None:
    spec = tiny_trial(training={"epochs": 3}, compute={"checkpoint_every": 3})
    result = fit(spec, Stopper(tmp_path, 1), tmp_path)
    assert [epoch for epoch, _ in result.history] == [1]
    # As after the death of its driver, which did not hear of the end.
    again = MemoryReporter()
    assert fit(spec, again, tmp_path).history == result.history
    assert again.epochs == []
    (tmp_path / STOPPED).unlink()
    assert [epoch for epoch, _ in fit(spec, again, tmp_path).history] == [1, 2, 3]


def test_the_folder_of_another_trial_is_refused(tiny_trial: MakeTrial, tmp_path: Path) -> None:
    fit(tiny_trial(training={"epochs": 1}), MemoryReporter(), tmp_path)
    with pytest.raises(WeightsError, match="holds checkpoints of another trial"):
        fit(tiny_trial(training={"epochs": 2}), MemoryReporter(), tmp_path)
    moved = tiny_trial(training={"epochs": 1}, compute={"threads": 1, "max_failures": 5})
    fit(moved, MemoryReporter(), tmp_path)


def test_a_folder_that_cannot_be_written_is_said(tiny_trial: MakeTrial, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"file/trial: cannot be written, got .*; choose an"):
        fit(tiny_trial(), MemoryReporter(), tmp_path / "file" / "trial")


def test_weights_of_another_model_are_not_loaded(tiny_trial: MakeTrial, tmp_path: Path) -> None:
    fit(tiny_trial(training={"epochs": 1}), MemoryReporter(), tmp_path)
    saved = checkpoints.latest(checkpoint_folder(tmp_path))
    assert saved is not None
    saved.spec["model"]["hidden_dim"] = 32
    with pytest.raises(WeightsError, match=r"its weights do not fit its spec, got .*size mismatch"):
        load_model(saved, torch.device("cpu"))


def test_reduced_precision_trains_to_the_end(tiny_trial: MakeTrial, tmp_path: Path) -> None:
    spec = tiny_trial(data={"image_size": [64, 64]}, training={"precision": "bf16", "epochs": 1})
    metrics = fit(spec, MemoryReporter(), tmp_path).metrics
    assert metrics["loss/total"] > 0
    assert 0 <= metrics["coco/AP"] <= 1


@pytest.mark.parametrize(("kept", "fits"), [(50.0, True), (51.0, True), (60.0, False)])
def test_a_selector_that_keeps_other_tokens_than_its_cell_says_is_found(
    tiny_trial: MakeTrial, kept: float, fits: bool
) -> None:
    metrics = {"tokens/kept_layer_0": kept, "tokens/total": 100.0}
    if fits:
        check_kept(tiny_trial(), metrics, 0.5)
    else:
        with pytest.raises(EffectiveSpecError, match=r"kept 60\.0 of 100\.0 tokens"):
            check_kept(tiny_trial(), metrics, 0.5)


def test_a_trial_does_not_go_on_with_other_images(tiny_trial: MakeTrial, tmp_path: Path) -> None:
    spec = tiny_trial()
    with pytest.raises(KilledError):
        fit(spec, Killer(epoch=1), tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["inputs"]["data.val"] = "0" * 64
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"data\.val: has changed since the trial in .* began"):
        fit(spec, MemoryReporter(), tmp_path)


def test_a_trial_starts_from_the_averaged_weights_of_another_whatever_its_own_parts(
    tiny_trial: MakeTrial, tmp_path: Path
) -> None:
    one = {"epochs": 1, "ema": {"enabled": True}}
    fit(tiny_trial(training=one), MemoryReporter(), tmp_path / "first")
    source = checkpoints.latest_path(checkpoint_folder(tmp_path / "first"))
    averaged = weights(tmp_path / "first")["ema"]
    spec = tiny_trial(
        model={"token_selection": {"scoring": {"kind": "objectness"}}},
        training={"epochs": 1, "start_from": str(source)},
    )
    model, fresh = build_start(spec, num_classes=9)
    assert fresh is not None
    assert {name.partition(".")[0] for name in fresh} == {
        "class_heads", "denoising", "token_selector"
    }  # fmt: skip
    for name, value in model.state_dict().items():
        assert name in fresh or torch.equal(value, averaged[name]), name
    # Its own classes have their heads, and what is recorded is what was done.
    fit(spec, MemoryReporter(), tmp_path / "second")
    manifest = json.loads((tmp_path / "second" / "manifest.json").read_text())
    assert manifest["inputs"]["training.start_from"]
    assert manifest["started_afresh"]
    assert not any(name.startswith("class_heads") for name in manifest["started_afresh"])


def test_weights_of_other_sizes_are_no_start(tiny_trial: MakeTrial, tmp_path: Path) -> None:
    fit(tiny_trial(training={"epochs": 1}), MemoryReporter(), tmp_path)
    source = str(checkpoints.latest_path(checkpoint_folder(tmp_path)))
    wider = tiny_trial(model={"hidden_dim": 64}, training={"start_from": source})
    with pytest.raises(WeightsError, match=r"training.start_from: are those of another model, got"):
        build_start(wider, num_classes=3)
    missing = tiny_trial(training={"start_from": "nowhere.pt"})
    with pytest.raises(WeightsError, match=r"there is no such file, got 'nowhere.pt'"):
        build_start(missing, num_classes=3)
