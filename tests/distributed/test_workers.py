"""Several workers compute what one does: losses, weights, AP; also after a restart."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from focus_lab.specs.experiment import TrialSpec
from focus_lab.training import checkpoint as checkpoints
from focus_lab.training.fit import fit
from focus_lab.training.folder import MANIFEST, SAMPLES, checkpoint_folder
from focus_lab.training.reporter import MemoryReporter

pytestmark = pytest.mark.slow

MakeTrial = Callable[..., TrialSpec]
History = list[tuple[int, dict[str, float]]]
TIMED = (
    "train/images_per_second", "train/data_share", "train/seconds", "cost/peak_memory_mib",
    "system/",
)  # fmt: skip


def train(spec: TrialSpec, folder: Path, size: int, **more: Any) -> list[dict[str, Any]]:
    """Train with `size` processes; what each of them got, nothing from those that died."""
    folder.mkdir(exist_ok=True)
    job, meeting = folder / "job.json", folder / "meeting"
    meeting.unlink(missing_ok=True)
    job.write_text(
        json.dumps({"spec": spec.model_dump(mode="json"), "folder": str(folder), **more})
    )
    script = Path(__file__).with_name("worker.py")
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", script, *map(str, (rank, size, meeting, job)),
             folder / f"result-{rank}.json"],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[1] for process in processes]
    if "dies_after" in more:
        return []
    assert [process.returncode for process in processes] == [0] * size, "\n".join(said)
    return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(size)]


def comparable(history: Any) -> History:
    return [
        (epoch, {name: value for name, value in metrics.items() if not name.startswith(TIMED)})
        for epoch, metrics in history
    ]


@pytest.fixture
def spec(tiny_trial: MakeTrial) -> TrialSpec:
    """Twenty steps, one an epoch; images with no, few and many boxes; all losses; batch norm."""
    return tiny_trial(
        data={"num_train": 4, "num_val": 5, "objects": [0, 3]},
        training={
            "epochs": 20,
            "batch_size": 4,
            "evaluation_batch_size": 2,
            "ema": {"enabled": True, "warmup_steps": 5},
        },
    )


def test_two_workers_compute_what_one_does(spec: TrialSpec, tmp_path: Path) -> None:
    one = comparable(fit(spec, MemoryReporter(), tmp_path / "one").history)
    results = train(spec, tmp_path / "two", 2)
    two = comparable(results[0]["history"])
    assert comparable(results[1]["history"]) == two, "workers disagree"
    assert [epoch for epoch, _ in two] == [epoch for epoch, _ in one] == list(range(1, 21))
    for (_, mine), (_, theirs) in zip(one, two, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            if name.startswith("loss/") or name == "train/grad_norm":
                assert theirs[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
            elif name.startswith("coco/"):
                assert theirs[name] == pytest.approx(value, abs=1e-12), name
    saved = [checkpoints.latest(checkpoint_folder(tmp_path / name)) for name in ("one", "two")]
    assert saved[0] is not None
    assert saved[1] is not None
    for name, weights in saved[0].model.items():
        torch.testing.assert_close(saved[1].model[name], weights, rtol=1e-3, atol=1e-5)
    manifests = [json.loads((tmp_path / name / MANIFEST).read_text()) for name in ("one", "two")]
    assert [manifest["workers"] for manifest in manifests] == [1, 2]
    assert (tmp_path / "two" / SAMPLES).is_dir()


@pytest.mark.parametrize("kind", ["decoder_attention", "random"])
def test_two_workers_score_tokens_as_one_does(
    tiny_trial: MakeTrial, tmp_path: Path, kind: str
) -> None:
    spec = tiny_trial(
        model={
            "token_selection": {"keep_ratio": 0.3, "scoring": {"kind": kind}},
            "dual_attention": {"enabled": False},
        },
        data={"num_train": 4, "num_val": 5, "objects": [0, 3]},
        training={"epochs": 3, "evaluation_batch_size": 2},
    )
    one = comparable(fit(spec, MemoryReporter(), tmp_path / "one").history)
    two = comparable(train(spec, tmp_path / "two", 2)[0]["history"])
    for (_, mine), (_, theirs) in zip(one, two, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def test_two_workers_train_elastically_as_one_does(tiny_trial: MakeTrial, tmp_path: Path) -> None:
    spec = tiny_trial(
        data={"num_train": 4, "num_val": 5, "objects": [0, 3]},
        training={
            "epochs": 3,
            "evaluation_batch_size": 2,
            "elastic": {"enabled": True, "evaluate_at": [0.2, 0.5]},
        },
    )
    one = comparable(fit(spec, MemoryReporter(), tmp_path / "one").history)
    results = train(spec, tmp_path / "two", 2)
    two = comparable(results[0]["history"])
    assert comparable(results[1]["history"]) == two, "workers disagree"
    assert one[-1][1]["loss/distillation"] > 0
    for (_, mine), (_, theirs) in zip(one, two, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def test_images_of_many_sizes_are_padded_as_in_one_batch(spec: TrialSpec, tmp_path: Path) -> None:
    spec = spec.model_copy(
        update={
            "data": spec.data.model_copy(
                update={
                    "augmentation": spec.data.augmentation.model_copy(
                        update={"sizes": (24, 32, 40, 56), "max_size": 64}
                    )
                }
            ),
            # One step: later a last bit may decide which of two nearly equal tokens is kept.
            "training": spec.training.model_copy(update={"epochs": 1}),
        }
    )
    [(_, one)] = comparable(fit(spec, MemoryReporter(), tmp_path / "one").history)
    [(_, two)] = comparable(train(spec, tmp_path / "two", 2)[0]["history"])
    for name, value in one.items():
        if name.startswith("loss/") or name == "train/grad_norm":
            assert two[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    gradients = []
    for name in ("one", "two"):
        saved = checkpoints.latest(checkpoint_folder(tmp_path / name))
        assert saved is not None
        # After one step the first moments are a tenth of the gradients.
        gradients.append([state["exp_avg"] for state in saved.optimizer["state"].values()])
    largest = max(float(gradient.norm()) for gradient in gradients[0])
    for mine, theirs in zip(*gradients, strict=True):
        assert float((mine - theirs).norm()) <= 1e-4 * float(mine.norm()) + 1e-7 * largest


def test_workers_that_start_again_end_as_if_never_interrupted(
    spec: TrialSpec, tmp_path: Path
) -> None:
    spec = spec.model_copy(
        update={
            "data": spec.data.model_copy(update={"num_train": 12}),
            "training": spec.training.model_copy(update={"epochs": 3}),
            # In the middle of an epoch of three steps.
            "compute": spec.compute.model_copy(
                update={"checkpoint_every_steps": 5, "checkpoint_every": 3}
            ),
        }
    )
    [undisturbed, _] = train(spec, tmp_path / "undisturbed", 2)
    folder = tmp_path / "disturbed"
    train(spec, folder, 2, dies_after=2)
    again, other = train(spec, folder, 2)
    assert [epoch for epoch, _ in again["told"]] == [2, 3]
    assert comparable(again["history"]) == comparable(undisturbed["history"])
    assert comparable(other["history"]) == comparable(undisturbed["history"])
