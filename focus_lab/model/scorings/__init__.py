"""How tokens are scored: one file a scoring."""

from __future__ import annotations

from typing import TYPE_CHECKING

from focus_lab.model.foreground_targets import foreground_rule
from focus_lab.model.initialization import initialize_transformer
from focus_lab.model.scorings.decoder_attention import DecoderAttentionSelector
from focus_lab.model.scorings.feature_norm import FeatureNormSelector
from focus_lab.model.scorings.focus import FocusSelector
from focus_lab.model.scorings.objectness import ObjectnessSelector
from focus_lab.model.scorings.oracle import OracleSelector
from focus_lab.model.scorings.random import RandomSelector
from focus_lab.model.token_selection import TokenSelector

if TYPE_CHECKING:
    from focus_lab.specs.model import ModelSpec


def build_token_selector(spec: ModelSpec) -> TokenSelector | None:
    """The selector that a spec describes, with fresh weights; None refines all tokens."""
    selection, width = spec.token_selection, spec.hidden_dim
    ratios = (selection.keep_ratio, spec.layer_shares, selection.level_keep_ratios)
    selector: TokenSelector
    match selection.scoring.kind:
        case "dense":
            return None
        case "focus":
            modulation = selection.score_modulation
            selector = FocusSelector(
                width,
                spec.num_feature_levels,
                *ratios,
                modulation.init_range if modulation.enabled else None,
            )
        case "objectness":
            selector = ObjectnessSelector(width, *ratios)
        case "decoder_attention":
            selector = DecoderAttentionSelector(width, *ratios)
        case "feature_norm":
            selector = FeatureNormSelector(*ratios)
        case "random":
            selector = RandomSelector(*ratios)
        case "oracle":
            selector = OracleSelector(foreground_rule(spec), *ratios)
    initialize_transformer(selector)
    return selector
