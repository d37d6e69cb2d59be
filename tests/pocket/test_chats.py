"""Chat samples: nothing of a held-out split in training, truths that are true, and the same files every time."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from modeling_mm.data import load_chats, media_parts
from scripts.pocket.chats import TASKS, CorpusReader, build_chats
from scripts.pocket.corpus import read_description, read_rows
from scripts.pocket.phrases import CATEGORY, FIRST_SECOND, KINDS, NAMED, WHICH, YES_NO
from scripts.pocket.sources import LANGUAGES
from tests.pocket.leaks import NAMED as BY_CONCEPT
from tests.pocket.leaks import answer, chats, letters, media, question, rows_of
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
def samples(corpora) -> dict[str, list[tuple[str, dict]]]:
    """By split: the samples with the name of their file."""
    return {split: list(chats(corpora, split)) for split in SPLITS}


# ---- Nothing leaks --------------------------------------------------------------------------------------------------


def test_media_come_from_the_same_split(samples) -> None:
    """Only pictures by the unseen hand come with voices of other splits: unseen ones, and people's, who are few."""
    for split, each in samples.items():
        found = {(task, Path(path).parts[0], Path(path).parts[1]) for task, sample in each for path in media(sample)}
        others = {(task, corpus, other) for task, corpus, other in found if other != split}
        allowed = {("match", "spoken-captions", "test_voice"), ("match", "spoken-captions", "train")}
        assert others <= (allowed if split == "test_hand" else set())


def test_no_file_of_a_held_out_sample_is_in_training(samples) -> None:
    """But for people's voices beside pictures by the unseen hand, which are asked about as `match-human`."""
    train = {path for _, sample in samples["train"] for path in media(sample)}
    for split in HELD_OUT:
        assert samples[split]
        for _, sample in samples[split]:
            shared = train & set(media(sample))
            if shared:
                assert split == "test_hand" and sample["task"].startswith("match-human/")
                assert all("/human-" in path for path in shared)


def test_no_question_and_answer_about_the_same_media_is_in_training(samples) -> None:
    train = {tuple(sorted(media(sample))) for _, sample in samples["train"]}
    for split in HELD_OUT:
        assert not train & {tuple(sorted(media(sample))) for _, sample in samples[split]}


def test_no_name_of_a_concept_held_out_is_in_the_words_of_training(corpora, samples) -> None:
    """Neither as an answer, nor in the questions that name things, in any language."""
    names: dict[str, set[str]] = {}
    for split in ("validation", "test_concepts"):
        for row in (row for corpus in BY_CONCEPT for row in rows_of(corpora, corpus, split)):
            for language in (*LANGUAGES, "ca", "ro", "bg"):
                text = row.get(f"name_{language}") or (row.get("text") if row.get("language") == language else None)
                if text:
                    names.setdefault(language, set()).add(text)
    told = {task: Counter() for task in ("caption", "heard", "heard-human", "sound")}
    asked = {"named": set(), "which": set(), "translate": set(), "match": set()}
    for _, sample in samples["train"]:
        task, _, language = sample["task"].partition("/")
        if task in told:
            told[task][language, letters(answer(sample))] += 1
        elif task in asked:
            asked[task] |= {question(sample)}
    for language, held_out in names.items():
        for counter in told.values():
            assert not {key for key in counter if key[0] == language} & {(language, letters(n)) for n in held_out}
    for language in LANGUAGES:
        for name in names[language]:
            assert NAMED[language].format(name=name) not in asked["named"]
            assert WHICH[language].format(name=name) not in asked["which"]
    translated = {text.split(": ", 1)[1] for text in asked["translate"]}
    assert not translated & set().union(*(names[language] for language in LANGUAGES))


@pytest.mark.parametrize("task", ["transcribe", "sentence"])
def test_no_transcript_held_out_is_in_training(samples, task: str) -> None:
    def told(splits) -> set[tuple[str, str]]:
        return {(s["task"], letters(answer(s))) for split in splits for name, s in samples[split] if name == task}

    train, held_out = told(["train"]), told(HELD_OUT)
    assert train and held_out and not train & held_out


def test_the_unseen_hand_and_voices_are_in_no_training_sample(samples) -> None:
    paths = {path for split in ("train", "validation") for _, sample in samples[split] for path in media(sample)}
    assert not [path for path in paths if "/twemoji-" in path or "rms" in path or "cmn_m3" in path]
    assert [path for _, sample in samples["test_hand"] for path in media(sample) if "/twemoji-" in path]


# ---- What is in a sample --------------------------------------------------------------------------------------------


def test_every_task_is_there_and_named_with_its_language(samples) -> None:
    assert {task for task, _ in samples["train"]} == set(TASKS)
    for each in samples.values():
        for name, sample in each:
            task, _, language = sample["task"].partition("/")
            assert task.removesuffix("-human") == name
            assert set(language.split("-")) <= {*LANGUAGES, "ca", "ro", "bg"}
            assert sample["id"].startswith(f"{sample['task']}/")


def test_names_of_samples_are_their_own(built) -> None:
    for split in SPLITS:
        assert max(Counter(sample["id"] for _, sample in chats(built, split)).values()) == 1


def test_truths_are_those_of_the_rows(corpora, samples) -> None:
    """Captions, categories, translations, transcripts and sounds, looked up by the file that is shown."""
    rows = {
        f"{corpus}/{row['file_name']}": row
        for corpus in (*BY_CONCEPT, "prompts", "sentences")
        for split in read_description(corpus).splits
        for row in read_rows(corpora / corpus, split)
    }
    doubtful = {"prompts/train/es_digits_0.flac"}  # Asterisk's list has it twice
    for each in samples.values():
        for name, sample in each:
            language = sample["task"].partition("/")[2]
            row = rows.get(media(sample)[0])
            if name in ("caption", "sound"):
                assert answer(sample) == row[f"name_{language}"]
            elif name == "category":
                assert question(sample) in CATEGORY[language] and answer(sample) == KINDS[row["kind"]][language]
            elif name == "translate":
                source, target = language.split("-")
                assert question(sample).endswith(f": {row[f'name_{source}']}")
                assert answer(sample) == row[f"name_{target}"]
            elif name in ("heard", "transcribe", "sentence") and media(sample)[0] not in doubtful:
                assert answer(sample) == row["text"] and language == row["language"]
                assert ("-human" in sample["task"]) == (row.get("synthetic") is False)


def test_yes_and_no_are_true_and_equally_likely(corpora, samples) -> None:
    """Is this its name, does the voice name it, does the sound belong to it: told by what the rows say."""
    pictures = {row["file_name"]: row for s in SPLITS for row in rows_of(corpora, "pictures", s)}
    spoken = {row["file_name"]: row for s in SPLITS for row in rows_of(corpora, "spoken-captions", s)}
    sounds = {row["file_name"]: row for s in SPLITS for row in rows_of(corpora, "animal-sounds", s)}
    verdicts: dict[str, Counter] = {name: Counter() for name in ("named", "match", "sound-match")}
    for each in samples.values():
        for name, sample in each:
            if name not in verdicts:
                continue
            language = sample["task"].partition("/")[2]
            picture = pictures[media(sample)[0].partition("/")[2]]
            if name == "named":
                is_true = question(sample) == NAMED[language].format(name=picture[f"name_{language}"])
                verdict = answer(sample)
            elif name == "match":
                recording = spoken[media(sample)[1].partition("/")[2]]
                text, _, verdict = answer(sample).rpartition(" – ")
                assert text == recording["text"] and recording["language"] == language
                is_true = recording["concept"] == picture["concept"]
                assert not is_true or recording["text"] == picture[f"name_{language}"]
            else:
                verdict = answer(sample)
                is_true = sounds[media(sample)[1].partition("/")[2]]["concept"] == picture["concept"]
            assert verdict == YES_NO[language][0 if is_true else 1]
            verdicts[name][is_true] += 1
    for name, counts in verdicts.items():
        assert counts[True] / counts.total() == pytest.approx(0.5, abs=0.12 if name == "named" else 0.01)


def test_which_of_two_pictures_is_named(corpora, samples) -> None:
    """Both are by one hand and of different concepts, and either is as often the first."""
    pictures = {f"pictures/{row['file_name']}": row for s in SPLITS for row in rows_of(corpora, "pictures", s)}
    first = Counter()
    for split, each in samples.items():
        for sample in (sample for name, sample in each if name == "which"):
            language = sample["task"].partition("/")[2]
            shown = [pictures[path] for path in media(sample)]
            named = [question(sample) == WHICH[language].format(name=row[f"name_{language}"]) for row in shown]
            assert Counter(named) == {True: 1, False: 1}
            assert answer(sample) == FIRST_SECOND[language][named.index(True)]
            assert shown[0]["concept"] != shown[1]["concept"]
            if split in ("train", "test_hand"):  # tiny held-out splits have hands with one concept alone
                assert shown[0]["hand"] == shown[1]["hand"]
            first[named[0]] += 1
    assert first[True] / first.total() == pytest.approx(0.5, abs=0.15)


def test_wordings_vary(built) -> None:
    questions = {question(sample) for name, sample in chats(built, "train") if name == "caption"}
    assert len(questions) == 15


def test_samples_are_read_as_chats(built) -> None:
    for path in sorted((built / "chat").glob("*/*.jsonl")):
        rows = load_chats(str(path))
        assert len(rows) == len(path.read_text().splitlines())
        assert all(Path(part["path"]).is_file() for part in media_parts(rows[0].messages))
        assert rows[0].answer and rows[0].task.startswith(path.stem)


def test_every_file_of_the_samples_is_there(corpora, samples) -> None:
    paths = {path for each in samples.values() for _, sample in each for path in media(sample)}
    assert [path for path in paths if not (corpora / path).is_file()] == []


# ---- Draws ----------------------------------------------------------------------------------------------------------


class Fake(CorpusReader):
    """Rows that are given, in train."""

    def __init__(self, **rows):
        self.given = {name.replace("_", "-"): each for name, each in rows.items()}

    def rows(self, corpus, split):
        return [{**row, "path": f"../../{corpus}/{row['file_name']}"} for row in self.given.get(corpus, [])]


def picture_row(number: int, kind: str = "food", **fields) -> dict:
    names = {f"name_{language}": f"{language} {number}" for language in LANGUAGES}
    row = {"file_name": f"train/{number}.png", "concept": f"c{number}", "hand": "noto", "kind": kind}
    return {**row, **names, **fields}


@pytest.mark.parametrize("task", ["caption", "category", "translate"])
def test_draws_depend_on_the_sample_alone(task: str) -> None:
    rows = [picture_row(number) for number in range(9)]
    one = {sample["id"]: sample for sample in TASKS[task](Fake(pictures=rows), "train")}
    other = {sample["id"]: sample for sample in TASKS[task](Fake(pictures=rows[:3:-1]), "train")}
    assert 0 < len(other) < len(one)
    assert other.items() <= one.items()


def test_pictures_without_a_name_are_not_asked_for_it() -> None:
    rows = [picture_row(0, name_zh=None), picture_row(1, name_zh=None), picture_row(2)]
    for task in ("caption", "translate", "named", "which"):
        languages = [s["task"] for s in TASKS[task](Fake(pictures=rows), "train") if "2.png" not in s["id"]]
        assert languages and not [language for language in languages if "zh" in language]


@pytest.mark.parametrize("task", ["named", "which"])
def test_a_single_concept_has_nothing_to_be_told_from(task: str) -> None:
    rows = [picture_row(n, concept="c") for n in range(8)]
    with pytest.raises(ValueError, match=r"There is no other concept beside 'c' to ask about in"):
        list(TASKS[task](Fake(pictures=rows), "train"))


def test_wrong_names_are_often_of_the_same_kind() -> None:
    rows = [picture_row(n, "food" if n < 4 else "flags") for n in range(60)]
    kinds = Counter()
    for sample in TASKS["named"](Fake(pictures=rows), "train"):
        if answer(sample) in {no for _, no in YES_NO.values()} and int(Path(sample["id"]).stem) < 4:
            number = int("".join(c for c in question(sample) if c.isdigit()))
            kinds["food" if number < 4 else "flags"] += 1
    assert kinds["food"] > 0


def test_sounds_whose_picture_was_left_out_are_not_matched() -> None:
    pictures = [picture_row(number) for number in range(3)]
    sounds = [{**row, "file_name": f"train/{n}.flac", "picture": f"train/{n}.png"} for n, row in enumerate(pictures)]
    made = list(TASKS["sound-match"](Fake(pictures=pictures[1:], animal_sounds=sounds), "train"))
    assert len(made) == 4
    assert {Path(path).stem for sample in made for path in media(sample)} == {"1", "2"}


def spoken_row(number: int, language: str, synthetic: bool = True) -> dict:
    row = {"file_name": f"train/{language}-{number}.flac", "concept": f"c{number}", "text": f"{language} {number}"}
    return {**row, "language": language, "voice": "v", "synthetic": synthetic}


def test_a_voice_that_names_only_one_thing_is_not_asked_about() -> None:
    rows = [picture_row(0), picture_row(1)]
    spoken = [spoken_row(0, "fr", False)]
    assert list(TASKS["match"](Fake(pictures=rows, spoken_captions=spoken), "train")) == []
    made = list(TASKS["match"](Fake(pictures=rows, spoken_captions=[*spoken, spoken_row(1, "fr", False)]), "train"))
    assert [sample["task"] for sample in made] == ["match-human/fr"] * 4
    assert [answer(sample) for sample in made] == ["fr 0 – oui", "fr 1 – non", "fr 1 – oui", "fr 0 – non"]


# ---- The same files every time --------------------------------------------------------------------------------------


@pytest.fixture
def copy(built, tmp_path) -> Path:
    """All corpora but the chat samples; files are links, as none is changed."""
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
    shutil.rmtree(copy / "pictures")
    with pytest.raises(FileNotFoundError, match=r"need the corpora pictures, prompts in .*; build them first"):
        build_chats(copy)
    assert not (copy / "chat").exists()
