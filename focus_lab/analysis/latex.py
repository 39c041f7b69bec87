"""Tables for papers: plain LaTeX, no package needed."""

from __future__ import annotations

import re
from dataclasses import replace

from focus_lab.analysis.tables import Table

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": r"\textbar{}",
    '"': "''",
    # After a line's end a bracket would be its argument.
    "[": "{[}",
    "]": "{]}",
    "\N{MINUS SIGN}": "$-$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "—": "--",
    "…": r"\ldots{}",
    "\N{NARROW NO-BREAK SPACE}": r"\,",
    "\N{NO-BREAK SPACE}": "~",
}
_SPECIAL = re.compile("|".join(map(re.escape, _ESCAPES)))


def escaped(text: str) -> str:
    """Text that LaTeX sets letter by letter; letters beyond Latin need a font that has them."""
    return _SPECIAL.sub(lambda found: _ESCAPES[found[0]], text)


def as_float(table: Table, label: str, note: str = "") -> str:
    """A table as a paper has it: a float with caption and label.

    Args:
        table: what to set, few enough columns for a page.
        label: what the text refers to it by.
        note: ends the caption: what a reader of the paper must know, see `as_latex`.
    """
    # A label is read letter by letter, so only plain ones may be in it.
    plain = re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-")
    caption = f"{table.caption} {note}" if note else table.caption
    head = [r"\begin{table}", r"\centering", rf"\caption{{{escaped(caption)}}}"]
    # Names of cells are long; the columns stand a little closer than usual.
    head += [rf"\label{{tab:{plain}}}", r"\footnotesize", r"\setlength{\tabcolsep}{4pt}"]
    body = as_latex(replace(table, caption=""))
    return "\n".join([*head, body.rstrip(), r"\end{table}", ""])


def as_latex(table: Table, note: str = "") -> str:
    """A `tabular` with rules above, below the head and at the end; caption and note as comments.

    Args:
        table: what to set; columns without any text are left out.
        note: what a reader of the source must know, for example that the search was exploratory.
    """
    filled = [
        place
        for place in range(len(table.columns))
        if not table.rows or any(row[place] for row in table.rows)
    ]
    kinds = "".join("l" if place in table.text_columns else "r" for place in filled)
    lines = [f"% {line}" for line in (table.caption, note) if line]
    lines += [rf"\begin{{tabular}}{{{kinds}}}", r"\hline"]
    lines.append(_line([table.columns[place] for place in filled]))
    lines.append(r"\hline")
    lines += [_line([row[place] for place in filled]) for row in table.rows]
    lines += [r"\hline", r"\end{tabular}", ""]
    return "\n".join(lines)


def _line(texts: list[str]) -> str:
    return " & ".join(map(escaped, texts)) + r" \\"
