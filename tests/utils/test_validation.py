"""Plain values are built into dataclasses; unknown keys and other types are refused with their place."""

from dataclasses import dataclass, field, make_dataclass
from typing import Any, Literal

import pytest
from transformers import IntervalStrategy

from modeling_mm.utils import build, mapping_of


@dataclass(frozen=True)
class Inner:
    size: int = 1

    def __post_init__(self):
        if self.size > 9:
            raise ValueError(f"size must be at most 9, got {self.size}.")


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner | None = None
    many: list[Inner] = field(default_factory=list)
    named: dict[str, list[Inner]] = field(default_factory=dict)
    kind: Literal["one", "two"] = "one"
    both: int | str | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    is_on: bool = False


def test_dataclasses_are_built_from_plain_values():
    values = {"name": "x", "inner": {"size": 2}, "many": [{"size": 3}], "named": {"a": [{}]}, "both": "y"}
    assert build(Outer, values | {"pair": [1, 2]}) == Outer(
        "x", Inner(2), [Inner(3)], {"a": [Inner()]}, both="y", pair=(1.0, 2.0)
    )


REFUSED: list[tuple[Any, str]] = [
    ({}, "here: `name` is missing."),
    ([], "here: expected a mapping, got []."),
    ({"name": None}, "here.name: expected a valid string, got null."),
    ({"name": 3}, "here.name: expected a valid string, got 3."),
    ({"name": "x", "is_on": 1}, "here.is_on: expected a valid boolean, got 1."),
    ({"name": "x", "is_on": "no"}, 'here.is_on: expected a valid boolean, got "no".'),
    ({"name": "x", "inner": 3}, "here.inner: expected a mapping, got 3."),
    ({"name": "x", "inner": {"size": 1.5}}, "here.inner.size: expected a valid integer, got 1.5."),
    ({"name": "x", "inner": {"size": True}}, "here.inner.size: expected a valid integer, got true."),
    ({"name": "x", "inner": {"size": float("inf")}}, "here.inner.size: expected a valid integer, got Infinity."),
    ({"name": "x", "inner": {"size": 10}}, "here.inner: size must be at most 9, got 10."),
    ({"name": "x", "many": [{}, {"size": "1"}]}, 'here.many.1.size: expected a valid integer, got "1".'),
    ({"name": "x", "many": [{}, {"sise": 1}]}, "here.many.1.sise: unknown key 'sise'. Did you mean 'size'?"),
    ({"name": "x", "named": {"a": [{"sise": 1}]}}, "here.named.a.0.sise: unknown key 'sise'. Did you mean 'size'?"),
    ({"name": "x", "size": 1}, "here.size: unknown key 'size'. Did you mean 'inner.size'?"),
    ({"name": "x", "qqq": 1}, "here.qqq: unknown key 'qqq'. Valid keys: both, inner, is_on, kind, many, name, named"),
    ({"name": "x", "kind": "tow"}, "here.kind: expected 'one' or 'two', got \"tow\". Did you mean 'two'?"),
    ({"name": "x", "pair": [1]}, "here.pair: `1` is missing."),
    ({"name": "x", "both": 1.5}, "here.both: expected a valid integer or a valid string, got 1.5."),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_other_values_are_refused_with_key_expected_and_given(values, message):
    with pytest.raises(ValueError) as caught:
        build(Outer, values, "here")
    assert message in str(caught.value)


def test_a_typed_mapping_takes_the_fields_of_another_class_alone():
    hints = {"eval": IntervalStrategy | str, "rate": float, "config": dict | Inner | None, "nested": Inner}
    fields = make_dataclass("Fields", [("given", mapping_of(hints))])
    values = {"eval": "steps", "rate": 1, "config": {"a": 1}}
    assert build(fields, {"given": values}).given == values
    for wrong, message in (
        ({"eval": "step"}, "here.given.eval: expected 'no', 'steps' or 'epoch', got \"step\". Did you mean 'steps'?"),
        ({"config": 3}, "here.given.config: expected a mapping, got 3."),
        ({"rat": 3}, "here.given.rat: unknown key 'rat'. Did you mean 'rate'?"),
    ):
        with pytest.raises(ValueError) as caught:
            build(fields, {"given": wrong}, "here")
        assert str(caught.value) == message
    with pytest.raises(ValueError, match=r"rate: unknown key 'rate'. Did you mean 'given.rate'\?"):
        build(fields, {"given": {}, "rate": 1})
