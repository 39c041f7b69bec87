"""The field reference: every field of the spec with type, default and meaning.

`python -m focus_lab.specs.reference FILE` writes it between the markers of a Markdown file.
"""

from __future__ import annotations

import json
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from focus_lab.specs.experiment import ExperimentSpec

BEGIN, END = "<!-- field reference: begin -->", "<!-- field reference: end -->"


@dataclass(frozen=True)
class Field:
    """One field of a model; `type` and `default` with Markdown's backticks."""

    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """One model."""

    path: str
    """Where the experiment's spec holds it; empty for the spec itself."""
    meaning: str
    fields: tuple[Field, ...]


def sections() -> list[Section]:
    """Every model, in the order in which the experiment's spec holds them."""
    seen: dict[type[BaseModel], str] = {}
    _collect(ExperimentSpec, "", seen)
    return [
        Section(path, _first_paragraph(model), tuple(_fields(model)))
        for model, path in seen.items()
    ]


def field_reference() -> str:
    """One Markdown table a model."""
    texts = []
    for section in sections():
        title = f"`{section.path}`" if section.path else "The experiment"
        texts.append(f"#### {title}\n\n{section.meaning}\n\n{_table(section)}")
    return "\n\n".join(texts) + "\n"


def write_reference(file: Path) -> None:
    """Replace what stands between the markers of `file`."""
    text = file.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    file.write_text(f"{before}{BEGIN}\n\n{field_reference()}\n{END}{after}", encoding="utf-8")


def _collect(model: type[BaseModel], path: str, seen: dict[type[BaseModel], str]) -> None:
    if model in seen:
        return
    seen[model] = path
    for name, field in model.model_fields.items():
        inner = _models(field.annotation)
        for found in inner:
            kind = _kind(found)
            place = f"{path}.{name}".lstrip(".")
            _collect(found, f"{place} (kind: {kind})" if kind and len(inner) > 1 else place, seen)


def _fields(model: type[BaseModel]) -> Iterator[Field]:
    for name, field in model.model_fields.items():
        default = "required" if field.default is PydanticUndefined else _default(field.default)
        text = " ".join((field.description or "").split())
        values = typing.get_args(field.annotation) if name == "kind" else ()
        kind = "constant" if len(values) == 1 else _type(field.annotation)
        yield Field(name, kind, default, text or "which variant this is")


def _table(section: Section) -> str:
    rows = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    for field in section.fields:
        text = field.meaning.replace("|", "\\|")
        rows.append(f"| `{field.name}` | {field.type} | {field.default} | {text} |")
    return "\n".join(rows)


def _default(value: Any) -> str:
    if isinstance(value, BaseModel):
        kind = _kind(type(value))
        return f"kind: {kind}" if kind else "see below"
    return f"`{json.dumps(value)}`"


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(part) for part in arguments))
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "mapping"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    if annotation is type(None):
        return "null"
    return names.get(annotation, "mapping" if _models(annotation) else "any")


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models(part)]


def _kind(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    values = typing.get_args(field.annotation) if field else ()
    return str(values[0]) if len(values) == 1 else None


def _first_paragraph(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split("\n\n")[0].split())


if __name__ == "__main__":
    write_reference(Path(sys.argv[1]))
