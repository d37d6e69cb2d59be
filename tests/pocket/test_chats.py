"""Chat examples: nothing of a held-out split in training, truths that are true, and the same files every time."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from modeling_mm.data import load_chats, media_parts
from scripts.pocket.chats import TASKS, CorpusReader, build_chats
from scripts.pocket.corpus import read_description, read_rows
from scripts.pocket.phrases import CATEGORY, CHOOSE_IMAGE, FIRST_SECOND, KINDS, VERIFY_NAME, YES_NO
from scripts.pocket.sources import LANGUAGES
from tests.pocket.leaks import BY_CONCEPT, answer, chats, letters, media, question, rows_of
from tests.pocket.tiny_packages import killed, tree

CORPORA = Path(__file__).resolve().parents[2] / "outputs/corpora"
SPLITS = tuple(read_description("chat").splits)
HELD_OUT = SPLITS[1:]
real = pytest.mark.skipif(not (CORPORA / "chat/.built.json").is_file(), reason="needs the corpora in outputs/corpora")


@pytest.fixture(scope="module", params=["tiny", pytest.param("real", marks=[pytest.mark.slow, real])])
def corpora(request) -> Path:
    """Those built from tiny packages, and those that are there to be trained on."""
    return request.getfixturevalue("built") if request.param == "tiny" else CORPORA


@pytest.fixture(scope="module")
def examples(corpora) -> dict[str, list[tuple[str, dict]]]:
    """By split: the examples with the name of their file."""
    return {split: list(chats(corpora, split)) for split in SPLITS}


# ---- Nothing leaks --------------------------------------------------------------------------------------------------


def test_media_come_from_the_same_split(examples) -> None:
    """Only images by the unseen hand come with voices of other splits: unseen ones, and people's, who are few."""
    for split, each in examples.items():
        found = {(task, Path(path).parts[0], Path(path).parts[1]) for task, example in each for path in media(example)}
        others = {(task, corpus, other) for task, corpus, other in found if other != split}
        allowed = {("match_audio_image", "spoken-captions", voices) for voices in ("test_voice", "train")}
        assert others <= (allowed if split == "test_hand" else set())


def test_no_file_of_a_held_out_sample_is_in_training(examples) -> None:
    """But for people's voices beside images by the unseen hand, which are asked about as `match_audio_image_human`."""
    train = {path for _, example in examples["train"] for path in media(example)}
    for split in HELD_OUT:
        assert examples[split]
        for _, example in examples[split]:
            shared = train & set(media(example))
            if shared:
                assert split == "test_hand" and example["task"].startswith("match_audio_image_human/")
                assert all("/human-" in path for path in shared)


def test_no_question_and_answer_about_the_same_media_is_in_training(examples) -> None:
    train = {tuple(sorted(media(example))) for _, example in examples["train"]}
    for split in HELD_OUT:
        assert not train & {tuple(sorted(media(example))) for _, example in examples[split]}


def test_no_name_of_a_concept_held_out_is_in_the_words_of_training(corpora, examples) -> None:
    """Neither as an answer, nor in the questions that name things, in any language."""
    names: dict[str, set[str]] = {}
    for split in ("validation", "test_concepts"):
        for row in (row for corpus in BY_CONCEPT for row in rows_of(corpora, corpus, split)):
            for language in (*LANGUAGES, "ca", "ro", "bg"):
                text = row.get(f"name_{language}") or (row.get("text") if row.get("language") == language else None)
                if text:
                    names.setdefault(language, set()).add(text)
    told = {task: Counter() for task in ("caption", "transcribe_caption", "transcribe_caption_human", "name_audio")}
    asked = {"verify_name": set(), "choose_image": set(), "translate": set(), "match_audio_image": set()}
    for _, example in examples["train"]:
        task, _, language = example["task"].partition("/")
        if task in told:
            told[task][language, letters(answer(example))] += 1
        elif task in asked:
            asked[task] |= {question(example)}
    for language, held_out in names.items():
        for counter in told.values():
            assert not {key for key in counter if key[0] == language} & {(language, letters(n)) for n in held_out}
    for language in LANGUAGES:
        for name in names[language]:
            assert VERIFY_NAME[language].format(name=name) not in asked["verify_name"]
            assert CHOOSE_IMAGE[language].format(name=name) not in asked["choose_image"]
    translated = {text.split(": ", 1)[1] for text in asked["translate"]}
    assert not translated & set().union(*(names[language] for language in LANGUAGES))


@pytest.mark.parametrize("task", ["transcribe", "transcribe_sentence"])
def test_no_transcript_held_out_is_in_training(examples, task: str) -> None:
    def told(splits) -> set[tuple[str, str]]:
        return {(s["task"], letters(answer(s))) for split in splits for name, s in examples[split] if name == task}

    train, held_out = told(["train"]), told(HELD_OUT)
    assert train and held_out and not train & held_out


def test_the_unseen_hand_and_voices_are_in_no_training_sample(examples) -> None:
    paths = {path for split in ("train", "validation") for _, example in examples[split] for path in media(example)}
    assert not [path for path in paths if "/twemoji-" in path or "rms" in path or "cmn_m3" in path]
    assert [path for _, example in examples["test_hand"] for path in media(example) if "/twemoji-" in path]


# ---- What is in an example ------------------------------------------------------------------------------------------


def test_every_task_is_there_and_named_with_its_language(examples) -> None:
    assert {task for task, _ in examples["train"]} == set(TASKS)
    for each in examples.values():
        for name, example in each:
            task, _, language = example["task"].partition("/")
            assert task.removesuffix("_human") == name
            assert set(language.split("-")) <= {*LANGUAGES, "ca", "ro", "bg"}
            assert example["id"].startswith(f"{example['task']}/")


def test_names_of_samples_are_their_own(built) -> None:
    for split in SPLITS:
        assert max(Counter(example["id"] for _, example in chats(built, split)).values()) == 1


def test_truths_are_those_of_the_rows(corpora, examples) -> None:
    """Captions, categories, translations, transcripts and noises, looked up by the file that is shown."""
    rows = {
        f"{corpus}/{row['file_name']}": row
        for corpus in (*BY_CONCEPT, "prompts", "sentences")
        for split in read_description(corpus).splits
        for row in read_rows(corpora / corpus, split)
    }
    doubtful = {"prompts/train/es_digits_0.flac"}  # Asterisk's list has it twice
    for each in examples.values():
        for name, example in each:
            language = example["task"].partition("/")[2]
            row = rows.get(media(example)[0])
            if name in ("caption", "name_audio"):
                assert answer(example) == row[f"name_{language}"]
            elif name == "category":
                assert question(example) in CATEGORY[language] and answer(example) == KINDS[row["kind"]][language]
            elif name == "translate":
                source, target = language.split("-")
                assert question(example).endswith(f": {row[f'name_{source}']}")
                assert answer(example) == row[f"name_{target}"]
            elif name.startswith("transcribe") and media(example)[0] not in doubtful:
                assert answer(example) == row["text"] and language == row["language"]
                assert ("_human" in example["task"]) == (row.get("synthetic") is False)


def test_yes_and_no_are_true_and_equally_likely(corpora, examples) -> None:
    """Is this its name, does the voice name it, does the sound belong to it: told by what the rows say."""
    images = {row["file_name"]: row for s in SPLITS for row in rows_of(corpora, "images", s)}
    spoken = {row["file_name"]: row for s in SPLITS for row in rows_of(corpora, "spoken-captions", s)}
    noises = {row["file_name"]: row for s in SPLITS for row in rows_of(corpora, "animal-audio", s)}
    verdicts: dict[str, Counter] = {name: Counter() for name in ("verify_name", "match_audio_image", "verify_audio")}
    for each in examples.values():
        for name, example in each:
            if name not in verdicts:
                continue
            language = example["task"].partition("/")[2]
            image = images[media(example)[0].partition("/")[2]]
            if name == "verify_name":
                is_true = question(example) == VERIFY_NAME[language].format(name=image[f"name_{language}"])
                verdict = answer(example)
            elif name == "match_audio_image":
                recording = spoken[media(example)[1].partition("/")[2]]
                text, _, verdict = answer(example).rpartition(" – ")
                assert text == recording["text"] and recording["language"] == language
                is_true = recording["concept"] == image["concept"]
                assert not is_true or recording["text"] == image[f"name_{language}"]
            else:
                verdict = answer(example)
                is_true = noises[media(example)[1].partition("/")[2]]["concept"] == image["concept"]
            assert verdict == YES_NO[language][0 if is_true else 1]
            verdicts[name][is_true] += 1
    for name, counts in verdicts.items():
        assert counts[True] / counts.total() == pytest.approx(0.5, abs=0.12 if name == "verify_name" else 0.01)


def test_which_of_two_pictures_is_named(corpora, examples) -> None:
    """Both are by one hand and of different concepts, and either is as often the first."""
    images = {f"images/{row['file_name']}": row for s in SPLITS for row in rows_of(corpora, "images", s)}
    first = Counter()
    for split, each in examples.items():
        for example in (example for name, example in each if name == "choose_image"):
            language = example["task"].partition("/")[2]
            shown = [images[path] for path in media(example)]
            named = [question(example) == CHOOSE_IMAGE[language].format(name=row[f"name_{language}"]) for row in shown]
            assert Counter(named) == {True: 1, False: 1}
            assert answer(example) == FIRST_SECOND[language][named.index(True)]
            assert shown[0]["concept"] != shown[1]["concept"]
            if split in ("train", "test_hand"):  # tiny held-out splits have hands with one concept alone
                assert shown[0]["hand"] == shown[1]["hand"]
            first[named[0]] += 1
    assert first[True] / first.total() == pytest.approx(0.5, abs=0.15)


def test_wordings_vary(built) -> None:
    questions = {question(example) for name, example in chats(built, "train") if name == "caption"}
    assert len(questions) == 15


def test_samples_are_read_as_chats(built) -> None:
    for path in sorted((built / "chat").glob("*/*.jsonl")):
        rows = load_chats(str(path))
        assert len(rows) == len(path.read_text().splitlines())
        assert all(Path(part["path"]).is_file() for part in media_parts(rows[0].messages))
        assert rows[0].answer and rows[0].task.startswith(path.stem)


def test_every_file_of_the_samples_is_there(corpora, examples) -> None:
    paths = {path for each in examples.values() for _, example in each for path in media(example)}
    assert [path for path in paths if not (corpora / path).is_file()] == []


# ---- Draws ----------------------------------------------------------------------------------------------------------


class Fake(CorpusReader):
    """Rows that are given, in train."""

    def __init__(self, **rows):
        self.given = {name.replace("_", "-"): each for name, each in rows.items()}

    def rows(self, corpus, split):
        return [{**row, "path": f"../../{corpus}/{row['file_name']}"} for row in self.given.get(corpus, [])]


def image_row(number: int, kind: str = "food", **fields) -> dict:
    names = {f"name_{language}": f"{language} {number}" for language in LANGUAGES}
    row = {"file_name": f"train/{number}.png", "concept": f"c{number}", "hand": "noto", "kind": kind}
    return {**row, **names, **fields}


@pytest.mark.parametrize("task", ["caption", "category", "translate"])
def test_draws_depend_on_the_sample_alone(task: str) -> None:
    rows = [image_row(number) for number in range(9)]
    one = {example["id"]: example for example in TASKS[task](Fake(images=rows), "train")}
    other = {example["id"]: example for example in TASKS[task](Fake(images=rows[:3:-1]), "train")}
    assert 0 < len(other) < len(one)
    assert other.items() <= one.items()


def test_pictures_without_a_name_are_not_asked_for_it() -> None:
    rows = [image_row(0, name_zh=None), image_row(1, name_zh=None), image_row(2)]
    for task in ("caption", "translate", "verify_name", "choose_image"):
        languages = [s["task"] for s in TASKS[task](Fake(images=rows), "train") if "2.png" not in s["id"]]
        assert languages and not [language for language in languages if "zh" in language]


@pytest.mark.parametrize("task", ["verify_name", "choose_image"])
def test_a_single_concept_has_nothing_to_be_told_from(task: str) -> None:
    rows = [image_row(n, concept="c") for n in range(8)]
    with pytest.raises(ValueError, match=r"There is no concept except 'c' to ask about in"):
        list(TASKS[task](Fake(images=rows), "train"))


def test_wrong_names_are_often_of_the_same_kind() -> None:
    rows = [image_row(n, "food" if n < 4 else "flags") for n in range(60)]
    kinds = Counter()
    for example in TASKS["verify_name"](Fake(images=rows), "train"):
        if answer(example) in {no for _, no in YES_NO.values()} and int(Path(example["id"]).stem) < 4:
            number = int("".join(c for c in question(example) if c.isdigit()))
            kinds["food" if number < 4 else "flags"] += 1
    assert kinds["food"] > 0


def test_sounds_whose_picture_was_left_out_are_not_matched() -> None:
    images = [image_row(number) for number in range(3)]
    noises = [{**row, "file_name": f"train/{n}.flac", "image_file": f"train/{n}.png"} for n, row in enumerate(images)]
    made = list(TASKS["verify_audio"](Fake(images=images[1:], animal_audio=noises), "train"))
    assert len(made) == 4
    assert {Path(path).stem for example in made for path in media(example)} == {"1", "2"}


def spoken_row(number: int, language: str, synthetic: bool = True) -> dict:
    row = {"file_name": f"train/{language}-{number}.flac", "concept": f"c{number}", "text": f"{language} {number}"}
    return {**row, "language": language, "voice": "v", "synthetic": synthetic}


def test_a_voice_that_names_only_one_thing_is_not_asked_about() -> None:
    rows = [image_row(0), image_row(1)]
    spoken = [spoken_row(0, "fr", False)]
    assert list(TASKS["match_audio_image"](Fake(images=rows, spoken_captions=spoken), "train")) == []
    spoken.append(spoken_row(1, "fr", False))
    made = list(TASKS["match_audio_image"](Fake(images=rows, spoken_captions=spoken), "train"))
    assert [example["task"] for example in made] == ["match_audio_image_human/fr"] * 4
    assert [answer(example) for example in made] == ["fr 0 – oui", "fr 1 – non", "fr 1 – oui", "fr 0 – non"]


# ---- The same files every time --------------------------------------------------------------------------------------


@pytest.fixture
def copy(built, tmp_path) -> Path:
    """All corpora but the chat examples; files are links, as none is changed."""
    shutil.copytree(built, tmp_path / "corpora", copy_function=os.link, ignore=shutil.ignore_patterns("chat"))
    return tmp_path / "corpora"


@pytest.mark.parametrize("call", [1, 7, -2, -1], ids=str)
def test_a_killed_build_goes_on_to_the_same_samples(built, copy, call: int) -> None:
    """Its first file, one in the middle, the card, and the mark that all is there."""
    call = call if call > 0 else len(tree(built / "chat")) + 1 + call
    killed(lambda: build_chats(copy), call, before=True)
    assert not (copy / "chat/.built.json").exists()
    build_chats(copy)
    assert tree(copy / "chat") == tree(built / "chat")


def test_samples_of_tasks_that_are_no_more_are_removed(built, copy) -> None:
    (copy / "chat/train").mkdir(parents=True)
    (copy / "chat/train/old.jsonl").write_text("{}\n")
    counts = build_chats(copy)
    assert tree(copy / "chat") == tree(built / "chat")
    assert counts == {split: len(list(chats(copy, split))) for split in SPLITS}


def test_the_card_counts_the_samples_of_each_task(built) -> None:
    card = (built / "chat/README.md").read_text()
    for task in TASKS:
        numbers = [Counter(name for name, _ in chats(built, split))[task] for split in SPLITS]
        assert f"| {task} | " + " | ".join(map(str, numbers)) + " |" in card
    counts = json.loads((built / "chat/.built.json").read_text())["rows"]
    for split, number in counts.items():
        assert f"| {split} | {number} | {read_description('chat').splits[split]} |" in card


def test_corpora_that_are_missing_are_named(copy) -> None:
    (copy / "prompts/.built.json").unlink()
    shutil.rmtree(copy / "images")
    with pytest.raises(FileNotFoundError, match=r"lacks the corpora images, prompts of the chats. Build them first"):
        build_chats(copy)
    assert not (copy / "chat").exists()
