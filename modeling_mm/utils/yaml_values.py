# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""YAML by the rules of version 1.2, and `key=value` overrides."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

FLOAT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")
BOOL = re.compile(r"(true|True|TRUE|false|False|FALSE)$")
REPLACED = tuple(f"tag:yaml.org,2002:{name}" for name in ("float", "bool", "timestamp"))


class Loader(yaml.SafeLoader):
    """
    PyYAML's safe loader with the words and numbers of YAML 1.2, as PyYAML implements 1.1.

    `1e-4` is a number, `1e3` a whole one, `no` is a text (and a language), and a duplicate key is an error.
    """

    yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0] not in REPLACED]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"Duplicate key {key!r}{node.start_mark}.")
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        number = self.construct_yaml_float(node)
        return int(number) if "." not in node.value and number.is_integer() else number


Loader.add_implicit_resolver(REPLACED[0], FLOAT, list("-+0123456789."))
Loader.add_implicit_resolver(REPLACED[1], BOOL, list("tTfF"))
Loader.add_constructor(REPLACED[0], Loader.construct_number)


def parse_yaml(text: str, where: str) -> Any:
    """
    Parse YAML.

    Raises:
        ValueError: if the text is not valid YAML, with `where` and the line.
    """
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def read_values(path: Path, overrides: Sequence[str] = ()) -> Any:
    """
    Read a YAML file, and replace values of it by overrides in turn.

    Raises:
        FileNotFoundError: if the file does not exist, with the YAML files beside it.
        ValueError: if it is not valid YAML in UTF-8, or for an override that does not fit.
    """
    if not path.is_file():
        others = ", ".join(str(other) for other in sorted(path.parent.glob("*.yaml"))) or "none"
        raise FileNotFoundError(f"There is no recipe {path}. Recipes beside it: {others}.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected YAML in UTF-8. {error}.") from error
    values = parse_yaml(text, str(path))
    for override in overrides:
        values = apply_override(values, override)
    return values


def apply_override(values: Any, override: str) -> Any:
    """
    Return values with one of them replaced by an override such as `data.train.0.limit=100`.

    Raises:
        ValueError: if the override has no `=`, or its key leads into a value that is not a section.
    """
    key, sign, value = override.partition("=")
    if not sign or not key.strip():
        raise ValueError(f"{override!r}: expected key=value, such as training.learning_rate=1e-4.")
    return replace_value(values, key.strip(), parse_yaml(value, key))


def replace_value(values: Any, key: str, value: Any, parent: str = "") -> Any:
    """
    Return values with the value under a dotted key replaced. Missing sections on the way are created.

    Raises:
        ValueError: if a part of the key is not an index of a list, or leads into a plain value.
    """
    name, _, rest = key.partition(".")
    place = f"{parent}.{name}" if parent else name
    if isinstance(values, list):
        if not name.isdigit() or int(name) >= len(values):
            raise ValueError(f"{parent}: expected an index below {len(values)}, as it is a list, got {name!r}.")
        index = int(name)
        new = replace_value(values[index], rest, value, place) if rest else value
        return [*values[:index], new, *values[index + 1 :]]
    if values is not None and not isinstance(values, dict):
        raise ValueError(f"{parent}: {values!r} is not a section and has no key {name!r}.")
    section = values or {}
    return {**section, name: replace_value(section.get(name), rest, value, place) if rest else value}
