# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Plain values, as YAML gives them, into dataclasses: every key is known and every value has its field's type."""

import dataclasses
import difflib
import enum
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")


def build(kind: type[T], values: Any, where: str = "") -> T:
    """
    A dataclass from a mapping, the dataclasses within it likewise.

    Args:
        kind: the dataclass
        values: a mapping of its fields; fields that are left out keep their defaults
        where: the key under which the mapping stands, for messages

    Raises:
        ValueError: for a key that is no field, with the nearest valid name; for a value of another type, with what was
            expected and what came; for a field that is missing. The dataclass' own checks raise it too.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where or 'The recipe'}: expected a mapping of keys and values, got {shown(values)}.")
    hints = hints_of(kind)
    check_names(values, hints, where, kind)
    given = {name: convert(value, hints[name], joined(where, name)) for name, value in values.items()}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.init and field.name not in given:
            raise ValueError(
                f"{where or 'The recipe'}: `{field.name}` is missing; it is {described(hints[field.name])}."
            )
    try:
        return kind(**given)
    except ValueError as error:
        if not where or str(error).startswith(where):
            raise
        raise ValueError(f"{where}: {error}") from error


def hints_of(kind: type) -> dict[str, Any]:
    """The types of a dataclass' fields that can be given."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]


def check_names(given: Iterable[str], known: Collection[str], where: str = "", root: type | None = None) -> None:
    """
    Raises:
        ValueError: for a name that is not known, with the nearest that is: at this place, or else, where `root` is
            given, among the keys of the sections within.
    """
    for name in given:
        if name not in known:
            deeper = list(dotted_keys(root)) if root is not None else []
            near = nearest(str(name), known, deeper)
            hint = f" Did you mean {near!r}?" if near else f" Valid keys: {', '.join(sorted(known))}."
            raise ValueError(f"{joined(where, str(name))}: unknown key {name!r}.{hint}")


def nearest(name: str, here: Collection[str], deeper: Collection[str] = ()) -> str | None:
    """The valid name that is meant: one that is spelled alike here, or a dotted one that ends with it."""
    for key in deeper:
        if key.split(".")[-1] == name:
            return key
    matches = difflib.get_close_matches(name, list(here), n=1)
    if matches:
        return matches[0]
    ends = {key.split(".")[-1]: key for key in deeper}
    matches = difflib.get_close_matches(name, list(ends), n=1, cutoff=0.75)
    return ends[matches[0]] if matches else None


def dotted_keys(kind: type, prefix: str = "") -> Iterable[str]:
    """The keys of the dataclasses within a dataclass, such as `model.text`."""
    # Keys of mappings that the dataclass checks itself; first, as `learning_rate` alone is the training's.
    extra: dict[str, list[str]] = getattr(kind, "free_keys", dict)()
    for name, keys in extra.items():
        yield from (f"{joined(prefix, name)}.{key}" for key in keys)
    for name, hint in hints_of(kind).items():
        inner = next((part for part in (hint, *get_args(hint)) if dataclasses.is_dataclass(part)), None)
        if prefix:
            yield f"{prefix}.{name}"
        if isinstance(inner, type) and get_origin(hint) is not list:
            yield from dotted_keys(inner, joined(prefix, name))


def convert(value: Any, kind: Any, where: str) -> Any:
    """
    A plain value as a field of type `kind` holds it: whole floats become ints where ints are expected, mappings
    dataclasses, lists tuples.

    Raises:
        ValueError: for a value of another type.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in (Any, object):
        return value
    if origin in (Union, types.UnionType):
        return convert_union(value, arguments, where)
    if origin is Literal:
        if value in arguments and type(value) in {type(argument) for argument in arguments}:
            return value
        raise mismatch(value, kind, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return value if isinstance(value, kind) else build(kind, value, where)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return convert_choice(value, kind, where)
    if kind is bool or kind is str or kind is type(None):
        if isinstance(value, types.NoneType if kind is None else kind):
            return value
    elif kind is int:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value == int_or_none(value):
            return int(value)
    elif kind is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif list in (kind, origin):
        if isinstance(value, list):
            return [convert(item, arguments[0] if arguments else Any, f"{where}.{i}") for i, item in enumerate(value)]
    elif tuple in (kind, origin):
        if isinstance(value, (list, tuple)):
            if arguments[-1:] == (...,):
                arguments = arguments[:1] * len(value)
            if len(value) != len(arguments):
                raise ValueError(f"{where}: expected a list of {len(arguments)}, got {shown(value)}.")
            pairs = zip(value, arguments, strict=True)
            return tuple(convert(item, part, f"{where}.{i}") for i, (item, part) in enumerate(pairs))
    elif dict in (kind, origin) and isinstance(value, Mapping):
        inner = arguments[1] if arguments else Any
        return {str(name): convert(item, inner, joined(where, str(name))) for name, item in value.items()}
    raise mismatch(value, kind, where)


def int_or_none(value: float) -> int | None:
    """The whole number that a number is."""
    return int(value) if value == value and abs(value) != float("inf") else None


def convert_union(value: Any, kinds: tuple, where: str) -> Any:
    """The first of the types that takes the value; where an enumeration is among them, strings must be of its own."""
    if any(isinstance(kind, type) and issubclass(kind, enum.Enum) for kind in kinds):
        kinds = tuple(kind for kind in kinds if kind is not str)
    candidates = [kind for kind in kinds if kind is not type(None)]
    if value is None and len(candidates) < len(kinds):
        return None
    if len(candidates) == 1:
        return convert(value, candidates[0], where)  # its own message says more
    for kind in sorted(candidates, key=lambda kind: kind is float):  # 8 stays an int where both are allowed
        try:
            return convert(value, kind, where)
        except ValueError:
            continue
    raise mismatch(value, Union[kinds], where)  # noqa: UP007


def convert_choice(value: Any, kind: type[enum.Enum], where: str) -> str:
    """The value of an enumeration's member, as a string that its owner turns into the member."""
    choices = [str(member.value) for member in kind]
    if str(value) in choices and not isinstance(value, bool):
        return str(value)
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{where}: expected one of {', '.join(choices)}, got {shown(value)}.{hint}")


def mismatch(value: Any, kind: Any, where: str) -> ValueError:
    return ValueError(f"{where}: expected {described(kind)}, got {shown(value)}.")


NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    type(None): "null",
    list: "a list",
    dict: "a mapping",
}


def described(kind: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(described(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(repr(argument) for argument in arguments)
    if origin is list:
        return f"a list ({described(arguments[0])} each)"
    if origin is tuple:
        return "a list"
    if origin is dict:
        return "a mapping"
    if dataclasses.is_dataclass(kind):
        return "a mapping"
    return NAMES.get(kind, getattr(kind, "__name__", str(kind)))


def shown(value: Any) -> str:
    """A value with its type, for messages."""
    return "null" if value is None else f"{value!r} ({NAMES.get(type(value), type(value).__name__)})"


def joined(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
