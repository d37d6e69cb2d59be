"""Clips that the untrained model hears: the same ones every time, none of a test of transcription, and resumed."""

import sys
from collections import Counter
from pathlib import Path

import pytest
import soundfile

from modeling_mm.utils import write_lines
from scripts.workshop import hear, hearing
from scripts.workshop.corpus import read_description, read_lines
from tests.fakes.processor_parts import make_vit
from tests.fakes.tiny import vit
from tests.fakes.whisper_parts import converted, speech

LIMITS = read_description("chat").settings["heard"]
MANY = 400  # more than any limit


def write_rows(folder: Path, names: dict[tuple[str, str], list[str]]) -> Path:
    """Write lists of files that do not exist, by corpus and split."""
    for (corpus, split), files in names.items():
        write_lines(folder / corpus / split / "metadata.jsonl", [{"file_name": name} for name in files])
    return folder


def all_splits(files: list[str]) -> dict[tuple[str, str], list[str]]:
    return {(corpus, split): files for corpus in LIMITS for split in read_description(corpus).splits}


# ---- Chosen clips ---------------------------------------------------------------------------------------------------


def test_as_many_clips_are_chosen_as_the_description_says(tmp_path):
    names = [f"{number}.flac" for number in range(MANY)]
    chosen = list(hear.chosen_clips(write_rows(tmp_path, all_splits(names))))
    assert len(set(chosen)) == len(chosen)
    expected = {(corpus, split): number for corpus, limits in LIMITS.items() for split, number in limits.items()}
    assert Counter(tuple(Path(name).parts[:2]) for name in chosen) == expected
    assert max(expected.values()) < MANY


def test_no_clip_of_the_test_of_transcripts_is_chosen():
    assert "test_prompts" in read_description("prompts").splits
    assert LIMITS["prompts"].keys() == LIMITS["sentences"].keys() == {"train"}


def test_the_choice_does_not_depend_on_the_order_of_rows(tmp_path):
    names = [f"{number}.flac" for number in range(MANY)]
    one = list(hear.chosen_clips(write_rows(tmp_path / "one", all_splits(names))))
    other = list(hear.chosen_clips(write_rows(tmp_path / "other", all_splits(names[::-1]))))
    assert one == other
    first = [f"spoken-captions/train/{name}" for name in names[: LIMITS["spoken-captions"]["train"]]]
    assert one[: len(first)] != first  # nor are they the first ones


def test_a_longer_list_keeps_most_of_the_choice(tmp_path):
    """A clip that is added takes the place of one at most."""
    names = [f"{number}.flac" for number in range(MANY)]
    before = set(hear.chosen_clips(write_rows(tmp_path / "one", all_splits(names))))
    after = set(hear.chosen_clips(write_rows(tmp_path / "other", all_splits([*names, "new.flac"]))))
    assert len(before - after) <= sum(map(len, LIMITS.values()))


# ---- Heard by a tiny model ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Return the folder of a tiny Whisper, converted, with an image encoder."""
    folder = tmp_path_factory.mktemp("base")
    model, processor = converted()
    model.add_vision(vit()).save_pretrained(folder)
    processor.add_part("image", make_vit()).save_pretrained(folder)
    return folder


@pytest.fixture
def call(base, tmp_path, monkeypatch):
    """Return a function that hears the clips below a folder, in batches of two."""
    monkeypatch.setattr(hearing, "BATCH", 2)
    monkeypatch.setattr(hearing, "MAX_NEW_TOKENS", 8)

    def run(folder: Path) -> dict[str, str]:
        options = ["--base", str(base), "--corpora", str(folder), "--cache", str(tmp_path / "cache")]
        monkeypatch.setattr(sys, "argv", ["hear", *options])
        assert hear.main() == 0
        return {row["file_name"]: row["heard"] for row in read_lines(folder / hear.HEARD_FILE)}

    return run


def write_clips(folder: Path) -> Path:
    """Write two sentences and three prompts, and a prompt of the test."""
    files = {("sentences", "train"): ["a.flac", "b.flac"], ("prompts", "train"): ["c.flac", "d.flac", "e.flac"]}
    files |= {("prompts", "test_prompts"): ["x.flac"]}
    write_rows(folder, all_splits([]) | files)
    for number, (place, names) in enumerate(files.items()):
        for name in names:
            samples = speech(seed=10 * number + ord(name[0]))
            soundfile.write(folder.joinpath(*place, name), samples, 16_000)
    return folder


CLIPS = ["prompts/train/c.flac", "prompts/train/d.flac", "prompts/train/e.flac"]
CLIPS += ["sentences/train/a.flac", "sentences/train/b.flac"]


def test_chosen_clips_are_heard_and_listed_by_name(call, tmp_path, capsys):
    heard = call(write_clips(tmp_path / "corpora"))
    assert list(heard) == CLIPS
    assert all(text == text.strip() for text in heard.values()) and len(set(heard.values())) > 1
    assert "heard.jsonl: 5 clips" in capsys.readouterr().out


def test_an_interrupted_run_resumes(call, tmp_path, monkeypatch):
    """Each batch is written; what is known is not heard again."""
    expected = call(write_clips(tmp_path / "whole"))
    folder, write, calls = write_clips(tmp_path / "resumed"), hearing.write_lines, []

    def write_or_stop(path, rows):
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(path, rows)

    with monkeypatch.context() as patch:
        patch.setattr(hearing, "write_lines", write_or_stop)
        with pytest.raises(KeyboardInterrupt):
            call(folder)
    partial = read_lines(folder / hear.HEARD_FILE)
    assert calls == [2, 4, 5] and len(partial) == 4
    assert all(row["heard"] == expected[row["file_name"]] for row in partial)
    write_lines(folder / hear.HEARD_FILE, [{**row, "heard": "known"} for row in partial])
    known = {row["file_name"] for row in partial}
    assert call(folder) == {name: "known" if name in known else text for name, text in expected.items()}
    monkeypatch.setattr(hearing, "hear", lambda *_: pytest.fail("heard again"))
    call(folder)
