"""The report's page in a real browser: on a desk, on a phone, on paper, with names of any kind.

FOCUS_LAB_PICTURES names a folder where pictures of it are left to be looked at.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import browser as browsers
import pytest

from focus_lab.analysis.records import ExperimentRecord
from focus_lab.analysis.report import write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browsers.chromium() is None, reason="there is no Chromium"),
]

SELECTION = "model.token_selection"
CONSTANT = {"kind": "constant", "mean": 0.6}
USUAL: dict[str, dict[str, Any]] = {
    # 24 letters: the longest name that is not broken on a wide screen.
    "without-score-modulation": {f"{SELECTION}.score_modulation.enabled": False},
    "without-cascade": {f"{SELECTION}.cascade": CONSTANT},
    "without-dual-attention": {"model.dual_attention.enabled": False},
    "selector-only": {
        f"{SELECTION}.score_modulation.enabled": False,
        f"{SELECTION}.cascade": CONSTANT,
        "model.dual_attention.enabled": False,
    },
    "focus-by-category": {"model.dual_attention.score_product": "category"},
    "objectness": {f"{SELECTION}.scoring": {"kind": "objectness"}},
    "feature-norm": {
        f"{SELECTION}.scoring": {"kind": "feature_norm"},
        "model.dual_attention.score_product": "category",
    },
    "random": {f"{SELECTION}.scoring": {"kind": "random"}},
    "oracle": {f"{SELECTION}.scoring": {"kind": "oracle"}},
    "baseline": {},
}
HOSTILE: dict[str, dict[str, Any]] = {
    "<img src=x onerror=alert(1)>": {f"{SELECTION}.keep_ratio": 0.1},
    "W" * 24: {f"{SELECTION}.keep_ratio": 0.2},
    "one_word_without_a_single_gap_that_goes_on_for_eighty_letters_and_is_never_broken": {
        f"{SELECTION}.keep_ratio": 0.3
    },
    "トークンの選択をやめた細胞の名前はここまで続く": {f"{SELECTION}.keep_ratio": 0.4},
    "$x^2$ & </table></div></main>": {"data.root": "/a/folder/without/gaps/" + "deep/" * 12},
    "words that each are short, and that are many more than a row has room for": {
        f"{SELECTION}.keep_ratio": 0.6
    },
    "base": {},
}

Made = Callable[..., ExperimentRecord]

OVERFLOW = """(() => {
  const found = [];
  const paper = matchMedia("print").matches;
  for (const cell of document.querySelectorAll("th, td")) {
    if (cell.scrollWidth > cell.clientWidth + 1) found.push(`beyond its cell: ${cell.innerText}`);
  }
  for (const table of document.querySelectorAll("table")) {
    // Nobody scrolls on paper.
    const room = paper ? document.documentElement.clientWidth : Infinity;
    if (table.getBoundingClientRect().right > room + 1)
      found.push(`beyond the paper: ${table.innerText.slice(0, 60)}`);
  }
  for (const text of document.querySelectorAll("svg text")) {
    const [own, whole] = [text, text.closest("svg")].map((node) => node.getBoundingClientRect());
    if (own.left < whole.left - 1 || own.right > whole.right + 1)
      found.push(`cut off in a plot: ${text.textContent}`);
  }
  return found;
})()"""
# Pictures wait until they are scrolled to, which nobody does here.
UNFOLD = """(() => {
  for (const details of document.querySelectorAll("details")) details.open = true;
  for (const image of document.images) image.loading = "eager";
  return Promise.all([...document.images].map((image) => image.decode()));
})()"""
SCROLLS = """[...document.querySelectorAll(".scroll")]
  .filter((box) => box.scrollWidth > box.clientWidth)
  .map((box) => `scrolls: ${box.getAttribute("aria-label")}`)"""
# A4 less the browser's margins, in CSS pixels.
PAPER = 718


def page(make: Made, cells: dict[str, dict[str, Any]], samples: Path, folder: Path) -> str:
    """The address of a report on cells with these changes; the last is the baseline."""
    aps = {
        name: {seed: 0.3 + 0.01 * place + 0.013 * seed * (-1) ** place for seed in range(3)}
        for place, name in enumerate(cells)
    }
    facts = {"machine": "a box, 2 cores", "images that could not be read": ", ".join(cells)}
    record = make(aps, samples=samples, name=next(iter(cells)), facts=facts)
    changed = tuple(replace(cell, overrides=cells[cell.name]) for cell in record.cells)
    return write_report(replace(record, cells=changed), folder).as_uri()


async def keep(tab: browsers.Tab, name: str) -> None:
    """Leave a picture, where they are wanted."""
    if folder := os.environ.get("FOCUS_LAB_PICTURES"):
        await tab.picture(Path(folder) / f"report-{name}.png")


@pytest.mark.parametrize("name", ["usual", "hostile"])
def test_nothing_runs_out_of_its_place_on_a_desk_a_phone_and_paper(
    make_record: Made, samples_folder: Path, tmp_path: Path, name: str
) -> None:
    cells = {"usual": USUAL, "hostile": HOSTILE}[name]
    address = page(make_record, cells, samples_folder, tmp_path / "report")
    found: dict[str, list[str]] = {}

    async def look(tab: browsers.Tab, where: str, width: int) -> None:
        await tab.run(UNFOLD)
        await keep(tab, f"{name}-{where}")
        found[where] = await tab.run(OVERFLOW)
        if (wide := await tab.run("document.documentElement.scrollWidth")) > width:
            found[where].append(f"the page is {wide} px wide")
        if name == "usual" and width == 1440:
            found[where] += await tab.run(SCROLLS)

    async def whole() -> None:
        async with browsers.started() as browser:
            tab = await browser.tab()
            for width, height in ((1440, 1000), (390, 844)):
                for dark in (False, True):
                    await tab.look(width, height, dark=dark)
                    await tab.open(address)
                    await look(tab, f"{width}-{'dark' if dark else 'light'}", width)
            await tab.look(PAPER, 1000)
            await tab.open(address)
            await tab.call("Emulation.setEmulatedMedia", media="print")
            await look(tab, "paper", PAPER)
            assert tab.errors == []
            # A file's address has an empty host.
            assert tab.hosts == {""}

    asyncio.run(whole())
    assert not any(found.values()), found


def test_what_runs_out_of_its_place_is_found(
    make_record: Made, samples_folder: Path, tmp_path: Path
) -> None:
    address = page(make_record, USUAL, samples_folder, tmp_path / "report")
    wrong = {
        "beyond its cell: without-cascade": "tbody th { white-space: nowrap; max-width: 5em; }",
        "beyond the paper: Ablation": "td { padding: 2em; }",
        "cut off in a plot: baseline": "svg text { font-size: 40px; }",
    }

    async def whole() -> None:
        async with browsers.started() as browser:
            tab = await browser.tab()
            await tab.look(PAPER, 1000)
            await tab.open(address)
            await tab.call("Emulation.setEmulatedMedia", media="print")
            assert await tab.run(OVERFLOW) == []
            await tab.run("document.head.append(document.createElement('style'))")
            for expected, rule in wrong.items():
                rule = rule.replace(";", " !important;")
                await tab.run(f"document.head.lastChild.textContent = {rule!r}")
                found = await tab.run(OVERFLOW)
                assert any(expected in sentence for sentence in found), (expected, found)

    asyncio.run(whole())
