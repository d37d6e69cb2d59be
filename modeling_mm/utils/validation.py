# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Plain values, as YAML holds them, checked and built into dataclasses by pydantic.

OmegaConf does worse: it reads 3 as "3" and `no` as "False" instead of refusing them, and its errors lose the place of
a value in a list. `huggingface_hub.dataclasses.strict` checks types, but builds no nested dataclasses.
"""

import dataclasses
import enum
import json
import re
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

from .spelling import nearest, suggestion

if typing.TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

T = TypeVar("T")
PLAIN_TYPES = (int, float, bool, str, list, dict, types.NoneType)


def build(kind: type[T], values: Any, where: str = "") -> T:
    """
    Build a dataclass, with the dataclasses in it, from a mapping.

    Args:
        kind: the dataclass. Its classmethod `free_keys`, if any, names the keys of fields that it checks itself
        values: a mapping of its fields; missing fields keep their defaults
        where: key of the mapping, for messages

    Raises:
        ValueError: for an unknown key, with the nearest one; for a value of another type; for a missing field; and if
            the dataclass refuses a value.

    Example:
        >>> @dataclasses.dataclass
        ... class Section:
        ...     size: int = 1
        >>> build(Section, {"siz": 2}, "section")
        Traceback (most recent call last):
        ValueError: section.siz: unknown key 'siz'. Did you mean 'size'?
    """
    return _validate(kind, values, where)


def check_mapping(values: Mapping[str, Any], hints: Mapping[str, Any], where: str) -> None:
    """
    Check a mapping by the type hints of another class, without building that class.

    Raises:
        ValueError: for an unknown key, with the nearest one, and for a value of another type.
    """
    check_names(values, hints, where)
    for name, value in values.items():
        _validate(_plain_hint(hints[name]), value, f"{where}.{name}")


def check_names(given: Iterable[str], known: Collection[str], where: str, deeper: Collection[str] = ()) -> None:
    """
    Check that names are known.

    Raises:
        ValueError: for an unknown name, with the nearest of `known`, or of the dotted names in `deeper` by its end.
    """
    for name in given:
        if name not in known:
            ends = {key.split(".")[-1]: key for key in reversed(list(deeper))}
            near = ends.get(name) or nearest(name, known) or ends.get(nearest(name, ends, cutoff=0.75) or "")
            hint = f"Did you mean {near!r}?" if near else f"Valid keys: {', '.join(sorted(known))}."
            raise ValueError(f"{_join(where, name)}: unknown key {name!r}. {hint}")


def type_hints(kind: type) -> dict[str, Any]:
    """Return the types of the fields that the constructor of a dataclass takes."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]


def _validate(kind: Any, values: Any, where: str) -> Any:
    from pydantic import TypeAdapter, ValidationError

    try:
        # From JSON, pydantic takes lists as tuples and texts as enumerations; `strict` refuses all other conversions.
        return TypeAdapter(kind).validate_json(json.dumps(values, default=str), strict=True, extra="forbid")
    except ValidationError as error:
        raise ValueError(_message(error, kind, values, where)) from error


def _message(error: "ValidationError", kind: Any, values: Any, where: str) -> str:
    """Return the first error in one line: where it is, what was expected and what was given."""
    details = error.errors(include_url=False)
    detail = next((d for d in details if d["type"] == "unexpected_keyword_argument"), details[0])
    path = _path(detail, values)
    place = _join(where, ".".join(path))
    if detail["type"] == "unexpected_keyword_argument":
        section = _section(kind, path[:-1])
        try:
            check_names(path[-1:], type_hints(section), _join(where, ".".join(path[:-1])), list(_dotted_keys(section)))
        except ValueError as unknown:
            return str(unknown)
    if detail["type"] == "value_error":  # of a `__post_init__`
        text = str(detail["ctx"]["error"])
        return text if not place or text.startswith(place) else f"{place}: {text}"
    if detail["type"] == "missing":
        return f"{_join(where, '.'.join(path[:-1])) or 'The recipe'}: `{path[-1]}` is missing."
    same_place = [d["msg"] for d in details if _path(d, values) == path]  # a message for each type of a union
    expected = " or ".join(dict.fromkeys(text.removeprefix("Input should be ") for text in same_place))
    expected = expected.replace("a valid array", "a list").replace("an object", "a mapping")  # not JSON's words
    hint = suggestion(str(detail["input"]), re.findall(r"'([^']+)'", expected))
    given = json.dumps(detail["input"], ensure_ascii=False)
    return f"{place or 'The recipe'}: expected {expected}, got {given}.{hint}"


def _path(detail: "ErrorDetails", values: Any) -> list[str]:
    """Return the keys that lead to an error, without the names that pydantic gives to the types of a union."""
    path: list[str] = []
    for key in detail["loc"]:
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            if not (detail["type"] == "missing" and key == detail["loc"][-1]):
                continue
        path.append(str(key))
    return path


def _section(kind: Any, path: Sequence[str]) -> Any:
    """Return the dataclass that the keys of `path` lead to."""
    for key in [*path, None]:
        if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
            kind = next(part for part in get_args(kind) if part is not types.NoneType)
        if key is not None:
            kind = type_hints(kind)[key] if dataclasses.is_dataclass(kind) else get_args(kind)[-1]  # type: ignore[arg-type]
    return kind


def _dotted_keys(kind: Any, prefix: str = "") -> Iterator[str]:
    """Yield the keys in the sections of a dataclass, such as `training.learning_rate` and `model.text`."""
    for name, keys in getattr(kind, "free_keys", dict)().items():
        yield from (_join(prefix, f"{name}.{key}") for key in keys)
    for name, hint in type_hints(kind).items():
        if prefix:
            yield _join(prefix, name)
        inner = _section(hint, [])
        if dataclasses.is_dataclass(inner):
            yield from _dotted_keys(inner, _join(prefix, name))


def _plain_hint(hint: Any) -> Any:
    """Return a type hint without the types that no plain value has, and without `str` beside an enumeration."""
    kinds = get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else (hint,)
    is_enum = [isinstance(kind, type) and issubclass(kind, enum.Enum) for kind in kinds]
    kept = [
        kind
        for kind, is_choice in zip(kinds, is_enum, strict=True)
        if is_choice
        or (
            not (kind is str and any(is_enum))
            and (kind in PLAIN_TYPES or not isinstance(kind, type) or typing.get_origin(kind))
        )
    ]
    return typing.Union[tuple(kept)] if kept else Any  # noqa: UP007


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where and name else where or name
