import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from focus_lab.errors import NonFiniteLossError
from focus_lab.model.criterion import build_criterion
from focus_lab.model.focal import focal_loss, soft_focal_loss
from focus_lab.model.output import DenoisingMeta
from focus_lab.specs.model import Denoising, ForegroundTargets, Loss, ModelSpec

CLASSES, QUERIES = 5, 7
SHAPES, STRIDES = ((4, 5), (2, 3)), (8, 16)
SPEC = ModelSpec(num_feature_levels=2)


def layer(generator, num_images, num_queries, dtype=torch.float32):
    shape = (num_images, num_queries)
    logits = torch.randn(*shape, CLASSES, generator=generator).to(dtype)
    boxes = torch.rand(*shape, 4, generator=generator).mul(0.5).add(0.2).to(dtype)
    return {"pred_logits": logits.requires_grad_(), "pred_boxes": boxes.requires_grad_()}


def batch(counts, *, groups=2, num_aux=2, dense=False, seed=0, dtype=torch.float32):
    """A model's output for images with the given numbers of boxes, and the targets."""
    generator = torch.Generator().manual_seed(seed)
    num_images, slots = len(counts), 2 * max(counts)
    denoising = meta = None
    if groups and slots:
        meta = DenoisingMeta(groups, slots, groups * slots)
        denoising = layer(generator, num_images, groups * slots, dtype)
        denoising["aux_outputs"] = [
            layer(generator, num_images, groups * slots, dtype) for _ in range(num_aux)
        ]
    num_tokens = sum(height * width for height, width in SHAPES)
    scores = torch.randn(num_images, num_tokens, generator=generator).to(dtype).requires_grad_()
    output = {
        **layer(generator, num_images, QUERIES, dtype),
        "aux_outputs": [layer(generator, num_images, QUERIES, dtype) for _ in range(num_aux)],
        "enc_outputs": layer(generator, num_images, QUERIES, dtype),
        "enc_aux_outputs": [],
        "category_outputs": None,
        "foreground_logits": None if dense else scores,
        "decoder_attention": None,
        "token_selection": None,
        "level_shapes": SHAPES,
        "strides": STRIDES,
        "denoising": denoising,
        "denoising_meta": meta,
    }
    targets = [
        {
            "labels": torch.randint(CLASSES, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator) * 0.5 + 0.2,
        }
        for count in counts
    ]
    return output, targets, [(32, 40)] * num_images


def leaves(output):
    layers = [output, *output["aux_outputs"], output["enc_outputs"]]
    if output["denoising"] is not None:
        layers += [output["denoising"], *output["denoising"]["aux_outputs"]]
    found = [each[key] for each in layers for key in ("pred_logits", "pred_boxes")]
    return found if output["foreground_logits"] is None else [*found, output["foreground_logits"]]


def names(num_aux=2, dense=False):
    suffixes = ["", *(f"_{index}" for index in range(num_aux))]
    suffixes = [*suffixes, "_enc", *(f"_dn{suffix}" for suffix in suffixes)]
    found = {f"loss_{kind}{suffix}" for kind in ("class", "bbox", "giou") for suffix in suffixes}
    return found if dense else found | {"loss_foreground"}


@pytest.mark.parametrize("counts", [(3, 1), (0, 4), (2,), (0, 0)], ids=str)
@pytest.mark.parametrize("groups", [0, 2])
def test_names_are_the_same_for_every_batch(counts, groups):
    output, targets, sizes = batch(counts, groups=groups)
    losses = build_criterion(SPEC, CLASSES)(output, targets, sizes)
    assert losses.keys() == names()
    assert all(loss.shape == () for loss in losses.values())


def test_dense_scoring_has_no_foreground_loss_and_no_denoising_has_no_such_losses():
    spec = SPEC.model_copy(update={"denoising": Denoising(enabled=False)})
    output, targets, sizes = batch((2, 1), groups=0, dense=True)
    losses = build_criterion(spec, CLASSES)(output, targets, sizes)
    assert losses.keys() == {name for name in names(dense=True) if "_dn" not in name}


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (0,)], ids=str)
def test_images_without_boxes_give_finite_losses_and_gradients_everywhere(counts):
    criterion = build_criterion(SPEC, CLASSES)
    output, targets, sizes = batch(counts)
    losses = criterion(output, targets, sizes)
    criterion.total(losses).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    for leaf in leaves(output):
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()


def test_without_any_box_only_class_and_foreground_losses_remain():
    output, targets, sizes = batch((0, 0))
    losses = build_criterion(SPEC, CLASSES)(output, targets, sizes)
    remaining = {name for name, loss in losses.items() if loss.item() != 0}
    layers = {"loss_class", "loss_class_0", "loss_class_1", "loss_class_enc"}
    assert remaining == layers | {"loss_foreground"}


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_logits_give_finite_losses_and_gradients(size):
    output, targets, sizes = batch((2, 1))
    for leaf in leaves(output):
        if leaf.shape[-1] != 4:
            leaf.data.mul_(size)
    criterion = build_criterion(SPEC, CLASSES)
    total = criterion.total(criterion(output, targets, sizes))
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves(output))


def test_nothing_that_is_passed_in_is_changed():
    output, targets, sizes = batch((2, 1))
    before = copy.deepcopy(
        (set(output), targets, sizes, [leaf.detach() for leaf in leaves(output)])
    )
    criterion = build_criterion(SPEC, CLASSES)
    losses = criterion(output, targets, sizes)
    keys = list(losses)
    criterion.total(losses)
    assert list(losses) == keys
    assert set(output) == before[0]
    for mine, old in zip(targets, before[1], strict=True):
        assert all(torch.equal(mine[key], old[key]) for key in mine)
    assert all(
        torch.equal(leaf.detach(), old) for leaf, old in zip(leaves(output), before[3], strict=True)
    )


def test_a_category_head_of_its_own_gets_a_class_loss_only():
    output, targets, sizes = batch((2, 1))
    criterion = build_criterion(SPEC, CLASSES)
    plain = criterion(output, targets, sizes)
    output["category_outputs"] = {
        "pred_logits": output["enc_outputs"]["pred_logits"].detach().clone().requires_grad_(),
        "pred_boxes": output["enc_outputs"]["pred_boxes"].detach(),
    }
    losses = criterion(output, targets, sizes)
    assert losses.keys() - plain.keys() == {"loss_class_category"}
    assert losses["loss_class_category"].item() == pytest.approx(losses["loss_class_enc"].item())
    assert criterion.weight("loss_class_category") == criterion.weight("loss_class")
    losses["loss_class_category"].backward()
    assert output["category_outputs"]["pred_logits"].grad.abs().sum() > 0


def test_losses_of_one_layer_do_not_depend_on_the_others():
    output, targets, sizes = batch((3, 2), groups=0)
    criterion = build_criterion(SPEC, CLASSES)
    together = criterion(output, targets, sizes)
    alone = {**output, **output["aux_outputs"][1], "aux_outputs": []}
    losses = criterion(alone, targets, sizes)
    for kind in ("class", "bbox", "giou"):
        assert losses[f"loss_{kind}"].item() == pytest.approx(together[f"loss_{kind}_1"].item())


def test_num_boxes_divides_class_and_box_losses_only():
    output, targets, sizes = batch((3, 1))
    criterion = build_criterion(SPEC, CLASSES)
    mine = criterion(output, targets, sizes)
    shared = criterion(output, targets, sizes, num_boxes=8.0)
    for name, loss in mine.items():
        factor = 1.0 if name == "loss_foreground" else 2.0
        assert loss.item() == pytest.approx(factor * shared[name].item(), rel=1e-5)


def test_num_boxes_is_at_least_one():
    output, targets, sizes = batch((1,))
    criterion = build_criterion(SPEC, CLASSES)
    losses = criterion(output, targets, sizes, num_boxes=0.25)
    same = criterion(output, targets, sizes, num_boxes=1.0)
    assert all(torch.equal(losses[name], same[name]) for name in losses)


def test_more_boxes_than_queries_match_every_query():
    output, targets, sizes = batch((QUERIES + 3, 1))
    losses = build_criterion(SPEC, CLASSES)(output, targets, sizes)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_perfect_predictions_have_almost_no_loss():
    output, targets, sizes = batch((QUERIES,), groups=0, num_aux=0, dense=True)
    labels = functional.one_hot(targets[0]["labels"], CLASSES)
    perfect = {
        "pred_logits": (labels * 40.0 - 20.0)[None],
        "pred_boxes": targets[0]["boxes"][None],
    }
    output |= {**perfect, "enc_outputs": perfect}
    losses = build_criterion(SPEC, CLASSES)(output, targets, sizes)
    assert all(loss.item() < 1e-3 for loss in losses.values())


def test_the_total_is_the_weighted_sum_with_the_weights_of_the_spec():
    loss = Loss(class_weight=0.5, bbox_weight=3.0, giou_weight=7.0, foreground_weight=11.0)
    criterion = build_criterion(SPEC.model_copy(update={"loss": loss}), CLASSES)
    output, targets, sizes = batch((2, 2))
    losses = criterion(output, targets, sizes)
    expected = sum(criterion.weight(name) * value.item() for name, value in losses.items())
    assert criterion.total(losses).item() == pytest.approx(expected, rel=1e-5)
    assert criterion.weight("loss_class_dn_0") == 0.5
    assert criterion.weight("loss_bbox_enc") == 3.0
    assert criterion.weight("loss_giou_1") == 7.0
    assert criterion.weight("loss_foreground") == 11.0


def test_an_unknown_loss_has_no_weight():
    with pytest.raises(KeyError):
        build_criterion(SPEC, CLASSES).weight("loss_mask")


def test_a_wrong_number_of_classes_is_refused():
    output, targets, sizes = batch((1,))
    with pytest.raises(ValueError, match=f"got {CLASSES}; the criterion was built for 9"):
        build_criterion(SPEC, 9)(output, targets, sizes)


def test_predictions_that_are_not_finite_are_refused():
    output, targets, sizes = batch((1,))
    output["enc_outputs"]["pred_logits"].data.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError):
        build_criterion(SPEC, CLASSES)(output, targets, sizes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_have_losses_in_float32(dtype):
    output, targets, sizes = batch((2, 1), dtype=dtype)
    criterion = build_criterion(SPEC, CLASSES)
    losses = criterion(output, targets, sizes)
    criterion.total(losses).backward()
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert all(leaf.grad.dtype == dtype for leaf in leaves(output))


def test_size_ranges_of_the_spec_reach_the_foreground_loss():
    nothing_fits = ForegroundTargets(size_ranges=((5000.0, 6000.0), (6000.0, 7000.0)))
    criterion = build_criterion(
        SPEC.model_copy(update={"foreground_targets": nothing_fits}), CLASSES
    )
    output, targets, sizes = batch((2, 1))
    background = torch.zeros(output["foreground_logits"].shape, dtype=torch.bool)
    expected = criterion.foreground_loss(output["foreground_logits"], background)
    losses = criterion(output, targets, sizes)
    assert losses["loss_foreground"].item() == pytest.approx(expected.item())


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(-12, 12), st.booleans()), min_size=1, max_size=6),
    st.floats(0, 1),
    st.floats(0, 5),
)
def test_focal_loss_is_the_textbook_form(entries, alpha, gamma):
    logits = torch.tensor([logit for logit, _ in entries], dtype=torch.float64)
    positive = torch.tensor([label for _, label in entries])
    p = logits.sigmoid()
    p_t = torch.where(positive, p, 1 - p)
    w = torch.where(positive, alpha, 1 - alpha)
    expected = -w * (1 - p_t) ** gamma * p_t.log()
    assert torch.allclose(focal_loss(logits, positive, alpha, gamma), expected, rtol=1e-6)


def test_focal_loss_has_the_right_gradient():
    logits = torch.linspace(-6, 6, 13, dtype=torch.float64, requires_grad=True)
    positive = torch.arange(13) % 2 == 0
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, positive, 0.25, 2.0), logits)


@given(st.floats(-200, 200), st.floats(0, 3))
def test_the_soft_focal_loss_is_the_hard_one_at_0_and_1(logit, gamma):
    logits = torch.tensor([logit, logit], dtype=torch.float64)
    labels = torch.tensor([0.0, 1.0])
    soft = soft_focal_loss(logits, labels, 0.25, gamma)
    torch.testing.assert_close(soft, focal_loss(logits, labels > 0, 0.25, gamma))


def test_the_soft_focal_loss_by_hand():
    # p = 0.8, t = 0.6: cross-entropy -(0.6 ln 0.8 + 0.4 ln 0.2), missed 0.6 x 0.2 + 0.4 x 0.8.
    logits = torch.tensor([0.8], dtype=torch.float64).logit()
    entropy = -(0.6 * math.log(0.8) + 0.4 * math.log(0.2))
    expected = (0.25 * 0.6 + 0.75 * 0.4) * (0.6 * 0.2 + 0.4 * 0.8) ** 2 * entropy
    loss = soft_focal_loss(logits, torch.tensor([0.6], dtype=torch.float64), 0.25, 2.0)
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("size", [1.0, 1e4, 1e30])
def test_soft_labels_give_finite_losses_and_gradients(size):
    criterion = build_criterion(SPEC, CLASSES)
    logits = (torch.linspace(-1, 1, 8)[None] * size).requires_grad_()
    labels = torch.tensor([[0.0, 0.3, 0.6, 1.0] * 2])
    loss = criterion.foreground_loss(logits, labels)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_a_soft_label_of_1_is_a_hard_one():
    criterion = build_criterion(SPEC, CLASSES)
    logits, hard = torch.randn(3, 8), torch.rand(3, 8) < 0.4
    soft = criterion.foreground_loss(logits, hard.float())
    torch.testing.assert_close(soft, criterion.foreground_loss(logits, hard))


def test_objectness_is_taught_by_boxes_of_all_sizes_on_all_levels():
    spec = ModelSpec.model_validate(
        {"num_feature_levels": 2, "token_selection": {"scoring": {"kind": "objectness"}}}
    )
    output, targets, sizes = batch((1,))
    targets[0]["boxes"] = torch.tensor([[0.5, 0.5, 0.9, 0.9]])
    criterion = build_criterion(spec, CLASSES)
    loss = criterion(output, targets, sizes)["loss_foreground"]
    # The box spans 2 .. 38 and 1.6 .. 30.4: tokens at 4 ... 36 and 8, 24 are inside, those of the
    # second level at x = 40 are not.
    inside = torch.ones(1, 26, dtype=torch.bool)
    inside[0, [22, 25]] = False
    torch.testing.assert_close(loss, criterion.foreground_loss(output["foreground_logits"], inside))
    plain = build_criterion(SPEC, CLASSES).foreground.labels(targets, sizes, SHAPES, STRIDES)
    assert not plain[0, 20:].any()
