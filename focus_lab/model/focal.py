"""Focal losses (Lin et al. 2017), for labels that are 0 or 1 and for those in between."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def focal_loss(logits: Tensor, positive: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sigmoid focal loss of each entry, -w (1 - p_t)^gamma log(p_t), without reduction.

    Everything is computed from log(p_t), so that extreme logits stay finite; elsewhere it equals
    the textbook form.

    Args:
        logits: [...].
        positive: bool [...], whether the entry's label is 1.
        alpha: weight w of positive entries; negatives weigh 1 - alpha.
        gamma: focusing exponent.
    """
    signed = torch.where(positive, logits, -logits)
    log_p = functional.logsigmoid(signed)
    # log(1 - p_t) = log(p_t) - signed logit, hence the modulating factor without a power of a
    # difference.
    modulation = (gamma * (log_p - signed)).exp()
    return torch.where(positive, -alpha, alpha - 1.0) * modulation * log_p


def soft_focal_loss(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sigmoid focal loss of each entry with labels t in [0, 1], without reduction.

    Cross-entropy with t, times (1 - p_t)^gamma where p_t = t p + (1 - t)(1 - p), times alpha t +
    (1 - alpha)(1 - t): `focal_loss` at t = 0 and t = 1. It is finite for extreme logits.

    Args:
        logits: [...].
        labels: [...].
        alpha: weight of label 1; label 0 weighs 1 - alpha.
        gamma: focusing exponent.
    """
    labels = labels.to(logits.dtype)
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    missed = labels * (-logits).sigmoid() + (1 - labels) * logits.sigmoid()
    weight = alpha * labels + (1 - alpha) * (1 - labels)
    return weight * missed.clamp(min=torch.finfo(logits.dtype).tiny) ** gamma * cross_entropy
