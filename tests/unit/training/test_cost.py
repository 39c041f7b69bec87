"""Counted cost, against a formula in closed form and the numbers of the released code."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from focus_lab.model.focus_detr import build_model
from focus_lab.specs.compose import merge
from focus_lab.specs.experiment import TrialSpec
from focus_lab.specs.model import ModelSpec
from focus_lab.training.cost import (
    PAPER_SHAPE,
    Latency,
    count,
    mean_cost,
    measure_latency,
    model_without_memory,
    peak_memory_mib,
)

DEMO: dict[str, Any] = {
    "backbone": {"kind": "residual", "widths": [24, 32, 64, 96, 128]},
    "hidden_dim": 64,
    "num_heads": 4,
    "dim_feedforward": 128,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_queries": 30,
    "norm_groups": 8,
    "token_selection": {"keep_ratio": 1.0, "cascade": [1.0, 0.8]},
    "dual_attention": {"num_tokens": 30},
}
DENSE: dict[str, Any] = {
    "token_selection": {"scoring": {"kind": "dense"}, "keep_ratio": 1, "cascade": [1, 1]},
    "dual_attention": {"enabled": False},
}


def with_ratio(ratio: float, **more: Any) -> ModelSpec:
    return ModelSpec.model_validate(merge(DEMO, {"token_selection": {"keep_ratio": ratio}, **more}))


def scored_by(kind: str) -> ModelSpec:
    return with_ratio(
        0.3,
        dual_attention={"score_product": "category"},
        token_selection={"keep_ratio": 0.3, "scoring": {"kind": kind}},
    )


def halved(size: int, times: int) -> int:
    for _ in range(times):
        size = (size + 1) // 2
    return size


def level_sizes(spec: ModelSpec, shape: tuple[int, int]) -> list[int]:
    """Tokens of each level, strides from 8 on."""
    return [
        halved(shape[0], 3 + level) * halved(shape[1], 3 + level)
        for level in range(spec.num_feature_levels)
    ]


def layer_tokens(spec: ModelSpec, tokens: int) -> list[int]:
    selection = spec.token_selection
    if selection.scoring.kind == "dense":
        return [tokens] * spec.num_encoder_layers
    kept = min(int(tokens * selection.keep_ratio) + 1, tokens)
    return [max(1, int(share * kept + 1e-4)) for share in selection.cascade]


def formula(spec: ModelSpec, shape: tuple[int, int], classes: int) -> dict[str, int]:
    """Multiply-accumulates of everything behind the neck, from the sizes alone."""
    levels = level_sizes(spec, shape)
    n, d, f = sum(levels), spec.hidden_dim, spec.dim_feedforward
    samples = spec.num_heads * spec.num_feature_levels * spec.num_points
    q = min(spec.num_queries, n)

    def self_attention(tokens: int) -> int:
        return 4 * tokens * d * d + 2 * tokens * tokens * d

    def deformable(tokens: int) -> int:
        # Values of all tokens, offsets (2) and weights (1) a sample, output.
        return n * d * d + tokens * d * 3 * samples + tokens * d * d

    box_head = 2 * d * d + 4 * d
    encoder = 0
    for k in layer_tokens(spec, n):
        if spec.dual_attention.enabled:
            encoder += k * d * classes + self_attention(min(spec.dual_attention.num_tokens, k))
        encoder += deformable(k) + 2 * k * d * f
    decoder = spec.num_decoder_layers * (
        self_attention(q) + deformable(q) + 2 * q * d * f + q * 3 * d * d
    )
    decoder += (spec.num_decoder_layers - 1) * q * box_head
    heads = n * (d * d + d * classes) + q * (d * d + d * classes + box_head)
    heads += spec.num_decoder_layers * q * (d * classes + box_head)
    scorer = 0
    if spec.token_selection.scoring.kind == "focus":
        # Shared projection, expand, half of mix, shrink, logit; the means' half once a level.
        scorer = n * (d * d + d * d + d * d // 4 + d * d // 8 + d // 4) + len(levels) * d * d // 4
    elif spec.token_selection.scoring.kind == "decoder_attention":
        # The same with one mean over all levels.
        scorer = n * (d * d + d * d + d * d // 4 + d * d // 8 + d // 4) + d * d // 4
    elif spec.token_selection.scoring.kind == "objectness":
        scorer = n * (d * d + d * d + d)
    return {"scorer": scorer, "encoder": encoder, "decoder": decoder, "heads": heads}


def neck_formula(spec: ModelSpec, shape: tuple[int, int], channels: tuple[int, ...]) -> int:
    levels, d = level_sizes(spec, shape), spec.hidden_dim
    lateral = sum(size * width * d for size, width in zip(levels, channels, strict=False))
    inputs = [channels[-1], *[d] * spec.num_feature_levels]
    extra = zip(levels[len(channels) :], inputs, strict=False)
    return lateral + sum(9 * width * d * size for size, width in extra)


def backbone_formula(widths: tuple[int, ...], shape: tuple[int, int]) -> int:
    size = [halved(shape[0], level) * halved(shape[1], level) for level in range(1, 6)]
    blocks = sum(
        size[number] * outputs * (9 * inputs + 9 * outputs + inputs)
        for number, (inputs, outputs) in enumerate(itertools.pairwise(widths), start=1)
    )
    return size[0] * widths[0] * 27 + blocks


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (with_ratio(0.1), (128, 128)),
        (with_ratio(0.3), (33, 70)),
        (with_ratio(0.5), (128, 128)),
        (with_ratio(1.0), (64, 96)),
        (with_ratio(0.4, num_points=2, num_feature_levels=5, dim_feedforward=96), (64, 96)),
        (with_ratio(0.3, dual_attention={"enabled": False}), (64, 96)),
        (ModelSpec.model_validate(merge(DEMO, DENSE)), (33, 70)),
        (scored_by("objectness"), (33, 70)),
        (scored_by("decoder_attention"), (33, 70)),
        (scored_by("feature_norm"), (64, 96)),
        (scored_by("random"), (64, 96)),
        (scored_by("oracle"), (64, 96)),
    ],
    ids=[
        *("0.1", "0.3 odd", "0.5", "1", "5 levels", "one attention", "dense odd"),
        *("objectness", "decoder attention", "feature norm", "random", "oracle"),
    ],
)
def test_the_count_is_the_formula(spec: ModelSpec, shape: tuple[int, int]) -> None:
    counted = count(model_without_memory(spec, 5), shape).macs
    assert spec.backbone.kind == "residual"
    assert counted == {
        "backbone": backbone_formula(spec.backbone.widths, shape),
        "neck": neck_formula(spec, shape, (64, 96, 128)),
        **formula(spec, shape, 5),
    }


def test_the_count_of_the_paper_s_model_is_the_formula() -> None:
    spec = ModelSpec.model_validate({"token_selection": {"keep_ratio": 0.1}})
    counted = count(model_without_memory(spec, 80), PAPER_SHAPE).macs
    assert counted["neck"] == neck_formula(spec, PAPER_SHAPE, (512, 1024, 2048))
    assert {part: counted[part] for part in ("scorer", "encoder", "decoder", "heads")} == formula(
        spec, PAPER_SHAPE, 80
    )


def test_the_paper_s_model_costs_what_the_released_code_counts_less_what_is_saved() -> None:
    cost = count(model_without_memory(ModelSpec(), 80), PAPER_SHAPE)
    assert cost.total_macs == 178_503_432_128
    parts = {part: round(macs / 1e9, 3) for part, macs in cost.macs.items()}
    assert parts["backbone"] == 87.333
    assert parts["neck"] == 5.129
    assert parts["encoder"] == 58.804
    assert {part: cost.macs[part] for part in ("scorer", "encoder", "decoder", "heads")} == formula(
        ModelSpec(), PAPER_SHAPE, 80
    )
    n, q, d = 22223, 900, 256
    box_head = 2 * d * d + 4 * d
    saved = (
        n * d * d // 4 - 4 * d * d // 4  # the scorer's mean goes through its layer once a level
        + (n - q) * box_head  # boxes of chosen proposals only
        + q * box_head  # nobody reads the last layer's refinement before its norm
        - q * d * d  # chosen proposals are projected once more
    )  # fmt: skip
    assert round((cost.total_macs + saved) / 1e9, 3) == 181.744


def test_only_the_encoder_depends_on_the_keep_ratio_and_rises_with_it() -> None:
    ratios = [0.1, 0.5, 1.0]
    costs = [count(model_without_memory(with_ratio(r), 5), (128, 128)).macs for r in ratios]
    for before, after in itertools.pairwise(costs):
        assert after["encoder"] > before["encoder"]
        assert {**after, "encoder": 0} == {**before, "encoder": 0}


def test_the_encoder_s_cost_is_linear_in_the_tokens_beyond_the_dual_attention() -> None:
    points = []
    for ratio in (0.3, 0.6, 1.0):
        spec = with_ratio(ratio, num_encoder_layers=1, token_selection={"cascade": [1.0]})
        spec = ModelSpec.model_validate(
            merge(spec.model_dump(), {"token_selection": {"keep_ratio": ratio}})
        )
        tokens = layer_tokens(spec, sum(level_sizes(spec, (128, 128))))[0]
        macs = count(model_without_memory(spec, 5), (128, 128)).macs["encoder"]
        points.append((tokens, macs))
    slopes = {
        (after[1] - before[1]) / (after[0] - before[0])
        for before, after in itertools.pairwise(points)
    }
    assert len(slopes) == 1


def test_counting_leaves_the_model_as_it_was(tiny_trial: Callable[..., TrialSpec]) -> None:
    model = build_model(tiny_trial().model, 3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cost = count(model, (32, 32))
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert cost == count(model_without_memory(tiny_trial().model, 3), (32, 32))


def test_the_mean_weighs_shapes_by_how_often_they_occur(
    tiny_trial: Callable[..., TrialSpec],
) -> None:
    model = model_without_memory(tiny_trial().model, 3)
    small, large = count(model, (32, 32)), count(model, (64, 64))
    mean = mean_cost(model, [(32, 32), (64, 64), (32, 32)])
    for part, macs in mean.macs.items():
        assert macs == round((2 * small.macs[part] + large.macs[part]) / 3)


def test_metrics_name_macs_and_flops_apart(tiny_trial: Callable[..., TrialSpec]) -> None:
    cost = count(model_without_memory(tiny_trial().model, 3), (32, 32))
    metrics = cost.metrics()
    assert metrics["cost/gflops"] == 2 * metrics["cost/gmacs"] == 2 * cost.total_macs / 1e9
    parts = [metrics[f"cost/{part}_gflops"] for part in cost.macs]
    assert sum(parts) == pytest.approx(metrics["cost/gflops"], rel=1e-12)
    assert metrics["cost/params"] == cost.parameters


def test_latency_is_measured_in_turn_and_without_warm_up() -> None:
    calls: list[str] = []
    measured = measure_latency(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        torch.device("cpu"),
        repeats=4,
        warmup=2,
    )
    assert calls == ["a", "b"] * 6
    assert {name: len(latency.seconds) for name, latency in measured.items()} == {"a": 4, "b": 4}


def test_the_percentile_is_one_of_the_slow_passes() -> None:
    latency = Latency(tuple(number / 1000 for number in range(1, 21)))
    assert latency.median_ms == pytest.approx(10.5)
    assert latency.p95_ms == pytest.approx(19.0)


def test_peak_memory_is_that_of_a_process_with_torch() -> None:
    assert 50 < peak_memory_mib(torch.device("cpu")) < 1_000_000


@pytest.mark.parametrize(
    ("keep_ratio", "published"),
    [(0.1, 105.4), (0.2, 112.9), (0.3, 120.5), (0.4, 128.0), (0.5, 135.6)],
)
def test_sparse_detr_costs_what_it_publishes_within_2_percent(
    keep_ratio: float, published: float
) -> None:
    """Its README: R50, fvcore's multiply-adds, "approximately" those of one 850 x 1040 image.

    Deformable DETR underneath: 300 queries, 91 classes, feed-forward networks of 1024. Not the
    same: it decodes a box of every token, projects decoder positions once, counts sampling.
    """
    spec = ModelSpec.model_validate(
        {
            "dim_feedforward": 1024,
            "num_queries": 300,
            "dual_attention": {"enabled": False},
            "value_source": "updated_tokens",
            "token_selection": {
                "keep_ratio": keep_ratio,
                "cascade": {"kind": "constant", "mean": 1.0},
                "scoring": {"kind": "decoder_attention"},
            },
        }
    )
    counted = count(model_without_memory(spec, 91), (850, 1040)).total_macs / 1e9
    assert counted == pytest.approx(published, rel=0.02)
