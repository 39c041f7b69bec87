"""Composition of YAML documents."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from focus_lab.errors import SpecError
from focus_lab.specs.compose import (
    Document,
    merge,
    override,
    parse,
    parse_untrusted,
    parse_untrusted_json,
    read,
    with_overrides,
)

mappings = st.recursive(
    st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: isinstance(value, dict))


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_later_files_win_and_mappings_merge(tmp_path: Path) -> None:
    write(
        tmp_path,
        base="model: {width: 1, depth: 2}\nlist: [1, 2]",
        top="extends: base.yaml\nmodel: {depth: 3}\nlist: [9]",
    )
    assert read(tmp_path / "top.yaml").content == {"model": {"width": 1, "depth": 3}, "list": [9]}


def test_a_mapping_whose_kind_changes_is_replaced_whole() -> None:
    assert merge({"b": {"kind": "x", "old": 1}}, {"b": {"kind": "y"}}) == {"b": {"kind": "y"}}
    assert merge({"b": {"kind": "x", "old": 1}}, {"b": {"kind": "x", "new": 2}}) == {
        "b": {"kind": "x", "old": 1, "new": 2}
    }


def test_several_parents_are_merged_in_order(tmp_path: Path) -> None:
    write(tmp_path, one="a: 1\nb: 1", two="b: 2", top="extends: [one.yaml, two.yaml]\nc: 3")
    assert read(tmp_path / "top.yaml").content == {"a": 1, "b": 2, "c": 3}


@given(mappings)
def test_merging_a_mapping_with_itself_changes_nothing(mapping: dict) -> None:
    assert merge(mapping, mapping) == mapping


@given(mappings, mappings)
def test_merging_changes_neither_side(earlier: dict, later: dict) -> None:
    before = (repr(earlier), repr(later))
    merge(earlier, later)
    assert (repr(earlier), repr(later)) == before


def test_two_documents_read_one_after_the_other_do_not_mix(tmp_path: Path) -> None:
    write(tmp_path, one="a: {x: 1}", two="a: {y: 2}")
    read(tmp_path / "one.yaml")
    assert read(tmp_path / "two.yaml").content == {"a": {"y": 2}}


def test_every_value_remembers_its_line(tmp_path: Path) -> None:
    write(tmp_path, base="model:\n  width: 1\n", top="extends: base.yaml\nmodel:\n\n  depth: 3\n")
    document = read(tmp_path / "top.yaml")
    assert document.locate(("model", "width")) == f"{tmp_path / 'base.yaml'}:2"
    assert document.locate(("model", "depth")) == f"{tmp_path / 'top.yaml'}:4"
    assert document.locate(("model", "unknown")) == f"{tmp_path / 'top.yaml'}:2"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [1", "spec.yaml:1: is not valid YAML"),
        ("- 1", "spec.yaml:1: a spec is a mapping, got a sequence"),
        ("a: 1\na: 2", "spec.yaml:2: a: stands twice"),
        ("a: !!python/object/apply:os.system [ls]", "YAML is data here"),
        ("a: !env HOME", "is not valid YAML"),
        ("extends: {x: 1}", "extends: must be a path"),
    ],
)
def test_broken_files_are_explained_with_their_line(
    tmp_path: Path, text: str, sentence: str
) -> None:
    write(tmp_path, spec=text)
    with pytest.raises(SpecError, match=r"spec\.yaml") as caught:
        read(tmp_path / "spec.yaml")
    assert sentence in str(caught.value)


def test_a_missing_parent_is_named_with_its_child(tmp_path: Path) -> None:
    write(tmp_path, top="extends: gone.yaml")
    with pytest.raises(SpecError, match=r"gone\.yaml: no such file \(extended by .*top\.yaml\)"):
        read(tmp_path / "top.yaml")


def test_a_file_that_extends_itself_is_refused(tmp_path: Path) -> None:
    write(tmp_path, a="extends: b.yaml", b="extends: a.yaml")
    with pytest.raises(SpecError, match="extends itself"):
        read(tmp_path / "a.yaml")


def test_overrides_read_their_values_as_yaml() -> None:
    document = with_overrides(Document({"a": {"b": 1}}), ["a.b=0.7", "a.c=[1, 2]", "d=text"])
    assert document.content == {"a": {"b": 0.7, "c": [1, 2]}, "d": "text"}
    assert document.locate(("a", "c")) == "--set a.c=[1, 2]"


@pytest.mark.parametrize("setting", ["model", "=3", "a=[1"])
def test_a_setting_without_path_or_value_is_refused(setting: str) -> None:
    with pytest.raises(SpecError, match="--set"):
        with_overrides(Document({}), [setting])


def test_an_override_through_a_number_is_refused() -> None:
    with pytest.raises(SpecError, match=r"a\.b: a is not a mapping, got 1"):
        override({"a": 1}, "a.b", 2)


def test_decimals_stay_decimals() -> None:
    assert parse("ratio: 0.7", "x").content["ratio"] == 0.7


@pytest.mark.parametrize("text", ["1e-4", "1E4", "-2.5e+3", ".5e1", "1.e2"])
def test_decimals_with_an_exponent_are_numbers_in_files_and_settings(text: str) -> None:
    assert parse(f"lr: {text}", "a.yaml").content == {"lr": float(text)}
    assert with_overrides(Document({}), [f"lr={text}"]).content == {"lr": float(text)}


def test_a_text_that_only_looks_like_a_decimal_stays_a_text() -> None:
    assert parse("name: 1e\nother: '1e-4'", "a.yaml").content == {"name": "1e", "other": "1e-4"}


# Texts of strangers


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 100_000, "request:1: is too deep or too long for a spec, got 41 levels"),
        ("{a: " * 100, "is too deep or too long"),
        ("x: [" + "1," * 60_000 + "]", "is too deep or too long"),
        ("a: &x [1]\nb: *x", "request:2: aliases are not taken here; write the value out"),
        ("extends: base.yaml", "request:1: extends: files of the sender are not known here"),
        ("a: !!python/object/apply:os.system [ls]", "remove it"),
        ("a: \0", "is not usable YAML"),
        ("a: " + "9" * 5000, "is not usable YAML"),
        ("a: 1\na: 2", "stands twice"),
        ("- 1", "a spec is a mapping, got a sequence"),
        (r'{"a": {"\ud800\udc00": 1}}', r"has half a character, got '\ud800'; write it whole"),
        (r'{"a": "\ud800"}', "has half a character"),
    ],
)
def test_a_text_of_a_stranger_that_is_no_small_plain_mapping_is_refused(
    text: str, sentence: str
) -> None:
    with pytest.raises(SpecError) as refused:
        parse_untrusted(text, "request")
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 100_000, "is not usable JSON, got too many levels"),
        ('{"a": ' * 50 + "1" + "}" * 50, "is too deep for a spec; 40 levels are allowed"),
        ('{"a": NaN}', "got NaN, which is no number of JSON"),
        ('{"a": -Infinity}', "got -Infinity"),
        ('{"a": ' + "9" * 5000 + "}", "is not usable JSON"),
        ('{"a": 1, "a": 2}', "got 'a' twice in one mapping"),
        ("[1]", "a spec is a mapping, got list"),
        ("{", "is not usable JSON"),
        ("", "is not usable JSON"),
        ('{"extends": "x"}', "request: extends: files of the sender"),
        (r'{"a": "\ud800"}', "has half a character"),
    ],
)
def test_json_of_a_stranger_is_held_to_the_same(text: str, sentence: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse_untrusted_json(text, "request")
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_json_is_read_as_yaml_reads_it() -> None:
    text = '{"name": "x", "a": [1, 2.5, 1e-4, true, null, {"b": "c"}], "d": -3}'
    assert parse_untrusted_json(text, "x").content == parse_untrusted(text, "x").content


def test_a_plain_text_of_a_stranger_is_read_as_ours() -> None:
    text = 'name: x\nsweep: {seeds: [0, 1]}\nmodel: {dropout: 1e-4}\n"data": {"kind": "shapes"}'
    assert parse_untrusted(text, "request") == parse(text, "request")


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1:30", "1:30"), ("0o17", 15), ("0x1F", 31), ("1_000", 1000), ("-3", -3), ("1e-4", 1e-4),
        ("1.", 1.0), (".5", 0.5), ("1.5e3", 1500.0), ("12e03", 12000.0), ("08", "08"),
        ("1.2.3", "1.2.3"),
    ],
)  # fmt: skip
def test_numbers_are_those_of_yaml_1_2(written: str, value: object) -> None:
    found = parse(f"a: {written}", "x").content["a"]
    assert (found, type(found)) == (value, type(value))
