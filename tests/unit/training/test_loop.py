"""One epoch: accumulated gradients, what is refused, what is averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from focus_lab.data.batch import Batch
from focus_lab.data.dataset import build_dataset
from focus_lab.data.loader import build_train_loader
from focus_lab.errors import NonFiniteLossError
from focus_lab.model.criterion import Criterion, build_criterion
from focus_lab.model.focus_detr import FocusDETR, build_model
from focus_lab.specs.experiment import TrialSpec
from focus_lab.training.average import WeightAverage
from focus_lab.training.loop import Progress, TrainingLoop
from focus_lab.training.optimization import LearningRate, build_optimizer

MakeTrial = Callable[..., TrialSpec]

# Normalises over groups of channels: nothing depends on which images share a batch.
NO_BATCH_STATISTICS = {"backbone": {"kind": "resnet", "depth": 18, "frozen_stages": 5}}


def make_loop(
    spec: TrialSpec, on_step: Callable[[], None] = lambda: None
) -> tuple[TrainingLoop, FocusDETR]:
    dataset = build_dataset(spec.data, "train")
    torch.manual_seed(spec.seed)
    model = build_model(spec.model, len(dataset.class_names))
    training = spec.training
    loader = build_train_loader(dataset, spec.data, batch_size=training.batch_size, seed=spec.seed)
    optimizer = build_optimizer(model, training.optimizer)
    rate = LearningRate(
        optimizer, training.schedule, len(loader) * training.epochs, max(1, len(loader))
    )
    loop = TrainingLoop(
        model,
        build_criterion(spec.model, len(dataset.class_names)),
        optimizer,
        rate,
        loader,
        training,
        spec.seed,
        torch.device("cpu"),
        None,
        on_step,
    )
    return loop, model


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_accumulated_parts_give_the_gradient_of_the_whole_batch(
    tiny_trial: MakeTrial, parts: int
) -> None:
    gradients, losses = [], []
    for accumulation in (1, parts):
        spec = tiny_trial(
            model=NO_BATCH_STATISTICS,
            data={"num_train": 4, "objects": [0, 3]},
            training={"accumulation": accumulation, "optimizer": {"clip_norm": None}},
        )
        loop = make_loop(spec)[0]
        kept: list[torch.Tensor] = []

        def keep(optimizer: Any, *_: Any, into: list[torch.Tensor] = kept) -> None:
            into.extend(
                p.grad.clone()
                for group in optimizer.param_groups
                for p in group["params"]
                if p.grad is not None
            )

        handle = loop.optimizer.register_step_pre_hook(keep)
        losses.append(loop.run_epoch(Progress()))
        handle.remove()
        gradients.append(kept)
    assert len(gradients[0]) == len(gradients[1]) > 20
    for whole, summed in zip(*gradients, strict=True):
        torch.testing.assert_close(summed, whole, rtol=2e-4, atol=2e-6)
    for name, value in losses[0].items():
        if name.startswith("loss/"):
            assert losses[1][name] == pytest.approx(value, rel=1e-5, abs=1e-6)


def test_every_step_sees_a_whole_batch_and_the_rest_is_left_out(tiny_trial: MakeTrial) -> None:
    spec = tiny_trial(data={"num_train": 11}, training={"accumulation": 2})
    steps: list[int] = []
    progress = Progress()
    loop = make_loop(spec, lambda: steps.append(progress.step))[0]
    loop.run_epoch(progress)
    assert steps == [1, 2]
    assert (progress.epoch, progress.batch, progress.step) == (1, 0, 2)


def test_an_epoch_whose_last_step_was_done_only_ends(tiny_trial: MakeTrial) -> None:
    loop, model = make_loop(tiny_trial())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    progress = Progress(epoch=0, batch=2, step=2, averages={"loss/total": 6.0})
    metrics = loop.run_epoch(progress)
    assert metrics["loss/total"] == 3.0
    assert progress.epoch == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_metrics_are_means_over_the_steps(tiny_trial: MakeTrial) -> None:
    seen: list[float] = []
    progress = Progress()
    loop, _ = make_loop(tiny_trial(), lambda: seen.append(progress.since["loss/total"] - sum(seen)))
    metrics = loop.run_epoch(progress)
    assert len(seen) == 2
    assert metrics["loss/total"] == pytest.approx(sum(seen) / 2)
    assert metrics["train/steps"] == 2
    assert metrics["train/grad_norm"] > 0
    assert {"loss/class", "loss/bbox", "loss/giou", "loss/foreground", "loss/class_dn"} <= set(
        metrics
    )


def test_a_loss_that_is_not_finite_names_the_images(
    tiny_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, _ = make_loop(tiny_trial(data={"num_train": 4}))
    original = Criterion.__call__

    def broken(self: Criterion, *args: Any, **settings: Any) -> dict[str, torch.Tensor]:
        losses = original(self, *args, **settings)
        return losses | {"loss_giou": losses["loss_giou"] * float("nan")}

    monkeypatch.setattr(Criterion, "__call__", broken)
    with pytest.raises(
        NonFiniteLossError,
        match=r"training: loss/total, loss/giou not finite at step 1, in epoch 1, "
        r"got images \[[1-4], [1-4], [1-4], [1-4]\]; lower training\.optimizer\.lr",
    ):
        loop.run_epoch(Progress())


def test_a_gradient_that_is_not_finite_is_refused_before_the_step(tiny_trial: MakeTrial) -> None:
    loop, model = make_loop(tiny_trial(data={"num_train": 4}))
    weight = model.class_heads[0].weight
    weight.register_hook(lambda gradient: gradient * float("inf"))
    before = weight.detach().clone()
    with pytest.raises(NonFiniteLossError, match=r"the gradient not finite .* got images \["):
        loop.run_epoch(Progress())
    assert torch.equal(weight, before)


def test_a_rate_that_is_far_too_high_ends_with_the_images_named(tiny_trial: MakeTrial) -> None:
    spec = tiny_trial(
        data={"num_train": 32},
        training={"optimizer": {"lr": 1e30, "clip_norm": None}, "schedule": {"kind": "step"}},
    )
    loop, _ = make_loop(spec)
    with pytest.raises(NonFiniteLossError, match=r"training: .* not finite .* got images \["):
        loop.run_epoch(Progress())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_trains(tiny_trial: MakeTrial, precision: str) -> None:
    # Not smaller: torch's bf16 convolution on a CPU computes no gradient of a 3 x 3 kernel of
    # stride 2 on a 1 x 1 map, and writes outside of its memory.
    # Eight steps, because scaled float16 gradients overflow in the first few, which are skipped.
    size = {"image_size": [64, 64], "num_train": 32}
    loop, model = make_loop(tiny_trial(data=size, training={"precision": precision}))
    before = {name: value.clone() for name, value in model.named_parameters()}
    metrics = loop.run_epoch(Progress())
    exact = make_loop(tiny_trial(data=size))[0].run_epoch(Progress())
    assert metrics["loss/total"] == pytest.approx(exact["loss/total"], rel=0.2)
    assert any(not torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_a_step_that_the_scaler_skips_moves_neither_schedule_nor_average(
    tiny_trial: MakeTrial,
) -> None:
    size = {"image_size": [64, 64], "num_train": 32}
    ema = {"enabled": True, "decay": 0.9, "warmup_steps": 0}
    spec = tiny_trial(data=size, training={"precision": "fp16", "ema": ema})
    called: list[int] = []
    progress = Progress()
    loop, model = make_loop(spec, lambda: called.append(progress.step))
    loop.average = WeightAverage(model, spec.training.ema)
    start = loop.average.state["class_heads.0.weight"].clone()
    # So large that the first scaled gradients overflow; each skipped step halves it.
    loop.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    rates: list[int] = []
    original = loop.learning_rate.set_step
    loop.learning_rate.set_step = lambda step: rates.append(step) or original(step)  # type: ignore[func-returns-value,method-assign]
    loop.run_epoch(progress)
    assert progress.step == 0
    assert rates == [0] * 8
    assert called == []
    assert torch.equal(loop.average.state["class_heads.0.weight"], start)
    loop.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    loop.run_epoch(progress)
    assert progress.step == 8
    assert called == [1, 2, 3, 4, 5, 6, 7, 8]
    assert not torch.equal(loop.average.state["class_heads.0.weight"], start)


def test_the_time_of_an_epoch_is_that_of_all_its_attempts(tiny_trial: MakeTrial) -> None:
    progress = Progress(batch=1, step=1, averages={"seconds": 100.0, "waited": 50.0})
    metrics = make_loop(tiny_trial())[0].run_epoch(progress)
    assert 100 < metrics["train/seconds"] < 130
    assert metrics["train/data_share"] == pytest.approx(0.5, abs=0.15)
    assert metrics["train/images_per_second"] == pytest.approx(8 / metrics["train/seconds"])
    assert not {"seconds", "waited"} & set(metrics)
    assert progress.averages == progress.since == {}


def test_batches_without_boxes_train(tiny_trial: MakeTrial) -> None:
    loop, _ = make_loop(tiny_trial(data={"num_train": 4}))

    class NoBoxes:
        def __len__(self) -> int:
            return len(whole)

        def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
            whole.set_epoch(epoch, start_batch)

        def __iter__(self) -> Iterator[Batch]:
            for batch in whole:
                targets: list[Any] = [
                    {name: value[:0] for name, value in target.items()} for target in batch.targets
                ]
                yield Batch(
                    batch.images, batch.sizes, targets, batch.image_ids, batch.original_sizes
                )

    whole = loop.loader
    loop.loader = NoBoxes()  # type: ignore[assignment]
    metrics = loop.run_epoch(Progress())
    assert metrics["loss/bbox"] == 0.0
    assert metrics["loss/total"] > 0
