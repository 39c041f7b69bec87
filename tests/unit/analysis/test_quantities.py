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
