"""How the transformer's weights start."""

from __future__ import annotations

from torch import nn

from focus_lab.model.deformable_attention import DeformableAttention


def initialize_transformer(module: nn.Module) -> None:
    """Xavier-uniform for all matrices (the query table is one); deformable attention its own way.

    Vectors keep what their layers gave them.
    """
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    for part in module.modules():
        if isinstance(part, DeformableAttention):
            part.reset_parameters()
