import json
import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from focus_lab.analysis.breakdowns import read_breakdowns
from focus_lab.analysis.class_plots import class_plot, precision_plot
from focus_lab.analysis.excerpt import MAX_CELLS, excerpt
from focus_lab.analysis.pictures import draw_pictures
from focus_lab.analysis.report import write_report
from focus_lab.analysis.summary import compare

# Nine cells whose AP falls, and a baseline that is worst of all.
MANY = {f"cell {i}": {0: 0.5 - i / 50} for i in range(9)} | {"base": {0: 0.1}}
SHOWN = ["cell 0", "cell 1", "cell 2", "cell 3", "cell 4", "cell 5", "base"]
LEFT_OUT = ["cell 6", "cell 7", "cell 8"]
SENTENCE = (
    "Of 10 cells these are the baseline and the 6 others with the highest AP; there is no room for "
    "cell 6, cell 7 and cell 8."
)


def _names(cells):
    return [cell.name for cell in cells]


def test_all_cells_are_shown_when_there_is_room(make_record):
    few = dict(list(MANY.items())[-MAX_CELLS:])
    found = excerpt(compare(make_record(few)))
    assert (_names(found.shown), found.left_out, found.sentence) == (list(few), (), "")


def test_of_many_cells_the_baseline_and_the_best_are_shown_in_the_designs_order(make_record):
    found = excerpt(compare(make_record(MANY)))
    assert (_names(found.shown), _names(found.left_out)) == (SHOWN, LEFT_OUT)
    assert found.sentence == SENTENCE
    backwards = dict(reversed(MANY.items()))
    found = excerpt(compare(make_record(backwards, baseline=False)))
    assert _names(found.shown) == [f"cell {i}" for i in range(6, -1, -1)]
    assert "these are the 7 with the highest AP; there is no room for base" in found.sentence


def test_of_an_objective_to_be_lowered_the_lowest_are_shown(make_record):
    record = make_record(MANY, baseline=False, objectives={"cost/gflops": "min"})
    found = excerpt(compare(record))
    # Cells cost more from left to right.
    assert _names(found.shown) == [f"cell {i}" for i in range(7)]
    assert "the 7 with the lowest GFLOPs" in found.sentence


def test_only_cells_that_a_figure_could_show_are_counted(make_record):
    found = excerpt(compare(make_record(MANY)), among=SHOWN)
    assert (_names(found.shown), found.sentence) == (SHOWN, "")


def test_a_cell_without_the_objective_has_no_room_before_others(make_record):
    record = make_record(MANY)
    trials = tuple(
        replace(t, curves={"loss/total": [(1, 1.0)]}) if t.cell == "cell 0" else t
        for t in record.trials
    )
    found = excerpt(compare(replace(record, trials=trials)))
    assert _names(found.left_out) == ["cell 0", "cell 7", "cell 8"]


def test_a_long_list_of_cells_ends_with_their_number(make_record):
    aps = {f"cell {i}": {0: 0.9 - i / 100} for i in range(40)}
    sentence = excerpt(compare(make_record(aps, baseline=False))).sentence
    assert sentence.endswith("cell 17 and 22 more.")
    assert sentence.count("cell ") == 11


@pytest.mark.parametrize("figure", ["classes", "precision"])
def test_plots_show_the_cells_that_their_caption_names(
    make_record, samples_folder, tmp_path, figure
):
    record = make_record(MANY, samples=samples_folder)
    comparison = compare(record)
    draw = {
        "classes": lambda: class_plot(comparison),
        "precision": lambda: precision_plot(comparison, read_breakdowns(record)),
    }
    drawn = {text for text in ET.fromstring(draw[figure]()).itertext() if text in MANY}
    assert drawn == set(SHOWN)
    write_report(record, tmp_path / "out")
    markdown = (tmp_path / "out" / "report.md").read_text()
    below = markdown[markdown.index(f"(plots/{figure}.svg)") :]
    assert SENTENCE in below[: below.index("## ")]


def test_pictures_and_confusions_show_the_same_cells_and_say_so(
    make_record, samples_folder, tmp_path
):
    record = make_record(MANY, samples=samples_folder)
    pictures = draw_pictures(compare(record))
    assert [tile.title for tile in pictures.rows[0][1]] == ["ground truth", *SHOWN]
    assert pictures.excerpt == SENTENCE
    page = write_report(record, tmp_path / "out").read_text()
    for section in ("confusion", "pictures"):
        below = page[page.index(f'<h2 id="{section}">') :]
        assert SENTENCE in below[: below.index("<h2 ", 1)]
    summaries = re.findall(r"<summary>(.*?)</summary>", page[page.index('id="confusion"') :])
    assert summaries[:MAX_CELLS] == ["base", *SHOWN[:-1]]
    # The numbers of all are in the tables.
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())["cells"]) == 10
