from dataclasses import replace

from focus_lab.analysis.ablation import ablation_table, paper_table
from focus_lab.analysis.summary import compare

APS = {
    "far": {0: 0.100, 1: 0.111, 2: 0.121},
    "near": {0: 0.31, 1: 0.29, 2: 0.33},
    "base": {0: 0.30, 1: 0.31, 2: 0.32},
}


def _rows(table):
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_the_baseline_stands_first_and_every_deviation_has_a_row(make_record):
    table = ablation_table(compare(make_record(APS)))
    assert [row[0] for row in table.rows] == ["base", "far", "near"]
    rows = _rows(table)
    assert rows["base"]["difference"] == "baseline"
    assert rows["base"]["p (Holm)"] == rows["base"]["decided?"] == ""
    assert rows["far"]["difference"] == "\N{MINUS SIGN}0.199"
    assert rows["far"]["change"] == "keep_ratio 0.1"
    assert rows["far"]["p (Holm)"] == "<0.001"
    # Mean -0.1993 over a deviation of 0.000577, times Hedges' 0.5642 for three seeds.
    assert rows["far"]["Hedges' g"] == "\N{MINUS SIGN}194.8"
    assert rows["far"]["decided?"] == "yes"
    assert rows["near"]["decided?"] == "not decided"
    assert rows["near"]["\N{MULTIPLICATION SIGN} baseline"] == "0.67\N{MULTIPLICATION SIGN}"


def test_one_seed_is_never_decided_and_has_neither_p_nor_effect_nor_chance(make_record):
    rows = _rows(ablation_table(compare(make_record({n: {0: v[0]} for n, v in APS.items()}))))
    assert rows["far"]["decided?"] == "not decided"
    assert rows["far"]["p (Holm)"] == rows["far"]["Hedges' g"] == "—"
    assert rows["far"]["chance of front"] == "—"


def test_the_table_of_a_paper_says_in_its_caption_what_its_columns_leave_out(make_record):
    table = paper_table(compare(make_record(APS)))
    assert _rows(table)["far"]["95 % interval"].startswith("[\N{MINUS SIGN}0.2")
    assert table.caption == (
        "AP and GFLOPs of each cell: means over 3 seeds. Differences to base are paired by seed, "
        "with 95 % t intervals; p after Holm's correction over 2 comparisons."
    )
    aps = {"one": {0: 0.1}, "two": {0: 0.2, 1: 0.3}}
    alone = paper_table(compare(make_record(aps, baseline=False)))
    assert alone.caption == "AP and GFLOPs of each cell: means over 1 to 2 seeds."


def test_names_that_say_what_they_change_are_not_followed_by_it(make_record):
    aps = {f"keep_ratio={place / 10}": by_seed for place, by_seed in enumerate(APS.values(), 1)}
    assert "change" not in ablation_table(compare(make_record(aps))).columns


def test_names_of_variants_are_not_followed_by_what_they_say_either(make_record):
    record = make_record({f"cascade=linear mean={mean}": {0: 0.2} for mean in (0.4, 0.6)})
    cells = [
        replace(cell, overrides={"model.cascade": {"kind": "linear", "mean": mean}})
        for cell, mean in zip(record.cells, (0.4, 0.6), strict=True)
    ]
    assert "change" not in ablation_table(compare(replace(record, cells=tuple(cells)))).columns


def test_a_variant_is_named_by_its_kind_and_its_other_fields(make_record):
    record = make_record(APS)
    changed = replace(record.cells[0], overrides={"model.scoring": {"kind": "dense", "x": 1}})
    record = replace(record, cells=(changed, *record.cells[1:]))
    assert _rows(ablation_table(compare(record)))["far"]["change"] == "scoring dense x=1"
