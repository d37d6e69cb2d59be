"""`modeling-mm index build` by two processes (gloo); run by the test as a program, as `accelerate launch` does."""

import sys
from pathlib import Path

import pytest

from modeling_mm.cli import main
from modeling_mm.search import Index, build_index
from tests.fakes.ranks import launch, launch_well
from tests.search.conftest import save_stripes, write_rows

SECONDS = 600


def program(folder: Path, source: str, store: str) -> int:
    arguments = [str(folder / source), "--model", str(folder / "m"), "--out", str(folder / "index")]
    return main(["index", "build", *arguments, "--store", store, "--batch-size", "2"])


@pytest.fixture
def folder(tmp_path, embedder):
    embedder.model.save_pretrained(tmp_path / "m")
    embedder.processor.save_pretrained(tmp_path / "m")
    return tmp_path


@pytest.mark.slow
def test_two_processes_build_the_index_of_one(folder, embedder, files):
    (files / "empty.txt").write_text("")
    source = write_rows(folder / "rows.jsonl", [{"text": f"a cat {number % 5}"} for number in range(9)])
    launch_well(__file__, folder, "files", "exact", timeout=SECONDS)
    launch_well(__file__, folder, "rows.jsonl", "exact", timeout=SECONDS)
    said, other = ((folder / f"log.{rank}").read_text() for rank in range(2))
    # The same texts lie in both shares.
    assert "index: 11 rows: 5 added, 0 updated, 0 unchanged, 0 deleted, 4 duplicates left out." in said
    assert "rows:" not in other
    build_index(files, folder / "alone", embedder, store="exact", progress=False)
    build_index(source, folder / "alone", embedder, progress=False)
    with Index(folder / "index") as together, Index(folder / "alone") as alone:
        known = alone.store.signatures()
        assert together.store.signatures() == known and len(together) == 11
        rows, others = alone.store.get(list(known)), together.store.get(list(known))
        for name, (row, vector) in rows.items():
            assert others[name][0] == row and abs(others[name][1] - vector).max() < 1e-5
    save_stripes(files / "a.png", 40)
    (files / "b.png").unlink()
    launch_well(__file__, folder, "files", "exact", timeout=SECONDS)
    said = (folder / "log.0").read_text()
    assert "index: 10 rows: 0 added, 1 updated, 4 unchanged, 1 deleted, 1 skipped." in said


@pytest.mark.slow
def test_a_mistake_ends_both_processes(folder, files):
    ended = launch(__file__, folder, "files", "nowhere", timeout=SECONDS)
    assert all(each.code == 2 and "--store nowhere: expected exact or milvus" in each.log for each in ended)
    assert not (folder / "index" / "index.json").exists()


if __name__ == "__main__":
    sys.exit(program(Path(sys.argv[1]), *sys.argv[2:]))
