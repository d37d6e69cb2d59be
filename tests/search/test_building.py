"""building.py and share.py: builds that add, update, delete, skip, resume, and refuse another model."""

import json

import numpy as np
import pytest
from filelock import FileLock

from modeling_mm import MMForRetrieval
from modeling_mm.search import Embedder, ExactStore, Index, Item, MilvusStore, build_index, read_manifest
from modeling_mm.search import building as building_module
from modeling_mm.search import share as share_module
from tests.fakes.pipeline_parts import build
from tests.search.conftest import SIZE, STORES, save_stripes, save_tone, write_rows


@pytest.fixture(params=STORES)
def store(request):
    return request.param


def run(source, folder, embedder, store="exact", **options):
    return build_index(source, folder, embedder, store=store, progress=False, **options)


def counts(report) -> tuple[int, int, int, int, int]:
    return report.rows, report.added, report.updated, report.unchanged, report.deleted


def ids(folder, embedder=None) -> set[str]:
    with Index(folder, embedder) as index:
        return set(index.store.signatures())


def test_an_index_follows_its_folder(files, embedder, store, tmp_path):
    out = tmp_path / "index"
    assert counts(run(files, out, embedder, store)) == (6, 6, 0, 0, 0)
    assert counts(run(files, out, embedder, None)) == (6, 0, 0, 6, 0)
    save_stripes(files / "a.png", 20)
    save_stripes(files / "new.png", 21)
    (files / "low.wav").unlink()
    report = run(files, out, embedder, None)
    assert counts(report) == (6, 1, 1, 4, 1)
    assert str(report) == "6 rows: 1 added, 1 updated, 4 unchanged, 1 deleted."
    assert ids(out) == {"a.png", "b.png", "new.png", "hello.txt", "more/c.jpg", "more/high.flac"}
    with Index(out, embedder) as index:
        for name in ("a.png", "new.png", "b.png"):
            best = index.search(Item(media={"image": [str(files / name)]}), 1)[0]
            assert (best.row.id, best.score) == (name, pytest.approx(1, abs=1e-4))
            assert best.row.media == {"image": [str(files / name)]} and best.row.source == str(files)


def test_a_second_source_adds_and_its_rows_stay(files, embedder, tmp_path):
    out, more = tmp_path / "index", tmp_path / "more"
    save_stripes(more / "x.png", 30)
    run(files, out, embedder)
    assert counts(run(more, out, embedder)) == (7, 1, 0, 0, 0)
    assert counts(run(files, out, embedder)) == (7, 0, 0, 6, 0)
    save_stripes(more / "a.png", 31)
    report = run(more, out, embedder)
    assert report.rows == 7 and f"its id 'a.png' is that of a row of {files}" in report.skipped[0].reason


def test_a_limit_deletes_nothing(files, embedder, tmp_path):
    run(files, tmp_path / "index", embedder)
    assert counts(run(files, tmp_path / "index", embedder, limit=2)) == (6, 0, 0, 2, 0)


def test_items_without_content_are_skipped_reported_and_listed(files, embedder, tmp_path):
    (files / "empty.txt").write_text(" ")
    (files / "broken.png").write_bytes(b"\x89PNG")
    (files / "long.txt").write_text("word " * 400)
    (files / "other.csv").write_text("x")
    report = run(files, tmp_path / "index", embedder)
    assert counts(report) == (6, 6, 0, 0, 0)
    reasons = {each.id: each.reason for each in report.skipped}
    assert set(reasons) == {"empty.txt", "broken.png", "long.txt"}
    assert reasons["empty.txt"] == f"{files / 'empty.txt'}: there is nothing in it, neither a text nor media."
    assert str(files / "long.txt") in reasons["long.txt"] and "positions" in reasons["long.txt"]
    assert str(report) == "6 rows: 6 added, 0 updated, 0 unchanged, 0 deleted, 3 skipped."
    listed = [json.loads(line) for line in (tmp_path / "index" / "skipped.jsonl").read_text().splitlines()]
    assert {each["id"]: each["reason"] for each in listed} == reasons
    assert report.left_out == {"files of type .csv": 1}


def test_a_row_whose_content_is_gone_is_deleted(files, embedder, tmp_path):
    run(files, tmp_path / "index", embedder)
    (files / "hello.txt").write_text("")
    report = run(files, tmp_path / "index", embedder)
    assert counts(report) == (5, 0, 0, 5, 1) and len(report.skipped) == 1


def test_rows_keep_text_and_metadata(files, embedder, store, tmp_path):
    rows = [
        {"id": "shoe", "text": "a red shoe", "image": "a.png", "price": 3.5, "sold": True},
        {"text": "words alone", "price": 2},
        {"text": "words alone", "price": 2},
        {"id": "shoe", "text": "another"},
        {"text": "odd", "price": 1},
    ]
    source = write_rows(files / "rows.jsonl", rows)
    report = run(source, tmp_path / "index", embedder, store)
    assert counts(report) == (3, 3, 0, 0, 0) and report.duplicates == 1
    (skipped,) = report.skipped
    assert skipped.reason == f"{source}, row 3: its id 'shoe' is that of {source}, row 0. Give it another."
    with Index(tmp_path / "index", embedder) as index:
        hits = index.search(Item("a red shoe", {"image": [str(files / "a.png")]}), 5, ["price > 1.5"])
        assert [hit.row.text for hit in hits] == ["a red shoe", "words alone"]
        assert hits[0].row.metadata == {"price": 3.5, "sold": True} and hits[0].row.kind == "image+text"
        assert hits[1].row.metadata == {"price": 2.0, "sold": None}
    write_rows(files / "rows.jsonl", [*rows[:2], {"text": "new", "size": 1}])
    report = run(source, tmp_path / "index", embedder, None)
    assert "the index has no column 'size'" in report.skipped[0].reason and report.rows == 2


# ---- Interruptions --------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """As a signal would end the process."""


@pytest.mark.parametrize("when", ["embedding", "storing"])
def test_an_interrupted_build_is_not_searched_and_resumes(files, embedder, store, tmp_path, monkeypatch, when):
    out, embedded = tmp_path / "index", []

    def embed_alike(self, contents):
        embedded.extend(contents)
        if when == "embedding" and len(embedded) > 5:  # the fifth is in no part yet
            raise Killed
        return original(self, contents)

    def killed(*_):
        raise Killed

    original = Embedder.embed_alike
    monkeypatch.setattr(Embedder, "embed_alike", embed_alike)
    monkeypatch.setattr(share_module, "PART_ROWS", 2)
    if when == "storing":
        monkeypatch.setattr(building_module, "remove_segment", killed)
    with pytest.raises(Killed):
        run(files, out, embedder, store, batch_size=1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="its build was interrupted, so that rows are missing"):
        Index(out)
    report = run(files, out, embedder, store, batch_size=1)
    kept = 4 if when == "embedding" else 6  # in whole parts
    assert counts(report) == (6, 6 - kept, 0, kept, 0) and len(ids(out)) == 6


def test_rows_that_the_store_has_not_taken_stay_in_their_parts(files, embedder, store, tmp_path, monkeypatch):
    def killed(*_):
        raise Killed

    kind = ExactStore if store == "exact" else MilvusStore
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(kind, "upsert", killed)
        run(files, tmp_path / "index", embedder, store)
    monkeypatch.setattr(Embedder, "embed_alike", killed)  # nothing is embedded again
    assert counts(run(files, tmp_path / "index", embedder, store)) == (6, 0, 0, 6, 0)


def test_an_interrupted_update_leaves_the_rows_of_before_to_be_searched(files, embedder, tmp_path, monkeypatch):
    out = tmp_path / "index"
    run(files, out, embedder)
    save_stripes(files / "new.png", 21)

    def killed(*_):
        raise Killed

    monkeypatch.setattr(building_module, "finish", killed)
    with pytest.raises(Killed):
        run(files, out, embedder)
    with Index(out) as index:
        assert len(index) == 6 and index.pending == 1
    monkeypatch.undo()
    assert run(files, out, embedder).rows == 7
    with Index(out) as index:
        assert index.pending == 0


def test_one_process_at_a_time_changes_an_index(files, embedder, tmp_path):
    out = tmp_path / "index"
    run(files, out, embedder)
    with Index(out, embedder) as index:
        changes = (
            lambda: run(files, out, embedder),
            lambda: index.add([Item("a cat")]),
            lambda: index.delete(["a.png"]),
        )
        for change in changes:
            with FileLock(out / ".lock"), pytest.raises(ValueError, match="is being changed by another process"):
                change()
        assert len(index) == 6 and index.delete(["a.png"]) == 1


# ---- Refusals -------------------------------------------------------------------------------------------------------


def test_an_index_of_another_model_is_refused(files, embedder, tmp_path):
    out = tmp_path / "index"
    run(files, out, embedder)
    other, processor = build(MMForRetrieval, projection_dim=SIZE, seed=9)
    for use in (lambda: run(files, out, Embedder(other, processor)), lambda: Index(out, Embedder(other, processor))):
        with pytest.raises(ValueError, match="was built with other weights") as error:
            use()
        assert embedder.fingerprint[:12] in str(error.value)
    wide = Embedder(*build(MMForRetrieval, projection_dim=16))
    with pytest.raises(ValueError, match=r"embeddings of 8 numbers, of the model .+; this model's have 16"):
        Index(out, wide)


def test_a_folder_of_something_else_is_refused(files, embedder, tmp_path):
    with pytest.raises(ValueError, match=r"files holds a.png and no index. Choose a new folder."):
        run(files, files, embedder)
    assert not (files / ".lock").exists()
    run(files, tmp_path / "index", embedder)
    with pytest.raises(ValueError, match="is kept in the store 'exact', not 'http://localhost:9'"):
        run(files, tmp_path / "index", embedder, "http://localhost:9")
    with pytest.raises(ValueError, match="--index-type HNSW: it is for a store in Milvus"):
        run(files, tmp_path / "other", embedder, "exact", index_type="HNSW")


@pytest.mark.parametrize("value", [float("nan"), 0.0, 3.0])
def test_embeddings_that_are_not_of_unit_length_are_not_stored(files, embedder, tmp_path, monkeypatch, value):
    """As of weights that overflow in their dtype."""
    run(files, tmp_path / "index", embedder)
    save_stripes(files / "new.png", 21)
    monkeypatch.setattr(Embedder, "embed_alike", lambda self, contents: np.full((len(contents), SIZE), value))
    with pytest.raises(ValueError, match=r"Row 'new.png': its embedding has the length"):
        run(files, tmp_path / "index", embedder)
    with Index(tmp_path / "index", embedder) as index:
        with pytest.raises(ValueError, match=r"Row 'mine': its embedding has the length"):
            index.add([Item("a cat", id="mine")])
        assert len(index) == 6


def test_an_index_of_another_version_is_refused(files, embedder, tmp_path):
    run(files, tmp_path / "index", embedder)
    path = tmp_path / "index" / "index.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match=r"index.json has the format 2, expected 1. Build the index again."):
        Index(tmp_path / "index")


def test_an_index_without_rows_is_refused(embedder, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"the index is empty. .+a.txt: there is nothing in it"):
        run(tmp_path / "files", tmp_path / "index", embedder)


def test_progress_is_told(files, embedder, tmp_path, capsys):
    build_index(files, tmp_path / "index", embedder, store="exact")
    said = capsys.readouterr().err
    assert "embedding items: 6 of 6" in said and "storing parts: 1 of 1" in said


def test_the_description_names_model_and_columns(files, embedder, tmp_path):
    write_rows(files / "metadata.jsonl", [{"file_name": "a.png", "year": 1999}])
    run(files, tmp_path / "index", embedder)
    manifest = read_manifest(tmp_path / "index")
    assert manifest.model == embedder.model.name_or_path and manifest.columns == {"year": "int"}
    assert (manifest.dimension, manifest.store, manifest.is_complete) == (SIZE, "exact", True)
    (tmp_path / "index" / "index.json").write_text("{")
    with pytest.raises(ValueError, match=r"index.json is not the description of an index"):
        read_manifest(tmp_path / "index")
    with pytest.raises(FileNotFoundError, match=r"holds no index, as it has no index.json"):
        read_manifest(tmp_path)


def test_audio_is_found_by_audio(files, embedder, tmp_path):
    save_tone(files / "middle.wav", 900)
    run(files, tmp_path / "index", embedder)
    with Index(tmp_path / "index", embedder) as index:
        best = index.search(Item(media={"audio": [str(files / "middle.wav")]}), 1)[0]
    assert (best.row.id, best.row.kind) == ("middle.wav", "audio")
