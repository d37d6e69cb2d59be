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
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

from .spelling import nearest, suggestion

if typing.TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

T = TypeVar("T")
# Errors by how much they tell, as a union gives those of all its types; others come last.
TELLING = ("unexpected_keyword_argument", "extra_forbidden", "value_error", "missing")
WORDS = {"a valid array": "a list", "a valid dictionary": "a mapping", "an object": "a mapping"}


def build(kind: type[T], values: Any, where: str = "") -> T:
    """
    Build a dataclass, with the dataclasses in it, from a mapping.

    Args:
        kind: the dataclass
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
    from pydantic import TypeAdapter, ValidationError

    try:
        # From JSON, pydantic takes lists as tuples; `strict` refuses all other conversions.
        return TypeAdapter(kind).validate_json(json.dumps(values, default=str), strict=True, extra="forbid")
    except ValidationError as error:
        raise ValueError(_message(error, kind, values, where)) from error


def mapping_of(hints: Mapping[str, Any]) -> Any:
    """Return the type of mappings with optional keys of the given types, for fields of another class."""
    import typing_extensions

    typed_dict: Any = typing_extensions.TypedDict
    return typed_dict("Mapping", {name: _plain_hint(hint) for name, hint in hints.items()}, total=False)


def type_hints(kind: Any) -> dict[str, Any]:
    """Return the types of the fields that the constructor of a dataclass takes."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def _message(error: "ValidationError", kind: Any, values: Any, where: str) -> str:
    """Return the first error in one line: where it is, what was expected and what was given."""
    details = error.errors(include_url=False)
    detail = min(details, key=lambda d: TELLING.index(d["type"]) if d["type"] in TELLING else len(TELLING))
    path = _path(detail, values)
    place = ".".join([where] * bool(where) + path)
    if detail["type"] in TELLING[:2]:
        return f"{place}: unknown key {path[-1]!r}. {_hint(path, list(_keys(kind)))}"
    if detail["type"] == "value_error":  # of a `__post_init__`
        text = str(detail["ctx"]["error"])
        return text if not place or text.startswith(place) else f"{place}: {text}"
    if detail["type"] == "missing":
        return f"{place.rpartition('.')[0] or 'The recipe'}: `{path[-1]}` is missing."
    same_place = [d["msg"].removeprefix("Input should be ") for d in details if _path(d, values) == path]
    expected = " or ".join(dict.fromkeys(WORDS.get(text, text) for text in same_place))
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


def _hint(path: list[str], keys: list[list[str]]) -> str:
    """Return the key that is spelled most like the last one of `path`, or else all keys of its section."""
    section, name = path[:-1], path[-1]
    here = [
        k[-1] for k in keys if len(k) == len(path) and all(a in ("*", b) for a, b in zip(k, section, strict=False))
    ]
    elsewhere = {key[-1]: ".".join(key) for key in reversed(keys) if "*" not in key}
    near = nearest(name, here, cutoff=0.8) or elsewhere.get(name) or nearest(name, here)
    near = near or elsewhere.get(nearest(name, elsewhere, cutoff=0.75) or "")
    return f"Did you mean {near!r}?" if near else f"Valid keys: {', '.join(sorted(here))}."


def _keys(kind: Any, path: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """Yield the keys of a dataclass or typed mapping and of all in it, with `*` for items of lists and mappings."""
    if dataclasses.is_dataclass(kind) or hasattr(kind, "__total__"):  # a dataclass, a TypedDict
        hints = type_hints(kind) if dataclasses.is_dataclass(kind) else typing.get_type_hints(kind)
        for name, hint in hints.items():
            yield [*path, name]
            yield from _keys(hint, (*path, name))
    elif arguments := [argument for argument in get_args(kind) if argument is not types.NoneType]:
        yield from _keys(arguments[-1], (*path, "*") if get_origin(kind) in (list, dict, tuple) else path)


def _plain_hint(hint: Any) -> Any:
    """Return the type of plain values for a type hint: choices for an enumeration, nothing for other classes."""
    is_union = isinstance(hint, types.UnionType) or get_origin(hint) is typing.Union
    kinds = list(get_args(hint)) if is_union else [hint]
    if choices := [kind for kind in kinds if isinstance(kind, enum.EnumMeta)]:
        members: Mapping[str, enum.Enum] = choices[0].__members__
        values = tuple(member.value for member in members.values())
        kinds = [Literal[values], *(kind for kind in kinds if kind is types.NoneType)]
    plain = [k for k in kinds if not isinstance(k, type) or k.__module__ == "builtins" or hasattr(k, "__total__")]
    return typing.Union[tuple(plain)] if plain else Any  # noqa: UP007
