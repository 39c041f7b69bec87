"""Taking tokens and putting them back."""

import torch

from focus_lab.model.tokens import put_tokens, take_tokens


def test_taken_tokens_are_the_rows_asked_for():
    sequence = torch.randn(2, 5, 3, 4)
    indices = torch.tensor([[4, 0], [2, 1]])
    taken = take_tokens(sequence, indices)
    assert torch.equal(taken[0], sequence[0, [4, 0]])
    assert torch.equal(taken[1], sequence[1, [2, 1]])


def test_a_sequence_may_be_shared_by_all_images():
    sequence = torch.randn(1, 5, 3, requires_grad=True)
    indices = torch.tensor([[4, 0], [4, 1]])
    taken = take_tokens(sequence, indices)
    assert torch.equal(taken, take_tokens(sequence.expand(2, -1, -1), indices))
    taken.sum().backward()
    assert sequence.grad[0, :, 0].tolist() == [1, 1, 0, 0, 2]


def test_put_tokens_replace_their_rows_and_leave_the_rest():
    sequence, indices = torch.randn(2, 5, 3), torch.tensor([[4, 0], [2, 1]])
    rows = torch.randn(2, 2, 3)
    written = put_tokens(sequence, indices, rows)
    assert torch.equal(take_tokens(written, indices), rows)
    assert torch.equal(written[0, 1:4], sequence[0, 1:4])
    assert torch.equal(written[1, 3:], sequence[1, 3:])
