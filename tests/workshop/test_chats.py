"""Chat examples: nothing of a held-out split in training, true answers, and the same files every time."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from modeling_mm.data import load_chats, media_parts
from scripts.workshop import phrases
from scripts.workshop.chats import TASKS, CorpusReader, build_chats
from scripts.workshop.corpus import read_description
from scripts.workshop.sources import LANGUAGES
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
LANGUAGES_OF_SPEECH = {*LANGUAGES, "ca", "ro", "bg"}


@pytest.fixture(scope="module")
def examples(corpora) -> dict[str, list[tuple[str, dict]]]:
    """Return the examples by split, each with the name of its task."""
    return {split: list(chats(corpora, split)) for split in SPLITS}


def language_of(example: dict) -> str:
    return example["task"].partition("/")[2]


# ---- No leaks -------------------------------------------------------------------------------------------------------


def test_media_come_from_the_split_of_the_example(examples) -> None:
    """Only images by the unseen hand come with voices of other splits: unseen ones, and people's, who are few."""
    for split, each in examples.items():
        found = {(task, *Path(path).parts[:2]) for task, example in each for path in media(example)}
        others = {(task, corpus, other) for task, corpus, other in found if other != split}
        allowed = {("match_audio_image", "spoken-captions", voices) for voices in ("test_voice", "train")}
        assert others <= (allowed if split == "test_hand" else set())


def test_no_media_of_a_held_out_example_are_in_training(examples) -> None:
    """Except people's voices beside images by the unseen hand, which are a task of their own."""
    train = {path for _, example in examples["train"] for path in media(example)}
    together = {tuple(sorted(media(example))) for _, example in examples["train"]}
    for split in HELD_OUT:
        assert examples[split]
        for _, example in examples[split]:
            assert tuple(sorted(media(example))) not in together
            if shared := train & set(media(example)):
                assert split == "test_hand" and example["task"].startswith("match_audio_image_human/")
                assert all("/human-" in path for path in shared)


def test_no_name_of_a_held_out_concept_is_in_the_texts_of_training(corpora, examples) -> None:
    """Neither as an answer nor in the questions about names, in any language."""
    rows = [row for corpus in BY_CONCEPT for row in rows_of(corpora, corpus, *OTHER_CONCEPTS)]
    held_out = {text for row in rows for text in texts_of(row)}
    names = {(x, row[f"name_{x}"]) for row in rows for x in LANGUAGES if row.get(f"name_{x}")}
    asked = {
        form[language].format(name=name)
        for language, name in names
        for form in (phrases.VERIFY_NAME, phrases.CHOOSE_IMAGE)
    }
    for task, example in examples["train"]:
        language = language_of(example)
        if task in ("caption", "transcribe_caption", "name_audio"):
            assert (language, letters(answer(example))) not in held_out
        elif task == "translate":
            assert question(example).split(": ", 1)[1] not in {name for _, name in names}
        assert question(example) not in asked


@pytest.mark.parametrize("task", ["transcribe", "transcribe_sentence"])
def test_no_held_out_transcript_is_in_training(examples, task: str) -> None:
    def transcripts(*splits: str) -> set[tuple[str, str]]:
        found = [example for split in splits for name, example in examples[split] if name == task]
        return {(example["task"], letters(answer(example))) for example in found}

    train, held_out = transcripts("train"), transcripts(*HELD_OUT)
    assert train and held_out and not train & held_out


def test_the_unseen_hand_and_voices_are_in_no_training_example(examples) -> None:
    paths = {path for split in ("train", "validation") for _, example in examples[split] for path in media(example)}
    assert not [path for path in paths if "/twemoji-" in path or "rms" in path or "cmn_m3" in path]
    assert [path for _, example in examples["test_hand"] for path in media(example) if "/twemoji-" in path]


# ---- Content --------------------------------------------------------------------------------------------------------


def test_every_task_exists_and_is_named_with_its_language(corpora, examples) -> None:
    assert {task for task, _ in examples["train"]} == set(TASKS)
    for each in examples.values():
        assert max(Counter(example["id"] for _, example in each).values()) == 1
        for name, example in each:
            task, _, language = example["task"].partition("/")
            assert task.removesuffix("_human") == name
            assert set(language.split("-")) <= LANGUAGES_OF_SPEECH
            assert example["id"].startswith(f"{example['task']}/")
            assert all((corpora / path).is_file() for path in media(example))


def test_answers_are_those_of_the_rows(corpora, examples) -> None:
    """Captions, categories, translations and transcripts are looked up by the file of the example."""
    rows = {f"{corpus}/{row['file_name']}": row for corpus in CORPORA for row in rows_of(corpora, corpus)}
    twice = {"prompts/train/es_digits_0.flac"}  # Asterisk's list has it twice
    for name, example in (pair for each in examples.values() for pair in each):
        language, row = language_of(example), rows[media(example)[0]]
        if name in ("caption", "name_audio"):
            assert answer(example) == row[f"name_{language}"]
        elif name == "category":
            assert question(example) in phrases.CATEGORY[language]
            assert answer(example) == phrases.KINDS[row["kind"]][language]
        elif name == "translate":
            source, target = language.split("-")
            assert question(example).endswith(f": {row[f'name_{source}']}")
            assert answer(example) == row[f"name_{target}"]
        elif name.startswith("transcribe") and media(example)[0] not in twice:
            assert answer(example) == row["text"] and language == row["language"]
            assert ("_human" in example["task"]) == (row.get("synthetic") is False)


def test_yes_and_no_are_true_and_equally_likely(corpora, examples) -> None:
    rows = {f"{corpus}/{row['file_name']}": row for corpus in CORPORA for row in rows_of(corpora, corpus)}
    verdicts: dict[str, Counter] = {name: Counter() for name in ("verify_name", "match_audio_image", "verify_audio")}
    for name, example in (pair for each in examples.values() for pair in each if pair[0] in verdicts):
        language, verdict = language_of(example), answer(example)
        image, *others = (rows[path] for path in media(example))
        if name == "verify_name":
            wanted = phrases.VERIFY_NAME[language].format(name=image[f"name_{language}"])
            is_true = question(example) == wanted
        else:
            is_true = others[0]["concept"] == image["concept"]
        if name == "match_audio_image":
            text, _, verdict = answer(example).rpartition(" – ")
            assert text == others[0]["text"] and others[0]["language"] == language
            assert not is_true or text == image[f"name_{language}"]
        assert verdict == phrases.YES_NO[language][0 if is_true else 1]
        verdicts[name][is_true] += 1
    for name, counts in verdicts.items():
        assert counts[True] / counts.total() == pytest.approx(0.5, abs=0.12 if name == "verify_name" else 0.01)


def test_one_of_two_images_by_one_hand_has_the_name(corpora, examples) -> None:
    images = {f"images/{row['file_name']}": row for row in rows_of(corpora, "images")}
    first = Counter()
    for split, each in examples.items():
        for example in (example for name, example in each if name == "choose_image"):
            language, shown = language_of(example), [images[path] for path in media(example)]
            form = phrases.CHOOSE_IMAGE[language]
            named = [question(example) == form.format(name=row[f"name_{language}"]) for row in shown]
            assert Counter(named) == {True: 1, False: 1}
            assert answer(example) == phrases.FIRST_SECOND[language][named.index(True)]
            assert shown[0]["concept"] != shown[1]["concept"]
            if split in ("train", "test_hand"):  # in tiny held-out splits a hand may have drawn one concept only
                assert shown[0]["hand"] == shown[1]["hand"]
            first[named[0]] += 1
    assert first[True] / first.total() == pytest.approx(0.5, abs=0.15)


def test_wordings_vary(built) -> None:
    assert len({question(example) for name, example in chats(built, "train") if name == "caption"}) == 15


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


def make(task: str, **rows) -> list[dict]:
    return list(TASKS[task](GivenRows(**rows), "train"))


def image_row(number: int, kind: str = "food", **fields) -> dict:
    names = {f"name_{language}": f"{language} {number}" for language in LANGUAGES}
    row = {"file_name": f"train/{number}.png", "concept": f"c{number}", "hand": "noto", "kind": kind}
    return {**row, **names, **fields}


def spoken_row(number: int, language: str, synthetic: bool = True) -> dict:
    row = {"file_name": f"train/{language}-{number}.flac", "concept": f"c{number}", "text": f"{language} {number}"}
    return {**row, "language": language, "voice": "v", "synthetic": synthetic}


@pytest.mark.parametrize("task", ["caption", "category", "translate"])
def test_draws_depend_on_the_row_alone(task: str) -> None:
    rows = [image_row(number) for number in range(9)]
    all_of_them = {example["id"]: example for example in make(task, images=rows)}
    some = {example["id"]: example for example in make(task, images=rows[:3:-1])}
    assert 0 < len(some) < len(all_of_them) and some.items() <= all_of_them.items()


PINNED = {
    "verify_name": "zh:是 ru:нет fr:non es:sí fr:oui en:no es:sí fr:non",
    "choose_image": "fr:la première fr:la deuxième ru:на второй fr:la première",
}


@pytest.mark.parametrize("task", PINNED)
def test_draws_are_those_of_the_first_release(task: str) -> None:
    """Its figures were measured on them."""
    made = make(task, images=[image_row(number) for number in range(4)])
    assert " ".join(f"{language_of(example)}:{answer(example)}" for example in made) == PINNED[task]


@pytest.mark.parametrize("task", ["caption", "translate", "verify_name", "choose_image"])
def test_images_are_asked_about_in_the_languages_of_their_names(task: str) -> None:
    rows = [image_row(0, name_zh=None), image_row(1, name_zh=None), image_row(2)]
    tasks = [example["task"] for example in make(task, images=rows) if "2.png" not in example["id"]]
    assert tasks and not [each for each in tasks if "zh" in each]


@pytest.mark.parametrize("task", ["verify_name", "choose_image"])
def test_a_single_concept_is_refused(task: str) -> None:
    rows = [image_row(n, concept="c") for n in range(8)]
    with pytest.raises(ValueError, match=r"There is no concept except 'c' to ask about in"):
        make(task, images=rows)


def test_wrong_names_are_often_of_the_same_kind() -> None:
    rows = [image_row(n, "food" if n < 4 else "flags") for n in range(60)]
    kinds = Counter()
    for example in make("verify_name", images=rows):
        if answer(example) in {no for _, no in phrases.YES_NO.values()} and int(Path(example["id"]).stem) < 4:
            number = int("".join(c for c in question(example) if c.isdigit()))
            kinds["food" if number < 4 else "flags"] += 1
    assert kinds["food"] > 0


def test_noises_whose_image_was_left_out_are_not_asked_about() -> None:
    images = [image_row(number) for number in range(3)]
    noises = [{**row, "file_name": f"train/{n}.flac", "image_file": f"train/{n}.png"} for n, row in enumerate(images)]
    made = make("verify_audio", images=images[1:], animal_audio=noises)
    assert len(made) == 4
    assert {Path(path).stem for example in made for path in media(example)} == {"1", "2"}


def test_a_voice_that_names_only_one_thing_is_not_asked_about() -> None:
    rows, spoken = [image_row(0), image_row(1)], [spoken_row(n, "fr", False) for n in (0, 1)]
    assert make("match_audio_image", images=rows, spoken_captions=spoken[:1]) == []
    made = make("match_audio_image", images=rows, spoken_captions=spoken)
    assert [example["task"] for example in made] == ["match_audio_image_human/fr"] * 4
    assert [answer(example) for example in made] == ["fr 0 – oui", "fr 1 – non", "fr 1 – oui", "fr 0 – non"]


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
    with pytest.raises(FileNotFoundError, match=r"lacks the corpora images, prompts of the chats. Build them first"):
        build_chats(copy)
    assert not (copy / "chat").exists()
