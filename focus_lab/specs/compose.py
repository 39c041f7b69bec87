"""Composition of YAML documents: one rule, and the line that every value came from.

`extends:` names files relative to the file that says it; later wins; mappings merge, lists and
scalars are replaced whole; a mapping whose `kind` changes is replaced whole. YAML is data: no class
paths, no interpolation, no expressions.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from focus_lab.errors import SpecError

EXTENDS = "extends"
_DEEPEST, _MOST_EVENTS = 40, 50_000
"""Of a text from a stranger; real specs are 6 levels deep and have some hundred events."""

_PLAIN = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: PyYAML, which reads 1.1, takes 1e-4 for a text and 1:30 for 90."""


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _INT,
    re.compile(r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0o?[0-7_]+|0|[1-9][0-9_]*)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*\.[0-9_]*)([eE][-+]?[0-9]+)?$"
        r"|[-+]?[0-9]+[eE][-+]?[0-9]+$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


@dataclass(frozen=True)
class Document:
    """A composed mapping, not yet validated, that remembers where its values were written."""

    content: dict[str, Any]
    origins: dict[tuple[str, ...], str] = field(default_factory=dict)
    """Path -> "file:line" (or "--set")."""

    def locate(self, path: tuple[str, ...]) -> str | None:
        """Where the value at `path`, or its closest written ancestor, comes from."""
        for length in range(len(path), 0, -1):
            if origin := self.origins.get(path[:length]):
                return origin
        return None


def merge(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """The composition rule on two mappings; neither is changed."""
    if "kind" in later and later["kind"] != earlier.get("kind", later["kind"]):
        return later
    merged = dict(earlier)
    for key, value in later.items():
        old = merged.get(key)
        merged[key] = (
            merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return merged


def override(content: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Set the dotted `path` to `value` by the composition rule: what `--set` and cells do.

    Raises:
        SpecError: the path goes through something that is not a mapping.
    """
    keys = path.split(".")
    later: Any = value
    for key in reversed(keys):
        later = {key: later}
    inner: Any = content
    for depth, key in enumerate(keys[:-1]):
        inner = inner.get(key, {})
        if not isinstance(inner, dict):
            where = ".".join(keys[: depth + 1])
            raise SpecError(f"{path}: {where} is not a mapping, got {inner!r}; override it whole")
    return merge(content, later)


def read(path: Path, _seen: tuple[Path, ...] = ()) -> Document:
    """Read a YAML file and everything that it extends.

    Raises:
        SpecError: a file is missing, is not YAML, is not a mapping or extends itself.
    """
    if path in _seen:
        chain = " -> ".join(str(file) for file in (*_seen, path))
        raise SpecError(f"{path}: extends itself, got {chain}; remove one `extends`")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        by = f" (extended by {_seen[-1]})" if _seen else ""
        raise SpecError(
            f"{path}: no such file{by}; give the path of a spec, for example "
            "experiments/keep_ratio.yaml"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read, got {error}; give a UTF-8 YAML file") from None
    document = parse(text, str(path))
    parents = document.content.pop(EXTENDS, [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise SpecError(
            f"{document.locate((EXTENDS,))}: extends: must be a path or a list of paths, "
            f"got {parents!r}"
        )
    composed = Document({})
    for parent in parents:
        composed = _compose(composed, read(path.parent / parent, (*_seen, path)))
    return _compose(composed, document)


def parse(text: str, name: str) -> Document:
    """One YAML (or JSON) text as a document; `name` stands before the line numbers."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return Document({})
        if not isinstance(node, yaml.MappingNode):
            kind = "sequence" if isinstance(node, yaml.SequenceNode) else "scalar"
            raise SpecError(
                f"{name}:1: a spec is a mapping, got a {kind}; see experiments/README.md"
            )
        origins: dict[tuple[str, ...], str] = {}
        content = _construct(loader, node, name, (), origins)
    except (yaml.reader.ReaderError, ValueError, RecursionError) as error:
        reason = (
            "an alias inside itself"
            if isinstance(error, RecursionError)
            else " ".join(str(error).split())
        )
        raise SpecError(f"{name}: is not usable YAML, got {reason}; mend it") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SpecError(
            f"{name}:{line}: is not valid YAML, got {error.problem}; mend the line"
        ) from None
    return Document(content, origins)


def parse_untrusted(text: str, name: str) -> Document:
    """One YAML (or JSON) text of a stranger as a document: small in depth, and without aliases.

    Raises:
        SpecError: it is not YAML, or is made to take time or memory.
    """
    depth = events = 0
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            events += 1
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            line = event.start_mark.line + 1 if event.start_mark else 1
            if isinstance(event, yaml.AliasEvent):
                raise SpecError(f"{name}:{line}: aliases are not taken here; write the value out")
            if depth > _DEEPEST or events > _MOST_EVENTS:
                raise SpecError(
                    f"{name}:{line}: is too deep or too long for a spec, got {depth} levels; "
                    f"{_DEEPEST} are allowed"
                )
    except (yaml.YAMLError, ValueError, RecursionError):
        # Said with its line below.
        if depth > _DEEPEST:
            raise SpecError(f"{name}: is too deep for a spec; nest it less") from None
    return _harmless(parse(text, name), name)


def parse_untrusted_json(text: str, name: str) -> Document:
    """As `parse_untrusted`, for JSON alone: many times as fast, and without the lines of mistakes.

    Raises:
        SpecError: it is not a JSON object, or is made to take time or memory.
    """
    try:
        content = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = "too many levels" if isinstance(error, RecursionError) else str(error)
        raise SpecError(f"{name}: is not usable JSON, got {reason}; mend it") from None
    if not isinstance(content, dict):
        raise SpecError(
            f"{name}: a spec is a mapping, got {type(content).__name__}; see experiments/README.md"
        )
    level: list[Any] = [content]
    for _ in range(_DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    if level:
        raise SpecError(f"{name}: is too deep for a spec; {_DEEPEST} levels are allowed")
    return _harmless(Document(content), name)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"{counts.most_common(1)[0][0]!r} twice in one mapping")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text}, which is no number of JSON")


def _harmless(document: Document, name: str) -> Document:
    try:
        json.dumps(document.content, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise SpecError(
            f"{name}: has half a character, got {error.object[error.start]!a}; write it whole"
        ) from None
    except ValueError:
        raise SpecError(f"{name}: has a number too long to be written; shorten it") from None
    if EXTENDS in document.content:
        where = document.locate((EXTENDS,)) or name
        raise SpecError(
            f"{where}: extends: files of the sender are not known here; send "
            "the composed spec, as `focus-lab sweep --server` does"
        )
    return document


def _construct(
    loader: _Loader,
    node: yaml.Node,
    name: str,
    path: tuple[str, ...],
    origins: dict[tuple[str, ...], str],
) -> Any:
    if path:
        origins[path] = f"{name}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.CollectionNode) and node.tag not in _PLAIN:
        line = node.start_mark.line + 1
        raise SpecError(f"{name}:{line}: YAML is data here, got the tag {node.tag}; remove it")
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(loader.construct_object(key_node))
            line = key_node.start_mark.line + 1
            if key in mapping:
                dotted = ".".join((*path, key))
                raise SpecError(f"{name}:{line}: {dotted}: stands twice in one mapping; keep one")
            mapping[key] = _construct(loader, value_node, name, (*path, key), origins)
            origins[(*path, key)] = f"{name}:{line}"
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [
            _construct(loader, item, name, (*path, str(index)), origins)
            for index, item in enumerate(node.value)
        ]
    return loader.construct_object(node, deep=True)


def _compose(earlier: Document, later: Document) -> Document:
    return Document(merge(earlier.content, later.content), earlier.origins | later.origins)


def with_overrides(document: Document, settings: list[str]) -> Document:
    """Apply `path=value` settings of the command line; values are YAML.

    Raises:
        SpecError: a setting has no `=`, its value is not YAML or its path leads nowhere.
    """
    content, origins = document.content, dict(document.origins)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise SpecError(
                f"--set: must be path=value, got {setting!r}; for example training.epochs=3"
            )
        try:
            value = yaml.load(text, Loader=_Loader)
        except (yaml.YAMLError, ValueError):
            raise SpecError(
                f"--set {path}: the value is not YAML, got {text!r}; quote it"
            ) from None
        content = override(content, path, value)
        origins[tuple(path.split("."))] = f"--set {setting}"
    return Document(content, origins)
