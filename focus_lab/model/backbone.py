"""Backbones: images to feature maps, fine to coarse, whose channels and strides they declare.

Shape legend: B images, H x W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from focus_lab.errors import SpecError


class Backbone(nn.Module):
    """A feature extractor with named channels and strides."""

    channels: tuple[int, ...]
    """Of each output, fine to coarse."""
    strides: tuple[int, ...]
    """Of each output, in pixels."""

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] to maps [B, channels[i], ~H / strides[i], ~W / strides[i]]."""
        raise NotImplementedError


class ResNetFeatures(Backbone):
    """torchvision's ResNet (stride in the 3x3 convolution) with frozen batch norm: C3, C4, C5."""

    strides = (8, 16, 32)

    def __init__(self, depth: int, frozen_stages: int) -> None:
        """ResNet of random weights.

        Args:
            depth: 18, 34, 50, 101 or 152.
            frozen_stages: leading stages without gradient, 0 to 5; the stem is the first.
        """
        # Here and not above: models of other kinds need not wait for the import.
        import torchvision
        from torchvision.ops import FrozenBatchNorm2d

        super().__init__()
        network = getattr(torchvision.models, f"resnet{depth}")(norm_layer=FrozenBatchNorm2d)
        self.conv1 = network.conv1
        self.bn1 = network.bn1
        self.maxpool = network.maxpool
        self.layer1 = network.layer1
        self.layer2 = network.layer2
        self.layer3 = network.layer3
        self.layer4 = network.layer4
        width = network.fc.in_features
        self.channels = (width // 4, width // 2, width)
        stages = (self.conv1, self.layer1, self.layer2, self.layer3, self.layer4)
        for stage in stages[:frozen_stages]:
            stage.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        x = functional.relu(_folded(self.conv1, self.bn1, images), inplace=True)
        x = self.maxpool(x)
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = _residual_block(block, x)
            features.append(x)
        return features[1:]


def _residual_block(block: Any, x: Tensor) -> Tensor:
    """The forward pass of torchvision's basic or bottleneck block, norms folded."""
    count = 3 if hasattr(block, "conv3") else 2
    y = x
    for number in range(1, count + 1):
        convolution, norm = getattr(block, f"conv{number}"), getattr(block, f"bn{number}")
        y = _folded(convolution, norm, y)
        if number < count:
            y = functional.relu(y, inplace=True)
    shortcut = x
    if block.downsample is not None:
        shortcut = _folded(block.downsample[0], block.downsample[1], x)
    return functional.relu(y + shortcut, inplace=True)


def _folded(convolution: nn.Conv2d, norm: Any, x: Tensor) -> Tensor:
    """A convolution and the frozen norm behind it as one.

    The norm is a scale and a shift of each channel: on the kernel they cost nothing, on the maps
    each is a walk through memory, forwards and backwards.
    """
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()  # [C]
    shift = norm.bias - norm.running_mean * scale
    return functional.conv2d(
        x,
        convolution.weight * scale[:, None, None, None],
        shift,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
    )


class TimmFeatures(Backbone):
    """Feature stages of a `timm` model; nothing is downloaded."""

    network: Any
    """timm's extractor; its attributes have no types."""

    def __init__(self, name: str, out_indices: Sequence[int]) -> None:
        """Extractor of random weights.

        Args:
            name: timm's model name.
            out_indices: which of timm's feature stages to return, fine to coarse.

        Raises:
            SpecError: when timm has no such model or stage.
        """
        import timm

        super().__init__()
        options: dict[str, Any] = {}
        settings = timm.get_pretrained_cfg(name)
        if settings is not None and settings.fixed_input_size:
            # Window attention pads by itself; without this timm insists on its training's size.
            options["strict_img_size"] = False
        try:
            self.network = timm.create_model(
                name,
                pretrained=False,
                features_only=True,
                out_indices=tuple(out_indices),
                **options,
            )
        except (RuntimeError, IndexError, AssertionError, TypeError, AttributeError) as error:
            raise SpecError(
                f"model.backbone: timm cannot build stages {list(out_indices)}, got name {name!r} "
                f"({error}); `timm.list_models()` lists the names"
            ) from error
        for module in self.network.modules():
            if hasattr(module, "dynamic_img_pad"):
                module.dynamic_img_pad = True  # sides that patches do not divide
        self.channels = tuple(self.network.feature_info.channels())
        self.strides = tuple(self.network.feature_info.reduction())
        self._channels_last = str(getattr(self.network, "output_fmt", "NCHW")).endswith("NHWC")

    def freeze(self, frozen_stages: int, freeze_norm: bool) -> None:
        """Stop parts from learning; call it after weights are loaded.

        Args:
            frozen_stages: leading feature stages without gradient and with fixed batch norm, stem
                included.
            freeze_norm: whether all batch norms keep their statistics and scales.

        Raises:
            SpecError: when there are fewer stages.
        """
        stages = self.network.feature_info.info
        if frozen_stages > len(stages):
            raise SpecError(
                f"model.backbone.frozen_stages: the backbone has fewer, got {frozen_stages}; "
                f"at most {len(stages)}"
            )
        if frozen_stages:
            last = self._module_path(stages[frozen_stages - 1]["module"])
            # Modules are registered in the order of execution, so all before the stage's end belong
            # to it.
            reached = False
            for path, module in list(self.network.named_modules()):
                inside = path == last or path.startswith(f"{last}.")
                if reached and not inside:
                    break
                reached = reached or inside
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)
                if isinstance(module, nn.BatchNorm2d):
                    self._replace(path, _frozen(module))
        if freeze_norm:
            self.network = _frozen(self.network)

    def _module_path(self, module: str) -> str:
        """Path in the extractor, where timm may flatten the first container: `stages_0`."""
        flattened = module.replace(".", "_", 1)
        return flattened if flattened in dict(self.network.named_modules()) else module

    def _replace(self, path: str, module: nn.Module) -> None:
        parent, _, name = path.rpartition(".")
        setattr(self.network.get_submodule(parent), name, module)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        features: list[Tensor] = self.network(images)
        if self._channels_last:
            features = [feature.permute(0, 3, 1, 2).contiguous() for feature in features]
        return features


def _frozen(module: nn.Module) -> nn.Module:
    """The module with all batch norms fixed."""
    from timm.layers.norm_act import freeze_batch_norm_2d

    result: nn.Module = freeze_batch_norm_2d(module)  # type: ignore[no-untyped-call]
    return result


class ResidualFeatures(Backbone):
    """A small residual network with batch norm, strides 2 to 32; the last three are returned."""

    strides = (8, 16, 32)

    def __init__(self, widths: Sequence[int]) -> None:
        """Network of random weights with the given channels at strides 2, 4, 8, 16 and 32."""
        super().__init__()
        self.channels = tuple(widths[-3:])
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.ModuleList(
            ResidualBlock(inputs, outputs) for inputs, outputs in pairwise(widths)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        x = self.stem(images)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features[-3:]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the first of stride 2, beside a 1x1 shortcut.

    The shortcut takes every second row and column itself: of few channels, oneDNN 3.13 gets the
    gradient of a strided 1x1 convolution wrong and writes beyond its memory, below 8 with AVX2 and
    below 16 with AVX-512 (github.com/uxlfoundation/oneDNN/issues/6035).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        """Block from `inputs` to `outputs` channels at half the size."""
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.shortcut_norm = nn.BatchNorm2d(outputs)
        for convolution in (self.conv1, self.conv2, self.shortcut):
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, ceil(H / 2), ceil(W / 2)]."""
        y = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        return functional.relu(
            y + self.shortcut_norm(self.shortcut(x[:, :, ::2, ::2])), inplace=True
        )
