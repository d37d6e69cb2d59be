# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Compare stores of an index on clustered embeddings: ours, LanceDB, and plain searches by NumPy, torch and FAISS.

    pip install lancedb faiss-cpu    # not among the package's extras
    python scripts/search/compare_stores.py --rows 100000 --json scripts/results/stores-100k.json

Each store is built by upserts, closed and opened again. Then all stores answer the same queries in turn: without a
condition, with one that 1% of the rows meet, and after 90% of the rows have been deleted by id. Recall is that of the
ten nearest rows, against NumPy. A second process of each store on disk is killed by SIGKILL while it builds, and the
build resumes in what it has left.

The table has the time that this process and its threads have spent on a core, medians for queries, so that other work
of the machine does not count; the file has the time of a clock beside it (`_wall`).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling_mm.utils import markdown_table, quiet_libraries, write_text

if TYPE_CHECKING:
    import numpy as np

TOP = 10
SHARE = 0.01  # of the rows that meet the condition
KEPT = 0.1  # of the rows that are not deleted
STRIDE = 7919  # a prime: the numbers of neighboring rows are far apart
BATCH = 10_000  # rows that are written at a time
CRASH_BATCH, CRASH_ROWS = 1000, 6000
STORES = ("exact", "milvus", "lancedb", "lancedb IVF_PQ", "lancedb IVF_HNSW_SQ", "numpy", "torch", "faiss")
ON_DISK = ("exact", "milvus", "lancedb")
LIBRARIES = ("numpy", "torch", "pyarrow", "faiss-cpu", "milvus-lite", "pymilvus", "lancedb")
COLUMNS = {
    "build_s": ("build s", "{:.1f}"),
    "mebibytes": ("MiB", "{:.0f}"),
    "open_s": ("open s", "{:.2f}"),
    "query_ms": ("query ms", "{:.1f}"),
    "queries_per_second": ("queries/s", "{:.1f}"),
    "recall": ("recall", "{:.3f}"),
    "filtered_ms": ("1% ms", "{:.1f}"),
    "filtered_recall": ("1% recall", "{:.3f}"),
    "delete_s": ("delete 90% s", "{:.1f}"),
    "deleted_ms": ("then ms", "{:.1f}"),
    "deleted_recall": ("then recall", "{:.3f}"),
    "crash": ("killed, then resumed", "{}"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="(default: %(default)s)")
    parser.add_argument("--size", type=int, default=384, help="of an embedding (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--stores", nargs="+", choices=STORES, default=STORES, help="(default: all)")
    parser.add_argument("--cores", type=int, default=1, help="that this process may use (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures here too")
    parser.add_argument("--crash", nargs=2, metavar=("STORE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet_libraries()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    if options.crash:
        write_rows(open_store(options.crash[0], Path(options.crash[1]), options.size), 0, options.size)
        return
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        figures = compare(Path(folder), options)
    values = {
        "rows": options.rows,
        "size": options.size,
        "queries": options.queries,
        "cores": options.cores,
        "load_average": [round(load, 1) for load in (*before, *os.getloadavg())],  # of 1, 5 and 15 minutes
        "versions": {each.name: each.version for each in distributions() if each.name in LIBRARIES},
        "stores": figures,
    }
    if options.json:
        write_text(Path(options.json), json.dumps(values, indent=1) + "\n")
    print(report(values))


def report(values: dict[str, Any]) -> str:
    """Return the figures as a table in Markdown."""
    cells = [
        [name, *(form.format(figures[key]) if key in figures else "-" for key, (_, form) in COLUMNS.items())]
        for name, figures in values["stores"].items()
    ]
    table = markdown_table(["store", *(title for title, _ in COLUMNS.values())], cells)
    before, after = values["load_average"][0], values["load_average"][3]
    return (
        f"{values['rows']} rows of {values['size']}, {values['queries']} queries for {TOP} rows, one at a time, on "
        f"{values['cores']} core(s), load average {before} to {after}\n\n{table}"
    )


# ---- Data -----------------------------------------------------------------------------------------------------------


def draw(rows: int, size: int, seed: int = 0, centers: int = 1000) -> "np.ndarray":
    """Return embeddings (rows, size) of unit length around centers."""
    import numpy as np

    generator = np.random.default_rng(seed)
    middles = np.random.default_rng(1).normal(size=(centers, size)).astype(np.float32)
    drawn = generator.standard_normal((rows, size), dtype=np.float32)
    drawn *= 0.7
    drawn += middles[generator.integers(0, centers, rows)]
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn


def numbers_of(rows: int) -> "np.ndarray":
    """Return the values of the column of conditions, each from 0 to the number of rows once, in no order."""
    import numpy as np

    return np.arange(rows, dtype=np.int64) * STRIDE % rows


def nearest(vectors: "np.ndarray", query: "np.ndarray", allowed: "np.ndarray | None") -> set[int]:
    """Return the nearest allowed rows of a query, by NumPy."""
    import numpy as np

    scores = vectors @ query if allowed is None else np.where(allowed, vectors @ query, -np.inf)
    best = np.argpartition(-scores, TOP)[:TOP]
    return {int(row) for row in best if scores[row] > -np.inf}


# ---- Stores ---------------------------------------------------------------------------------------------------------


class OurStore:
    """A store of the package."""

    def __init__(self, folder: Path, size: int, name: str):
        from modeling_mm.search import ExactStore, MilvusStore

        self.columns = {"number": "int"}
        if name == "exact":
            self.store: Any = ExactStore(folder / "rows", size, self.columns)
        else:
            self.store = MilvusStore(folder / "milvus.db", size, self.columns)

    def add(self, first: int, vectors: "np.ndarray", numbers: "np.ndarray") -> None:
        from modeling_mm.search import Row, to_table

        rows = [Row(str(first + i), "text", "", {}, "", "", {"number": int(n)}) for i, n in enumerate(numbers)]
        self.store.upsert(to_table(rows, self.columns), vectors)

    def finish(self) -> None:
        self.store.tidy()

    def search(self, query: "np.ndarray", below: int | None) -> set[int]:
        from modeling_mm.search import Condition

        conditions = [] if below is None else [Condition("number", "<", below)]
        return {int(hit.row.id) for hit in self.store.search(query, TOP, conditions)}

    def delete(self, rows: "np.ndarray") -> None:
        self.store.delete([str(row) for row in rows])
        self.store.tidy()

    def ids(self) -> list[int]:
        return list(map(int, self.store.signatures()))

    def close(self) -> None:
        self.store.close()


class LanceStore:
    """A table of LanceDB with a row's values, without an index of the embeddings or with one."""

    def __init__(self, folder: Path, size: int, name: str):
        import lancedb
        import pyarrow as pa

        self.index_type = name.partition(" ")[2]
        texts = [pa.field(each, pa.string()) for each in ("id", "kind", "text", "media", "source", "signature")]
        self.schema = pa.schema(
            [*texts, pa.field("number", pa.int64()), pa.field("vector", pa.list_(pa.float32(), size))]
        )
        self.table = lancedb.connect(folder).create_table("rows", schema=self.schema, exist_ok=True)

    def add(self, first: int, vectors: "np.ndarray", numbers: "np.ndarray") -> None:
        import pyarrow as pa

        flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        ids = pa.array([str(first + i) for i in range(len(vectors))])
        empty = [pa.array([""] * len(vectors))] * 5
        rows = pa.table([ids, *empty, pa.array(numbers), flat], schema=self.schema)
        self.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def finish(self) -> None:
        if self.index_type:
            from lancedb.index import HnswSq, IvfPq

            kind = {"IVF_PQ": IvfPq, "IVF_HNSW_SQ": HnswSq}[self.index_type]
            self.table.create_index("vector", config=kind(distance_type="dot"))
        self.table.optimize()

    def search(self, query: "np.ndarray", below: int | None) -> set[int]:
        found = self.table.search(query).distance_type("dot").limit(TOP)
        if below is not None:
            found = found.where(f"number < {below}", prefilter=True)
        return {int(row["id"]) for row in found.to_list()}

    def delete(self, rows: "np.ndarray") -> None:
        for start in range(0, len(rows), BATCH):
            listed = ", ".join(f"'{row}'" for row in rows[start : start + BATCH])
            self.table.delete(f"id IN ({listed})")
        self.table.optimize()

    def ids(self) -> list[int]:
        return [int(name) for name in self.table.to_arrow()["id"].to_pylist()]

    def close(self) -> None:
        """Leave the table, which needs no closing."""


class PlainSearch:
    """Embeddings in memory without ids: NumPy and torch with a mask of rows, FAISS without conditions and deletes."""

    def __init__(self, folder: Path, size: int, name: str):
        self.name, self.size = name, size
        self.parts: list[Any] = []

    def add(self, first: int, vectors: "np.ndarray", numbers: "np.ndarray") -> None:
        self.parts.append((vectors, numbers))

    def finish(self) -> None:
        import numpy as np

        self.vectors, self.numbers = (np.concatenate(each) for each in zip(*self.parts, strict=True))
        self.live: Any = None
        self.parts = []
        if self.name == "faiss":
            import faiss

            self.index = faiss.IndexFlatIP(self.size)
            self.index.add(self.vectors)
            del self.vectors

    def search(self, query: "np.ndarray", below: int | None) -> set[int] | None:
        """Return the rows that are nearest; `None` from FAISS for a condition or behind deletes, which it has not."""
        import numpy as np

        allowed = self.live if below is None else self.numbers < below
        if self.name == "numpy":
            return nearest(self.vectors, query, allowed)
        if self.name == "faiss":
            return None if allowed is not None else set(map(int, self.index.search(query[None], TOP)[1][0]))
        import torch

        scores = torch.from_numpy(self.vectors) @ torch.from_numpy(query)
        scores = scores if allowed is None else scores.masked_fill(torch.from_numpy(~allowed), -np.inf)
        return set(scores.topk(TOP).indices.tolist())

    def delete(self, rows: "np.ndarray") -> None:
        import numpy as np

        self.live = np.ones(len(self.numbers), dtype=bool)
        self.live[rows] = False


def open_store(name: str, folder: Path, size: int) -> Any:
    kinds = {"exact": OurStore, "milvus": OurStore, "numpy": PlainSearch, "torch": PlainSearch, "faiss": PlainSearch}
    return kinds.get(name, LanceStore)(folder, size, name)


# ---- Measures -------------------------------------------------------------------------------------------------------


def compare(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the figures of each store."""
    vectors, numbers = draw(options.rows, options.size), numbers_of(options.rows)
    queries = draw(options.queries, options.size, seed=2)
    below, kept = round(SHARE * options.rows), numbers < round(KEPT * options.rows)
    figures: dict[str, dict[str, Any]] = {name: {} for name in options.stores}
    stores = {name: build(name, folder / name, vectors, numbers, figures[name]) for name in options.stores}
    for title, allowed, limit in (
        ("query", None, None),
        ("filtered", numbers < below, below),
        ("deleted", kept, None),
    ):
        if title == "deleted":
            for name, store in stores.items():
                _, core, wall = timed(partial(store.delete, (~kept).nonzero()[0]))
                figures[name] |= {"delete_s": core, "delete_wall": wall}
                note(f"{name}: rows deleted")
        ask(stores, queries, [nearest(vectors, query, allowed) for query in queries], limit, title, figures)
        note(f"{title}: asked")
    for name in stores:
        figures[name]["recall"] = figures[name].pop("query_recall")
        figures[name]["queries_per_second"] = 1000 / figures[name]["query_ms"]
        if name in ON_DISK:
            stores[name].close()
            figures[name]["crash"] = crash(name, options.size, options.cores)
    return figures


def build(name: str, folder: Path, vectors: "np.ndarray", numbers: "np.ndarray", figures: dict[str, Any]) -> Any:
    """Build a store and, if it is on disk, open it again; a small one first, which loads what its library needs."""
    if name in ON_DISK:
        with tempfile.TemporaryDirectory() as place:
            small = open_store(name, Path(place), vectors.shape[1])
            small.add(0, vectors[:TOP], numbers[:TOP])
            small.search(vectors[0], None)
            small.close()
    store = open_store(name, folder, vectors.shape[1])

    def fill() -> None:
        for first in range(0, len(vectors), BATCH):
            store.add(first, vectors[first : first + BATCH], numbers[first : first + BATCH])
        store.finish()

    _, figures["build_s"], figures["build_wall"] = timed(fill)
    note(f"{name}: built")
    if isinstance(store, PlainSearch):
        return store
    store.close()
    figures["mebibytes"] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20

    def reopen() -> Any:
        opened = open_store(name, folder, vectors.shape[1])
        opened.search(vectors[0], None)
        return opened

    store, figures["open_s"], figures["open_wall"] = timed(reopen)
    return store


def ask(
    stores: dict[str, Any],
    queries: "np.ndarray",
    expected: Sequence[set[int]],
    below: int | None,
    title: str,
    figures: dict[str, dict[str, Any]],
) -> None:
    """Ask all stores each query in turn; note the median milliseconds and the recall."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in stores}
    recalls: dict[str, list[float]] = {name: [] for name in stores}
    for query, best in zip(queries, expected, strict=True):
        for name, store in stores.items():
            found, core, wall = timed(partial(store.search, query, below))
            if found is not None:
                times[name].append((core, wall))
                recalls[name].append(len(found & best) / len(best))
    for name in stores:
        if times[name]:
            core, wall = (1000 * statistics.median(each) for each in zip(*times[name], strict=True))
            figures[name] |= {f"{title}_ms": core, f"{title}_wall": wall}
            figures[name][f"{title}_recall"] = statistics.mean(recalls[name])


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return the result of a call, the seconds of a core, and those of a clock."""
    wall, core = time.perf_counter(), time.process_time()
    return work(), time.process_time() - core, time.perf_counter() - wall


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---- Crash ----------------------------------------------------------------------------------------------------------


def crash(name: str, size: int, cores: int) -> str:
    """Kill a process that builds a store, resume in this one, and compare the rows with those of a whole build."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--crash", name, folder, "--size", str(size), "--cores", str(cores)]
        confirmed = 0
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                confirmed = int(line)
                if confirmed >= CRASH_ROWS // 2:
                    time.sleep(0.05)  # into the next batch
                    process.kill()
        store = open_store(name, Path(folder), size)
        lost = len(set(range(confirmed)) - set(store.ids()))
        write_rows(store, confirmed, size, is_shown=False)
        store.finish()
        ids = store.ids()
        vectors = np.concatenate([draw(CRASH_BATCH, size, first) for first in range(0, CRASH_ROWS, CRASH_BATCH)])
        queries = draw(20, size, seed=3)
        recall = statistics.mean(
            len(store.search(each, None) & nearest(vectors, each, None)) / TOP for each in queries
        )
        store.close()
    rows = "all rows once" if sorted(ids) == list(range(CRASH_ROWS)) else f"{len(ids)} rows of {len(set(ids))} ids"
    return f"{lost} of {confirmed} confirmed rows lost; then {rows}, recall {recall:.3f}"


def write_rows(store: Any, first: int, size: int, is_shown: bool = True) -> None:
    """Write rows from an index on; print the number of those that are stored for good."""
    import numpy as np

    for start in range(first, CRASH_ROWS, CRASH_BATCH):
        store.add(start, draw(CRASH_BATCH, size, seed=start), np.arange(start, start + CRASH_BATCH))
        if is_shown:
            print(start + CRASH_BATCH, flush=True)


if __name__ == "__main__":
    main()
