"""The shipped ablations: what they hold equal, and that they are the same question at full size."""

from pathlib import Path

import pytest

from focus_lab.specs.load import load_experiment
from focus_lab.specs.plan import Plan

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
ABLATIONS = {
    "cascades_at_equal_cost": 6,
    "components": 5,
    "score_modulation": 4,
    "dual_attention": 8,
    "value_source": 6,
    "foreground_labels": 5,
    "rivals": 10,
    "scoring_cascade": 10,
    "elastic": 6,
}
FULL_SIZE = {"scoring_cascade", "dual_attention"}
"""Those whose cells are others at full size: there they have a file of their own, NAME_r50.yaml."""


def full_size(name: str, tmp_path: Path) -> Plan:
    if name in FULL_SIZE:
        return load_experiment(EXPERIMENTS / f"{name}_r50.yaml", ["data.root=somewhere"])[1]
    path = tmp_path / "full.yaml"
    parents = [str(EXPERIMENTS / f"{name}.yaml"), str(EXPERIMENTS / "base" / "coco_r50.yaml")]
    path.write_text(f"name: full-size\nextends: {parents}\ndata: {{root: somewhere}}\n")
    return load_experiment(path)[1]


def mean_keep_ratios(plan: Plan) -> dict[str, float]:
    return {cell.name: cell.spec.model.token_selection.mean_keep_ratio for cell in plan.cells}


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_has_its_cells_three_seeds_and_a_baseline(name: str) -> None:
    spec, plan = load_experiment(EXPERIMENTS / f"{name}.yaml")
    assert len(plan.cells) == ABLATIONS[name]
    assert len(plan.trials) == 3 * len(plan.cells)
    assert plan.baseline is not None
    assert spec.description.endswith("?")


@pytest.mark.parametrize("name", ABLATIONS)
def test_at_full_size_the_base_is_the_release_and_the_cells_are_the_same(
    name: str, tmp_path: Path
) -> None:
    small = load_experiment(EXPERIMENTS / f"{name}.yaml")[1]
    full = full_size(name, tmp_path)
    assert [cell.name for cell in full.cells] == [cell.name for cell in small.cells]
    assert full.baseline is not None
    if name == "elastic":
        # Each of its cells trains at a ratio of its own.
        return
    released = load_experiment(EXPERIMENTS / "r50_paper.yaml", ["data.root=somewhere"])[0].base
    assert full.baseline.spec.model_copy(update={"compute": released.compute}) == released


@pytest.mark.parametrize("name", ["cascades_at_equal_cost", "components", "rivals"])
def test_what_is_compared_at_equal_keep_ratio_has_it(name: str, tmp_path: Path) -> None:
    for plan in (load_experiment(EXPERIMENTS / f"{name}.yaml")[1], full_size(name, tmp_path)):
        ratios = mean_keep_ratios(plan)
        assert ratios.pop("no-refinement", 0.0) < 0.01
        assert ratios.pop("dense", 1.0) == 1.0
        assert ratios.pop("salience-like", 0.3) == pytest.approx(0.3, abs=0.01)
        assert ratios == pytest.approx(dict.fromkeys(ratios, 0.3))


def test_shapes_of_a_cascade_are_compared_at_equal_keep_ratio_at_both_sizes(tmp_path: Path) -> None:
    small = load_experiment(EXPERIMENTS / "scoring_cascade.yaml")[1]
    for plan, wanted in ((small, 0.24), (full_size("scoring_cascade", tmp_path), 0.3)):
        ratios = mean_keep_ratios(plan)
        shapes = [ratios[name] for name in ("flat-cascade", "steep-cascade", "late-drop")]
        assert shapes == pytest.approx([wanted] * 3, abs=1e-6)
        assert plan.baseline is not None
        assert ratios[plan.baseline.name] == pytest.approx(wanted)


def test_at_full_size_few_tokens_are_fewer_and_many_are_more_than_the_release_has(
    tmp_path: Path,
) -> None:
    plan = full_size("dual_attention", tmp_path)
    taking_part = {cell.name: cell.spec.model.dual_attention.num_tokens for cell in plan.cells}
    assert taking_part["few-tokens"] < taking_part["baseline"] < taking_part["many-tokens"]


def test_the_step_that_is_measured_without_a_data_set_is_the_releases() -> None:
    measured = load_experiment(EXPERIMENTS / "shapes_r50.yaml")[0].base
    released = load_experiment(EXPERIMENTS / "r50_paper.yaml", ["data.root=somewhere"])[0].base
    assert measured.model == released.model
    assert measured.training.optimizer == released.training.optimizer


def test_the_demo_in_large_keeps_the_released_cascade_and_asks_for_a_gpu() -> None:
    spec, plan = load_experiment(EXPERIMENTS / "keep_ratio_large.yaml")
    released = load_experiment(EXPERIMENTS / "r50_paper.yaml", ["data.root=somewhere"])[0].base
    assert spec.base.model.token_selection.cascade == released.model.token_selection.cascade
    assert spec.base.compute.device == "cuda"
    assert len(plan.trials) == 12
