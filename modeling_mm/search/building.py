# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Builds of an index from a folder or dataset: what is new is embedded, what has changed again, what is gone is deleted.

Embeddings go into part files first, each whole or not at all, and from there into the store. An interrupted build
resumes from these files. Several processes embed a share each; the first one alone opens the store, as an embedded
database has room for one process.
"""

import shutil
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ..utils.files import remove_half_files, write_lines
from ..utils.progress import show_progress
from .embedding import Embedder
from .index import check_model, open_manifest_store
from .items import ItemSource, open_items
from .locking import LOCK, locked
from .manifest import MANIFEST, PARTS, Manifest, read_manifest
from .processes import Processes
from .segments import list_segments, merged, remove_segment
from .share import BuildReport, Outcome, Plan, embed_share
from .stores import EXACT, STORES, Store, default_store

STORED_ROWS = 1 << 16  # rows that are stored at a time
SKIPPED = "skipped.jsonl"


def build_index(
    source: str | Path,
    folder: str | Path,
    embedder: Embedder,
    *,
    store: str | None = None,
    index_type: str | None = None,
    split: str = "train",
    name: str | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> BuildReport:
    """
    Build an index, resume an interrupted build, or bring an index up to date with its source.

    Rows of other sources stay. Items without content and files that cannot be read are skipped, reported and listed in
    `skipped.jsonl`. Under `accelerate launch` each process embeds a share of the items.

    Args:
        source, split, name, limit: of [`open_items`]. With a limit nothing is deleted.
        folder: of the index
        embedder: the model
        store: `exact`, `milvus`, or the address of a Milvus server; of a new index by default Milvus if it is
            installed
        index_type: of Milvus
        batch_size: items that are embedded at a time
        progress: show it

    Raises:
        FileNotFoundError: if the source does not exist.
        ValueError: for an index of another model, store or kind of metadata, for one that another process changes, and
            if no item has content.

    Example:
        >>> print(build_index("photos", "my-index", embedder))
        120 rows: 120 added, 0 updated, 0 unchanged, 0 deleted.
    """
    folder, processes = Path(folder), Processes()
    items = open_items(source, split, limit, name)
    opened: list[Store] = []
    with ExitStack() as held:

        def prepare() -> Plan:
            check_folder(folder)
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder))
            manifest = find_manifest(folder, embedder, store) or new_manifest(items, embedder, store, index_type)
            opened.append(open_manifest_store(folder, manifest))
            held.callback(opened[0].close)
            manifest.write(folder)
            remove_half_files(folder)
            store_parts(folder, opened[0], progress)
            return Plan(manifest, opened[0].signatures())

        plan = processes.from_main(prepare)
        shares = processes.gather(embed_share(items, folder, embedder, plan, processes, batch_size, progress))
        return processes.from_main(lambda: finish(items, folder, opened[0], plan, shares, progress))


def check_folder(folder: Path) -> None:
    """Raise a ValueError if a folder holds something else than an index."""
    if not folder.is_dir() or (folder / MANIFEST).is_file():
        return
    if others := sorted(each.name for each in folder.iterdir() if each.name != LOCK):
        raise ValueError(f"{folder} holds {others[0]} and no index. Choose a new folder.")


def find_manifest(folder: Path, embedder: Embedder, store: str | None) -> Manifest | None:
    """Return the description of an index, None for an empty folder; raise a ValueError if it does not fit."""
    if not (folder / MANIFEST).is_file():
        return None
    manifest = read_manifest(folder)
    check_model(folder, manifest, embedder)
    if store not in (None, manifest.store):
        raise ValueError(f"{folder} is kept in the store {manifest.store!r}, not {store!r}. Choose a new folder.")
    return manifest


def new_manifest(items: ItemSource, embedder: Embedder, store: str | None, index_type: str | None) -> Manifest:
    model, store = embedder.model.name_or_path, store or default_store()
    if store not in STORES and "://" not in store:
        raise ValueError(
            f"--store {store}: expected {' or '.join(STORES)}, or the address of a Milvus server, such as "
            "http://localhost:19530."
        )
    if store == EXACT and index_type is not None:
        raise ValueError(f"--index-type {index_type}: it is for a store in Milvus; the exact store has no such types.")
    return Manifest(
        store=store,
        collection=f"mm_{uuid.uuid4().hex}",  # a server may hold many
        index_type=index_type,
        dimension=embedder.dimension,
        model=str(Path(model).resolve()) if Path(model).is_dir() else model,
        fingerprint=embedder.fingerprint,
        columns=dict(items.columns),
    )


def store_parts(folder: Path, store: Store, progress: bool) -> None:
    """Move the rows of part files into the store. A part is removed when its rows are there for good."""
    paths = list_segments(folder / PARTS)
    with show_progress(total=len(paths), desc="storing parts", disable=not progress or not paths) as bar:
        for taken, table, vectors in merged(paths, STORED_ROWS):
            store.upsert(table, vectors)
            for path in taken:
                remove_segment(path)
            bar.update(len(taken))


def finish(
    items: ItemSource,
    folder: Path,
    store: Store,
    plan: Plan,
    shares: Sequence[Outcome],
    progress: bool,
) -> BuildReport:
    """Store what all processes have embedded, delete what is gone, and mark the index as complete."""
    report = count_outcomes(items, shares)
    seen: set[str] = set().union(*(share.rows for share in shares))
    store_parts(folder, store, progress)
    if items.is_whole:
        gone = [name for name, (source, _) in plan.known.items() if source == items.name and name not in seen]
        report.deleted = store.delete(gone) if gone else 0
    store.tidy()
    write_lines(folder / SKIPPED, [vars(each) for each in report.skipped])
    report.rows = len(store)
    if not report.rows:
        reason = report.skipped[0].reason if report.skipped else "all of its rows were deleted"
        raise ValueError(f"{items.name}: the index is empty. {reason}")
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    replace(plan.manifest, is_complete=True).write(folder)
    return report


def count_outcomes(items: ItemSource, shares: Sequence[Outcome]) -> BuildReport:
    """Return the report of all shares. A row that several processes have embedded counts once, else as a duplicate."""
    rows: dict[str, str] = {}
    for share in shares:
        rows |= share.rows
    counts = Counter(rows.values())
    doubled = sum(len(share.rows) for share in shares) - len(rows)
    return BuildReport(
        added=counts["added"],
        updated=counts["updated"],
        unchanged=counts["unchanged"],
        duplicates=doubled + sum(share.duplicates for share in shares),
        skipped=[each for share in shares for each in share.skipped],
        left_out=items.left_out,
    )
