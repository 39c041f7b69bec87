"""Weights from files: reading them safely, and sentences for what does not fit a module."""

from __future__ import annotations

import hashlib
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from focus_lab.errors import WeightsError

_SHOWN = 4
_SUFFIXES = (".pth", ".pt", ".safetensors")
# A counter that frozen norms do not have.
_COUNTER = "num_batches_tracked"
# What older files hold of a block, and newer models compute: nothing that was learnt.
_COMPUTED = (_COUNTER, "relative_position_index", "relative_coords_table", "attn_mask")
_STAGE = re.compile(r"[A-Za-z_.]*\d+")
"""The leading part of a tensor's name, to its first number: `layer1`, `stages.0`, `blocks.3`."""


def read_weights(source: str) -> dict[str, Tensor]:
    """State dict of a weight file; code in the file is never run.

    Args:
        source: path of a .pth, .pt or .safetensors file, or `package:MODULE` for the single one
            that an installed package ships. A state dict under the key `ema` (averaged weights),
            `model` or `state_dict` is taken out.

    Raises:
        WeightsError: when there is no such file or it holds no state dict.
    """
    path = _path(source)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Garbage may break the reader in any way.
        raise WeightsError(
            f"weights: the file cannot be read as tensors, got {source!r}; save a plain state dict "
            "with torch.save or as .safetensors"
        ) from error
    for key in ("ema", "model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"weights: the file holds no state dict, got {type(content).__name__} in {source!r}"
        )
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise WeightsError(
            f"weights: the state dict holds no tensors, got {source!r}; give a trained model's file"
        )
    return state


def weights_digest(source: str) -> str:
    """SHA-256 (hex) of the file that `read_weights` reads.

    Raises:
        WeightsError: when there is no such file.
    """
    with _path(source).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_weights(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load `state` into `module`, names and shapes equal.

    Raises:
        WeightsError: naming a few of the tensors that do not fit.
    """
    check_weights(module.state_dict(), state, where)
    module.load_state_dict(dict(state))


def check_weights(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> None:
    """Compare names and shapes.

    Args:
        expected: what the model has.
        state: what was given.
        where: begins the message.

    Raises:
        WeightsError: naming a few of the tensors that are missing, unknown or of another shape.
    """
    problems = []
    missing = [name for name in expected if name not in state]
    if missing:
        problems.append(
            f"{where}: tensors are missing, got none for {_some(missing)}; "
            "use weights of the same model"
        )
    unknown = [name for name in state if name not in expected]
    if unknown:
        problems.append(
            f"{where}: tensors have no place in the model, got {_some(unknown)}; "
            "switch on the parts that they belong to"
        )
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if shapes:
        problems.append(
            f"{where}: tensors have another shape, got {_some(shapes)}; "
            "give the model the same sizes"
        )
    if problems:
        raise WeightsError("\n".join(problems))


def load_fitting_weights(
    module: nn.Module, state: Mapping[str, Tensor], where: str
) -> tuple[str, ...]:
    """Load what fits `module` by name and shape; the rest of it stays as it is.

    Args:
        module: the model.
        state: of a detector that may have fewer or other parts, or other classes.
        where: begins the message.

    Returns:
        Names of the module's tensors that have no counterpart.

    Raises:
        WeightsError: less than half of the module's numbers have one: they are another model's.
    """
    expected = module.state_dict()
    fitting = {
        name: state[name]
        for name, tensor in expected.items()
        if name in state and state[name].shape == tensor.shape
    }
    fresh = tuple(name for name in expected if name not in fitting)
    found, total = (sum(t.numel() for t in one.values()) for one in (fitting, expected))
    if 2 * found < total:
        raise WeightsError(
            f"{where}: are those of another model, got {100 * found / total:.0f} % of its numbers "
            f"under the same name and shape, none for {_some(fresh)}; "
            "give weights of a model of the same sizes"
        )
    module.load_state_dict(fitting, strict=False)
    return fresh


def load_backbone_weights(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load a classifier's state dict into a feature extractor; the classifier is left out.

    Knows torchvision's and timm's names (timm's extractors flatten the first container: `stages.0`
    is `stages_0`), and those of the EfficientNets with `_blocks.N`.

    Raises:
        WeightsError: when a tensor of the extractor is missing or has another shape, or a stage
            holds more than the extractor's: a deeper network's weights.
    """
    expected = module.state_dict()
    if "_conv_stem.weight" in state:
        state = _from_flat_efficientnet(module, state, where)
    stages = {_stage(name) for name in expected} - {None}
    fitting: dict[str, Tensor] = {}
    surplus = []
    for name, tensor in state.items():
        candidates = (name, name.replace(".", "_", 1))
        found = [candidate for candidate in candidates if candidate in expected]
        fitting |= dict.fromkeys(found, tensor)
        # Later stages and the classifier are left out; a known stage must be used whole.
        if not found and _stage(name) in stages and not name.endswith(_COMPUTED):
            surplus.append(name)
    needed = {name: tensor for name, tensor in expected.items() if not name.endswith(_COUNTER)}
    check_weights(
        needed, {name: tensor for name, tensor in fitting.items() if name in needed}, where
    )
    if surplus:
        raise WeightsError(
            f"{where}: are those of a deeper network, got {_some(surplus)}; "
            "choose the network that they were trained with"
        )
    module.load_state_dict(fitting, strict=False)


def _stage(name: str) -> str | None:
    match = _STAGE.match(name)
    return match[0].replace(".", "_") if match else None


def _from_flat_efficientnet(
    module: nn.Module, state: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """Names of timm for an EfficientNet converted from TensorFlow, its blocks numbered through."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    if norms and norms[0].eps != 1e-3:
        raise WeightsError(
            f"{where}: the weights were trained with TensorFlow's padding and norm, got a network "
            f"with norm eps {norms[0].eps}; choose timm's `tf_` variant (tf_efficientnet_lite0)"
        )
    blocks = sorted(
        {
            (int(match[1]), int(match[2]))
            for name in module.state_dict()
            if (match := _BLOCK.match(name))
        }
    )
    renamed = {}
    for name, tensor in state.items():
        match = re.match(r"_blocks\.(\d+)\._(\w+)\.(\w+)$", name)
        if match is None:
            renamed[name.replace("_conv_stem", "conv_stem").replace("_bn0", "bn1")] = tensor
        elif int(match[1]) < len(blocks):
            expands = f"_blocks.{match[1]}._expand_conv.weight" in state
            stage, block = blocks[int(match[1])]
            renamed[f"blocks.{stage}.{block}.{_PARTS[expands][match[2]]}.{match[3]}"] = tensor
    return {name: tensor for name, tensor in renamed.items() if not name.startswith("_")}


_BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.")
_PARTS = {
    True: {
        "expand_conv": "conv_pw",
        "bn0": "bn1",
        "depthwise_conv": "conv_dw",
        "bn1": "bn2",
        "project_conv": "conv_pwl",
        "bn2": "bn3",
    },
    False: {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"},
}


def _path(source: str) -> Path:
    path = (
        _inside_package(source.removeprefix("package:"))
        if source.startswith("package:")
        else Path(source)
    )
    if not path.is_file():
        raise WeightsError(
            f"weights: there is no such file, got {source!r}; give a .pth or .safetensors file"
        )
    return path


def _inside_package(name: str) -> Path:
    if not name.isidentifier():
        raise WeightsError(
            f"weights: a package is a plain name, got {name!r}; for example package:my_weights"
        )
    try:
        root = Path(str(importlib.resources.files(name)))
    except (ModuleNotFoundError, TypeError) as error:
        raise WeightsError(
            f"weights: there is no such package, got {name!r}; install it into this environment"
        ) from error
    files = sorted(path for path in root.rglob("*") if path.suffix in _SUFFIXES)
    if len(files) != 1:
        raise WeightsError(
            f"weights: the package must ship one weight file, got {len(files)} in {name!r}; "
            "give a path instead"
        )
    return files[0]


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
