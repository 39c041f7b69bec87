"""Independent random streams: every draw of a training is a pure function of named numbers.

No global generator is touched, so the order of calls, the number of processes and a resumed run
change nothing.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a stream is for; equal numbers in different streams give independent draws."""

    LAYOUT = 1
    """Where the figures of a scene are: (split, index)."""
    PAINT = 2
    """What a scene looks like: (split, index)."""
    PROBE = 3
    """Scenes that the size law is fitted on: (probe, 0)."""
    ORDER = 4
    """Order of the training images: (epoch, group)."""
    AUGMENTATION = 5
    """Training transforms of an image: (epoch, index)."""
    NOISE = 6
    """Noise of the denoising queries: (step, 0)."""
    DROPOUT = 7
    """What a worker drops: (step, rank)."""
    KEEP_RATIO = 8
    """The smaller keep ratio of an elastic training: (step, 0)."""


def generator(stream: Stream, first: int, second: int, seed: int) -> np.random.Generator:
    """The generator of (stream, first, second, seed), all >= 0; the first three below 2^32.

    The seed comes last because it alone may need several 32-bit words; a fixed-width prefix keeps
    the mapping from numbers to streams one-to-one.
    """
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence((stream, first, second, seed)))
    )


def stream_seed(stream: Stream, first: int, second: int, seed: int) -> int:
    """A seed for generators of another library; arguments as `generator`."""
    return int(generator(stream, first, second, seed).integers(2**63))
