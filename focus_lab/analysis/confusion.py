"""Which class is taken for which: tables of shares, summed over the seeds of a cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from focus_lab.analysis import quantities as q
from focus_lab.analysis.breakdowns import Breakdown

MAX_CLASSES = 12


@dataclass(frozen=True)
class ConfusionTable:
    """Rows of shares for the page."""

    cell: str
    caption: str
    columns: tuple[str, ...]
    """What was detected; the last is `missed`."""
    rows: tuple[tuple[str, tuple[tuple[str, float], ...]], ...]
    """(true class, (text, share of its row)); the last row counts detections of nothing."""


def confusion_table(cell: str, breakdowns: Sequence[Breakdown]) -> ConfusionTable:
    """A cell's confusion, of the classes with most boxes; the others stand together.

    Args:
        cell: its name.
        breakdowns: of its trials, at least one, all of the same classes.
    """
    first = breakdowns[0]
    same = [one for one in breakdowns if one.class_names == first.class_names]
    counts = np.sum([one.confusion for one in same], axis=0)  # [K + 1, K + 1]
    classes = len(first.class_names)
    frequent = np.argsort(-counts[:classes].sum(axis=1), kind="stable")[:MAX_CLASSES]
    shown = sorted(frequent.tolist())
    others = [label for label in range(classes) if label not in shown]
    groups = [[label] for label in shown] + ([others] if others else []) + [[classes]]
    # [rows, columns] of groups of classes.
    merged = np.array([[counts[np.ix_(a, b)].sum() for b in groups] for a in groups])
    names = [q.printable(first.class_names[label], 18) for label in shown]
    names += [f"{len(others)} other classes"] if others else []
    rows = []
    for name, row in zip([*names, "nothing"], merged, strict=True):
        total = int(row.sum())
        texts = []
        for count in row.tolist():
            share = count / total if total else 0.0
            texts.append((f"{100 * share:.0f}" if count else "", share))
        if name == "nothing":
            # The counts alone mean something here: there is no number of nothings.
            texts = [(str(count) if count else "", 0.0) for count in row.tolist()[:-1]] + [("", 0)]
        rows.append((f"{name} ({total})", tuple(texts)))
    seeds = f"{len(same)} seed{'' if len(same) == 1 else 's'}"
    caption = (
        f"{q.printable(cell)}, {seeds}: of the boxes of each class (their number in brackets), the "
        "share in per cent that was detected as"
    )
    return ConfusionTable(q.printable(cell), caption, (*names, "missed"), tuple(rows))
