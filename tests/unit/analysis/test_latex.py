import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from focus_lab.analysis.ablation import ablation_table, paper_table
from focus_lab.analysis.latex import as_float, as_latex, escaped
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


def test_a_float_has_caption_and_label():
    lines = as_float(TABLE, "keep_ratio 2").splitlines()
    assert lines[:6] == [
        r"\begin{table}",
        r"\centering",
        r"\caption{AP of 100 \%}",
        r"\label{tab:keep-ratio-2}",
        r"\footnotesize",
        r"\setlength{\tabcolsep}{4pt}",
    ]
    assert lines[6:-1] == as_latex(TABLE).splitlines()[1:]
    assert lines[-1] == r"\end{table}"


def test_what_a_reader_must_know_stands_in_the_caption_of_a_float():
    lines = as_float(TABLE, "a", "Exploratory: 2 % of all.").splitlines()
    assert lines[2] == r"\caption{AP of 100 \% Exploratory: 2 \% of all.}"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no LaTeX")
def test_a_compiler_sets_the_table_of_a_paper_within_the_page(make_record, tmp_path):
    aps = {"no-score-modulation_ & ^": {0: 0.1, 1: 0.12, 2: 0.1}, "base": {0: 0.3, 1: 0.3, 2: 0.4}}
    comparison = compare(make_record(aps))
    tables = [as_float(paper_table(comparison), "a", "note"), as_latex(ablation_table(comparison))]
    for number, table in enumerate(tables):
        file = tmp_path / f"{number}.tex"
        body = rf"\begin{{document}}{table}\end{{document}}"
        file.write_text(rf"\documentclass{{article}}{body}", encoding="utf-8")
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", file.name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        # Of the wide one nothing is promised.
        assert number or "Overfull" not in done.stdout
