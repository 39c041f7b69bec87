import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from focus_lab.analysis.report import PAGE, write_report

APS = {"keep_ratio=0.1": {0: 0.2}, "base": {0: 0.3}}
_VOID = {"meta", "img", "br", "wbr", "link", "input", "hr"}


class _Checker(HTMLParser):
    """Whether tags close in order, ids differ, and nothing comes from outside."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.problems, self.images = [], [], [], 0

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag == "img":
            self.images += 1
            if not attrs["src"].startswith("data:image/jpeg;base64,") or not attrs.get("alt"):
                self.problems.append(attrs)
        if tag in ("script", "link", "iframe"):
            self.problems.append(tag)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}>")


def _checked(text):
    checker = _Checker()
    checker.feed(text)
    assert checker.problems == []
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    links = re.findall(r'(?:href|src)="#([^"]+)"', text)
    assert set(links) <= set(checker.ids)
    assert not re.search(r"https?:|url\((?!#)|@import|//[a-z]", re.sub(r"base64,[^\"]*", "", text))
    return checker


def test_the_page_is_whole_and_needs_nothing_from_outside(make_record, samples_folder, tmp_path):
    page = write_report(make_record(APS, samples=samples_folder), tmp_path / "out")
    assert page == tmp_path / "out" / PAGE
    checker = _checked(page.read_text())
    # Ground truth and two cells, then both layers of both cells.
    assert checker.images == 7


def test_columns_are_explained_below_the_table_that_has_them(make_record, tmp_path):
    text = write_report(make_record(APS), tmp_path).read_text()
    for column in ("on front (seeds)", "mean over layers"):
        below = text[text.index(f">{column}</th>") :]
        assert f"“{column.capitalize()}”" in below[: below.index("<table", 1)]


def test_ratio_and_recall_are_said_to_be_of_what_any_layer_refines(make_record, tmp_path):
    page = write_report(make_record(APS), tmp_path).read_text()
    markdown = (tmp_path / "report.md").read_text()
    caption = next(line for line in page.splitlines() if "Foreground recall is the share" in line)
    recall = "by model.foreground_targets, whatever the scorer learns, that any encoder layer"
    assert recall in caption
    for text, start in ((page, "<dt>Keep ratio</dt>"), (markdown, "- Keep ratio:")):
        ratio, of_recall = text[text.index(start) :].splitlines()[:2]
        assert "each encoder layer refines the cascade's share of these" in ratio
        assert recall in of_recall


def test_layers_are_said_to_refine_the_best_of_one_ranking(make_record, samples_folder, tmp_path):
    page = write_report(make_record(APS, samples=samples_folder), tmp_path / "out").read_text()
    assert "the best of one ranking, as many as the cascade gives it" in page


def test_one_seed_is_said_on_the_page_and_in_markdown(make_record, tmp_path):
    page = write_report(make_record(APS), tmp_path)
    assert "One seed decides nothing" in page.read_text()
    assert "One seed decides nothing" in (tmp_path / "report.md").read_text()


def test_several_seeds_do_not_say_so(make_record, tmp_path):
    aps = {"a": {0: 0.2, 1: 0.3}, "base": {0: 0.3, 1: 0.35}}
    assert "One seed decides" not in write_report(make_record(aps), tmp_path).read_text()


def test_markdown_names_the_plots_that_were_written(make_record, tmp_path):
    write_report(make_record(APS), tmp_path)
    named = re.findall(r"\(plots/(\w+\.svg)\)", (tmp_path / "report.md").read_text())
    assert sorted(named) == sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert len(named) == 6


def test_the_machine_form_is_strict_json(make_record, tmp_path):
    record = make_record({"a": {0: float("nan")}, "base": {0: 0.3}}, facts={"x": float("inf")})
    write_report(record, tmp_path)

    def refuse(name):
        raise AssertionError(name)

    content = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert [cell["name"] for cell in content["cells"]] == ["a", "base"]
    assert content["trials"][1]["metrics"]["coco/AP"] == 0.3


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"foreground_share": None, "facts": {}, "spec": {}, "description": ""},
        {"objectives": {"coco/AP": "max"}},
        {"objectives": {"loss/unknown": "min", "coco/AP": "max", "cost/gflops": "min"}},
        {"trials": ()},
        {"cells": (), "trials": ()},
    ],
)
def test_partial_records_have_a_page_too(make_record, tmp_path, changes):
    record = make_record(APS, baseline=False, latency=False, **changes)
    text = write_report(record, tmp_path).read_text()
    _checked(text)
    assert not re.search(r"\b(nan|None|undefined|inf)\b", text)


def test_an_empty_record_says_that_there_is_no_answer(empty_record, tmp_path):
    text = write_report(empty_record, tmp_path).read_text()
    _checked(text)
    assert "No trial has succeeded yet" in text


def test_trials_without_any_metric_are_listed_with_their_reason(make_record, tmp_path):
    record = make_record(APS)
    trials = (
        replace(record.trials[0], state="FAILED", message="out of memory", curves={}),
        replace(record.trials[1], state="PENDING", curves={}),
    )
    text = write_report(replace(record, trials=trials), tmp_path).read_text()
    assert "out of memory" in text
    assert "pending" in text


def test_names_from_users_are_text_and_nothing_else(make_record, tmp_path):
    evil = "<script>alert(1)</script>|`*x*`"
    record = make_record(
        {evil: {0: 0.2}, "базис 日本": {0: 0.3}},
        name=evil,
        description=evil,
        facts={evil: evil},
        spec={"x": f"{evil}```"},
    )
    text = write_report(record, tmp_path).read_text()
    _checked(text)
    assert "базис 日本" in text
    markdown = (tmp_path / "report.md").read_text()
    outside = markdown[: markdown.index("```json")]
    assert "<script" not in outside
    assert markdown.count("```") == 2


def test_writing_again_gives_the_same_files_and_leaves_no_parts(make_record, tmp_path):
    record = make_record(APS)
    first = write_report(record, tmp_path).read_bytes()
    assert write_report(record, tmp_path).read_bytes() == first
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["plots", "report.html", "report.json", "report.md", "report.txt", "tables"]
    names = sorted(path.name for path in (tmp_path / "tables").iterdir())
    tables = ["ablation.tex", "accuracy.tex", "cells.csv", "cost.tex", "paper.tex", "trials.csv"]
    assert names == tables


def test_a_plot_that_is_no_longer_drawn_is_removed(make_record, tmp_path):
    write_report(make_record(APS), tmp_path)
    write_report(make_record(APS, trials=()), tmp_path)
    assert list((tmp_path / "plots").iterdir()) == []


def test_the_page_shows_precision_and_the_confusion_of_the_baseline_first(
    make_record, samples_folder, tmp_path
):
    page = write_report(make_record(APS, samples=samples_folder), tmp_path / "out")
    text = page.read_text()
    assert "precision at IoU 0.50" in text
    assert text.index("<summary>base</summary>") < text.index("<summary>keep_ratio=0.1</summary>")
    row = re.search(r"<tr><th scope=.row.>ring \(10\)</th>(.*?)</tr>", text)[1]
    assert re.sub(r"<[^>]+>", " ", row).split() == ["60", "20", "20"]
    assert "--share: 0.600" in row


def test_a_page_without_breakdowns_says_so(make_record, tmp_path):
    text = write_report(make_record(APS), tmp_path).read_text()
    assert "No trial that succeeded has counted its confusions." in text
    assert "No trial that succeeded has kept its curves." in text


EXPLORING = {
    "training": {"epochs": 2},
    "sweep": {"search": {"kind": "random"}, "early_stopping": {"kind": "asha"}},
}


def test_an_exploratory_experiment_is_labelled_in_every_form(make_record, tmp_path):
    page = write_report(make_record(APS, spec=EXPLORING), tmp_path)
    assert "<b>Exploratory</b>: its cells were chosen by a search (random)" in page.read_text()
    assert "weak trials were stopped early (asha)" in page.read_text()
    assert "**Exploratory**" in (tmp_path / "report.md").read_text()
    assert "% Exploratory" in (tmp_path / "tables" / "ablation.tex").read_text()
    (caption,) = re.findall(r"\\caption\{.*\}", (tmp_path / "tables" / "paper.tex").read_text())
    assert "Exploratory: its cells were chosen by a search (random)" in caption
    assert len(json.loads((tmp_path / "report.json").read_text())["exploratory"]) == 2


def test_a_grid_without_early_stopping_is_not(make_record, tmp_path):
    planned = {"sweep": {"search": {"kind": "grid"}, "early_stopping": {"kind": "none"}}}
    text = write_report(make_record(APS, spec=planned), tmp_path).read_text()
    assert "Exploratory" not in text
    assert json.loads((tmp_path / "report.json").read_text())["exploratory"] == []
