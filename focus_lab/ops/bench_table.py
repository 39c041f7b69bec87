"""What `bench ops` has found, for people."""

from __future__ import annotations

from typing import Any


def as_text(result: dict[str, Any]) -> str:
    """The rows as a table, then who was not timed and why."""
    headings = ("case", "dtype", "direction", "against", "ours ms", "theirs ms", "ratio",
                "range", "GB/s", "of copy")  # fmt: skip
    lines = [headings]
    for row in result["rows"]:
        low, high = row["ratio_range"]
        lines.append(
            (
                row["case"], row["dtype"], row["direction"], row["against"],
                f"{row['ours_ms']:.4g}", f"{row['against_ms']:.4g}", f"{row['ratio']:.2f}",
                f"{low:.2f}-{high:.2f}", f"{row['ours_gb_s']:.1f}", f"{row['copy_share']:.0%}",
            )
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for line in lines:
        cells = [
            cell.ljust(width) if number < 4 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip())
    text.append(
        f"\n{result['device']}, {result['threads']} threads, torch {result['versions']['torch']}, "
        f"plain copy {result['copy_gb_s']:.1f} GB/s; ratio = theirs / ours"
    )
    reasons: dict[tuple[str, str], list[str]] = {}
    for skip in result["skipped"]:
        place = f"{skip['case']} {skip['dtype']}" if skip["case"] else "all cases"
        reasons.setdefault((skip["against"], skip["reason"]), []).append(place)
    for (against, reason), places in reasons.items():
        text.append(f"not timed: {against}: {reason} ({', '.join(places)})")
    return "\n".join(text)
