"""What the README says is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "focus_lab").rglob("*.py")
    if path.name != "__init__.py" and "migrations" not in path.parts
)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_the_tree_names_every_module(path: Path) -> None:
    tree = README.split("## The tree")[1].split("```")[1]
    assert re.search(rf"\b{path.stem}\b", tree)


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_two_commands_are_targets(target: str) -> None:
    assert f"make {target}" in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("file", ["README.md", "experiments/README.md", "CHANGELOG.md"])
def test_no_placeholder_is_left(file: str) -> None:
    assert "@@" not in (ROOT / file).read_text(encoding="utf-8")
