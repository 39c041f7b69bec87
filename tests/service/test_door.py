"""The door: tokens are looked up once a second, and not forgotten to be."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from focus_lab.lab.store import Store
from focus_lab.lab.tokens import Scope, Token, Tokens
from service import door
from service.door import Door


@dataclass
class Counting(Tokens):
    """Tokens that count how often they are looked up."""

    tokens: Tokens
    looks: int = 0
    now: float = field(default=100.0)

    def verify(self, text: str) -> Token | None:
        self.looks += 1
        return self.tokens.verify(text)


@pytest.fixture
def tokens(tmp_path: Path) -> Counting:
    return Counting(Tokens(Store(f"sqlite:///{tmp_path / 'lab.db'}").database))


def come_in(entrance: Door, text: str) -> Token | None:
    return entrance.recent(text) or entrance.verify(text)


def test_a_hundred_requests_of_a_second_need_one_look(tokens: Counting) -> None:
    entrance = Door(tokens, clock=lambda: tokens.now)
    text = tokens.tokens.create("ann", Scope.READ)
    for _ in range(100):
        found = come_in(entrance, text)
        assert found is not None
        assert (found.user, found.scope) == ("ann", Scope.READ)
        tokens.now += 0.0099
    assert tokens.looks == 1


def test_after_a_second_a_token_is_looked_up_again(tokens: Counting) -> None:
    entrance = Door(tokens, clock=lambda: tokens.now)
    text = tokens.tokens.create("ann", Scope.READ)
    assert come_in(entrance, text)
    tokens.tokens.revoke(tokens.tokens.list()[0].id)
    tokens.now += 1.0
    assert come_in(entrance, text) is None


def test_what_is_refused_is_looked_up_each_time(tokens: Counting) -> None:
    entrance = Door(tokens, clock=lambda: tokens.now)
    text = tokens.tokens.create("ann", Scope.READ)
    wrong = text[:-1] + ("a" if text[-1] != "a" else "b")
    assert come_in(entrance, text)
    assert come_in(entrance, wrong) is None
    assert come_in(entrance, wrong) is None
    assert tokens.looks == 3


def test_it_remembers_no_more_than_it_should(
    tokens: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "_MOST", 3)
    entrance = Door(tokens, clock=lambda: tokens.now)
    texts = [tokens.tokens.create(f"user-{number}", Scope.READ) for number in range(10)]
    for text in texts:
        assert come_in(entrance, text)
        assert len(entrance._seen) <= 3
