"""Which share of the kept tokens each encoder layer refines: as a list, or made for a wanted mean.

Layers take the best tokens of one ranking, so a share stands for a prefix of it. A layer that takes
fewer than the one before leaves the others as they are; a layer that takes more finds the newcomers
as they were when they were last refined, or as neck features. Compute goes with the mean over the
layers: cascades of equal mean cost the same, whatever their shape.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from focus_lab.specs.base import FromList, Ratio, Spec

_DECIMALS = 9


class ConstantCascade(Spec):
    """Every layer refines the same tokens."""

    kind: Literal["constant"]
    mean: Ratio
    """Share of every layer."""


class LinearCascade(Spec):
    """Shares fall in equal steps; mean 0.6 of 6 layers: 1, 0.84, 0.68, 0.52, 0.36, 0.2."""

    kind: Literal["linear"]
    mean: Ratio
    """Mean share; more than half of `first`."""
    first: Ratio = 1.0
    """Share of the first layer."""


class GeometricCascade(Spec):
    """Each share is the same part of the one before; mean 0.46875 of 4: 1, 0.5, 0.25, 0.125."""

    kind: Literal["geometric"]
    mean: Ratio
    """Mean share; more than `first` / number of layers."""
    first: Ratio = 1.0
    """Share of the first layer."""


class StepCascade(Spec):
    """Two shares, one for each half of the layers; mean 0.6 of 6 layers: 1, 1, 1, 0.2, 0.2, 0.2."""

    kind: Literal["step"]
    mean: Ratio
    """Mean share; enough to leave something for the second half."""
    first: Ratio = 1.0
    """Share of the first half, which is the larger one of an odd number of layers."""


class ReversedCascade(Spec):
    """Shares rise in equal steps, a linear cascade turned round: few tokens first, more later."""

    kind: Literal["reversed"]
    mean: Ratio
    """Mean share; more than half of `last`."""
    last: Ratio = 1.0
    """Share of the last layer."""


def _kind(value: Any) -> Any:
    """The tag of a written or validated cascade."""
    if isinstance(value, list | tuple):
        return "a list of shares"
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)


MadeCascade: TypeAlias = (
    ConstantCascade | LinearCascade | GeometricCascade | StepCascade | ReversedCascade
)
Cascade = Annotated[
    Annotated[tuple[Ratio, ...], FromList, Field(min_length=1), Tag("a list of shares")]
    | Annotated[ConstantCascade, Tag("constant")]
    | Annotated[LinearCascade, Tag("linear")]
    | Annotated[GeometricCascade, Tag("geometric")]
    | Annotated[StepCascade, Tag("step")]
    | Annotated[ReversedCascade, Tag("reversed")],
    Discriminator(_kind),
]


def mean_share(cascade: tuple[float, ...] | MadeCascade) -> float:
    """Mean share over the layers."""
    return sum(cascade) / len(cascade) if isinstance(cascade, tuple) else cascade.mean


def layer_shares(cascade: tuple[float, ...] | MadeCascade, num_layers: int) -> tuple[float, ...]:
    """One share a layer, in (0, 1].

    Raises:
        ValueError: a sentence that says why these layers cannot have these shares.
    """
    if isinstance(cascade, tuple):
        if len(cascade) != num_layers:
            raise ValueError(
                "needs one value an encoder layer, "
                f"got {len(cascade)} values; num_encoder_layers is {num_layers}"
            )
        return cascade
    mean = cascade.mean
    if isinstance(cascade, ConstantCascade):
        return (mean,) * num_layers
    if num_layers == 1:
        raise ValueError(
            f"one encoder layer has nothing to fall or rise to, got kind {cascade.kind}; "
            "write {kind: constant}, or more layers"
        )
    highest = cascade.last if isinstance(cascade, ReversedCascade) else cascade.first
    many = num_layers if isinstance(cascade, StepCascade) else 2
    least = highest * math.ceil(many / 2) / many
    if isinstance(cascade, GeometricCascade):
        least = highest / num_layers
    if not least < mean <= highest:
        raise ValueError(
            f"a {cascade.kind} cascade of {num_layers} layers from {highest:g} has a mean above "
            f"{least:g} and up to {highest:g}, got {mean:g}; change mean or "
            f"{'last' if isinstance(cascade, ReversedCascade) else 'first'}"
        )
    if isinstance(cascade, GeometricCascade):
        ratio = _common_ratio(mean / highest, num_layers)
        shares = [highest * ratio**layer for layer in range(num_layers)]
    elif isinstance(cascade, StepCascade):
        half = math.ceil(num_layers / 2)
        lowest = (mean * num_layers - highest * half) / (num_layers - half)
        shares = [highest] * half + [lowest] * (num_layers - half)
    else:
        lowest = 2 * mean - highest
        step = (highest - lowest) / (num_layers - 1)
        shares = [highest - step * layer for layer in range(num_layers)]
        if isinstance(cascade, ReversedCascade):
            shares.reverse()
    return tuple(round(share, _DECIMALS) for share in shares)


def _common_ratio(mean: float, num_layers: int) -> float:
    """The q in (0, 1] for which 1, q, q^2, … have this mean: it rises with q, hence halving."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        found = sum(middle**layer for layer in range(num_layers)) / num_layers
        low, high = (middle, high) if found < mean else (low, middle)
    return high
