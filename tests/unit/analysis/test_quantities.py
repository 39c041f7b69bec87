import pytest

from focus_lab.analysis import quantities as q


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("coco/AP", 0.31249, "0.312"),
        ("cost/params", 1_234_567.0, "1.23 M"),
        ("cost/gflops", 0.000123, "0.000123"),
        ("cost/gflops", 123.4, "123"),
        ("tokens/foreground_recall", 0.954, "95 %"),
        ("tokens/kept", 1234.0, "1\N{NARROW NO-BREAK SPACE}234"),
        ("loss/total", None, q.MISSING),
        ("loss/total", float("nan"), q.MISSING),
        ("loss/total", -0.5, "\N{MINUS SIGN}0.500"),
    ],
)
def test_values_read_as_their_metric_is_written(metric, value, text):
    assert q.number(metric, value) == text


def test_names_are_made_printable_and_short():
    assert q.printable("a\n\x00b") == "a b"
    assert len(q.printable("x" * 90, 20)) == 20
    assert q.printable("\t") == "unnamed"


def test_a_field_that_many_parts_have_is_named_with_its_part():
    assert q.field("model.token_selection.keep_ratio") == "keep_ratio"
    assert q.field("model.dual_attention.enabled") == "dual_attention.enabled"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("neck_features", "neck_features"),
        ([1.0, 0.5], "[1.0, 0.5]"),
        ({"kind": "dense"}, "dense"),
        ({"kind": "linear", "mean": 0.6, "first": 0.9}, "linear mean=0.6 first=0.9"),
        ({"kind": "a", "of": {"kind": "b", "x": None}}, "a of=b x=null"),
    ],
)
def test_a_value_of_a_spec_is_short_and_leaves_nothing_out(value, text):
    assert q.short(value) == text


def test_cut_names_can_still_be_told_apart():
    names = [
        f"keep_ratio={r},cascade=[1.0 {c}],num_tokens=30" for r in (0.1, 0.3) for c in (0.5, 1)
    ]
    assert len({q.printable(name, 24) for name in names}) < len(names)
    assert q.distinct(names, 24) == ["0.1,[1.0 0.5],30", "0.1,[1.0 1],30", "0.3,[1.0 0.5],30",
                                   "0.3,[1.0 1],30"]  # fmt: skip
    # Not needed, or no help: names stay what they are.
    assert q.distinct(names, 80) == names
    assert q.distinct(["keep_ratio=0.1", "baseline"], 24) == ["keep_ratio=0.1", "baseline"]
    same = ["a" * 30 + middle + "b" * 30 for middle in "xy"]
    assert q.distinct(same, 24) == [q.printable(name, 24) for name in same]
    assert q.distinct([], 24) == []
