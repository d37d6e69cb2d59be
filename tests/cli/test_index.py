"""`modeling-mm index`: an index is built, searched, recommended from, and its rows deleted."""

import json
import shlex

import pytest

from modeling_mm import MMForConditionalGeneration
from modeling_mm.cli import COMMANDS, main, parse
from tests.cli.test_checks import light
from tests.fakes.pipeline_parts import build
from tests.search.conftest import files, model_folder, write_rows  # noqa: F401


@pytest.fixture
def index(files, model_folder, tmp_path, capsys):  # noqa: F811
    write_rows(files / "metadata.jsonl", [{"file_name": "a.png", "year": 1999}])
    arguments = ["index", "build", str(files), "--model", str(model_folder), "--out", str(tmp_path / "index")]
    assert main([*arguments, "--store", "exact"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'index'}: 6 rows: 6 added, 0 updated, 0 unchanged, 0 deleted.\n"
    return str(tmp_path / "index")


def shown(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_rows_are_found_by_a_text_an_image_audio_and_a_mix(index, files, capsys):  # noqa: F811
    queries = {"image": "b.png", "audio": "low.wav"}
    for name, file in queries.items():
        assert main(["index", "search", index, f"--{name}", str(files / file), "--json", "--top", "1"]) == 0
        (hit,) = shown(capsys)
        assert (hit["id"], hit["kind"], hit["media"]) == (file, name, {name: [str(files / file)]})
        assert hit["score"] == pytest.approx(1, abs=1e-4) and hit["metadata"] == {"year": None}
    assert main(["index", "search", index, "--text", "hello there", "--json"]) == 0
    hits = shown(capsys)
    assert hits[0]["id"] == "hello.txt" and len(hits) == 6
    mixed = ["--mixed", "--text", "hello there", "--image", str(files / "b.png")]
    assert main(["index", "search", index, *mixed, "--json"]) == 0
    scores = {hit["id"]: hit["score"] for hit in shown(capsys)}
    assert all(score < 0.9999 for score in scores.values())


def test_conditions_select_and_a_table_is_shown(index, capsys):
    assert main(["index", "search", index, "--text", "a cat", "--where", "year < 2000"]) == 0
    said = capsys.readouterr().out
    assert "a.png" in said and "year=1999" in said and "b.png" not in said and said.startswith("╭")
    assert main(["index", "search", index, "--text", "a cat", "--where", "year > 2000"]) == 0
    assert capsys.readouterr().out == "No row meets the conditions.\n"


def test_a_page_shows_the_query_and_the_rows(index, files, tmp_path, capsys):  # noqa: F811
    page = tmp_path / "found.html"
    query = ["--image", str(files / "b.png"), "--top", "2"]
    assert main(["index", "search", index, *query, "--page", str(page), "--json"]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == f"Page: {page}" and len(said.out.splitlines()) == 2
    text = page.read_text(encoding="utf-8")
    assert text.count("<article>") == 2 and "1. b.png" in text and "Found by:" in text
    assert main(["index", "recommend", index, "--like", "a.png", "--unlike", "b.png", "--page", str(page)]) == 0
    assert "<h1>like a.png, unlike b.png</h1>" in page.read_text(encoding="utf-8")


def test_recommendations_and_deletions(index, capsys):
    assert (
        main(["index", "recommend", index, "--like", "a.png", "--like", "b.png", "--unlike", "low.wav", "--json"]) == 0
    )
    assert {hit["id"] for hit in shown(capsys)} == {"hello.txt", "more/c.jpg", "more/high.flac"}
    assert main(["index", "delete", index, "a.png", "nothing"]) == 0
    assert capsys.readouterr().out == f"{index}: 1 of 2 rows deleted, 5 left.\n"


def test_skipped_items_and_other_files_are_told(files, model_folder, tmp_path, capsys):  # noqa: F811
    for number in range(7):
        (files / f"empty{number}.txt").write_text("")
    (files / "list.csv").write_text("x")
    arguments = ["index", "build", str(files), "--model", str(model_folder), "--out", str(tmp_path / "index")]
    assert main([*arguments, "--store", "exact", "--batch-size", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("6 rows: 6 added, 0 updated, 0 unchanged, 0 deleted, 7 skipped.")
    assert lines[1] == f"skipped: {files / 'empty0.txt'}: there is nothing in it, neither a text nor media."
    assert lines[6:] == [
        f"skipped: 2 more, in {tmp_path / 'index' / 'skipped.jsonl'}",
        "left out: files of type .csv (1)",
    ]


def test_another_model_is_refused(index, files, tmp_path, capsys):  # noqa: F811
    model, processor = build(MMForConditionalGeneration)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "writer")
    arguments = ["--model", str(tmp_path / "writer")]
    assert main(["index", "search", index, "--text", "a", *arguments]) == 2
    assert "is a MMForConditionalGeneration. This command is for MMForRetrieval." in capsys.readouterr().err


def test_an_update_that_was_interrupted_is_told(index, tmp_path, capsys):
    parts = tmp_path / "index" / "parts"
    parts.mkdir()
    (parts / "00000-000000000.arrow").write_bytes(b"")
    assert main(["index", "recommend", index, "--like", "a.png"]) == 0
    assert "An update of the index was interrupted" in capsys.readouterr().err


SLIPS = {
    "index build nothing.jsonl --model model_cards/mm-whisper-tiny --out new": "no file or folder nothing.jsonl.",
    "index build scripts --model model_cards/mm-whisper-tny --out new": "Did you mean 'model_cards/mm-whisper-tiny'?",
    "index build scripts --model model_cards/mm-whisper-tiny --out new --batch-size 0": "--batch-size: expected",
    "index build scripts --model model_cards/mm-whisper-tiny --out README.md": "README.md is a file, not a folder.",
    "index search nothing --text a": "nothing holds no index. Build one: modeling-mm index build.",
    "index recommend scripts --like a": "scripts holds no index.",
    "index delete scripts a": "scripts holds no index.",
}


def test_slips_are_answered_before_torch_is_imported(tmp_path):
    (tmp_path / "index.json").write_text("{}")
    here = {
        "": "There is nothing to search by. Give one of --text, --image, --audio.",
        "--text ' '": "--text: the text is empty, so there is nothing to search by.",
        "--image no.png": "--image: there is no file no.png.",
        "--image scripts/app.png --text a": "--image and --text: add --mixed to search by them together",
        "--text a --page scripts": "--page: scripts is a folder. Expected the name of a file.",
        "--text a --top 0": "--top: expected at least 1, got 0.",
        "--text a --model model_cards/mm-whisper-tny": "Did you mean 'model_cards/mm-whisper-tiny'?",
    }
    slips = {**SLIPS, **{f"index search {tmp_path} {rest}": message for rest, message in here.items()}}
    slips[f"index recommend {tmp_path} --unlike a"] = "Recommending needs at least one row that is liked."
    for (call, part), (code, said) in zip(slips.items(), light([shlex.split(call) for call in slips]), strict=True):
        assert code == 2 and part in said and said.startswith("modeling-mm index: "), (call, said)


def test_help_lists_the_actions():
    ((code, said), (inner_code, inner)) = light([["index", "--help"], ["index", "search", "--help"]])
    assert code == inner_code == 0
    assert all(f"\n  {name} " in said for name in ("build", "search", "recommend", "delete"))
    assert inner.startswith("usage: modeling-mm index search") and "--mixed" in inner
    for arguments in (["index"], ["index", "nothing"]):
        with pytest.raises(SystemExit):
            parse(arguments)


def test_examples_of_actions_are_understood():
    for name, action in COMMANDS["index"].actions.items():
        for example in action.examples:
            assert parse(["index", name, *shlex.split(example, comments=True)]).action == name
