from __future__ import annotations

import itertools

from focus_lab.data.streams import Stream, generator


def test_a_stream_is_a_function_of_its_numbers():
    assert generator(Stream.PAINT, 1, 2, 3).random() == generator(Stream.PAINT, 1, 2, 3).random()


def test_streams_differ_in_every_number():
    numbers = itertools.product(Stream, (0, 1, 2), (0, 1, 2), (0, 1, 2**32, 2**33, 2**70))
    assert len({generator(*key).random() for key in numbers}) == len(Stream) * 3 * 3 * 5
