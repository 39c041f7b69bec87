import re

from hypothesis import given
from hypothesis import strategies as st

from focus_lab.analysis.ablation import ablation_table
from focus_lab.analysis.latex import as_latex, escaped
from focus_lab.analysis.summary import compare
from focus_lab.analysis.tables import Table

TABLE = Table(
    "AP of 100 %", ("cell", "AP", "none"), (("a_b & c", "\N{MINUS SIGN}0.1", ""),), frozenset({0})
)


def test_a_table_is_a_plain_tabular():
    assert as_latex(TABLE, "exploratory").splitlines() == [
        "% AP of 100 %",
        "% exploratory",
        r"\begin{tabular}{lr}",
        r"\hline",
        r"cell & AP \\",
        r"\hline",
        r"a\_b \& c & $-$0.1 \\",
        r"\hline",
        r"\end{tabular}",
    ]


def test_every_letter_that_means_something_to_latex_is_escaped():
    assert escaped(r"\a{b}$%&#_~^") == (
        r"\textbackslash{}a\{b\}\$\%\&\#\_\textasciitilde{}\textasciicircum{}"
    )
    # At the start of a row a bracket would belong to the line's end before it.
    assert escaped("[0.1]") == "{[}0.1{]}"
    assert escaped("<0.001") == "$<$0.001"
    assert escaped("0.50\N{MULTIPLICATION SIGN}") == r"0.50$\times$"


@given(st.text(st.characters(max_codepoint=0x2FFF, exclude_categories=["C"])))
def test_escaped_text_has_balanced_braces_and_no_bare_separator(text):
    found = escaped(text)
    bare = re.sub(r"\\[&%$#_{}]", "", found)
    assert not re.search(
        r"[&%#_^~\"]", bare.replace("~", "" if "\N{NO-BREAK SPACE}" in text else "~")
    )
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0


def test_real_tables_have_as_many_separators_in_every_row(make_record):
    aps = {"50 % & more_": {0: 0.1, 1: 0.12}, "base": {0: 0.3, 1: 0.31}}
    text = as_latex(ablation_table(compare(make_record(aps))))
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    kinds = re.search(r"tabular}{(\w+)}", text)[1]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(kinds) - 1}
    assert r"50 \% \& more\_" in text
    assert text.isascii()
