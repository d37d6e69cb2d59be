"""Suggestions for misspelled names."""

import pytest

from modeling_mm.utils import nearest, suggestion


@pytest.mark.parametrize(("name", "near"), [("sise", "size"), ("size", "size"), ("qqq", None)])
def test_the_nearest_name_is_spelled_alike(name, near):
    assert nearest(name, ["size", "name"]) == near


def test_a_suggestion_names_the_nearest_or_is_empty():
    assert suggestion("sise", ["size", "name"]) == " Did you mean 'size'?"
    assert suggestion("qqq", ["size", "name"]) == ""
