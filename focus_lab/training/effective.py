"""Whether the model does what its spec asks for: nothing may be swept that nobody reads."""

from __future__ import annotations

from focus_lab.errors import EffectiveSpecError
from focus_lab.model.focus_detr import FocusDETR
from focus_lab.specs.experiment import TrialSpec
from focus_lab.training.reporter import Metrics


def check_effective(spec: TrialSpec, model: FocusDETR) -> None:
    """See that the swept parameters have reached the model.

    Raises:
        EffectiveSpecError: they have not.
    """
    wanted = spec.model.token_selection
    got = model.effective_token_selection
    asked = {
        "keep_ratio": wanted.keep_ratio,
        "cascade": spec.model.layer_shares,
        "level_keep_ratios": wanted.level_keep_ratios,
    }
    if got != asked:
        raise EffectiveSpecError(
            f"model.token_selection: the built model uses other ratios than its cell, got {got}; "
            f"the cell says {asked}"
        )


def check_kept(spec: TrialSpec, metrics: Metrics, wanted: float) -> None:
    """See that the first layer has kept its share of the wanted ratio, as counted while evaluating.

    Raises:
        EffectiveSpecError: it has not.
    """
    selection = spec.model.token_selection
    # What ratios by level come to depends on how many tokens each level of an image has.
    if "tokens/kept_layer_0" not in metrics or selection.level_keep_ratios is not None:
        return
    kept, total = metrics["tokens/kept_layer_0"], metrics["tokens/total"]
    # An image may keep trunc(valid x ratio) + 1, and the layer takes its share of what the image
    # that may keep most does.
    least, most = wanted * spec.model.layer_shares[0] * total, wanted * total
    slack = 1 + 1e-3 * total
    if not least - slack <= kept <= most + slack:
        raise EffectiveSpecError(
            f"model.token_selection.keep_ratio: the encoder kept {kept:.1f} of {total:.1f} tokens "
            f"an image, got a ratio of {kept / total:.3f}; asked for is {wanted}"
        )
