# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Types of a class's fields, read from its source: importing `TrainingArguments` takes ten seconds, parsing it a tenth.

What the source does not tell by itself (a class of other kinds, a computed type) is `Any`, never a guess.
"""

import ast
import builtins
import enum
import importlib.util
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import typing_extensions

from .validation import mapping_of

GENERICS: dict[str, Any] = {"Literal": Literal, "Union": typing.Union, "Optional": typing.Optional}


class Source(NamedTuple):
    """A parsed module, and the package that its relative imports start at."""

    package: str
    tree: ast.Module


class Declaration(NamedTuple):
    """A class in the source of its module."""

    module: str
    node: ast.ClassDef


def declared_mapping(module: str, name: str, known: Mapping[str, Any] | None = None) -> Any:
    """
    Return the type of mappings with the fields of a dataclass, and of those of its package in it, for `build`.

    Args:
        module: full name of the module that defines or imports the class.
        name: the class.
        known: types by the names that the source uses for them, where it computes them.
    """
    hints = declared_types(module, name, known)
    required = {each: typing_extensions.Required[hints[each]] for each in required_fields(module, name)}
    return mapping_of(hints | required)


def declared_types(
    module: str, name: str, known: Mapping[str, Any] | None = None, *, bases: bool = True
) -> dict[str, Any]:
    """
    Return the types of the annotated fields of a class and, unless `bases` is false, of its bases.

    Example:
        >>> declared_types("transformers.training_args", "TrainingArguments")["seed"]
        <class 'int'>
    """
    found = find_class(module, name)
    if found is None:
        return {}
    hints: dict[str, Any] = {}
    for base in named_bases(found) if bases else ():
        hints |= declared_types(found.module, base.id, known)
    own = {ast.unparse(each.target): type_of(each.annotation, found.module, known or {}) for each in annotated(found)}
    return hints | own


def required_fields(module: str, name: str) -> set[str]:
    """Return the fields of a class and its bases that have no default."""
    found = find_class(module, name)
    if found is None:
        return set()
    names = set().union(*(required_fields(found.module, each.id) for each in named_bases(found)))
    for statement in annotated(found):
        field = ast.unparse(statement.target)
        names = names | {field} if statement.value is None else names - {field}
    return names


def named_bases(found: Declaration) -> list[ast.Name]:
    return [base for base in found.node.bases if isinstance(base, ast.Name)]


def annotated(found: Declaration) -> list[ast.AnnAssign]:
    """Return the annotated fields of a class itself."""
    fields = [statement for statement in found.node.body if isinstance(statement, ast.AnnAssign)]
    return [field for field in fields if "ClassVar" not in ast.unparse(field.annotation)]


def declared_constant(module: str, name: str, attribute: str) -> Any:
    """Return a literal that a class assigns to an attribute, None if it assigns none."""
    found = find_class(module, name)
    for statement in found.node.body if found else ():
        if isinstance(statement, ast.Assign) and attribute in map(ast.unparse, statement.targets):
            return ast.literal_eval(statement.value)
    return None


def type_of(node: ast.expr, module: str, known: Mapping[str, Any]) -> Any:
    """Return the type that an annotation in a module means, `Any` if its source does not tell."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return type_of(ast.parse(node.value, mode="eval").body, module, known)
        return types.NoneType if node.value is None else Any
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return typing.Union[type_of(node.left, module, known), type_of(node.right, module, known)]  # noqa: UP007
    if isinstance(node, ast.Subscript):
        name = ast.unparse(node.value).rpartition(".")[2]
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if name == "Literal":
            values = [item.value for item in items if isinstance(item, ast.Constant)]
            return Literal[tuple(values)] if len(values) == len(items) else Any
        generic = GENERICS.get(name) or getattr(builtins, name, None)
        arguments: Any = tuple(... if ast.unparse(item) == "..." else type_of(item, module, known) for item in items)
        return generic[arguments if len(arguments) > 1 else arguments[0]] if generic else Any
    return type_named(node.id, module, known) if isinstance(node, ast.Name) else Any


def type_named(name: str, module: str, known: Mapping[str, Any]) -> Any:
    """Return the type of a name: given, built-in, an enumeration, or a mapping for a dataclass of the same package."""
    if name in known:
        return known[name]
    if isinstance(getattr(builtins, name, None), type):
        return getattr(builtins, name)
    found = find_class(module, name)
    if found is None:
        return Any
    if members := enumerated(found):
        return enum.Enum(name, members)
    is_ours = found.module.partition(".")[0] == module.partition(".")[0]
    is_dataclass = any("dataclass" in ast.unparse(decorator) for decorator in found.node.decorator_list)
    return declared_mapping(found.module, name, known) if is_ours and is_dataclass else Unknown


class Unknown:
    """Stands for a class whose values no file can hold; `mapping_of` leaves it out of a union."""


def enumerated(found: Declaration) -> dict[str, Any]:
    """Return the members of an enumeration, none for another class."""
    if not any(ast.unparse(base).endswith("Enum") for base in found.node.bases):
        return {}
    assigned = [statement for statement in found.node.body if isinstance(statement, ast.Assign)]
    return {
        ast.unparse(statement.targets[0]): statement.value.value
        for statement in assigned
        if isinstance(statement.value, ast.Constant)
    }


def find_class(module: str, name: str) -> Declaration | None:
    """Find a class in a module or, if the module imports it, where it comes from."""
    source = read_source(module)
    if source is None:
        return None
    for statement in statements(source.tree.body):
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            return Declaration(module, statement)
        if isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                if name == (alias.asname or alias.name):
                    package = source.package.split(".")
                    base = package[: len(package) - statement.level + 1] if statement.level else []
                    return find_class(".".join([*base, *filter(None, [statement.module])]), alias.name)
    return None


def statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, also those under `if`."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If):
            yield from statements([*statement.body, *statement.orelse])


@cache
def read_source(module: str) -> Source | None:
    """Parse a module without importing it or its packages; return None if there is no source."""
    root, *rest = module.split(".")
    spec = importlib.util.find_spec(root)  # of a name without dots, which imports nothing
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent.joinpath(*rest)
    is_package = path.is_dir()
    path = path / "__init__.py" if is_package else path.with_name(f"{path.name}.py")
    if not path.is_file():
        return None
    return Source(module if is_package else module.rpartition(".")[0], ast.parse(path.read_text(encoding="utf-8")))
