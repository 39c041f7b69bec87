"""Plans: cells, seeds, fingerprints."""

import itertools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from focus_lab.errors import SpecError
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import num_trials, plan, trials_in_all

RATIO = "model.token_selection.keep_ratio"
FILES = {"images": "images", "annotations": "boxes.json"}


def experiment(**sweep: Any) -> ExperimentSpec:
    return ExperimentSpec.model_validate(
        {"name": "test", "data": {"kind": "shapes"}, "sweep": sweep}
    )


def test_all_cells_run_with_the_first_seed_before_the_second() -> None:
    made = plan(experiment(axes={RATIO: [0.1, 0.7]}, seeds=[3, 5]))
    assert [(trial.cell, trial.seed) for trial in made.trials] == [
        ("keep_ratio=0.1", 3),
        ("keep_ratio=0.7", 3),
        ("keep_ratio=0.1", 5),
        ("keep_ratio=0.7", 5),
    ]


def test_an_override_reaches_the_spec_of_its_trials() -> None:
    made = plan(experiment(axes={RATIO: [0.1, 0.7]}))
    assert [t.spec.model.token_selection.keep_ratio for t in made.trials] == [0.1, 0.7]


def test_the_cell_that_equals_the_base_is_the_baseline() -> None:
    made = plan(experiment(axes={RATIO: [0.1, 0.5]}))
    assert made.baseline is not None
    assert made.baseline.name == "keep_ratio=0.5"


def test_named_cells_come_with_the_base_as_baseline() -> None:
    made = plan(experiment(cells={"no-dual": {"model.dual_attention.enabled": False}}))
    assert [cell.name for cell in made.cells] == ["baseline", "no-dual"]
    assert made.baseline == made.cells[0]


def test_a_grid_point_that_equals_the_base_stands_for_the_implied_baseline() -> None:
    made = plan(
        experiment(axes={RATIO: [0.5]}, cells={"no-dual": {"model.dual_attention.enabled": False}})
    )
    assert [(cell.name, cell.is_baseline) for cell in made.cells] == [
        ("no-dual", False),
        ("keep_ratio=0.5", True),
    ]


def test_an_experiment_without_axes_and_cells_is_its_base() -> None:
    assert [cell.name for cell in plan(experiment()).cells] == ["baseline"]


def test_equal_cells_are_an_error() -> None:
    with pytest.raises(SpecError, match="cell same: equals baseline"):
        plan(experiment(cells={"same": {RATIO: 0.5}}))
    with pytest.raises(SpecError, match=r"cell keep_ratio=0\.1: equals keep_ratio=0\.1"):
        plan(experiment(axes={RATIO: [0.1, 0.1]}))


def test_a_cell_cannot_change_compute() -> None:
    with pytest.raises(SpecError, match=r"compute\.threads: cannot be overridden"):
        plan(experiment(cells={"threads": {"compute.threads": 2}}))


def test_all_mistakes_of_a_design_come_together() -> None:
    with pytest.raises(SpecError) as caught:
        plan(
            experiment(
                axes={RATIO: [0, 1.5]},
                cells={"typo": {"model.hidden_dims": 3}, "elsewhere": {"name": "x"}},
            )
        )
    text = str(caught.value)
    assert "cell keep_ratio=0: model.token_selection.keep_ratio: must be greater than 0" in text
    assert "cell keep_ratio=1.5: model.token_selection.keep_ratio: must be at most 1" in text
    assert "cell typo: model.hidden_dims: is not a known key; did you mean hidden_dim?" in text
    assert "cell elsewhere: name: cannot be overridden" in text


def test_a_cascade_of_the_wrong_length_is_explained() -> None:
    with pytest.raises(SpecError, match="needs one value an encoder layer, got 2 values"):
        plan(experiment(cells={"short": {"model.token_selection.cascade": [1, 0.5]}}))


def test_an_axis_over_kinds_replaces_the_mapping() -> None:
    made = plan(experiment(cells={"tiny": {"model.backbone": {"kind": "residual"}}}, seeds=[0]))
    assert made.cells[1].spec.model.backbone.kind == "residual"


def test_random_search_draws_as_many_points_as_asked() -> None:
    search = {"kind": "random", "samples": 2}
    made = plan(experiment(axes={RATIO: [0.1, 0.2, 0.3]}, search=search))
    assert len({cell.name for cell in made.cells}) == 2
    assert plan(experiment(axes={RATIO: [0.1, 0.2, 0.3]}, search=search)) == made


def test_cells_over_folders_are_named_by_as_much_of_them_as_tells_them_apart() -> None:
    def names(*roots: str) -> list[str]:
        base = {"kind": "coco", "root": "data", "train": FILES, "val": FILES}
        content = {"name": "test", "data": base, "sweep": {"axes": {"data.root": roots}}}
        return [cell.name for cell in plan(ExperimentSpec.model_validate(content)).cells]

    assert names("/srv/data/fish", "/srv/data/birds") == ["root=fish", "root=birds"]
    assert names("/srv/old/fish", "/srv/new/fish") == ["root=old/fish", "root=new/fish"]
    assert names("fish", "/srv/birds") == ["root=fish", "root=birds"]


def test_a_search_by_results_ends_with_more_trials_than_it_begins_with() -> None:
    axes = {RATIO: [0.1, 0.2, 0.3, 0.4, 0.5]}
    searched = experiment(axes=axes, search={"kind": "optuna", "samples": 4, "batch": 2})
    assert (len(plan(searched).trials), trials_in_all(searched, plan(searched))) == (2, 4)
    # The base stands for itself in a grid, and is counted once.
    grid = experiment(axes=axes, cells={"other": {"model.dual_attention.enabled": False}})
    assert trials_in_all(grid, plan(grid)) == len(plan(grid).trials) == 6


def test_an_unknown_baseline_is_refused() -> None:
    with pytest.raises(SpecError, match=r"sweep\.baseline: no such cell, got 'x'"):
        plan(experiment(axes={RATIO: [0.1]}, baseline="x"))


def test_keeping_cells_checks_their_names() -> None:
    made = plan(experiment(axes={RATIO: [0.1, 0.2]}))
    assert [t.cell for t in made.keep(("keep_ratio=0.2",)).trials] == ["keep_ratio=0.2"]
    with pytest.raises(SpecError, match="--only: no such cell, got 'other'"):
        made.keep(("other",))


@given(st.lists(st.integers(1, 999), min_size=1, max_size=6, unique=True))
def test_fingerprints_tell_all_ratios_and_seeds_apart(thousandths: list[int]) -> None:
    ratios = [n / 1000 for n in thousandths]
    made = plan(experiment(axes={RATIO: ratios}, seeds=[0, 1]))
    assert len({trial.fingerprint for trial in made.trials}) == 2 * len(ratios)


def test_a_fingerprint_depends_on_neither_name_nor_compute() -> None:
    one = experiment()
    other = ExperimentSpec.model_validate(
        {"name": "other", "data": {"kind": "shapes"}, "compute": {"threads": 4}}
    )
    assert plan(one).trials[0].fingerprint == plan(other).trials[0].fingerprint


def test_axis_points_that_differ_inside_a_mapping_have_different_names() -> None:
    narrow, wide = ({"kind": "residual", "widths": [w] * 5} for w in (8, 16))
    made = plan(experiment(axes={"model.backbone": [narrow, wide]}))
    assert [cell.name for cell in made.cells] == [
        "backbone=residual widths=[8 8 8 8 8]",
        "backbone=residual widths=[16 16 16 16 16]",
    ]


def test_two_cells_of_one_name_are_an_error() -> None:
    with pytest.raises(SpecError, match="two cells have this name"):
        plan(experiment(axes={RATIO: [0.1]}, cells={"keep_ratio=0.1": {RATIO: 0.2}}))


def test_a_field_that_came_later_changes_no_fingerprint_until_it_is_used() -> None:
    old = plan(experiment()).trials[0].spec.model_dump(mode="json")["model"]
    assert "kind" not in old["foreground_targets"]
    assert "level_keep_ratios" not in old["token_selection"]
    later = {
        "model.foreground_targets.kind": "soft",
        "model.dual_attention.order": "deformable_first",
        "model.token_selection.level_keep_ratios": [0.4, 0.8, 1, 1],
        "model.token_selection.background_embedding.enabled": True,
    }
    made = plan(experiment(cells={path: {path: value} for path, value in later.items()}))
    assert len({trial.fingerprint for trial in made.trials}) == len(made.trials)
    spec = made.cells[-1].spec
    assert spec.model.token_selection.background_embedding.enabled
    assert type(spec).model_validate(spec.model_dump(mode="json")) == spec


def test_too_many_trials_are_refused_before_they_are_expanded() -> None:
    axes = {f"model.loss.{name}_weight": list(range(1, 999)) for name in ("class", "bbox", "giou")}
    spec = experiment(axes=axes, seeds=[0, 1])
    assert num_trials(spec) == 2 * 998**3
    with pytest.raises(SpecError, match="too many trials, got 1988023984; at most 10000"):
        plan(spec)


def test_a_few_points_of_a_huge_space_are_drawn_at_once() -> None:
    axes = {f"model.loss.{name}_weight": list(range(1, 999)) for name in ("class", "bbox", "giou")}
    search = {"kind": "random", "samples": 5, "seed": 3}
    cells = plan(experiment(axes=axes, search=search)).cells
    assert len({cell.name for cell in cells}) == 5


@pytest.mark.parametrize("kind", ["random", "optuna"])
def test_a_search_through_more_points_than_can_be_numbered_is_refused(kind: str) -> None:
    search = {"kind": kind, "samples": 1}
    with pytest.raises(ValueError, match=r"at most 10+ combinations, got 6[0-9]{20}; take fewer"):
        experiment(axes={f"path.{n}": list(range(1, 400)) for n in range(8)}, search=search)
    # One that Python cannot even write.
    axes = {f"path.{number}": list(range(9)) for number in range(4600)}
    with pytest.raises(ValueError, match="got a very long number; take fewer"):
        experiment(axes=axes, search=search)
    with pytest.raises(SpecError, match="too many trials, got a very long number"):
        plan(experiment(axes=axes))


def test_random_search_draws_what_it_drew_from_the_whole_list() -> None:
    axes = {
        "model.loss.class_weight": [1, 2, 3],
        "model.loss.bbox_weight": [4, 5],
        "training.epochs": [1, 2, 3],
    }
    whole = list(itertools.product(*axes.values()))
    drawn = random.Random(7).sample(whole, 6)
    search = {"kind": "random", "samples": 6, "seed": 7}
    cells = plan(experiment(axes=axes, search=search)).cells
    assert [tuple(cell.overrides.values()) for cell in cells if cell.overrides] == drawn


ELASTIC = {"elastic": {"enabled": True}}


def elastic(**sweep: Any) -> ExperimentSpec:
    return ExperimentSpec.model_validate(
        {"name": "test", "data": {"kind": "shapes"}, "training": ELASTIC, "sweep": sweep}
    )


def test_an_elastic_training_stands_for_the_whole_axis_of_keep_ratios() -> None:
    spec = elastic(axes={RATIO: [0.1, 0.4, 0.2], "training.epochs": [2, 3]}, seeds=[0, 1])
    made = plan(spec)
    assert [cell.name for cell in made.cells] == ["epochs=2", "epochs=3"]
    assert num_trials(spec) == len(made.trials) == 4
    assert [t.spec.model.token_selection.keep_ratio for t in made.trials] == [0.4] * 4
    assert made.trials[0].spec.training.elastic.evaluate_at == (0.1, 0.4, 0.2)


def test_what_is_read_from_an_elastic_cell_stands_for_the_base() -> None:
    alone = {"training.elastic.enabled": False, RATIO: 0.1}
    made = plan(elastic(axes={RATIO: [0.1, 0.5]}, cells={"alone": alone}))
    assert [(cell.name, cell.is_baseline) for cell in made.cells] == [
        ("alone", False),
        ("elastic", True),
    ]
    assert not plan(elastic(axes={RATIO: [0.1, 0.4]})).cells[0].is_baseline


def test_the_baseline_may_be_something_that_is_read() -> None:
    made = plan(elastic(axes={RATIO: [0.1, 0.5]}, baseline="elastic@0.1"))
    assert made.baseline == made.cells[0]
    with pytest.raises(
        SpecError, match=r"no such cell, got 'elastic@0\.3'; cells are elastic@0\.1"
    ):
        plan(elastic(axes={RATIO: [0.1, 0.5]}, baseline="elastic@0.3"))


def test_ratios_outside_the_trained_range_are_refused() -> None:
    with pytest.raises(SpecError, match=r"evaluate_at: these ratios are not trained for"):
        plan(elastic(axes={RATIO: [0.05, 0.5]}))
