"""Lines of logs: JSON for machines, short ones on a terminal, sentences for whoever reads them."""

from __future__ import annotations

import io
import json
import sys

import structlog


def configure_logs() -> None:
    """JSON lines for machines, short lines on a terminal."""
    shown: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    if sys.stderr.isatty():
        # Without the values of variables, which structlog would add: some are tokens.
        plain = structlog.dev.plain_traceback
        shown[-1:] = [structlog.dev.ConsoleRenderer(exception_formatter=plain)]
    else:
        shown.append(structlog.processors.JSONRenderer())
    structlog.configure(
        processors=shown,
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


class LogLines(io.TextIOBase):
    """A file that a console writes to: each line is one of a log.

    Args:
        log: bound to what all lines are about.
        event: the lines' name.
    """

    def __init__(self, log: structlog.typing.FilteringBoundLogger, event: str) -> None:
        self._log, self._event = log, event

    def write(self, text: str) -> int:
        """Log whole lines, as consoles write them."""
        for line in text.splitlines():
            if line.strip():
                self._log.info(self._event, text=line)
        return len(text)


def readable(text: str) -> str:
    """A log in which JSON lines are the sentences that were said; other lines stay as they are.

    What is readable of a log's beginning is the beginning of what is readable of all of it.
    """
    return "".join(_said(line) for line in text.splitlines(keepends=True))


def _said(line: str) -> str:
    if not line.startswith("{"):
        return line
    try:
        found = json.loads(line)
    except ValueError:
        # The last one may be half written; it is said when it is whole.
        return line if line.endswith("\n") else ""
    said = [str(found[key]).rstrip("\n") for key in ("text", "exception") if key in found]
    return "\n".join(said) + "\n" if said else line
