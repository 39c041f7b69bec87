"""The exception tree. The docstring of a class is its default message, written to the user.

FocusLabError
├── UserError                 the user's input is wrong: exit 2, never retried
│   ├── SpecError             a spec does not validate (all its mistakes at once)
│   ├── DataError             a data set is missing, broken or unreadable
│   ├── WeightsError          a checkpoint or weight file does not fit
│   └── OutputError           a place to write to is not writable
│       └── StorageUnreachableError  compute.storage does not answer: it may come back
├── ClusterUnreachableError   no Ray cluster answers: it may come back
├── StoreError                the lab's store cannot be used
│   └── StoreUnreachableError    it does not answer: it may come back
├── TrackerError              MLflow cannot be used
│   └── TrackerUnreachableError  it does not answer: it may come back
└── TrialError                a trial ended without its result
    ├── NonFiniteLossError    the loss is not finite; never retried
    ├── EffectiveSpecError    the built model does not do what its cell says; never retried
    └── PreemptedError        its machine is taken back; it goes on elsewhere
"""

from __future__ import annotations

import inspect


class FocusLabError(Exception):
    """focus_lab failed; run again with --debug to see where."""

    exit_code = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.getdoc(type(self)))


class UserError(FocusLabError):
    """The input is wrong; see `focus-lab --help`."""

    exit_code = 2


class SpecError(UserError):
    """The spec is not valid; `focus-lab plan FILE` lists its mistakes."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems) or None)

    def __reduce__(self) -> tuple[type[SpecError], tuple[str, ...]]:
        return type(self), self.problems


class DataError(UserError):
    """The data set cannot be used; `focus-lab data check FILE` says what is wrong with it."""


class WeightsError(UserError):
    """The weights do not fit the model; build the model that they were trained with."""


class OutputError(UserError):
    """The output folder cannot be written; choose another one with --out DIR."""


class StorageUnreachableError(OutputError):
    """The place named by compute.storage does not answer; check that it can be reached."""


class ClusterUnreachableError(UserError):
    """No Ray cluster answers; start one with `ray start --head`, or leave out --address."""


class StoreError(UserError):
    """The lab's store cannot be used; check the path or URL given by --store."""


class StoreUnreachableError(StoreError):
    """The lab's store does not answer; start its server, or choose another with --store."""


class TrackerError(UserError):
    """The MLflow store cannot be used; check the path or URL given by --tracking-uri."""


class TrackerUnreachableError(TrackerError):
    """MLflow does not answer; start its server, or choose another with --tracking-uri."""


class TrialError(FocusLabError):
    """The trial ended without its result; `focus-lab sweep` on the same spec tries it again."""


class NonFiniteLossError(TrialError):
    """The loss is not finite; lower training.optimizer.lr or look at the named images."""


class PreemptedError(TrialError):
    """The machine is about to be taken back; the trial goes on elsewhere from this very step."""


class EffectiveSpecError(TrialError):
    """The built model does not use its cell's values; its numbers would belong to another cell."""
