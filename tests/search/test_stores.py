"""exact.py and milvus.py: the same rows and the same hits, whatever is changed, across processes and interruptions."""

import contextlib
import fcntl
import socket
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest

from modeling_mm.search import ExactStore, MilvusStore, Row, default_store, parse_conditions, to_table
from modeling_mm.search import exact as exact_module
from modeling_mm.search import segments as segments_module
from modeling_mm.search import stores as stores_module
from modeling_mm.search.milvus import check_index_type
from modeling_mm.search.stores import check_vectors
from modeling_mm.utils import write_bytes
from tests.search.conftest import SIZE, STORES, needs_milvus

COLUMNS = {"number": "int", "share": "float", "name": "str", "is_odd": "bool"}
NAMES = ('a "b"', "c \\ d", "é, ü", "it's")


def vectors(count: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(count, SIZE)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def row(number: int, text: str = "") -> Row:
    """Every third row has no values."""
    values = {"number": number, "share": number / 2, "name": NAMES[number % 4], "is_odd": number % 2 == 1}
    metadata = dict.fromkeys(COLUMNS) if number % 3 == 2 else values
    return Row(f'row "{number}"', "image", text, {"image": [f"/{number}.png"]}, "files", f"s{number}", metadata)


def open_store(kind: str, folder):
    made = folder / "rows"
    return ExactStore(made, SIZE, COLUMNS) if kind == "exact" else MilvusStore(folder / "milvus.db", SIZE, COLUMNS)


@pytest.fixture(params=STORES)
def kind(request):
    return request.param


@pytest.fixture
def store(kind, tmp_path):
    made = open_store(kind, tmp_path)
    made.upsert(to_table([row(number) for number in range(40)], COLUMNS), vectors(40))
    yield made
    made.close()


def expected(query, rows, top: int) -> list[str]:
    """Ids of the best rows, by NumPy."""
    scores = {row.id: float(vector @ query) for row, vector in rows}
    return sorted(scores, key=lambda name: -scores[name])[:top]


def ids_of(hits) -> list[str]:
    return [hit.row.id for hit in hits]


def test_hits_are_the_nearest_rows_with_all_their_values(store):
    rows, query = [(row(number), vectors(40)[number]) for number in range(40)], vectors(1, seed=5)[0]
    hits = store.search(query, 7)
    assert ids_of(hits) == expected(query, rows, 7)
    by_id = {each.id: (each, vector) for each, vector in rows}
    for hit in hits:
        assert hit.row == by_id[hit.row.id][0]
        assert hit.score == pytest.approx(float(by_id[hit.row.id][1] @ query), abs=1e-5)
    assert len(store.search(query, 100)) == len(store) == 40


def test_a_query_of_any_length_is_compared_by_its_inner_product(store):
    query = 3 * vectors(1, seed=6)[0]
    assert store.search(query, 1)[0].score == pytest.approx(float((vectors(40) @ query).max()), abs=1e-5)


CONDITIONS = {
    "number >= 20": lambda values: values["number"] >= 20,
    "number != 3": lambda values: values["number"] != 3,
    "number in 1, 3, 5": lambda values: values["number"] in (1, 3, 5),
    "share < 4.5": lambda values: values["share"] < 4.5,
    "is_odd = true": lambda values: values["is_odd"],
    "is_odd != true": lambda values: not values["is_odd"],
}
CONDITIONS |= {f"name = {name}": partial(lambda name, values: values["name"] == name, name) for name in NAMES}


@pytest.mark.parametrize("text", CONDITIONS)
def test_conditions_select_rows_and_one_without_a_value_meets_none(store, text):
    rows = [(row(number), vectors(40)[number]) for number in range(40) if number % 3 != 2]
    rows = [each for each in rows if CONDITIONS[text](each[0].metadata)]
    query = vectors(1, seed=7)[0]
    hits = store.search(query, 40, parse_conditions([text], COLUMNS))
    assert ids_of(hits) == expected(query, rows, 40) and hits


def test_conditions_join(store):
    found = store.search(
        vectors(1)[0], 40, parse_conditions(["number >= 20", "is_odd = true", "kind = image"], COLUMNS)
    )
    assert {hit.row.metadata["number"] for hit in found} == {21, 25, 27, 31, 33, 37, 39}
    assert store.search(vectors(1)[0], 40, parse_conditions(["kind = audio"], COLUMNS)) == []


def test_a_row_with_a_known_id_takes_the_place_of_the_old_one(store, kind, tmp_path):
    store.upsert(to_table([row(3, "new"), row(50)], COLUMNS), vectors(2, seed=9))
    store.upsert(to_table([row(3, "newer")], COLUMNS), vectors(1, seed=10))
    for opened in reopened(store, kind, tmp_path):
        assert len(opened) == 41
        best = opened.search(vectors(1, seed=10)[0], 1)[0]
        assert (best.row.text, best.score) == ("newer", pytest.approx(1, abs=1e-5))
        assert sum(hit.row.id == row(3).id for hit in opened.search(vectors(40)[3], 100)) == 1


def reopened(store, kind, folder):
    """The store, and the same opened again."""
    yield store
    store.close()
    again = open_store(kind, folder)
    yield again
    again.close()


def test_deleted_rows_are_gone_and_counted_if_they_were_there(store, kind, tmp_path):
    gone = [row(number).id for number in range(36)]
    assert store.delete([*gone, gone[0], "nothing"]) == 36
    assert store.delete(gone[:2]) == 0
    rows = [(row(number), vectors(40)[number]) for number in range(36, 40)]
    for opened in reopened(store, kind, tmp_path):
        query = vectors(1, seed=11)[0]
        assert ids_of(opened.search(query, 10)) == expected(query, rows, 10)
        met = opened.search(query, 10, parse_conditions(["number >= 37"], COLUMNS))
        assert ids_of(met) == expected(query, [rows[1], rows[3]], 10)  # 38 has no values
        assert len(opened) == 4 and list(opened.signatures()) and opened.get([gone[0]]) == {}


def test_rows_are_returned_by_id_with_their_embeddings(store):
    found = store.get([row(4).id, "nothing", row(5).id])
    assert {name: each for name, (each, _) in found.items()} == {row(4).id: row(4), row(5).id: row(5)}
    assert np.abs(found[row(4).id][1] - vectors(40)[4]).max() < 1e-6


def test_signatures_are_those_of_all_rows(store):
    assert store.signatures() == {row(number).id: ("files", f"s{number}") for number in range(40)}


def test_thousands_of_rows_come_back(kind, tmp_path):
    """More than one request to a database takes or returns."""
    store, count = open_store(kind, tmp_path), 2500
    store.upsert(to_table([row(number) for number in range(count)], COLUMNS), vectors(count))
    assert len(store.signatures()) == len(store) == count
    assert len(store.get([row(number).id for number in range(count)])) == count
    assert store.delete([row(number).id for number in range(1, count)]) == count - 1
    assert ids_of(store.search(vectors(1)[0], 5)) == [row(0).id]
    store.close()


# ---- Exact ----------------------------------------------------------------------------------------------------------


def test_tidying_gives_space_back_and_changes_no_hit(tmp_path):
    store = open_store("exact", tmp_path)
    store.upsert(to_table([row(number) for number in range(40)], COLUMNS), vectors(40))
    store.delete([row(number).id for number in range(10)])
    store.tidy()
    assert len(list((tmp_path / "rows").iterdir())) == 3  # less than half is dead: nothing is done
    store.delete([row(number).id for number in range(10, 30)])
    before = ids_of(store.search(vectors(1)[0], 40))
    store.tidy()
    assert sorted(path.suffix for path in (tmp_path / "rows").iterdir()) == [".arrow", ".npy"]
    again = open_store("exact", tmp_path)
    assert len(again) == 10
    for each in (store, again):
        assert ids_of(each.search(vectors(1)[0], 40)) == before
    again.delete([row(number).id for number in range(40)])
    again.tidy()
    assert len(open_store("exact", tmp_path)) == 0


def test_many_small_commits_become_one(tmp_path, monkeypatch):
    monkeypatch.setattr(exact_module, "MOST_SEGMENTS", 3)
    store = open_store("exact", tmp_path)
    for number in range(5):
        store.upsert(to_table([row(number)], COLUMNS), vectors(5)[number : number + 1])
    store.tidy()
    assert len(store.segments) == 1 and len(open_store("exact", tmp_path)) == 5


def test_rows_are_compared_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(exact_module, "BLOCK", 7)
    monkeypatch.setattr(exact_module, "SEGMENT_ROWS", 16)
    store = open_store("exact", tmp_path)
    store.upsert(to_table([row(number) for number in range(40)], COLUMNS), vectors(40))
    store.delete([row(5).id])
    assert len(store.segments) == 3
    rows, query = [(row(number), vectors(40)[number]) for number in range(40) if number != 5], vectors(1, seed=5)[0]
    assert ids_of(store.search(query, 30)) == expected(query, rows, 30)


def test_an_unfinished_commit_does_not_count_and_a_compaction_that_was_cut_off_is_whole(tmp_path):
    store = open_store("exact", tmp_path)
    store.upsert(to_table([row(number) for number in range(4)], COLUMNS), vectors(4))
    np.save(tmp_path / "rows" / "000000002.npy", vectors(2))  # rows are written after it
    assert len(open_store("exact", tmp_path)) == 4
    store = open_store("exact", tmp_path)
    store.delete([row(0).id, row(1).id, row(2).id])
    kept = {path.name: path.read_bytes() for path in (tmp_path / "rows").iterdir()}
    store.tidy()
    # As if they had not yet been removed: the rows alone, which a computer that goes down may keep, and all of them.
    for suffix in (".npy", ".arrow", ".json"):
        for name in (each for each in kept if each.endswith(suffix)):
            (tmp_path / "rows" / name).write_bytes(kept[name])
        assert list(open_store("exact", tmp_path).signatures()) == [row(3).id]


def test_damaged_files_are_named(tmp_path):
    store = open_store("exact", tmp_path)
    store.upsert(to_table([row(0)], COLUMNS), vectors(1))
    for name in ("000000001.npy", "000000001.arrow"):
        data = (tmp_path / "rows" / name).read_bytes()
        (tmp_path / "rows" / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(ValueError, match="000000001: damaged or incomplete"):
            open_store("exact", tmp_path)
        (tmp_path / "rows" / name).write_bytes(data)
    with pytest.raises(ValueError, match="embeddings of 8 numbers in an index of 9"):
        ExactStore(tmp_path / "rows", 9, COLUMNS)


def test_rows_whose_embeddings_are_of_another_commit_are_named(tmp_path):
    store = open_store("exact", tmp_path)
    store.upsert(to_table([row(0), row(1)], COLUMNS), vectors(2))
    np.save(tmp_path / "rows" / "000000001.npy", vectors(3))
    with pytest.raises(ValueError, match=r"000000001: 2 rows have embeddings of shape \(3, 8\)"):
        open_store("exact", tmp_path)


def test_a_commit_that_is_cut_off_between_its_two_files_is_not_there(tmp_path, monkeypatch):
    """Its rows must be written last: rows without embeddings would make the index unreadable."""

    def cut_off(path, data):
        write_bytes(path, data)
        raise KeyboardInterrupt

    store = open_store("exact", tmp_path)
    store.upsert(to_table([row(0)], COLUMNS), vectors(1))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(segments_module, "write_bytes", cut_off)
        store.upsert(to_table([row(1)], COLUMNS), vectors(1))
    again = open_store("exact", tmp_path)
    assert list(again.signatures()) == [row(0).id]
    again.upsert(to_table([row(2)], COLUMNS), vectors(1))
    assert set(open_store("exact", tmp_path).signatures()) == {row(0).id, row(2).id}


@pytest.mark.parametrize("missing", ["pymilvus", "milvus_lite"])
def test_a_new_index_is_kept_in_milvus_if_client_and_database_are_installed(missing, monkeypatch):
    monkeypatch.setattr(stores_module, "find_spec", lambda name: object())
    assert default_store() == "milvus"
    monkeypatch.setattr(stores_module, "find_spec", lambda name: None if name == missing else object())
    assert default_store() == "exact"


# ---- Milvus ---------------------------------------------------------------------------------------------------------


def test_index_types_are_an_allow_list():
    assert check_index_type(None, True) == check_index_type("FLAT", True) == "FLAT"
    assert (check_index_type(None, False), check_index_type("HNSW", False)) == ("AUTOINDEX", "HNSW")
    for name in ("AUTOINDEX", "HNSW", "IVF_FLAT"):
        with pytest.raises(ValueError, match=f"--index-type {name}: embedded Milvus loses rows"):
            check_index_type(name, True)
    with pytest.raises(ValueError, match="--index-type HSNW: expected one of FLAT, "):
        check_index_type("HSNW", False)


@contextlib.contextmanager
def locked(folder):
    """As by another process that has a database open."""
    with open(folder / "LOCK", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@needs_milvus
def test_one_process_at_a_time_opens_an_embedded_database(tmp_path, caplog):
    database = tmp_path / "milvus.db"
    first, second = open_store("milvus", tmp_path), open_store("milvus", tmp_path)
    first.close()
    first.close()  # a second time does nothing
    with pytest.raises(BlockingIOError), locked(database):
        pass
    assert len(second) == 0 and second.signatures() == {}
    second.close()
    with locked(database), pytest.raises(ValueError, match=r"milvus.db cannot be opened. One process at a time can"):
        open_store("milvus", tmp_path)
    assert caplog.text == ""


@needs_milvus
def test_another_dimension_is_refused_and_the_database_freed(tmp_path):
    open_store("milvus", tmp_path).close()
    with pytest.raises(ValueError, match="holds embeddings of 8 numbers, the index of 9"):
        MilvusStore(tmp_path / "milvus.db", 9, COLUMNS)
    open_store("milvus", tmp_path).close()


@needs_milvus
def test_changes_replace_rows_and_are_flushed(tmp_path, monkeypatch):
    """An embedded database replaces rows on `insert` too, and flushes when it is closed; a server does neither."""
    store, calls = open_store("milvus", tmp_path), []

    def noted(name, call):
        return lambda *given, **options: calls.append(name) or call(*given, **options)

    for name in ("insert", "upsert", "delete", "flush"):
        monkeypatch.setattr(store.client, name, noted(name, getattr(store.client, name)))
    store.upsert(to_table([row(0), row(1)], COLUMNS), vectors(2))
    store.delete([row(0).id])
    assert calls == ["upsert", "flush", "delete", "flush"]
    store.close()


@needs_milvus
def test_the_index_of_an_embedded_database_is_flat(tmp_path):
    store = open_store("milvus", tmp_path)
    found = store.client.describe_index("rows", "vector")
    assert (found["index_type"], found["metric_type"]) == ("FLAT", "IP")
    store.close()


def wait_for(port: int, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
            return
        time.sleep(0.1)


@needs_milvus
def test_a_server_is_spoken_to_by_its_address(tmp_path):
    """milvus-lite's own server, in another process."""
    from tests.fakes.ranks import free_port

    port = free_port()
    command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(tmp_path / "db"), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        store = MilvusStore(f"http://localhost:{port}", SIZE, COLUMNS, "FLAT", "mine")
        store.upsert(to_table([row(number) for number in range(9)], COLUMNS), vectors(9))
        assert not store.is_embedded and len(store) == 9
        assert ids_of(store.search(vectors(9)[4], 1)) == [row(4).id]
        store.close()
        assert len(MilvusStore(f"http://localhost:{port}", SIZE, COLUMNS, "FLAT", "mine")) == 9
    finally:
        server.kill()
        server.wait()


@needs_milvus
def test_a_server_that_does_not_answer_is_named():
    with pytest.raises(ValueError, match="http://localhost:9: no Milvus server answers"):
        MilvusStore("http://localhost:9", SIZE, COLUMNS)


# ---- Embeddings -----------------------------------------------------------------------------------------------------


def test_embeddings_are_checked_before_they_are_stored():
    check_vectors(vectors(3), SIZE, ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"embeddings of 9 numbers, got an array of shape \(3, 8\)"):
        check_vectors(vectors(3), 9, ["a", "b", "c"])
    for value in (np.nan, np.inf, 0.0):
        broken = vectors(3)
        broken[1] = value
        with pytest.raises(ValueError, match="Row 'b': its embedding has the length"):
            check_vectors(broken, SIZE, ["a", "b", "c"])
