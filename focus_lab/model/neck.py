"""The neck: backbone features to feature levels of one width, with coarser levels on top."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Neck(nn.Module):
    """1x1 convolutions on backbone features, stride-2 convolutions on top, all with group norm."""

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        hidden_dim: int,
        num_feature_levels: int,
        norm_groups: int,
    ) -> None:
        """Neck with `num_feature_levels` outputs of `hidden_dim` channels.

        Args:
            channels: of the backbone's features, fine to coarse.
            strides: of the backbone's features, in pixels.
            hidden_dim: d.
            num_feature_levels: L. Fewer than the backbone has: its coarsest features are used.
                More: the first extra level comes from the coarsest raw feature, each further one
                from the level before.
            norm_groups: groups of the group norm.
        """
        super().__init__()
        used = min(len(channels), num_feature_levels)
        self.used = used
        self.lateral = nn.ModuleList(
            _convolution(width, hidden_dim, 1, norm_groups) for width in channels[-used:]
        )
        extra = num_feature_levels - used
        self.extra = nn.ModuleList(
            _convolution(channels[-1] if number == 0 else hidden_dim, hidden_dim, 3, norm_groups)
            for number in range(extra)
        )
        self.strides = (
            *strides[-used:],
            *(strides[-1] * 2 ** (number + 1) for number in range(extra)),
        )
        """Pixels between tokens of each level."""

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Backbone features [B, channels, h, w], fine to coarse, to L levels [B, d, h, w]."""
        levels: list[Tensor] = [
            lateral(feature)
            for lateral, feature in zip(self.lateral, features[-self.used :], strict=True)
        ]
        coarsest = features[-1]
        for extra in self.extra:
            coarsest = extra(coarsest)
            levels.append(coarsest)
        return levels


def _convolution(inputs: int, outputs: int, kernel: int, groups: int) -> nn.Sequential:
    """A 1x1 convolution, or a 3x3 one of stride 2, with group norm and without activation."""
    convolution = nn.Conv2d(
        inputs, outputs, kernel, stride=1 if kernel == 1 else 2, padding=kernel // 2
    )
    nn.init.xavier_uniform_(convolution.weight)
    assert convolution.bias is not None, "built with a bias"
    nn.init.zeros_(convolution.bias)
    return nn.Sequential(convolution, nn.GroupNorm(groups, outputs))
