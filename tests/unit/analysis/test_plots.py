import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import matplotlib
import pytest

from focus_lab.analysis import class_plots, drawing, keep_ratio_plots, plots
from focus_lab.analysis.figures import draw_plots
from focus_lab.analysis.summary import compare

ALL = (
    plots.pareto_plot,
    keep_ratio_plots.keep_ratio_plot,
    keep_ratio_plots.recall_plot,
    plots.curves_plot,
    class_plots.class_plot,
    plots.cost_plot,
)
OF_CELLS = (plots.pareto_plot, plots.curves_plot, class_plots.class_plot, plots.cost_plot)
APS = {f"cell {i}": {0: 0.2 + i / 50, 1: 0.21 + i / 40} for i in range(4)}


@pytest.mark.parametrize("draw", ALL)
def test_a_plot_is_valid_svg_and_the_same_every_time(make_record, draw):
    comparison = compare(make_record(APS))
    svg = draw(comparison)
    ET.fromstring(drawing.as_file(svg))
    assert svg == draw(comparison)


@pytest.mark.parametrize("draw", ALL)
def test_nothing_is_drawn_of_nothing(empty_record, draw):
    assert draw(compare(empty_record)) is None


def test_drawing_leaves_matplotlibs_settings_alone(make_record):
    before = dict(matplotlib.rcParams)
    plots.pareto_plot(compare(make_record(APS)))
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("count", [1, 3, 8])
def test_labels_of_close_cells_do_not_cover_each_other(make_record, count):
    aps = {f"keep_ratio=0.{i}": {0: 0.30 + 0.001 * i} for i in range(count)}
    figure = drawing.new_figure()
    axes = figure.subplots()
    record = compare(make_record(aps))
    points = [(cell.mean("cost/gflops"), cell.mean("coco/AP")) for cell in record.cells]
    axes.plot(*zip(*points, strict=True), "o")
    drawing.place_labels(axes, points, list(aps))
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == count
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_names_are_shown_letter_by_letter(make_record):
    names = {"_hidden": {0: 0.2}, "$x^2$ <b>&": {0: 0.3}, "日本": {0: 0.25}}
    for draw in OF_CELLS:
        text = "".join(ET.fromstring(draw(compare(make_record(names)))).itertext())
        assert all(name in text for name in names)


def test_inline_svg_names_no_address_and_takes_the_pages_colours(make_record):
    svg = drawing.inline(plots.pareto_plot(compare(make_record(APS))), "a <title>")
    assert "://" not in svg
    assert "currentColor" in svg
    assert "a &lt;title&gt;" in svg


def test_cells_that_differ_in_more_than_the_keep_ratio_get_their_own_line(make_record):
    record = make_record(APS)
    cells = [
        replace(c, overrides=c.overrides | ({"model.scoring": "dense"} if place % 2 else {}))
        for place, c in enumerate(record.cells)
    ]
    text = keep_ratio_plots.keep_ratio_plot(compare(replace(record, cells=tuple(cells))))
    assert "scoring dense" in text
    assert re.search("foreground share 14 %", text)


def test_variants_that_differ_in_a_number_get_their_own_line(make_record):
    svg = keep_ratio_plots.keep_ratio_plot(compare(_two_cascades(make_record)))
    text = list(ET.fromstring(svg).itertext())
    assert {"linear mean=0.4", "linear mean=0.6"} <= {t.removeprefix("cascade ") for t in text}


def test_cut_names_of_lines_can_be_told_apart(make_record):
    record = _two_cascades(make_record, also={"model.dual_attention.enabled": False})
    text = "".join(ET.fromstring(keep_ratio_plots.keep_ratio_plot(compare(record))).itertext())
    assert "0.4, dual" in text
    assert "0.6, dual" in text


def test_the_axis_is_the_keep_ratio_and_not_what_a_layer_refines(make_record):
    svg = keep_ratio_plots.keep_ratio_plot(compare(make_record(APS)))
    assert "keep ratio" in list(ET.fromstring(svg).itertext())


def test_the_caption_says_which_of_several_lines_recall_is_drawn_of(make_record):
    of_one = {plot.name: plot for plot in draw_plots(compare(make_record(APS)), {})}
    assert "Drawn are" not in of_one["recall"].caption
    record = _two_cascades(make_record)
    of_two = {plot.name: plot for plot in draw_plots(compare(record), {})}
    # Three of the four cells.
    assert "the cells of the line “cascade linear mean=0.6” alone" in of_two["recall"].caption


def _two_cascades(make_record, also=None):
    """The first cell with one mean share, the others with another."""
    record = make_record(APS)
    cells = [
        replace(
            cell,
            overrides=cell.overrides
            | {"model.cascade": {"kind": "linear", "mean": 0.6 if place else 0.4}}
            | (also or {}),
        )
        for place, cell in enumerate(record.cells)
    ]
    return replace(record, cells=tuple(cells))


def test_the_pareto_plot_writes_each_cells_chance_beside_its_name(make_record):
    text = "".join(ET.fromstring(plots.pareto_plot(compare(make_record(APS)))).itertext())
    assert "cell 0 (100 %)" in text
    one_seed = {name: {0: by_seed[0]} for name, by_seed in APS.items()}
    text = "".join(ET.fromstring(plots.pareto_plot(compare(make_record(one_seed)))).itertext())
    assert "cell 0" in text
    assert "%" not in text


def test_recall_has_a_line_a_level_and_a_size_of_box(make_record):
    text = "".join(
        ET.fromstring(keep_ratio_plots.recall_plot(compare(make_record(APS)))).itertext()
    )
    for name in ("level 0", "level 1", "small boxes", "large boxes"):
        assert name in text
    assert "level 2" not in text
    assert "medium" not in text


def test_of_many_classes_those_are_drawn_on_which_the_cells_differ(make_record):
    record = make_record({"a": {0: 0.2}, "base": {0: 0.3}})
    trials = []
    for place, trial in enumerate(record.trials):
        aps = {f"same{i}": 0.5 for i in range(class_plots.MAX_CLASSES)}
        aps |= {"odd": 0.1 + 0.5 * place, "even": 0.6 - 0.3 * place}
        curves = {f"coco/AP_class/{name}": [(1, ap)] for name, ap in aps.items()}
        trials.append(replace(trial, curves=trial.curves | curves))
    svg = class_plots.class_plot(compare(replace(record, trials=tuple(trials))))
    known = re.compile(r"same\d+|odd|even|ring|cross")
    labels = [text for text in ET.fromstring(svg).itertext() if known.fullmatch(text)]
    assert len(labels) == class_plots.MAX_CLASSES
    assert {"odd", "even"} <= set(labels)
