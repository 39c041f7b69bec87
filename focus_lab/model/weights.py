"""Released Focus-DETR checkpoints in and out: the one place that knows upstream's tensor names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from focus_lab.errors import WeightsError
from focus_lab.model.focus_detr import build_model
from focus_lab.model.weight_files import check_weights
from focus_lab.specs.model import ModelSpec, ResNetBackbone

# Our name -> released name; the first pattern that matches the beginning of a name applies.
_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), released)
    for pattern, released in (
        (r"backbone\.conv1\.", "backbone.stem.conv1."),
        (r"backbone\.bn1\.", "backbone.stem.conv1.norm."),
        (r"backbone\.layer1\.(\d+)\.", r"backbone.res2.\1."),
        (r"backbone\.layer2\.(\d+)\.", r"backbone.res3.\1."),
        (r"backbone\.layer3\.(\d+)\.", r"backbone.res4.\1."),
        (r"backbone\.layer4\.(\d+)\.", r"backbone.res5.\1."),
        (r"neck\.lateral\.(\d+)\.0\.", r"neck.convs.\1.conv."),
        (r"neck\.lateral\.(\d+)\.1\.", r"neck.convs.\1.norm."),
        (r"neck\.extra\.(\d+)\.0\.", r"neck.extra_convs.\1.conv."),
        (r"neck\.extra\.(\d+)\.1\.", r"neck.extra_convs.\1.norm."),
        (r"position\.level_embedding$", "transformer.level_embeds"),
        (r"token_selector\.modulation_scales$", "transformer.alpha"),
        (r"token_selector\.scorer\.norm\.", "transformer.enc_mask_predictor.layer1.0."),
        (r"token_selector\.scorer\.expand\.", "transformer.enc_mask_predictor.layer1.1."),
        (r"token_selector\.scorer\.mix\.", "transformer.enc_mask_predictor.layer2.0."),
        (r"token_selector\.scorer\.shrink\.", "transformer.enc_mask_predictor.layer2.2."),
        (r"token_selector\.scorer\.logit\.", "transformer.enc_mask_predictor.layer2.4."),
        (r"proposals\.projection\.", "transformer.enc_output."),
        (r"proposals\.norm\.", "transformer.enc_output_norm."),
        (
            r"encoder\.layers\.(\d+)\.dual_attention\.",
            r"transformer.encoder.layers.\1.attentions.0.attn.",
        ),
        (r"encoder\.layers\.(\d+)\.dual_attention_norm\.", r"transformer.encoder.layers.\1.norm2."),
        (
            r"encoder\.layers\.(\d+)\.deformable_attention\.",
            r"transformer.encoder.layers.\1.attentions.1.",
        ),
        (
            r"encoder\.layers\.(\d+)\.deformable_attention_norm\.",
            r"transformer.encoder.layers.\1.norms.0.",
        ),
        (r"encoder\.layers\.(\d+)\.feed_forward_norm\.", r"transformer.encoder.layers.\1.norms.1."),
        (
            r"decoder\.layers\.(\d+)\.self_attention\.",
            r"transformer.decoder.layers.\1.attentions.0.attn.",
        ),
        (
            r"decoder\.layers\.(\d+)\.self_attention_norm\.",
            r"transformer.decoder.layers.\1.norms.0.",
        ),
        (
            r"decoder\.layers\.(\d+)\.deformable_attention\.",
            r"transformer.decoder.layers.\1.attentions.1.",
        ),
        (
            r"decoder\.layers\.(\d+)\.deformable_attention_norm\.",
            r"transformer.decoder.layers.\1.norms.1.",
        ),
        (r"decoder\.layers\.(\d+)\.feed_forward_norm\.", r"transformer.decoder.layers.\1.norms.2."),
        (
            r"(encoder|decoder)\.layers\.(\d+)\.feed_forward\.expand\.",
            r"transformer.\1.layers.\2.ffns.0.layers.0.0.",
        ),
        (
            r"(encoder|decoder)\.layers\.(\d+)\.feed_forward\.contract\.",
            r"transformer.\1.layers.\2.ffns.0.layers.1.",
        ),
        (r"decoder\.reference_head\.layers\.", "transformer.decoder.ref_point_head.layers."),
        (r"decoder\.norm\.", "transformer.decoder.norm."),
        (r"decoder\.query_embedding\.weight$", "transformer.tgt_embed.weight"),
        (r"class_heads\.", "class_embed."),
        (r"box_heads\.", "bbox_embed."),
        (r"denoising\.label_embedding\.", "label_enc."),
    )
)
_RESNET_PARTS = (
    (re.compile(r"\.bn([123])\."), r".conv\1.norm."),
    (re.compile(r"\.downsample\.0\."), ".shortcut."),
    (re.compile(r"\.downsample\.1\."), ".shortcut.norm."),
)
# Upstream registers the heads again at these places; the tensors are the same.
_ALIAS = re.compile(
    r"^(transformer\.decoder\.(class_embed|bbox_embed)|.*enhance_MCSP(_layerlist)?)\."
)


def released_name(name: str) -> str | None:
    """Upstream's name of one of our tensors; None when the release has no such tensor."""
    for pattern, released in _RULES:
        if pattern.match(name):
            renamed = pattern.sub(released, name, count=1)
            if name.startswith("backbone.layer"):
                for part, replacement in _RESNET_PARTS:
                    renamed = part.sub(replacement, renamed)
            return renamed
    return None


def convert_released(state: Mapping[str, object], spec: ModelSpec) -> dict[str, Tensor]:
    """A released checkpoint under our names.

    The checkpoint stores neither keep ratio and cascade nor the position embedding's temperature
    and offset: the spec must name those that it was trained with.

    Args:
        state: names to tensors, bare or under "model" (detectron2's checkpoints); aliases may be
            there or not.
        spec: the model that it is meant for; the number of classes is read from the checkpoint.

    Returns:
        A state dict for `build_model(spec, num_classes)`.

    Raises:
        WeightsError: naming what does not fit.
    """
    nested = state.get("model")
    if isinstance(nested, Mapping):
        state = nested
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    head = tensors.get("class_embed.0.weight")
    if head is None:
        raise WeightsError(
            "checkpoint: not a released Focus-DETR, got no tensor `class_embed.0.weight`; "
            "give a checkpoint of the PyTorch release"
        )
    wanted = _released_layout(spec, head.shape[0])
    given = {name: tensor for name, tensor in tensors.items() if not _ALIAS.match(name)}
    check_weights(
        {released: tensor for released, (_, tensor) in wanted.items()}, given, "checkpoint"
    )
    return {ours: given[released] for released, (ours, _) in wanted.items()}


def to_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under upstream's names, aliases included, so that upstream's code loads it.

    Args:
        state: of a model with a ResNet backbone.

    Raises:
        WeightsError: when a tensor has no counterpart in the release.
    """
    names = {name: released_name(name) for name in state}
    foreign = [name for name, released in names.items() if released is None]
    if foreign:
        raise WeightsError(
            f"checkpoint: the release has no such tensors, got {', '.join(foreign[:4])}; "
            "only its own architecture with a ResNet can be written under its names"
        )
    released = {name: state[ours] for ours, name in names.items() if name is not None}
    heads = 1 + max(
        (int(name.split(".")[1]) for name in released if name.startswith("class_embed.")),
        default=-1,
    )
    encoder_layers = {
        name.split(".")[3] for name in released if name.startswith("transformer.encoder.layers.")
    }
    aliases = {}
    for name, tensor in released.items():
        if name.startswith(("class_embed.", "bbox_embed.")):
            aliases[f"transformer.decoder.{name}"] = tensor
        if name.startswith(f"class_embed.{heads - 1}."):
            suffix = name.rsplit(".", 1)[1]
            for layer in sorted(encoder_layers, key=int):
                aliases[f"transformer.encoder.enhance_MCSP.{layer}.{suffix}"] = tensor
                aliases[f"enhance_MCSP_layerlist.{layer}.{suffix}"] = tensor
    return {**released, **aliases}


def _released_layout(spec: ModelSpec, num_classes: int) -> dict[str, tuple[str, Tensor]]:
    """Released name -> (our name, a tensor of its shape), for the model of a spec."""
    if not isinstance(spec.backbone, ResNetBackbone):
        raise WeightsError(
            f"checkpoint: only ResNet backbones are converted, got {spec.backbone.kind!r}; "
            "set model.backbone.kind to resnet with the checkpoint's depth"
        )
    with torch.device("meta"):  # shapes only: a hundred times faster than weights
        expected = build_model(spec, num_classes, load_backbone=False).state_dict()
    layout = {}
    for name, tensor in expected.items():
        released = released_name(name)
        if released is None:
            raise WeightsError(
                f"checkpoint: the release has no such tensor, got {name}; switch this part off "
                "(the release has focus scoring, no background embedding, and "
                "model.dual_attention.share_class_head: true)"
            )
        layout[released] = (name, tensor)
    return layout
