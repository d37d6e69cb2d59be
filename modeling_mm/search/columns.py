# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Columns of an index: the types of metadata, and conditions on them."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..utils.spelling import suggestion

Scalar = bool | int | float | str | None

TYPES: dict[str, type] = {"bool": bool, "int": int, "float": float, "str": str}
# Columns that every row has, all of them text; a database has two more.
FIXED = ("id", "kind", "text", "media", "source", "signature")
RESERVED = (*FIXED, "key", "vector")
# The part of them that conditions may name.
FILTERED = {"id": "str", "kind": "str", "text": "str", "source": "str"}
COLUMN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MAX_TEXT_BYTES = 65_535  # of a column in Milvus
INT64 = range(-(2**63), 2**63)
CONDITION = re.compile(r"\s*(?P<column>\w+)\s*(?P<operator>==|!=|<=|>=|=|<|>|\bin\b)\s*(?P<value>.*)", re.DOTALL)
TRUTHS = {"true": True, "false": False}
OPERATORS = ("=", "!=", "<", "<=", ">", ">=", "in")


def type_of(value: Any) -> str | None:
    """Return the name of a scalar's type, None for a value of another kind."""
    return next((name for name, each in TYPES.items() if type(value) is each), None)


def infer_columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """
    Return the type of each column of metadata: `bool`, `int`, `float` or `str`.

    Integers beside floats are floats. A column without values is text.

    Raises:
        ValueError: for a column of several types, with its name.
    """
    found: dict[str, str | None] = {}
    for row in rows:
        for name, value in row.items():
            check_name(name)
            known, new = found.get(name), type_of(value)
            if known in (None, new):
                found[name] = new
            elif {known, new} == {"int", "float"}:
                found[name] = "float"
            elif new is not None:
                raise ValueError(
                    f"The column {name!r} of the metadata holds {known} and {new} ({value!r:.40}). Give all rows one "
                    "type, or leave the column out."
                )
    return {name: kind or "str" for name, kind in found.items()}


def check_name(name: str) -> None:
    if not COLUMN_NAME.fullmatch(name) or name in RESERVED:
        why = "is the name of a column of the index" if name in RESERVED else "is not a word of letters, digits and _"
        raise ValueError(f"The column {name!r} of the metadata {why}. Rename it.")


def check_metadata(metadata: Mapping[str, Any], columns: Mapping[str, str], where: str) -> dict[str, Scalar]:
    """
    Return the metadata of a row in the types of an index's columns.

    Raises:
        ValueError: for a column that the index does not have, and for a value of another type, with the row.
    """
    if unknown := sorted(set(metadata) - set(columns)):
        listed = ", ".join(columns) or "none"
        raise ValueError(
            f"{where}: the index has no column {unknown[0]!r}.{suggestion(unknown[0], columns)} Its columns of "
            f"metadata are: {listed}. Leave the value out, or build a new index."
        )
    return {name: check_value(metadata.get(name), kind, f"{where}, column {name!r}") for name, kind in columns.items()}


def check_value(value: Any, kind: str, where: str) -> Scalar:
    """Return a value, an integer of a column of floats as a float; raise a ValueError for one of another type."""
    if value is None:
        return None
    if kind == "float" and type(value) is int:
        value = float(value)
    if type_of(value) != kind:
        raise ValueError(f"{where}: expected {kind}, got {value!r:.60}.")
    if kind == "float" and not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite number, got {value}.")
    if kind == "int" and value not in INT64:
        raise ValueError(f"{where}: expected an integer of 64 bits, got {value}.")
    if kind == "str":
        check_length(value, where)
    return value


def check_length(text: str, where: str) -> None:
    if (size := len(text.encode("utf-8"))) > MAX_TEXT_BYTES:
        raise ValueError(f"{where}: a text of {size} bytes; an index holds at most {MAX_TEXT_BYTES}. Split it.")


# ---- Conditions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Condition:
    """
    A condition on a column. A row without a value meets none.

    Args:
        column: of the metadata, or `id`, `kind`, `text`, `source`
        operator: `=`, `!=`, `<`, `<=`, `>`, `>=` or `in`
        value: of the column's type; for `in` a tuple of them
    """

    column: str
    operator: str
    value: Any


def parse_conditions(texts: Sequence[str], columns: Mapping[str, str]) -> list[Condition]:
    """
    Return conditions that a row must meet together.

    Args:
        texts: such as `year >= 2000`, `color = red` or `color in red, green`
        columns: types of the metadata

    Raises:
        ValueError: for a text of another form, an unknown column, and a value that is not of its type.

    Example:
        >>> parse_conditions(["year >= 2000"], {"year": "int"})
        [Condition(column='year', operator='>=', value=2000)]
    """
    return [parse_condition(text, {**FILTERED, **columns}) for text in texts]


def parse_condition(text: str, columns: Mapping[str, str]) -> Condition:
    match = CONDITION.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text!r} is not a condition. Expected a column, one of {' '.join(OPERATORS)}, and a value, such as "
            "'year >= 2000'."
        )
    column, operator = match["column"], match["operator"].replace("==", "=")
    if column not in columns:
        raise ValueError(
            f"{text!r}: there is no column {column!r}.{suggestion(column, columns)} Columns: {', '.join(columns)}."
        )
    kind, given = columns[column], match["value"].strip()
    if operator == "in":
        return Condition(column, operator, tuple(parse_value(each.strip(), kind, text) for each in given.split(",")))
    if kind == "bool" and operator not in ("=", "!="):
        raise ValueError(f"{text!r}: {column!r} is true or false. Compare it by = or !=.")
    return Condition(column, operator, parse_value(given, kind, text))


def parse_value(given: str, kind: str, where: str) -> Scalar:
    if len(given) > 1 and given[0] == given[-1] and given[0] in "'\"":
        given = given[1:-1] if kind == "str" else given
    try:
        return TRUTHS[given.lower()] if kind == "bool" else TYPES[kind](given)
    except (KeyError, ValueError) as error:
        expected = "true or false" if kind == "bool" else f"a value of type {kind}"
        raise ValueError(f"{where!r}: expected {expected}, got {given!r}.") from error


def to_expression(conditions: Sequence[Condition]) -> str:
    """
    Return conditions in the language of Milvus, empty without any.

    Example:
        >>> to_expression([Condition("color", "in", ("red", 'a "b"'))])
        'color in ["red", "a \\"b\\""]'
    """
    return " and ".join(
        f"{each.column} {'==' if each.operator == '=' else each.operator} "
        f"{json.dumps(list(each.value) if each.operator == 'in' else each.value, ensure_ascii=False)}"
        for each in conditions
    )
