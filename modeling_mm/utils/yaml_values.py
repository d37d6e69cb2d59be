# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""YAML as recipes use it, and `key=value` put on top of it."""

import re
from typing import Any

import yaml


class Loader(yaml.SafeLoader):
    """
    YAML's safe loader, with the numbers and words of YAML 1.2: `1e-4` is a number, `no` a word (and a language). A key
    that comes twice is refused, as one of the two would be lost.
    """

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"The key {key!r} comes twice{node.start_mark}.")
        return super().construct_mapping(node, deep)


FLOAT = re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")
BOOL = re.compile(r"^(true|True|TRUE|false|False|FALSE)$")
Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:bool")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", BOOL, list("tTfF"))
Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))


def parse_yaml(text: str, where: str) -> Any:
    """
    Raises:
        ValueError: where it is no YAML, with the place.
    """
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def split_override(override: str) -> tuple[list[str], Any]:
    key, sign, value = override.partition("=")
    if not sign or not key.strip():
        raise ValueError(f"{override!r}: expected key=value, such as training.learning_rate=1e-4.")
    return key.strip().split("."), parse_yaml(value, key)


def with_override(values: Any, path: list[str], value: Any, done: str = "") -> Any:
    """`values` with one of them replaced, the sections on the way to it made where they are missing."""
    if not path:
        return value
    name, rest = path[0], path[1:]
    if isinstance(values, list):
        if not name.isdigit() or int(name) >= len(values):
            raise ValueError(f"{done}: expected a number below {len(values)}, as it is a list; got {name!r}.")
        return [with_override(v, rest, value, f"{done}.{name}") if i == int(name) else v for i, v in enumerate(values)]
    if values is not None and not isinstance(values, dict):
        raise ValueError(f"{done}: it is {values!r} and has no key {name!r} within.")
    values = dict(values or {})
    values[name] = with_override(values.get(name), rest, value, f"{done}.{name}" if done else name)
    return values
