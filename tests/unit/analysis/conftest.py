"""Records made by hand."""

import pytest

from focus_lab.analysis.records import ExperimentRecord


@pytest.fixture
def empty_record() -> ExperimentRecord:
    """An experiment of which nothing is known yet."""
    return ExperimentRecord("empty", "", {}, (), (), {})
