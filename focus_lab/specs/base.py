"""The base of all spec models: immutable, strict about keys, documented field by field."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict


class Spec(BaseModel):
    """A validated, immutable part of a request. Unknown keys are errors: a typo is reported.

    Strict: `true` and `'3'` are no numbers. A whole number may stand for a decimal one.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


def added(default: Any) -> Any:
    """Default of a field that came later: it is not written while it has its default.

    So what computes the same numbers as before keeps its fingerprint, and its trials go on.
    """
    # To compare models takes long, and most have the very default.
    return Field(
        default=default, exclude_if=lambda value: value is default or bool(value == default)
    )


FromList = Strict(False)
"""On a tuple: it may be written as a list, the only sequence that YAML and JSON have."""

Ratio = Annotated[float, Field(gt=0, le=1)]
"""A share in (0, 1]."""

Probability = Annotated[float, Field(ge=0, le=1)]
"""A probability in [0, 1]."""

# Every number has a largest value: what is made from it must fit into memory, into a database's
# columns and into a decimal number. Those that multiply have lower ones where they stand.
_MOST = 2**31 - 1
_LARGEST = 1e30

PositiveInt = Annotated[int, Field(gt=0, le=_MOST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=_MOST)]
PositiveFloat = Annotated[float, Field(gt=0, le=_LARGEST)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=_LARGEST)]
AnyFloat = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]


def fingerprint(content: Any) -> str:
    """SHA-256 (hex) of canonical JSON: sorted keys, no blanks, shortest decimals."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
