import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focus_lab.model.boxes import cxcywh_to_xyxy
from focus_lab.model.denoising import BatchShare, DenoisingQueries, NoiseDraws, draw_noise

CLASSES, WIDTH, QUERIES = 6, 8, 5


def module(**changed):
    values = {
        "num_classes": CLASSES,
        "hidden_dim": WIDTH,
        "num_queries": 12,
        "label_noise": 0.5,
        "box_noise": 1.0,
        "inverse_sigmoid_eps": 1e-3,
    }
    return DenoisingQueries(**(values | changed))


def targets_of(*counts):
    generator = torch.Generator().manual_seed(3)
    return [
        {
            "labels": torch.randint(CLASSES, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator) * 0.2 + 0.4,
        }
        for count in counts
    ]


@settings(deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=4), st.integers(1, 40))
def test_layout_follows_the_rule_for_any_batch(counts, num_queries):
    batch = module(num_queries=num_queries)(targets_of(*counts), QUERIES)
    if max(counts) == 0:
        assert batch is None
        return
    assert batch.meta.groups == max(1, num_queries // max(counts))
    assert batch.meta.single_padding == 2 * max(counts)
    assert batch.meta.padded_size == batch.meta.groups * batch.meta.single_padding
    size = batch.meta.padded_size
    assert batch.content.shape == (len(counts), size, WIDTH)
    assert batch.reference_logits.shape == (len(counts), size, 4)
    assert batch.attention_mask.shape == (size + QUERIES, size + QUERIES)
    used = batch.content.abs().sum(dim=-1) > 0
    assert used.sum(dim=1).tolist() == [2 * batch.meta.groups * count for count in counts]


def test_groups_and_queries_cannot_see_what_they_should_not():
    batch = module()(targets_of(3, 1), QUERIES)
    single, size = batch.meta.single_padding, batch.meta.padded_size
    blocked = batch.attention_mask
    assert blocked[size:, :size].all()
    assert not blocked[:, size:].any()
    for group in range(batch.meta.groups):
        mine = slice(group * single, (group + 1) * single)
        assert not blocked[mine, mine].any()
        others = torch.ones(size, dtype=torch.bool)
        others[mine] = False
        assert blocked[mine, :size][:, others].all()


def test_without_noise_the_positives_are_the_ground_truth():
    targets = targets_of(2, 0, 3)
    queries = module(label_noise=0.0, box_noise=0.0)
    batch = queries(targets, QUERIES)
    for image, target in enumerate(targets):
        count = len(target["labels"])
        assert torch.allclose(
            batch.reference_logits[image, :count].sigmoid(), target["boxes"], atol=1e-6
        )
        expected = queries.label_embedding(target["labels"])
        assert torch.equal(batch.content[image, :count], expected)


def test_positives_stay_within_half_a_box_and_negatives_leave_it():
    box = torch.tensor([[0.5, 0.45, 0.2, 0.1]])
    targets = [{"labels": torch.zeros(1, dtype=torch.int64), "boxes": box}]
    batch = module(num_queries=400)(targets, QUERIES)
    noised = batch.reference_logits[0].sigmoid().view(-1, 2, 4)  # (positive, negative) pairs
    moved = (cxcywh_to_xyxy(noised) - cxcywh_to_xyxy(box)) / (box[:, 2:].repeat(1, 2) / 2)
    assert moved[:, 0].abs().max() <= 1 + 1e-3
    # A negative that swapped its sides has its size clamped by the inverse sigmoid; skip those.
    negatives = moved[:, 1][(noised[:, 1, 2:] > 2e-3).all(dim=-1)]
    assert len(negatives) > 100
    assert negatives.abs().min() >= 1 - 1e-3
    assert negatives.abs().max() <= 2 + 1e-3


def test_labels_flip_with_half_of_the_label_noise():
    queries = module(num_queries=2000, label_noise=0.5)
    targets = [{"labels": torch.zeros(1, dtype=torch.int64), "boxes": torch.full((1, 4), 0.5)}]
    torch.manual_seed(0)
    content = queries(targets, QUERIES).content[0]
    kept = (content == queries.label_embedding.weight[0]).all(dim=1).double().mean().item()
    assert kept == pytest.approx(1 - 0.25 * (CLASSES - 1) / CLASSES, abs=0.03)


def test_the_same_seed_gives_the_same_queries_and_another_gives_others():
    queries, targets = module(), targets_of(3, 2)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, second = queries(targets, QUERIES), queries(targets, QUERIES)
    torch.set_rng_state(state)
    again = queries(targets, QUERIES)
    assert torch.equal(first.reference_logits, again.reference_logits)
    assert torch.equal(first.content, again.content)
    assert not torch.equal(first.reference_logits, second.reference_logits)


def test_draws_have_their_ranges():
    draws = draw_noise(500, CLASSES)
    assert draws.u_label.shape == (500,)
    assert draws.sign.unique().tolist() == [-1.0, 1.0]
    assert draws.new_label.unique().tolist() == list(range(CLASSES))
    for uniform in (draws.u_label, draws.part):
        assert uniform.min() >= 0
        assert uniform.max() < 1


def test_draws_come_from_the_given_source():
    asked = []

    def source(count, classes, generator):
        asked.append((count, classes))
        return NoiseDraws(
            u_label=torch.zeros(count),
            new_label=torch.full((count,), 4),
            sign=torch.ones(count, 4),
            part=torch.zeros(count, 4),
        )

    queries = module(noise_source=source)
    batch = queries(targets_of(3, 1), QUERIES)
    assert asked == [(2 * 4 * 4, CLASSES)]
    assert torch.equal(batch.content[0, 0], queries.label_embedding.weight[4])


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=5), st.data())
def test_parts_of_a_batch_get_the_queries_of_the_whole(counts, data):
    cut = data.draw(st.integers(1, len(counts) - 1))
    queries, targets = module(), targets_of(*counts)
    boxes, most = sum(counts), max(counts)
    whole = queries(targets, QUERIES, BatchShare(0, boxes, most, 5))
    first = queries(targets[:cut], QUERIES, BatchShare(0, boxes, most, 5))
    second = queries(targets[cut:], QUERIES, BatchShare(sum(counts[:cut]), boxes, most, 5))
    if boxes == 0:
        assert whole is first is second is None
        return
    assert torch.equal(torch.cat((first.content, second.content)), whole.content)
    logits = torch.cat((first.reference_logits, second.reference_logits))
    assert torch.equal(logits, whole.reference_logits)
    assert first.meta == second.meta == whole.meta
    # Somebody without a box has a gradient all the same: other workers wait for it.
    assert all(part.content.requires_grad for part in (first, second))


def test_unused_slots_are_zero():
    batch = module()(targets_of(3, 1), QUERIES)
    unused = torch.arange(batch.meta.padded_size) % 3 > 0
    assert not batch.content[1, unused].any()
    assert not batch.reference_logits[1, unused].any()


def test_only_the_label_embedding_gets_a_gradient():
    queries = module()
    batch = queries(targets_of(2), QUERIES)
    batch.content.sum().backward()
    assert queries.label_embedding.weight.grad.abs().sum() > 0
    assert not batch.reference_logits.requires_grad
    assert [name for name, _ in queries.named_parameters()] == ["label_embedding.weight"]


def test_a_module_in_float64_builds_float64_queries():
    batch = module().double()(targets_of(2), QUERIES)
    assert batch.content.dtype == batch.reference_logits.dtype == torch.float64
