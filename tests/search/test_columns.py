"""columns.py: types of metadata, and conditions on them."""

import pytest

from modeling_mm.search import Condition, parse_conditions
from modeling_mm.search.columns import check_metadata, infer_columns, to_expression

COLUMNS = {"year": "int", "price": "float", "color": "str", "sold": "bool"}


def test_types_are_those_of_the_values():
    rows = [{"year": 2000, "price": 1, "color": None, "sold": True}, {"price": 0.5, "color": "red"}, {"empty": None}]
    assert infer_columns(rows) == {**COLUMNS, "empty": "str"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"a": 1}, {"a": "x"}], "The column 'a' of the metadata holds int and str ('x')."),
        ([{"a": True}, {"a": 1}], "The column 'a' of the metadata holds bool and int (1)."),
        ([{"a b": 1}], "The column 'a b' of the metadata is not a word"),
        ([{"source": 1}], "The column 'source' of the metadata is the name of a column of the index. Rename it."),
        ([{"vector": 1}], "The column 'vector' of the metadata is the name of a column"),
    ],
)
def test_columns_that_cannot_be_kept(rows, message):
    with pytest.raises(ValueError, match="column") as error:
        infer_columns(rows)
    assert message in str(error.value)


def test_metadata_get_the_types_of_the_index():
    found = check_metadata({"price": 2, "color": "red"}, COLUMNS, "Row 3")
    assert found == {"year": None, "price": 2.0, "color": "red", "sold": None}
    assert type(found["price"]) is float


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"colour": "red"}, "Row 3: the index has no column 'colour'. Did you mean 'color'?"),
        ({"year": "2000"}, "Row 3, column 'year': expected int, got '2000'."),
        ({"year": True}, "Row 3, column 'year': expected int, got True."),
        ({"year": 2**63}, "Row 3, column 'year': expected an integer of 64 bits"),
        ({"price": float("nan")}, "Row 3, column 'price': expected a finite number, got nan."),
        ({"color": "é" * 40_000}, "Row 3, column 'color': a text of 80000 bytes; an index holds at most 65535."),
    ],
)
def test_metadata_that_do_not_fit_name_the_row(metadata, message):
    with pytest.raises(ValueError, match="Row 3") as error:
        check_metadata(metadata, COLUMNS, "Row 3")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("year >= 2000", Condition("year", ">=", 2000)),
        ("year==2000", Condition("year", "=", 2000)),
        (" price < 1.5", Condition("price", "<", 1.5)),
        ("color = dark red", Condition("color", "=", "dark red")),
        ("color != 'red'", Condition("color", "!=", "red")),
        ("color in red, green", Condition("color", "in", ("red", "green"))),
        ("sold = True", Condition("sold", "=", True)),
        ("kind = image+text", Condition("kind", "=", "image+text")),
    ],
)
def test_conditions_are_read(text, condition):
    assert parse_conditions([text], COLUMNS) == [condition]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("year", "'year' is not a condition."),
        ("yeer = 1", "there is no column 'yeer'. Did you mean 'year'?"),
        ("year = new", "expected a value of type int, got 'new'."),
        ("sold = yes", "expected true or false, got 'yes'."),
        ("sold > false", "'sold' is true or false. Compare it by = or !=."),
        ("vector = 1", "there is no column 'vector'."),
    ],
)
def test_conditions_that_mean_nothing(text, message):
    with pytest.raises(ValueError, match=text.split()[0]) as error:
        parse_conditions([text], COLUMNS)
    assert message in str(error.value)


def test_expressions_quote_texts():
    conditions = [Condition("color", "=", 'a "b" \\ é'), Condition("year", "in", (1, 2)), Condition("sold", "=", True)]
    assert to_expression(conditions) == 'color == "a \\"b\\" \\\\ é" and year in [1, 2] and sold == true'
    assert to_expression([]) == ""
