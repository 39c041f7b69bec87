"""Lines of logs, and what people are shown of them."""

from __future__ import annotations

import json

import pytest

from focus_lab.lab.log_lines import readable


def line(**content: object) -> str:
    return json.dumps({"event": "driver", "experiment": "1" * 32} | content) + "\n"


LOG = (
    line(text="epoch 1, 50 %")
    + "printed by somebody else\n"
    + line(text="stopped")
    + line(exception="Traceback\n  ValueError: x")
    + '{"not": "ours"}\n{"nor": this}\n'
)


def test_people_read_what_was_said() -> None:
    assert readable(LOG) == (
        "epoch 1, 50 %\nprinted by somebody else\nstopped\nTraceback\n  ValueError: x\n"
        '{"not": "ours"}\n{"nor": this}\n'
    )
    assert readable("") == ""


@pytest.mark.parametrize("length", range(0, len(LOG), 7))
def test_a_log_that_grows_is_read_on(length: int) -> None:
    assert readable(LOG).startswith(readable(LOG[:length]))
