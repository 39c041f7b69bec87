"""Self-attention against torch's own module."""

import torch

from focus_lab.model.self_attention import SelfAttention


def test_it_equals_torchs_multihead_attention_with_position_on_query_and_key():
    torch.manual_seed(0)
    ours, theirs = SelfAttention(16, 4), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    tokens, positions = torch.randn(2, 2, 7, 16).unbind()
    blocked = torch.rand(7, 7) < 0.4
    blocked.fill_diagonal_(False)
    placed = tokens + positions
    for mask in (None, blocked):
        expected = theirs(placed, placed, tokens, attn_mask=mask, need_weights=False)[0]
        torch.testing.assert_close(ours(tokens, positions, mask), expected)


def test_dropout_acts_in_training_only():
    attention, tokens = SelfAttention(16, 4, dropout=0.5), torch.randn(1, 5, 16)
    assert not torch.equal(attention(tokens, tokens), attention(tokens, tokens))
    attention.eval()
    assert torch.equal(attention(tokens, tokens), attention(tokens, tokens))
