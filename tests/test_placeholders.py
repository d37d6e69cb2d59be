"""Which media belong to which row, as pure functions of lists."""

import pytest

from modeling_mm.placeholders import expand_placeholders, find_placeholders, lay_out, split_rows

IS_INT = dict.fromkeys(("image", "audio"), lambda value: isinstance(value, int))


def test_split_rows():
    is_item = IS_INT["image"]
    assert split_rows(None, is_item) == ([[]], False)
    assert split_rows(1, is_item) == ([[1]], False)
    assert split_rows([1, 2], is_item) == ([[1, 2]], False)
    assert split_rows([], is_item) == ([[]], False)
    assert split_rows([[1, 2], None, [], 3], is_item) == ([[1, 2], [], [], [3]], True)


def test_placeholders_are_found_in_order_except_marked_ones():
    assert find_placeholders("a<|audio|><\U000f0000|image|><|image|>") == [(1, 10, "audio"), (20, 29, "image")]


@pytest.mark.parametrize(
    ("text", "images", "expected"),
    [
        (["a", "b"], None, [[], []]),
        (["a", "b"], [], [[], []]),
        (["<|image|>", "a", "<|image|><|image|>"], [1, 2, 3], [[1], [], [2, 3]]),
        (["a", "b"], [1, 2], [[1], [2]]),
        (["a", "b"], [None, [1, 2]], [[], [1, 2]]),
        ("a", [1, 2], [[1, 2]]),
        (None, [1, 2], [[1], [2]]),
        (None, [[1, 2]], [[1, 2]]),
    ],
)
def test_media_are_split_by_row(text, images, expected):
    texts, placeholders, rows = lay_out(text, {"image": images, "audio": None}, IS_INT)
    assert rows == {"image": expected, "audio": [[] for _ in expected]}
    assert len(texts) == len(placeholders) == len(expected)


@pytest.mark.parametrize(
    ("text", "tokens", "expected", "spans"),
    [
        ("a", {"image": [1, 1], "audio": [2]}, "<|image|><|image|><|audio|><|audio|>a", [(0, 9), (9, 18), (18, 36)]),
        ("x<|audio|>y<|image|>", {"image": [1], "audio": [2]}, "x<|audio|><|audio|>y<|image|>", [(1, 19), (20, 29)]),
        ("a", {"image": [], "audio": []}, "a", []),
    ],
)  # fmt: skip
def test_placeholders_are_repeated_for_their_tokens_or_put_in_front(text, tokens, expected, spans):
    expanded, replacements = expand_placeholders(text, find_placeholders(text), tokens)
    assert expanded == expected and [each["new_span"] for each in replacements] == spans
    assert all(expanded[slice(*each["new_span"])] == each["replacement"] for each in replacements)
