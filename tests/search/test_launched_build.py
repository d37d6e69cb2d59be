"""`modeling-mm index build` as processes: by two (gloo), under `accelerate launch`, and killed while it builds.

The first test runs this module as a program, as `accelerate launch` does.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modeling_mm.cli import main
from modeling_mm.search import Index, build_index
from tests.fakes.quick_python import QUICK_PYTHON
from tests.fakes.ranks import RANKS, ROOT, launch, launch_well, quiet_environment
from tests.search.conftest import STORES, save_stripes, write_rows

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
    assert_same(folder / "index", folder / "alone", 11)
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


def assert_same(one: Path, other: Path, count: int) -> None:
    """Two indexes have the same rows with the same embeddings."""
    with Index(one) as first, Index(other) as second:
        known = first.store.signatures()
        assert second.store.signatures() == known and len(first) == len(known) == count
        rows, others = first.store.get(list(known)), second.store.get(list(known))
        for name, (row, vector) in rows.items():
            assert others[name][0] == row and abs(others[name][1] - vector).max() < 1e-5


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 60)
def test_shards_of_a_stream_are_embedded_under_accelerate_launch(folder, embedder):
    """Each of two processes reads two of four files of a dataset, whose rows hold their images."""
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageColumn

    names = {"image": ImageColumn(), "text": Value("string"), "label": ClassLabel(names=["cat", "dog"])}
    images = [str(save_stripes(folder / f"{number}.png", number)) for number in range(10)]
    rows = {"image": images, "text": [f"a cat {number}" for number in range(10)], "label": [0, 1] * 5}
    Dataset.from_dict(rows, features=Features(names)).save_to_disk(folder / "saved", num_shards=4)
    command = [QUICK_PYTHON, "-W", "ignore", "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command += ["--config_file", "configuration/accelerate/ddp.yaml", "--num_processes", str(RANKS)]
    command += ["-m", "modeling_mm.cli", "index", "build", str(folder / "saved"), "--model", str(folder / "m")]
    command += ["--out", str(folder / "index"), "--store", "exact", "--batch-size", "2"]
    env = quiet_environment() | {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("10 rows: 10 added, 0 updated, 0 unchanged, 0 deleted.") == 1
    build_index(folder / "saved", folder / "alone", embedder, store="exact", progress=False)
    with Index(folder / "index") as index, Index(folder / "alone") as alone:
        assert sorted(index.store.signatures().values()) == sorted(alone.store.signatures().values())
        found = index.store.get(list(index.store.signatures()))
    assert {row.metadata["label"] for row, _ in found.values()} == {"cat", "dog"}
    assert all(Path(row.media["image"][0]).is_file() for row, _ in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
def test_a_build_that_is_killed_resumes_to_the_same_index(folder, embedder, store):
    """SIGKILL once the first part is on disk; the rows of whole parts are not embedded again."""
    count = 700
    source = write_rows(folder / "rows.jsonl", [{"text": f"a cat {number}"} for number in range(count)])
    command = [sys.executable, "-m", "modeling_mm.cli", "index", "build", str(source)]
    command += ["--model", str(folder / "m"), "--out", str(folder / "index"), "--store", store, "--batch-size", "4"]
    process = subprocess.Popen(command, cwd=ROOT, env=quiet_environment(), stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + SECONDS
        while not list((folder / "index" / "parts").glob("*.arrow")):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    with pytest.raises(ValueError, match="its build was interrupted, so that rows are missing"):
        Index(folder / "index")
    done = subprocess.run(command, cwd=ROOT, env=quiet_environment(), capture_output=True, text=True, check=True)
    added, kept = map(int, re.search(r"700 rows: (\d+) added, 0 updated, (\d+) unchanged", done.stdout).groups())
    assert added + kept == count and kept in (256, 512)
    build_index(source, folder / "alone", embedder, store=store, progress=False)
    assert_same(folder / "index", folder / "alone", count)


if __name__ == "__main__":
    sys.exit(program(Path(sys.argv[1]), *sys.argv[2:]))
