"""Chat examples: nothing of a held-out split in training, true answers, and the same files every time."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from modeling_mm.data import load_chats, media_parts
from modeling_mm.utils import write_lines
from scripts.workshop import phrases
from scripts.workshop.chats import DRAWS, SURE, TASKS, CorpusReader, build_chats, draws_of, repeats_itself
from scripts.workshop.corpus import read_description, read_lines
from scripts.workshop.hear import HEARD_FILE
from tests.workshop.leaks import (
    BY_CONCEPT,
    CORPORA,
    OTHER_CONCEPTS,
    answer,
    chats,
    letters,
    media,
    question,
    rows_of,
    texts_of,
)
from tests.workshop.tiny_packages import killed, tree

SPLITS = tuple(read_description("chat").splits)
HELD_OUT = SPLITS[1:]
KNOWN_CONCEPTS = ("test_hand", "test_voice")  # whose names are in training, by other hands and voices
TRAINED = set(TASKS) - {"photograph", "transcribe"}
# What an example may take from another split: nothing of it is in training.
OTHER_SPLITS = {
    ("match_audio_image", "test_hand", "spoken-captions", "test_voice"),
    ("transcribe_beside_image", "test_voice", "images", "test_hand"),
    ("transcribe_beside_image", "test_prompts", "images", "test_hand"),
}


@pytest.fixture(scope="module")
def examples(corpora) -> dict[str, list[tuple[str, dict]]]:
    """Return the examples by split, each with the name of its task."""
    return {split: list(chats(corpora, split)) for split in SPLITS}


@pytest.fixture(scope="module")
def rows(corpora) -> dict[str, dict]:
    """Return the rows of all media by their paths from the folder of all corpora."""
    return {f"{corpus}/{row['file_name']}": row for corpus in CORPORA for row in rows_of(corpora, corpus)}


def clip(example: dict) -> str:
    """Return the path of an example's only audio."""
    (path,) = (path for path in media(example) if path.endswith(".flac"))
    return path


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("Bridge at night. Bridge at night.", True),
        ("Seven. seven! Seven?", True),
        ("Press one. Press two.", False),
        ("Green Salad Green Salad green salad", True),
        ("one one two", False),
        ("...", False),
        ("", False),
    ],
)
def test_a_sentence_that_is_said_twice_is_noticed(text: str, repeats: bool) -> None:
    assert repeats_itself(text) == repeats


def test_clips_in_which_a_sentence_is_repeated_teach_nothing(tmp_path) -> None:
    write_lines(
        tmp_path / HEARD_FILE,
        [{"file_name": "a", "heard": "One. One."}, {"file_name": "b", "heard": "One. Two."}],
    )
    assert CorpusReader(tmp_path).heard == {"b": "One. Two."}


# ---- No leaks -------------------------------------------------------------------------------------------------------


def test_media_come_from_the_split_of_the_example(examples) -> None:
    """Except images by the unseen hand, and the unseen voice beside them."""
    others = set()
    for split, each in examples.items():
        found = {(task, split, *Path(path).parts[:2]) for task, example in each for path in media(example)}
        others |= {row for row in found if row[3] != split}
    assert others == OTHER_SPLITS


def test_no_media_of_a_held_out_example_are_in_training(examples) -> None:
    train = {path for _, example in examples["train"] for path in media(example)}
    for split in HELD_OUT:
        held_out = {path for _, example in examples[split] for path in media(example)}
        assert held_out and not train & held_out


def test_no_name_of_a_held_out_concept_is_in_the_texts_of_training(corpora, examples, rows) -> None:
    """Neither as an answer, nor in the questions about names, nor as a clip that is transcribed or matched."""
    others = [row for corpus in BY_CONCEPT for row in rows_of(corpora, corpus, *OTHER_CONCEPTS)]
    held_out = {text for row in others for text in texts_of(row)}
    names = {row["name_en"] for row in others if "name_en" in row}
    asked = {form.format(name=name) for name in names for form in (phrases.VERIFY_NAME, phrases.CHOOSE_IMAGE)}
    checked = Counter()
    for task, example in examples["train"]:
        assert question(example) not in asked
        if task == "caption":
            assert ("en", letters(answer(example))) not in held_out
        elif "spoken-captions/" in "".join(media(example)):
            assert not texts_of(rows[clip(example)]) & held_out
            checked[task] += 1
    assert set(checked) == {"transcribe_beside_image", "match_audio_image"}


@pytest.mark.parametrize("corpus", ["prompts", "sentences", "spoken-captions"])
def test_no_held_out_transcript_is_in_training(examples, rows, corpus: str) -> None:
    """The transcripts are those of the clips, whatever the answer is."""

    def transcripts(*splits: str) -> set[str]:
        found = [path for split in splits for _, example in examples[split] for path in media(example)]
        return {letters(rows[path]["text"]) for path in found if path.startswith(f"{corpus}/")}

    splits = [split for split in HELD_OUT if corpus != "spoken-captions" or split not in KNOWN_CONCEPTS]
    train, held_out = transcripts("train"), transcripts(*splits)
    assert train and held_out and not train & held_out


def test_the_unseen_hand_and_voice_are_in_no_training_example(examples) -> None:
    paths = {path for split in ("train", "validation") for _, example in examples[split] for path in media(example)}
    assert not [path for path in paths if "/twemoji-" in path or "rms" in path]
    for split, name in (("test_hand", "/twemoji-"), ("test_voice", "rms")):
        assert [path for _, example in examples[split] for path in media(example) if name in path]


def test_what_the_model_hears_is_known_of_training_and_tests_with_images_alone(corpora, examples, rows) -> None:
    """No clip of `test_prompts`, with which the model is compared to Whisper, has been heard."""
    heard = {row["file_name"] for row in read_lines(corpora / HEARD_FILE)}
    assert heard and heard <= set(rows)
    splits = {tuple(Path(name).parts[:2]) for name in heard}
    assert splits == {
        *(("spoken-captions", split) for split in ("train", "test_voice", "test_concepts")),
        *((corpus, "train") for corpus in ("prompts", "sentences")),
    }
    for task, example in (pair for each in examples.values() for pair in each):
        if task == "match_audio_image" or (task == "transcribe_beside_image" and "/train/" in clip(example)):
            assert clip(example) in heard


# ---- Content --------------------------------------------------------------------------------------------------------


def test_every_task_exists_and_says_its_language_or_corpus(corpora, examples) -> None:
    assert {task for task, _ in examples["train"]} == TRAINED
    assert {task for task, _ in examples["test_photographs"]} == {"photograph"}
    for each in examples.values():
        assert max(Counter(example["id"] for _, example in each).values()) == 1
        for name, example in each:
            task, _, of = example["task"].partition("/")
            assert task == name
            assert of == (clip(example).split("/")[0] if task.startswith("transcribe") else "en")
            assert example["id"].startswith(f"{example['task']}/")
            assert all((corpora / path).is_file() for path in media(example))


def test_answers_are_those_of_the_rows(corpora, examples, rows) -> None:
    """Speech beside an image is answered in training by what the model hears, in tests by the transcript."""
    heard = {row["file_name"]: row["heard"] for row in read_lines(corpora / HEARD_FILE)}
    for split, name, example in ((split, *pair) for split, each in examples.items() for pair in each):
        if name == "caption":
            assert answer(example) == rows[media(example)[0]]["name_en"]
        elif name == "category":
            assert answer(example) == phrases.KINDS[rows[media(example)[0]]["kind"]]
        elif name == "photograph":
            assert answer(example) == rows[media(example)[0]]["class_name"]
        elif name == "transcribe_beside_image" and split == "train":
            assert answer(example) == heard[clip(example)]
        elif name.startswith("transcribe"):
            assert answer(example) == rows[clip(example)]["text"]
        elif name == "match_audio_image":
            assert answer(example).rpartition(" – ")[0] == heard[clip(example)]


def test_yes_and_no_are_true_and_equally_many(examples, rows) -> None:
    for split, each in examples.items():
        verdicts: dict[str, Counter] = {name: Counter() for name in ("verify_name", "match_audio_image")}
        for name, example in (pair for pair in each if pair[0] in verdicts):
            image, verdict = rows[media(example)[0]], answer(example)
            if name == "verify_name":
                is_true = question(example) == phrases.VERIFY_NAME.format(name=image["name_en"])
            else:
                is_true = rows[clip(example)]["concept"] == image["concept"]
                verdict = verdict.rpartition(" – ")[2]
                assert not is_true or rows[clip(example)]["text"] == image["name_en"]
            assert verdict == phrases.YES_NO[0 if is_true else 1]
            verdicts[name][is_true] += 1
        assert all(counts[True] == counts[False] for counts in verdicts.values())
        if split in ("train", "test_hand", "test_concepts"):
            assert all(verdicts.values())


def test_one_of_two_images_by_one_hand_has_the_name(examples, rows) -> None:
    first = Counter()
    for each in examples.values():
        for example in (example for name, example in each if name == "choose_image"):
            shown = [rows[path] for path in media(example)]
            named = [question(example) == phrases.CHOOSE_IMAGE.format(name=row["name_en"]) for row in shown]
            assert Counter(named) == {True: 1, False: 1}
            assert answer(example) == phrases.FIRST_SECOND[named.index(True)]
            assert shown[0]["concept"] != shown[1]["concept"]
            right, wrong = (shown[named.index(each)] for each in (True, False))
            if right["hand"] != wrong["hand"]:  # in a tiny corpus, whose hand has drawn one concept of the kind
                path = media(example)[named.index(True)].removesuffix(Path(right["file_name"]).name)
                alike = (row for name, row in rows.items() if name.startswith(path) and row["hand"] == right["hand"])
                assert {row["concept"] for row in alike if row["kind"] == right["kind"]} == {right["concept"]}
            first[named[0]] += 1
    assert first[True] / first.total() == pytest.approx(0.5, abs=0.1)


def test_images_and_clips_are_asked_about_several_times_in_training(examples) -> None:
    """Four times as often as in a test."""
    assert (list(draws_of("train")), list(draws_of("test_hand"))) == ([0, 1, 2, 3], [0])
    for split, each in examples.items():
        draws = DRAWS if split == "train" else 1
        times = {"verify_name": 2 * draws, "choose_image": draws, "transcribe_beside_image": draws}
        for task, number in times.items():
            asked = Counter(tuple(example["id"].split("/")[:4]) for name, example in each if name == task)
            assert set(asked.values()) <= {number}
            assert asked or split not in ("train", "test_hand") or task.startswith("transcribe")


def test_transcripts_are_asked_for_with_and_without_words(examples) -> None:
    """Beside an image in every second example of training; in tests the audio alone says what is wanted."""
    for split, each in examples.items():
        asked = Counter(question(example) for name, example in each if name == "transcribe_beside_image")
        if split == "train":
            assert set(asked) == {None, *phrases.TRANSCRIBE} and asked[None] == asked.total() / 2
        else:
            assert set(asked) <= {None}
        assert all(question(example) is None for name, example in each if name == "transcribe")


def test_the_image_comes_before_and_behind_the_speech(examples) -> None:
    beside = [media(example) for name, example in examples["train"] if name == "transcribe_beside_image"]
    first = Counter(paths[0].startswith("images/") for paths in beside)
    assert first[True] / first.total() == pytest.approx(0.5, abs=0.15)


def test_wordings_vary_in_training(built) -> None:
    for task, wordings in (("caption", phrases.CAPTION), ("category", phrases.CATEGORY)):
        assert {question(example) for name, example in chats(built, "train") if name == task} == set(wordings)
    tests = {question(example) for s in HELD_OUT for name, example in chats(built, s) if name == "caption"}
    assert tests == {"What is this?"}


def test_examples_are_read_as_chats(built) -> None:
    for path in sorted((built / "chat").glob("*/*.jsonl")):
        rows = load_chats(path)
        assert len(rows) == len(path.read_text().splitlines())
        assert all(Path(part["path"]).is_file() for part in media_parts(rows[0].messages))
        assert rows[0].answer and rows[0].task.startswith(path.stem)


# ---- Draws ----------------------------------------------------------------------------------------------------------


class GivenRows(CorpusReader):
    """Rows of each corpus, whatever the split."""

    def __init__(self, **rows):
        self.given = {name.replace("_", "-"): each for name, each in rows.items()}

    def rows(self, corpus, split):
        return [{**row, "path": f"../../{corpus}/{row['file_name']}"} for row in self.given.get(corpus, [])]


def make(task: str, split: str = "train", **rows) -> list[dict]:
    return list(TASKS[task](GivenRows(**rows), split))


def image_row(number: int, kind: str = "food", **fields) -> dict:
    row = {"file_name": f"train/{number}.png", "concept": f"c{number}", "hand": "noto", "kind": kind}
    return {**row, "name_en": f"thing {number}", **fields}


def spoken_row(number: int, heard: str | None = "it") -> dict:
    row = {"file_name": f"train/{number}.flac", "concept": f"c{number}", "text": f"thing {number}"}
    return {**row, "heard": heard}


@pytest.mark.parametrize("task", ["caption", "category"])
def test_draws_depend_on_the_row_alone(task: str) -> None:
    rows = [image_row(number) for number in range(9)]
    all_of_them = {example["id"]: example for example in make(task, images=rows)}
    some = {example["id"]: example for example in make(task, images=rows[:3:-1])}
    assert 0 < len(some) < len(all_of_them) and some.items() <= all_of_them.items()


PINNED = {
    "verify_name": "0 2, 1 3, 2 0, 3 0",
    "choose_image": "the second, the second, the first, the first",
    "match_audio_image": "it 0 – yes, it 1 – no, it 3 – yes, it 0 – no",
}


@pytest.mark.parametrize("task", PINNED)
def test_draws_are_those_of_the_released_checkpoint(task: str) -> None:
    """Its figures are measured on them."""
    spoken = [spoken_row(n, f"it {n}") for n in range(4)]
    made = make(task, "test_hand", images=[image_row(n) for n in range(4)], spoken_captions=spoken)
    drawn = [answer(example) for example in made]
    if task == "verify_name":  # the names that are asked about, right and wrong
        numbers = ["".join(c for c in question(example) if c.isdigit()) for example in made]
        drawn = [" ".join(pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
    assert ", ".join(drawn) == PINNED[task]


@pytest.mark.parametrize("task", ["verify_name", "choose_image"])
def test_a_single_concept_is_refused(task: str) -> None:
    rows = [image_row(n, concept="c") for n in range(8)]
    with pytest.raises(ValueError, match=r"There is no concept except 'c' to ask about\."):
        make(task, images=rows)


def test_wrong_names_are_often_of_the_same_kind() -> None:
    """Half of them, and of the others those that are drawn by chance."""
    rows = [image_row(n, "food" if n < 4 else "flags") for n in range(60)]
    kinds = Counter()
    for example in make("verify_name", images=rows):
        if answer(example) == "no" and int(example["id"].split("/")[3].removesuffix(".png")) < 4:
            number = int("".join(c for c in question(example) if c.isdigit()))
            kinds["food" if number < 4 else "flags"] += 1
    assert kinds.total() == 4 * DRAWS and 4 <= kinds["food"] <= 12


def test_photographs_are_asked_about_if_the_encoders_head_is_sure() -> None:
    rows = [
        {"file_name": f"test_photographs/{n}.png", "class_name": f"class {n}", "probability": probability}
        for n, probability in enumerate((SURE, 0.51, 0.2))
    ]
    made = make("photograph", "test_photographs", photographs=rows)
    assert [(answer(example), question(example)) for example in made] == [("class 1", "What is this?")]


def test_a_voice_that_names_only_one_thing_is_not_asked_about() -> None:
    rows, spoken = [image_row(0), image_row(1)], [spoken_row(n, f"it {n}") for n in (0, 1)]
    assert make("match_audio_image", images=rows, spoken_captions=spoken[:1]) == []
    made = make("match_audio_image", images=rows, spoken_captions=spoken)
    assert {answer(example) for example in made} == {"it 0 – yes", "it 1 – no", "it 1 – yes", "it 0 – no"}


def test_clips_that_the_model_has_not_heard_are_left_out_of_training() -> None:
    spoken = [spoken_row(0, None), spoken_row(1, "it 1"), spoken_row(2, "it 2")]
    rows = {"images": [image_row(n) for n in range(3)], "spoken_captions": spoken}
    for task in ("transcribe_beside_image", "match_audio_image"):
        assert {Path(clip(example)).stem for example in make(task, **rows)} == {"1", "2"}
    assert len(make("transcribe_beside_image", "test_voice", **rows)) == 3
    assert make("transcribe", **rows) == []


# ---- The same files every time --------------------------------------------------------------------------------------


@pytest.fixture
def copy(built, tmp_path) -> Path:
    """Return all corpora without the chats; files are links, as none is changed."""
    shutil.copytree(built, tmp_path / "corpora", copy_function=os.link, ignore=shutil.ignore_patterns("chat"))
    return tmp_path / "corpora"


@pytest.mark.parametrize("call", [1, 7, -2, -1], ids=str)
def test_a_killed_build_resumes_to_the_same_examples(built, copy, call: int) -> None:
    """It is killed at its first file, in the middle, at the card, and at the mark of a whole corpus."""
    call = call if call > 0 else len(tree(built / "chat")) + 1 + call
    killed(lambda: build_chats(copy), call, before=True)
    assert not (copy / "chat/.built.json").exists()
    build_chats(copy)
    assert tree(copy / "chat") == tree(built / "chat")


def test_files_of_tasks_that_no_longer_exist_are_removed(built, copy) -> None:
    (copy / "chat/train").mkdir(parents=True)
    (copy / "chat/train/old.jsonl").write_text("{}\n")
    counts = build_chats(copy)
    assert tree(copy / "chat") == tree(built / "chat")
    assert counts == {split: len(list(chats(copy, split))) for split in SPLITS}


def test_the_card_counts_the_examples_of_each_task(built) -> None:
    card = (built / "chat/README.md").read_text()
    counts = {split: Counter(name for name, _ in chats(built, split)) for split in SPLITS}
    for task in TASKS:
        assert f"| {task} | " + " | ".join(str(counts[split][task]) for split in SPLITS) + " |" in card
    for split, number in json.loads((built / "chat/.built.json").read_text())["rows"].items():
        assert f"| {split} | {number} | {read_description('chat').splits[split]} |" in card


def test_missing_corpora_are_named(copy) -> None:
    (copy / "prompts/.built.json").unlink()
    shutil.rmtree(copy / "images")
    shutil.rmtree(copy / "photographs")
    message = r"lacks the corpora images, photographs, prompts of the chats\. Build them first"
    with pytest.raises(FileNotFoundError, match=message):
        build_chats(copy)
    assert not (copy / "chat").exists()
