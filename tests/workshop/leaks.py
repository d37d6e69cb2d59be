"""Find what a held-out split shares with training, in the files of built corpora."""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from scripts.workshop.concepts import normalize_name
from scripts.workshop.corpus import read_description, read_lines, read_rows

BY_CONCEPT = ("images", "spoken-captions")
BY_TRANSCRIPT = ("prompts", "sentences")
CORPORA = (*BY_CONCEPT, *BY_TRANSCRIPT, "photographs")
OTHER_CONCEPTS = ("validation", "test_concepts")


def rows_of(folder: Path, corpus: str, *splits: str) -> list[dict]:
    """Return the rows of some splits, by default of all; a split that a corpus does not have is empty."""
    known = read_description(corpus).splits
    return [row for split in splits or known if split in known for row in read_rows(folder / corpus, split)]


def values(folder: Path, corpus: str, column: str, *splits: str) -> set[str]:
    return {row[column] for row in rows_of(folder, corpus, *splits)}


def texts_of(row: dict) -> set[tuple[str, str]]:
    """Return every name and transcript of a row with its language, normalized by our rule and by letters."""
    texts = [(key.removeprefix("name_"), value) for key, value in row.items() if key.startswith("name_") and value]
    texts += [(row["language"], row["text"])] if "text" in row else []
    return {(language, form(text)) for language, text in texts for form in (normalize_name, letters)}


def letters(text: str) -> str:
    """Return letters and digits without case."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum()) or text


def shared_concepts(folder: Path) -> set[str]:
    """Return concepts that are both in train and held out, in any corpora."""
    train = {row["concept"] for corpus in BY_CONCEPT for row in rows_of(folder, corpus, "train")}
    return train & {row["concept"] for corpus in BY_CONCEPT for row in rows_of(folder, corpus, *OTHER_CONCEPTS)}


def shared_texts(folder: Path, train_corpora: tuple[str, ...], held_out_corpora: tuple[str, ...]) -> set:
    """Return held-out names and transcripts that occur in train."""
    train = {text for corpus in train_corpora for row in rows_of(folder, corpus, "train") for text in texts_of(row)}
    splits = (*OTHER_CONCEPTS, "test_prompts")
    return train & {
        text for corpus in held_out_corpora for row in rows_of(folder, corpus, *splits) for text in texts_of(row)
    }


def shared_files(folder: Path) -> list[list[str]]:
    """Return files of the same content that are in several splits of any corpora."""
    by_digest: dict[str, list[str]] = defaultdict(list)
    for corpus in CORPORA:
        for row in rows_of(folder, corpus):
            data = (folder / corpus / row["file_name"]).read_bytes()
            by_digest[hashlib.sha256(data).hexdigest()].append(f"{corpus}/{row['file_name']}")
    return [names for names in by_digest.values() if len({name.split("/")[1] for name in names}) > 1]


# ---- Chat examples --------------------------------------------------------------------------------------------------


def chats(folder: Path, split: str) -> Iterator[tuple[str, dict]]:
    """Yield the examples of a split, with the names of their files."""
    for path in sorted((folder / "chat" / split).glob("*.jsonl")):
        for example in read_lines(path):
            yield path.stem, example


def media(example: dict) -> list[str]:
    """Return the paths of an example's media from the folder of all corpora."""
    parts = [part for message in example["messages"] for part in message["content"] if part["type"] != "text"]
    assert all(part["path"].startswith("../../") for part in parts)
    return [part["path"].removeprefix("../../") for part in parts]


def question(example: dict) -> str | None:
    """Return the text of the question; a transcript may be asked for without any."""
    return example["messages"][0]["content"][-1].get("text")


def answer(example: dict) -> str:
    return example["messages"][1]["content"][0]["text"]
