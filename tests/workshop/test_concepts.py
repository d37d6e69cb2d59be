"""Names, concepts and splits."""

import pytest

from scripts.workshop.concepts import DisjointSets, group_concepts, normalize_name, split_of

# Of the keys a to h, in halves.
EXPECTED = ["test", "test", "test", "test", "train", "test", "train", "train"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("A lion.", "lion"),
        ("LION", "lion"),
        ("The lion", "lion"),
        ("some  lions!", "lions"),
        ("Un lion", "lion"),
        ("Unas   flores", "flores"),
        ("woman: red hair", "red hair"),
        ("person running", "running"),
        ("женщина: бежит", "бежит"),
        ("ﬁsh", "fish"),  # a ligature
        ("rock ’n’ roll", "rock 'n' roll"),
        ("狮子。", "狮子"),
        ("keycap: #", "keycap"),
        ("woman", "woman"),
        ("A", "a"),
        ("anthill", "anthill"),  # an article is a word
    ],
)
def test_names_are_normalized(name: str, expected: str) -> None:
    assert normalize_name(name) == expected
    assert normalize_name(expected) == expected


def test_things_that_share_a_name_in_any_language_are_one_concept() -> None:
    names = [
        {"en": "lion", "fr": "lion"},
        {"en": "A lion."},  # by English
        {"en": "big cat", "fr": "Le Lion"},  # by French
        {"en": "cat", "es": "gato"},
        {"en": "big cat", "es": "felino"},  # with the third, and so with the first
        {"en": "jack", "es": "el gato"},  # an animal and a tool, by Spanish
        {"en": "gato"},  # the same letters in another language are another name
    ]
    concepts = group_concepts(names)
    assert concepts[0] == concepts[1] == concepts[2] == concepts[4]
    assert concepts[3] == concepts[5]
    assert len(set(concepts)) == 3


def test_concepts_do_not_depend_on_the_order_of_things() -> None:
    names = [{"en": f"thing {n}", "fr": f"chose {n // 2}", "es": f"cosa {n // 3}"} for n in range(12)]
    assert group_concepts(names[::-1]) == group_concepts(names)[::-1]
    assert len(set(group_concepts(names))) == 2  # pairs and threes overlap: two sixes


def test_groups_join_in_any_order() -> None:
    groups = DisjointSets()
    groups.join("c", "d")
    groups.join("a", "b")
    assert groups.find("a") != groups.find("c")
    groups.join("d", "b")
    assert {groups.find(each) for each in "abcd"} == {"a"}
    assert groups.find("e") == "e"


def test_splits_are_of_the_sizes_asked_for() -> None:
    keys = [f"concept {number}" for number in range(4000)]
    splits = [split_of(key, {"test": 0.1, "validation": 0.04}) for key in keys]
    assert splits.count("test") / 4000 == pytest.approx(0.1, abs=0.02)
    assert splits.count("validation") / 4000 == pytest.approx(0.04, abs=0.012)
    assert splits.count("train") == 4000 - splits.count("test") - splits.count("validation")


def test_a_split_is_that_of_its_key_and_seed_alone() -> None:
    """The splits never change, so that figures stay comparable."""
    shares = {"test": 0.5}
    assert [split_of(key, shares) for key in "abcdefgh"] == [split_of(key, shares) for key in "abcdefgh"]
    assert [split_of(key, shares, "concepts") for key in "abcdefgh"] == EXPECTED
    assert [split_of(key, shares, "other") for key in "abcdefgh"] != EXPECTED
    assert {split_of(key, {}) for key in "abcdefgh"} == {"train"}
    assert {split_of(key, {"test": 1.0}) for key in "abcdefgh"} == {"test"}
