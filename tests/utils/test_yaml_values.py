"""YAML 1.2 and overrides."""

import pytest

from modeling_mm.utils import apply_override, parse_yaml, replace_value


def test_numbers_and_words_follow_yaml_1_2():
    text = "[1e-4, 1E5, 1e3, 1.0, .5, 3, no, on, yes, off, true, 1_0, -.inf, 2024-01-01, '1']"
    values = [*(1e-4, 100000, 1000, 1.0, 0.5, 3, "no", "on", "yes", "off", True, 10), *(float("-inf"), "2024-01-01")]
    assert parse_yaml(text, "x") == [*values, "1"]
    assert parse_yaml("a: ${b}", "x") == {"a": "${b}"}, "no interpolation"
    assert [type(value) for value in parse_yaml("[1e3, 1.0]", "x")] == [int, float]


@pytest.mark.parametrize(("text", "message"), [("[", "x: while parsing"), ("{a: 1, a: 2}", "x: Duplicate key 'a'")])
def test_broken_yaml_is_refused_with_its_place(text, message):
    with pytest.raises(ValueError, match=message):
        parse_yaml(text, "x")


def test_an_override_replaces_a_value_and_creates_missing_sections():
    assert apply_override({}, "a.b=c=d") == {"a": {"b": "c=d"}}
    assert replace_value({"a": None}, "a.b.c", 1) == {"a": {"b": {"c": 1}}}
    before = {"a": [{"b": 1}, {"b": 2}]}
    assert apply_override(before, "a.1.b=[1, no]") == {"a": [{"b": 1}, {"b": [1, "no"]}]}
    assert before == {"a": [{"b": 1}, {"b": 2}]}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a", "'a': expected key=value"),
        ("=1", "'=1': expected key=value"),
        ("a.2.b=1", "a: expected an index below 2, as it is a list, got '2'"),
        ("a.0.b.c=1", "a.0.b: 1 is not a section and has no key 'c'"),
        ("a.0.b=[", "a.0.b: while parsing"),
    ],
)
def test_an_override_that_leads_nowhere_is_refused(override, message):
    with pytest.raises(ValueError, match=message):
        apply_override({"a": [{"b": 1}, {"b": 2}]}, override)
