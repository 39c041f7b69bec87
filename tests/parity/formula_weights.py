"""Weights and inputs of the golden numbers: drawn by rules, so that nobody ships a checkpoint.

Every tensor comes from its own PCG64 generator, seeded by the CRC-32 of a text: `salt|released
name` for a parameter (without `salt|` when the salt is empty), `input|fixture|name` for an input.
Draws are float64 in C order and become float32 at the end.
"""

import re
import zlib

import numpy as np
import torch

from focus_lab.model.weights import released_name


def generator(text):
    """The generator that belongs to a text."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(text.encode())))


def _scale_and_shift(name, shape):
    """(scale, shift) of a standard normal draw, by released name; the first rule that fits wins."""
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    is_matrix = len(shape) > 1
    rules = (
        (name.endswith("running_mean"), 0.1, 0.0),
        (name.endswith("sampling_offsets.weight"), 0.02, 0.0),
        (name.endswith("sampling_offsets.bias"), 1.5, 0.0),
        (name.endswith(("level_embeds", "tgt_embed.weight", "label_enc.weight")), 0.5, 0.0),
        (re.match(r"class_embed\.\d+\.bias", name), 0.1, -2.0),
        (re.match(r"class_embed\.\d+\.weight", name), 1.5 / fan_in**0.5, 0.0),
        (re.match(r"bbox_embed\.\d+\..*weight", name) and shape[0] == 4, 0.5 / fan_in**0.5, 0.0),
        ("enc_mask_predictor." in name and is_matrix, 1.8 / fan_in**0.5, 0.0),
        (is_matrix, 1 / fan_in**0.5, 0.0),
        (name.endswith("bias"), 0.02, 0.0),
        (True, 0.1, 1.0),
    )
    return next((scale, shift) for applies, scale, shift in rules if applies)


def parameter(name, shape, salt=""):
    """float32 tensor for the released parameter or buffer `name`."""
    draw = generator(f"{salt}|{name}" if salt else name)
    if name == "transformer.alpha":
        value = 0.3 * draw.uniform(-1, 1, tuple(shape))
    elif name.endswith("running_var"):
        value = 1 + 0.1 * np.abs(draw.standard_normal(tuple(shape)))
    else:
        scale, shift = _scale_and_shift(name, shape)
        value = shift + scale * draw.standard_normal(tuple(shape))
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def fill(model, salt=""):
    """Give every tensor of a model its formula weight, by the name that the release has for it."""
    state = {
        name: parameter(released_name(name), tensor.shape, salt)
        for name, tensor in model.state_dict().items()
        if released_name(name)
    }
    model.load_state_dict(state, strict=False)
    return model


def normal(fixture, name, shape):
    """float32 standard normal input."""
    draw = generator(f"input|{fixture}|{name}").standard_normal(tuple(shape))
    return torch.from_numpy(draw.astype(np.float32))


def uniform(fixture, name, shape, low, high):
    """float32 uniform input."""
    draw = generator(f"input|{fixture}|{name}").uniform(low, high, tuple(shape))
    return torch.from_numpy(draw.astype(np.float32))


def image(fixture, name, height, width):
    """[3, height, width] of whole numbers 0..255: large blocks, small blocks and pixel noise."""
    draw = generator(f"input|{fixture}|{name}")
    total = np.zeros((3, height, width))
    for size, low, high in ((32, 20, 200), (8, -40, 40)):
        blocks = draw.uniform(low, high, (3, -(-height // size), -(-width // size)))
        total += np.kron(blocks, np.ones((1, size, size)))[:, :height, :width]
    total += draw.uniform(-15, 15, (3, height, width))
    return torch.from_numpy(np.clip(np.floor(total), 0, 255).astype(np.float32))


def normalized_batch(keys):
    """Normalised images of config.image_keys, padded to a common size, and their sizes."""
    mean = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
    std = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
    sizes = tuple((height, width) for _, _, height, width in keys)
    batch = torch.zeros(len(keys), 3, max(h for h, _ in sizes), max(w for _, w in sizes))
    for row, key in zip(batch, keys, strict=True):
        row[:, : key[2], : key[3]] = (image(*key) - mean) / std
    return batch, sizes
