# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Compare stores of an index on clustered embeddings: ours, Milvus, LanceDB, and plain searches by NumPy and FAISS.

    python scripts/search/compare_stores.py --rows 100000

Each store is built, queried with and without a condition that leaves 1% of the rows, queried again after deletes, and
killed while it is written to. Recall is that of the ten nearest rows, against NumPy. LanceDB and FAISS are not among
the package's extras: pip install lancedb faiss-cpu.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling_mm.utils import quiet_libraries

if TYPE_CHECKING:
    import numpy as np

TOP = 10
SHARE = 0.01  # of the rows that meet the condition
BATCH = 10_000  # rows that are written at a time
CRASH_BATCH = 1000
STORES = ("exact", "milvus", "lancedb", "lancedb IVF_PQ", "lancedb IVF_HNSW_SQ", "numpy", "faiss")
DURABLE = ("exact", "milvus", "lancedb")  # those that are killed while they are written to


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="(default: %(default)s)")
    parser.add_argument("--size", type=int, default=384, help="of an embedding (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--stores", nargs="+", choices=STORES, default=STORES, help="(default: all)")
    parser.add_argument("--crash", nargs=2, metavar=("STORE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet_libraries()
    if options.crash:
        name, place = options.crash
        write_until_killed(name, place, options.size)
    table = []
    for name in options.stores:
        with tempfile.TemporaryDirectory() as folder:
            table.append(compare(name, Path(folder), options))
            print(f"{name}: done", file=sys.stderr, flush=True)
    print_table(table, options)


# ---- Data -----------------------------------------------------------------------------------------------------------


def draw(rows: int, size: int, seed: int = 0) -> "np.ndarray":
    """Return embeddings (rows, size) of unit length around a hundredth as many centers."""
    import numpy as np

    generator = np.random.default_rng(seed)
    centers = np.random.default_rng(1).normal(size=(max(1, rows // 100), size)).astype(np.float32)
    drawn = centers[generator.integers(0, len(centers), rows)]
    drawn = drawn + 0.7 * generator.standard_normal((rows, size), dtype=np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def nearest(vectors: "np.ndarray", queries: "np.ndarray", allowed: "np.ndarray") -> list[set[int]]:
    """Return the nearest allowed rows of each query, by NumPy."""
    import numpy as np

    found = []
    for query in queries:
        scores = np.where(allowed, vectors @ query, -np.inf)
        best = np.argpartition(-scores, TOP)[:TOP]
        found.append({int(row) for row in best if scores[row] > -np.inf})
    return found


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

    def add(self, first: int, vectors: "np.ndarray") -> None:
        from modeling_mm.search import Row, to_table

        rows = range(first, first + len(vectors))
        table = to_table([Row(str(n), "text", "", {}, "", "", {"number": n}) for n in rows], self.columns)
        self.store.upsert(table, vectors)

    def finish(self) -> None:
        self.store.tidy()

    def search(self, query: "np.ndarray", below: int | None) -> set[int]:
        from modeling_mm.search import Condition

        conditions = [] if below is None else [Condition("number", "<", below)]
        return {int(hit.row.id) for hit in self.store.search(query, TOP, conditions)}

    def delete(self, rows: range) -> None:
        self.store.delete(list(map(str, rows)))
        self.store.tidy()

    def ids(self) -> list[int]:
        return list(map(int, self.store.signatures()))

    def close(self) -> None:
        self.store.close()


class LanceStore:
    """A table of LanceDB, without an index or with one."""

    def __init__(self, folder: Path, size: int, name: str):
        import lancedb
        import pyarrow as pa

        self.index_type = name.partition(" ")[2]
        fields = [pa.field("id", pa.string()), pa.field("number", pa.int64())]
        self.schema = pa.schema([*fields, pa.field("vector", pa.list_(pa.float32(), size))])
        self.table = lancedb.connect(folder).create_table("rows", schema=self.schema, exist_ok=True)

    def add(self, first: int, vectors: "np.ndarray") -> None:
        import pyarrow as pa

        numbers = list(range(first, first + len(vectors)))
        flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        rows = pa.table([pa.array(list(map(str, numbers))), pa.array(numbers), flat], schema=self.schema)
        self.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def finish(self) -> None:
        if self.index_type:
            self.table.create_index(metric="dot", index_type=self.index_type)
        self.table.optimize()

    def search(self, query: "np.ndarray", below: int | None) -> set[int]:
        found = self.table.search(query).distance_type("dot").limit(TOP)
        if below is not None:
            found = found.where(f"number < {below}", prefilter=True)
        return {int(row["id"]) for row in found.select(["id", "_distance"]).to_list()}

    def delete(self, rows: range) -> None:
        self.table.delete(f"number >= {rows.start} AND number < {rows.stop}")
        self.table.optimize()

    def ids(self) -> list[int]:
        return [int(name) for name in self.table.to_arrow()["id"].to_pylist()]

    def close(self) -> None:
        pass


class PlainSearch:
    """Embeddings in memory, searched by NumPy or by FAISS; without conditions and deletes in FAISS."""

    def __init__(self, folder: Path, size: int, name: str):
        self.name, self.size = name, size
        self.parts: list[Any] = []

    def add(self, first: int, vectors: "np.ndarray") -> None:
        self.parts.append(vectors)

    def finish(self) -> None:
        import numpy as np

        self.vectors = np.concatenate(self.parts)
        self.live = np.ones(len(self.vectors), dtype=bool)
        if self.name == "faiss":
            import faiss

            self.index = faiss.IndexFlatIP(self.size)
            self.index.add(self.vectors)

    def search(self, query: "np.ndarray", below: int | None) -> set[int] | None:
        """Return the rows that are nearest, `None` from FAISS for a condition or behind deletes, which it has not."""
        import numpy as np

        if self.name == "faiss":
            if below is not None or not self.live.all():
                return None
            return set(map(int, self.index.search(query[None], TOP)[1][0]))
        allowed = self.live if below is None else self.live & (np.arange(len(self.vectors)) < below)
        return nearest(self.vectors, query[None], allowed)[0]

    def delete(self, rows: range) -> None:
        self.live[rows.start : rows.stop] = False

    def close(self) -> None:
        pass


def open_store(name: str, folder: Path, size: int) -> Any:
    kinds = {"exact": OurStore, "milvus": OurStore, "numpy": PlainSearch, "faiss": PlainSearch}
    return kinds.get(name, LanceStore)(folder, size, name)


# ---- Measures -------------------------------------------------------------------------------------------------------


def compare(name: str, folder: Path, options: argparse.Namespace) -> list[str]:
    """Return the figures of a store as cells."""
    import numpy as np

    vectors = draw(options.rows, options.size)
    queries = draw(options.queries, options.size, seed=2)
    store = open_store(name, folder, options.size)
    start = time.perf_counter()
    for first in range(0, options.rows, BATCH):
        store.add(first, vectors[first : first + BATCH])
    store.finish()
    cells = [name, f"{time.perf_counter() - start:.1f}", size_of(folder)]
    below, everything = round(SHARE * options.rows), np.ones(options.rows, dtype=bool)
    numbers = np.arange(options.rows)
    cells += query_cells(store, vectors, queries, everything, None)
    cells += query_cells(store, vectors, queries, numbers < below, below)
    kept = round(0.9 * options.rows)
    start = time.perf_counter()
    store.delete(range(kept))
    cells.append(f"{time.perf_counter() - start:.1f}")
    cells += query_cells(store, vectors, queries, numbers >= kept, None)
    store.close()
    return [*cells, crash(name, options.size) if name in DURABLE else "-"]


def query_cells(
    store: Any, vectors: "np.ndarray", queries: "np.ndarray", allowed: "np.ndarray", below: int | None
) -> list[str]:
    """Return the median milliseconds of a query and the recall of its hits."""
    expected, times, recalls = nearest(vectors, queries, allowed), [], []
    for query, best in zip(queries, expected, strict=True):
        start = time.perf_counter()
        if (found := store.search(query, below)) is None:
            return ["-", "-"]
        times.append(time.perf_counter() - start)
        recalls.append(len(found & best) / len(best))
    return [f"{1000 * statistics.median(times):.2f}", f"{statistics.mean(recalls):.3f}"]


def size_of(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 2**20:.0f}"


# ---- Crash ----------------------------------------------------------------------------------------------------------


def crash(name: str, size: int) -> str:
    """Kill a process that writes to a store, open what it has left, and compare it with what was confirmed."""
    folder = Path(tempfile.mkdtemp())
    command = [sys.executable, __file__, "--crash", name, str(folder), "--size", str(size)]
    confirmed = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            confirmed = int(line)
            if confirmed >= 5 * CRASH_BATCH:
                time.sleep(0.05)  # into the next batch
                process.kill()
        process.wait()
    try:
        store = open_store(name, folder, size)
        found = store.ids()
        lost = len(set(range(confirmed)) - set(found))
        doubled = len(found) - len(set(found))
        store.close()
        return f"{lost} of {confirmed} confirmed rows lost, {doubled} twice"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_until_killed(name: str, folder: str, size: int) -> None:
    store = open_store(name, Path(folder), size)
    for first in numbers_from(CRASH_BATCH):
        store.add(first, draw(CRASH_BATCH, size, seed=first))
        print(first + CRASH_BATCH, flush=True)


def numbers_from(step: int) -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += step


def print_table(table: list[list[str]], options: argparse.Namespace) -> None:
    from modeling_mm.utils import markdown_table

    header = ["store", "build s", "MB", "query ms", "recall", "1% ms", "1% recall"]
    header += ["delete 90% s", "then ms", "then recall", "killed while it writes"]
    print(f"{options.rows} rows of {options.size}, {options.queries} queries for {TOP} rows, one after the other\n")
    print(markdown_table(header, table))


if __name__ == "__main__":
    main()
