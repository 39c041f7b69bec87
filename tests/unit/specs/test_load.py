"""Loading: mistakes as sentences, and every shipped experiment."""

from pathlib import Path
from typing import Any

import pytest

from focus_lab.errors import SpecError
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.load import load_experiment

EXPERIMENTS = Path(__file__).parents[3] / "experiments"


def problems(tmp_path: Path, text: str, *settings: str) -> list[str]:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_experiment(path, list(settings))
    return [problem.replace(f"{tmp_path}/", "") for problem in caught.value.problems]


def test_all_mistakes_of_a_spec_come_at_once_with_file_and_line(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        "name: Bad Name\n"
        "data: {kind: shapes, imag_size: [3, 4]}\n"
        "model:\n"
        "  hidden_dim: abc\n"
        "  backbone: {kind: resnet, depth: 51}\n"
        "  token_selection:\n"
        "    keep_ration: 0.5\n"
        "    keep_ratio: 1.5\n",
        "training.epochs=0",
    )
    assert sorted(found) == sorted(
        [
            "spec.yaml:1: name: must be 1 to 63 of a-z, 0-9 and hyphen, got 'Bad Name'; "
            "for example keep-ratio",
            "spec.yaml:2: data.imag_size: is not a known key; did you mean image_size?",
            "spec.yaml:4: model.hidden_dim: must be a whole number, got 'abc'",
            "spec.yaml:5: model.backbone.depth: is not an allowed value, got 51; "
            "allowed are 18, 34, 50, 101 or 152",
            "spec.yaml:7: model.token_selection.keep_ration: is not a known key; "
            "did you mean keep_ratio?",
            "spec.yaml:8: model.token_selection.keep_ratio: must be at most 1, got 1.5",
            "--set training.epochs=0: training.epochs: must be greater than 0, got 0",
        ]
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: a", "data: is missing"),
        ("name: a\ndata: {}", "data: needs a `kind`"),
        ("name: a\ndata: {kind: voc}", "data.kind: is not a known kind, got 'voc'"),
        ("name: a\ndata: {kind: coco}", "data.root: is missing"),
        ("name: a\ndata: 3", "data: must be a mapping, got 3"),
        ("name: a\ndata: {kind: shapes, objects: [5, 2]}", "data.objects: the first value"),
        ("name: a\ndata: {kind: shapes}\nsweep: {seeds: []}", "sweep.seeds: must have at least 1"),
        ("name: a\ndata: {kind: shapes}\nsweep: {seeds: [1, 1]}", "each seed may stand once"),
        ("name: a\ndata: {kind: shapes}\nmodel: {hidden_dim: 250}", "must be a multiple of"),
        (
            "name: a\ndata: {kind: shapes}\nmodel: {token_selection: {scoring: {kind: dense}}}",
            "`dense` refines all tokens",
        ),
        (
            "name: a\ndata: {kind: shapes}\n"
            "model: {token_selection: {scoring: {kind: random}, level_keep_ratios: [0.5]}}",
            "spec.yaml:3: model.token_selection.level_keep_ratios: needs one value a feature level",
        ),
        (
            "name: a\ndata: {kind: shapes}\nmodel: {token_selection: {scoring: {kind: random}}}",
            "model.dual_attention.score_product: `random` scoring has no foreground logit",
        ),
        (
            "name: a\ndata: {kind: shapes}\nmodel: {foreground_targets: {kind: hard}}",
            "model.foreground_targets.kind: is not an allowed value, got 'hard'",
        ),
        (
            "name: a\ndata: {kind: shapes}\nobjectives: {coco/Ap: max}",
            "spec.yaml:3: objectives: no trial has such a metric, got 'coco/Ap'; "
            "did you mean coco/AP?",
        ),
        ("name: a\ndata: {kind: shapes}\nobjectives: {gflops: min}", "did you mean cost/gflops?"),
        ("name: a\ndata: {kind: shapes}\nobjectives: {zzz: min}", "known are coco/AP, "),
        (
            "name: a\ndata: {kind: shapes}\n"
            "sweep: {axes: {training.epochs: [1, 2]}, search: {kind: random, samples: 3}}",
            "sweep.search.samples: must be at most the number of combinations of sweep.axes, "
            "got 3; there are 2",
        ),
        (
            "name: a\ndata: {kind: shapes}\nsweep: {search: {kind: random, samples: 3}}",
            "got 3; there are 0",
        ),
        (
            "name: a\ndata: {kind: shapes}\nsweep: {seeds: [2147483648]}",
            "sweep.seeds.0: must be at most 2147483647, got 2147483648",
        ),
        (
            "name: a\ndata: {kind: shapes}\nmodel:\n  num_encoder_layers: 30000000\n"
            "  token_selection: {cascade: {kind: constant, mean: 0.5}}",
            "model.num_encoder_layers: must be at most 64, got 30000000",
        ),
        (
            "name: a\ndata: {kind: shapes}\ncompute: {cpus_per_worker: 1.0e-9}",
            "compute.cpus_per_worker: must be at least 0.01, got 1e-09",
        ),
        (
            "name: a\ndata: {kind: shapes}\ncompute: {gpus_per_worker: 0.001}",
            "compute.gpus_per_worker: must be 0 or at least 0.01, got 0.001",
        ),
        (
            'name: a\ndata: {kind: shapes}\nsweep: {cells: {"one\\0": {training.epochs: 1}}}',
            "spec.yaml:3: sweep.cells: no text may have control characters, "
            "got '\\x00' in 'one\\x00'; leave it out",
        ),
        (
            'name: a\ndata: {kind: shapes}\nsweep:\n  axes: {model.backbone.name: ["\\e[2J"]}',
            "spec.yaml:4: sweep.axes.model.backbone.name: no text may have control characters, "
            "got '\\x1b'",
        ),
    ],
)
def test_a_mistake_is_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    assert any(sentence in problem for problem in problems(tmp_path, text))


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("training.epochs=true", "training.epochs: must be a whole number, got True"),
        ("training.epochs='3'", "training.epochs: must be a whole number, got '3'"),
        ("training.epochs=3.0", "training.epochs: must be a whole number, got 3.0"),
        ("training.optimizer.lr='1'", "training.optimizer.lr: must be a number, got '1'"),
        ("training.optimizer.lr=true", "training.optimizer.lr: must be a number, got True"),
        ("training.optimizer.clip_norm=true", "clip_norm: must be a number, got True"),
        ("training.ema.enabled=1", "training.ema.enabled: must be true or false, got 1"),
        ("training.ema.enabled='yes'", "training.ema.enabled: must be true or false, got 'yes'"),
        ("description=3", "description: must be a text, got 3"),
        ("data.objects=[true, 3]", "data.objects.0: must be a whole number, got True"),
        ("data.objects=3", "data.objects: must be a list, got 3"),
        ("sweep.seeds=['0']", "sweep.seeds.0: must be a whole number, got '0'"),
        (
            "model.foreground_targets.size_ranges=[['1', 2]]",
            "model.foreground_targets.size_ranges.0.0: must be a number, got '1'",
        ),
    ],
)
def test_a_value_of_another_type_is_not_converted(
    tmp_path: Path, setting: str, sentence: str
) -> None:
    found = problems(tmp_path, "name: a\ndata: {kind: shapes}", setting)
    assert found[0].endswith(sentence)


def test_whole_numbers_stand_for_decimal_ones_and_lists_for_tuples(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(
        "name: a\n"
        "data: {kind: shapes, image_size: [64, 64], objects: [1, 2], object_size: [8, 16]}\n"
        "training: {optimizer: {lr: 1, betas: [0, 0.9]}, schedule: {kind: step, milestones: [1]}}\n"
        "model: {foreground_targets: {size_ranges: [[0, 1], [1, 2], [2, 3], [3, 4]]}}\n"
    )
    spec, _ = load_experiment(path)
    assert spec.training.optimizer.lr == 1
    assert spec.data.image_size == (64, 64)
    # What is stored, and what a client sends, is JSON.
    assert type(spec).model_validate(spec.model_dump(mode="json")) == spec
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec


def test_every_number_of_a_spec_has_a_largest_value() -> None:
    unbounded = []

    def look(node: Any, path: str) -> None:
        if isinstance(node, list):
            for inner in node:
                look(inner, path)
        if not isinstance(node, dict):
            return
        if node.get("type") in ("integer", "number") and not (
            {"maximum", "exclusiveMaximum", "enum"} & node.keys()
        ):
            unbounded.append(path)
        for key, inner in node.items():
            look(inner, f"{path}.{key}")

    look(ExperimentSpec.model_json_schema(), "")
    assert not unbounded


def test_errors_survive_pickling(tmp_path: Path) -> None:
    import pickle

    error = SpecError("one", "two")
    assert pickle.loads(pickle.dumps(error)).problems == ("one", "two")


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_experiment_loads(path: Path) -> None:
    on_photographs = "shapes" not in path.name and any(
        word in path.name for word in ("aquarium", "r50")
    )
    spec, plan = load_experiment(path, ["data.root=somewhere"] if on_photographs else [])
    assert plan.trials
    assert spec.description
