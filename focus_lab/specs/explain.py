"""Validation mistakes as sentences.

Their form: `file:line: dotted.path: what is wrong, got VALUE; what is allowed`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from focus_lab.errors import SpecError

Locate = Callable[[tuple[str, ...]], str | None]

_TYPES = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "string": "a text",
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping",
    "model": "a mapping",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


Model = TypeVar("Model", bound=BaseModel)


def validate_as(model: type[Model], content: dict[str, Any], locate: Locate) -> Model:
    """Validate strictly.

    Raises:
        SpecError: all mistakes at once, each with its place.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise SpecError(*explain(error, content, model, locate)) from None


def explain(
    error: ValidationError, content: Any, model: type[BaseModel], locate: Locate
) -> list[str]:
    """All mistakes of `content`, one sentence each, in the order of their paths.

    Args:
        error: what pydantic raised.
        content: the mapping that was validated.
        model: the model that it was validated by; known keys are read off it.
        locate: path -> "file:line", or None.
    """
    sentences = []
    for item in error.errors(include_url=False):
        path, tags = _plain_path(item["loc"], content)
        for line in _sentences(item, path, tags, model):
            inner, text = line
            where = locate(inner)
            dotted = ".".join(inner)
            sentences.append(": ".join(part for part in (where, dotted, text) if part))
    return sentences


def _plain_path(
    loc: tuple[int | str, ...], content: Any
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Take pydantic's union tags out of an error path; also the tags, for looking up fields."""
    path: list[str] = []
    typed: list[str] = []
    here = content
    for element in loc:
        typed.append(str(element))
        if isinstance(here, list | tuple) and isinstance(element, str):
            continue  # the tag of a list that stands beside kinds
        if isinstance(here, dict) and element not in here and here.get("kind") == element:
            continue
        path.append(str(element))
        if isinstance(here, dict):
            here = here.get(element)
        elif isinstance(here, list | tuple) and isinstance(element, int) and element < len(here):
            here = here[element]
        else:
            here = None
    return tuple(path), tuple(typed)


def _sentences(
    item: Any, path: tuple[str, ...], typed: tuple[str, ...], model: type[BaseModel]
) -> list[tuple[tuple[str, ...], str]]:
    kind, context, value = item["type"], item.get("ctx", {}), item.get("input")
    got = f"got {short(value)}"
    if kind == "extra_forbidden":
        known = _known_keys(model, typed[:-1])
        close = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
        return [(path, f"is not a known key; {hint}")]
    if kind == "missing":
        return [(path, "is missing; it has no default")]
    if kind == "value_error":
        # A model's own validator: one problem a line, each with the path below the model.
        lines = str(context["error"]).splitlines()
        found = []
        for line in lines:
            match = re.match(r"([a-z_][a-z_0-9.]*): (.*)", line)
            found.append(((*path, *match[1].split(".")), match[2]) if match else (path, line))
        return found
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        bound = context[key]
        shown = str(bound) if isinstance(bound, int) else f"{bound:g}"
        return [(path, f"must be {words} {shown}, {got}")]
    if kind == "literal_error":
        return [(path, f"is not an allowed value, {got}; allowed are {context['expected']}")]
    if kind == "union_tag_invalid":
        return [
            (
                (*path, "kind"),
                f"is not a known kind, got {context['tag']!r}; "
                f"allowed are {context['expected_tags']}",
            )
        ]
    if kind == "union_tag_not_found":
        return [(path, f"needs a `kind`, {got}; write for example {{kind: {_kinds(model, path)}}}")]
    if kind in ("too_short", "too_long"):
        bound = "at least" if kind == "too_short" else "at most"
        length = context.get("min_length", context.get("max_length"))
        return [(path, f"must have {bound} {length} values, got {context.get('actual_length')}")]
    base = kind.rsplit("_", 1)[0].removesuffix("_attributes").removesuffix("_from")
    if base in _TYPES:
        return [(path, f"must be {_TYPES[base]}, {got}")]
    message = item["msg"][0].lower() + item["msg"][1:]
    return [(path, f"{message}, {got}")]


def short(value: Any) -> str:
    """A value as a sentence has it, whatever it is."""
    try:
        text = repr(value)
    except ValueError:
        # Python writes no number of more than some thousand digits.
        return "a very long number"
    return text if len(text) <= 60 else text[:57] + "..."


def _models_at(model: type[BaseModel], typed: tuple[str, ...]) -> list[type[BaseModel]]:
    """The models that may stand at a path (with tags) below `model`."""
    here = [model]
    for element in typed:
        inner: list[type[BaseModel]] = []
        for candidate in here:
            if element in candidate.model_fields:
                inner += _models_in(candidate.model_fields[element].annotation)
            elif _kind_of(candidate) == element:
                inner.append(candidate)
        here = inner
    return here


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def _kind_of(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    values = get_args(field.annotation) if field else ()
    return values[0] if len(values) == 1 else None


def _known_keys(model: type[BaseModel], typed: tuple[str, ...]) -> list[str]:
    return list(
        dict.fromkeys(name for found in _models_at(model, typed) for name in found.model_fields)
    )


def _kinds(model: type[BaseModel], typed: tuple[str, ...]) -> str:
    return " | ".join(kind for found in _models_at(model, typed) if (kind := _kind_of(found)))
