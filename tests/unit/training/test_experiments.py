"""Every cell of the shipped ablations takes a training step and detects."""

from pathlib import Path

import pytest
import torch

from focus_lab.data.dataset import build_dataset
from focus_lab.data.loader import build_train_loader
from focus_lab.model.criterion import build_criterion
from focus_lab.model.focus_detr import build_model
from focus_lab.specs.load import load_experiment
from focus_lab.training.evaluation import TokenStatistics

EXPERIMENTS = Path(__file__).parents[3] / "experiments"


@pytest.mark.parametrize(
    "name",
    [
        *("cascades_at_equal_cost", "components", "score_modulation", "dual_attention"),
        *("value_source", "foreground_labels", "rivals", "scoring_cascade"),
    ],
)
def test_every_cell_takes_a_training_step_and_detects(name: str) -> None:
    _, plan = load_experiment(EXPERIMENTS / f"{name}.yaml")
    base = plan.cells[0].spec
    dataset = build_dataset(base.data, "train")
    loader = build_train_loader(dataset, base.data, batch_size=2, seed=0)
    loader.set_epoch(0)
    batch = next(iter(loader))
    for cell in plan.cells:
        torch.manual_seed(0)
        model = build_model(cell.spec.model, base.data.num_classes).train()
        criterion = build_criterion(cell.spec.model, base.data.num_classes)
        output = model(batch.images, batch.sizes, batch.targets, image_ids=batch.image_ids)
        total = criterion.total(criterion(output, batch.targets, batch.sizes))
        total.backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        assert total.isfinite(), cell.name
        # Distributed training waits for the gradient of every parameter.
        assert [name for name, grad in gradients.items() if grad is None] == [], cell.name
        assert all(grad.isfinite().all() for grad in gradients.values() if grad is not None)
        with torch.inference_mode():
            found = model.eval()(batch.images, batch.sizes, batch.targets)
        statistics = TokenStatistics(cell.spec.model)
        statistics.update(found, batch)
        kept = statistics.metrics()["tokens/kept_share"]
        # As many as the plan says: one token more an image, and levels that are not quarters.
        wanted = cell.spec.model.token_selection.mean_keep_ratio
        assert kept == pytest.approx(wanted, abs=0.015), cell.name
