"""Loading: mistakes as sentences, and every shipped experiment."""

from pathlib import Path

import pytest

from focus_lab.errors import SpecError
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
    ],
)
def test_a_mistake_is_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    assert any(sentence in problem for problem in problems(tmp_path, text))


def test_errors_survive_pickling(tmp_path: Path) -> None:
    import pickle

    error = SpecError("one", "two")
    assert pickle.loads(pickle.dumps(error)).problems == ("one", "two")


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_experiment_loads(path: Path) -> None:
    spec, plan = load_experiment(
        path, ["data.root=somewhere"] if "aquarium" in path.name or "r50" in path.name else []
    )
    assert plan.trials
    assert spec.description
