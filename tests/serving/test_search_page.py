"""search_page.py: an index is searched on a running page by gradio's client, in this process and by the command."""

import importlib.util
import re

import pytest

from modeling_mm import MMForRetrieval
from modeling_mm.cli import main
from modeling_mm.search import Index, Item, build_index
from tests.fakes.pipeline_parts import build
from tests.fakes.ranks import free_port
from tests.search.conftest import embedder, model_folder, save_stripes, save_tone, write_rows  # noqa: F401
from tests.serving.test_app import served

MISSING = [name for name in ("gradio", "gradio_client") if importlib.util.find_spec(name) is None]
needs_extra = pytest.mark.skipif(bool(MISSING), reason="needs the extra `app`")
INJECTED = "<img src=x onerror=alert(1)> ${1+1} {{value}}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, embedder):  # noqa: F811
    """An index of images, audio, texts and mixed rows."""
    made = tmp_path_factory.mktemp("searched")
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        save_stripes(made / "files" / name, number)
    for name, hertz in (("low.wav", 200), ("high.wav", 3000)):
        save_tone(made / "files" / name, hertz)
    rows = [
        {"id": "a", "image": "a.png", "year": 1999, "color": "red"},
        {"id": "b", "image": "b.png", "year": 2001, "color": "dark blue"},
        {"id": "c", "image": "c.png", "text": "a red square", "year": 2003},
        {"id": "low", "audio": "low.wav", "year": 2000},
        {"id": "high", "audio": "high.wav"},
        {"id": "words", "text": "hello there"},
        {"id": "injected", "text": INJECTED},
    ]
    source = write_rows(made / "files" / "rows.jsonl", rows)
    build_index(source, made / "index", embedder, store="exact", progress=False)
    return made


@pytest.fixture(scope="module")
def client(folder, embedder):  # noqa: F811
    """A client of a page in this process."""
    if MISSING:
        pytest.skip(needs_extra.kwargs["reason"])
    from gradio_client import Client

    from modeling_mm.serving import build_search_page

    with Index(folder / "index", embedder) as index:
        page = build_search_page(index, "photos")
        _, address, _ = page.launch(
            server_name="127.0.0.1", server_port=free_port(), prevent_thread_lock=True, quiet=True
        )
        try:
            yield Client(address, verbose=False)
        finally:
            page.close(verbose=False)


def search(client, text="", *media, conditions="", rows=12) -> str:
    from gradio_client import handle_file

    query = {"text": text, "files": [handle_file(str(path)) for path in media]}
    return client.predict(query, conditions, rows, api_name="/search")


def shown(html: str) -> list[tuple[str, str]]:
    """Names and scores of the rows on a page."""
    return re.findall(r"<h2>\d+\. (\S+) <span class=\"quiet\">(-?\d\.\d{3})</span></h2>", html)


def refused(client, *query, **options) -> str:
    """The message for a query, which is neither a trace nor a place on the server."""
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError) as error:
        search(client, *query, **options)
    message = str(error.value)
    assert "Traceback" not in message and "/tmp" not in message and "Error:" not in message
    return message


@needs_extra
@pytest.mark.parametrize(
    ("query", "expected"),
    [(("hello there",), "words"), (("", "b.png"), "b"), (("", "low.wav"), "low"), (("a red square", "c.png"), "c")],
)
def test_words_an_image_audio_and_a_mix_find_their_row_with_its_similarity(client, folder, query, expected):
    text, *media = query
    html = search(client, text, *(folder / "files" / name for name in media))
    found = shown(html)
    assert found[0] == (expected, "1.000") and len(found) == 7
    assert [float(score) for _, score in found] == sorted((float(score) for _, score in found), reverse=True)


@needs_extra
def test_hits_are_those_of_the_index(client, folder, embedder):  # noqa: F811
    with Index(folder / "index", embedder) as index:
        hits = index.search(Item("a dog"), 3, ["year >= 2000"])
    assert shown(search(client, "a dog", conditions="year >= 2000", rows=3)) == [
        (hit.row.id, f"{hit.score:.3f}") for hit in hits
    ]


@needs_extra
def test_images_players_texts_and_metadata_are_shown(client):
    html = search(client, "hello there")
    assert html.count('<img src="data:image/jpeg;base64,') == 3
    assert html.count('<audio controls src="data:audio/flac;base64,') == 2
    assert "<p>a red square</p>" in html and "year: 2001, color: dark blue" in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html and "<img src=x" not in html


@needs_extra
def test_conditions_join_and_no_row_is_said(client):
    both = "year >= 2000\n\n  kind = image  \n"
    assert [name for name, _ in shown(search(client, "a dog", conditions=both))] == ["b"]
    named = "color = dark blue"
    assert [name for name, _ in shown(search(client, "a dog", conditions=named))] == ["b"]
    assert "No row meets the conditions." in search(client, "a dog", conditions="year > 3000")


@needs_extra
def test_bad_queries_get_a_message(client, tmp_path):
    for name, data in {
        "broken.png": b"\x89PNG nothing",
        "broken.wav": b"RIFF",
        "a.pdf": b"%PDF",
        "empty.png": b"",
    }.items():
        (tmp_path / name).write_bytes(data)
    for text in ("", " \n"):
        assert refused(client, text) == "The query: there is nothing in it, neither a text nor media."
    assert refused(client, "", tmp_path / "broken.png").startswith("The query: image 'broken.png': ")
    assert refused(client, "a dog", tmp_path / "broken.wav").startswith("The query: audio 'broken.wav': ")
    assert refused(client, "", tmp_path / "a.pdf").startswith("Invalid file type")
    assert "empty.png" in refused(client, "", tmp_path / "empty.png")
    save_tone(tmp_path / "silent.wav", 0)
    said = "The query: audio 'silent.wav' has no content: it is silent."
    assert refused(client, "", tmp_path / "silent.wav") == said
    assert "positions" in refused(client, "word " * 2000)
    assert "<|image|>" not in refused(client, "<|image|>"), "messages are escaped"


@needs_extra
@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ("yeer = 1", "there is no column 'yeer'. Did you mean 'year'?"),
        ("year", "'year' is not a condition."),
        ("year >= new", "expected a value of type int, got 'new'."),
        ("vector = 1", "there is no column 'vector'."),
    ],
)
def test_bad_conditions_get_a_message(client, conditions, message):
    assert message in refused(client, "a dog", conditions=f"kind = image\n{conditions}")


@needs_extra
def test_parts_of_the_page_that_nobody_has_touched_are_empty(client):
    untouched = client.predict({"text": "a dog", "files": []}, None, 12, api_name="/search")
    assert shown(untouched) == shown(search(client, "a dog"))
    from gradio_client.exceptions import AppError

    for query in (None, {"text": "", "files": []}):
        with pytest.raises(AppError, match="The query: there is nothing in it"):
            client.predict(query, None, 12, api_name="/search")


@needs_extra
@pytest.mark.parametrize("rows", [0, -3, 101, 10**9])
def test_a_number_of_rows_outside_the_slider_is_refused(client, rows):
    assert str(rows) in refused(client, "a dog", rows=rows)


@needs_extra
def test_a_file_of_the_server_is_not_read(client, folder):
    from gradio_client.exceptions import AppError

    query = {
        "text": "",
        "files": [{"path": str(folder / "index" / "index.json"), "meta": {"_type": "gradio.FileData"}}],
    }
    with pytest.raises(AppError):
        client.predict(query, "", 3, api_name="/search")


@needs_extra
def test_the_page_offers_the_modalities_of_the_indexs_model_and_says_its_columns(folder, embedder):  # noqa: F811
    from modeling_mm.serving import build_search_page

    with Index(folder / "index", embedder) as index:
        blocks = {block.elem_id: block for block in build_search_page(index, "photos").blocks.values()}
    assert blocks["query"].file_types == ["image", "audio"] and blocks["query"].sources == ["upload", "microphone"]
    assert "year (int), color (str)" in blocks["conditions"].info and "kind (str)" in blocks["conditions"].info


# ---- The command ----------------------------------------------------------------------------------------------------


@needs_extra
def test_the_command_shows_a_chat_and_a_search(folder, tmp_path):
    from gradio_client import Client

    from tests.fakes.serving_parts import model
    from tests.fakes.tiny_chats import processor

    for part in (model(), processor()):
        part.save_pretrained(tmp_path / "writer")
    log = tmp_path / "log.txt"
    with served(tmp_path / "writer", log, 8, "--index", str(folder / "index")) as address:
        client = Client(address, verbose=False)
        tabs = [each["props"]["label"] for each in client.config["components"] if each["type"] == "tabitem"]
        assert tabs == ["Chat", "Search"]
        assert shown(search(client, "", folder / "files" / "b.png"))[0] == ("b", "1.000")
        assert "nothing in it" in refused(client, "")
    assert "Traceback" not in log.read_text()


@needs_extra
def test_a_model_that_embeds_has_the_search_alone(folder, model_folder, tmp_path):  # noqa: F811
    from gradio_client import Client

    with served(model_folder, tmp_path / "log.txt", 8, "--index", str(folder / "index")) as address:
        client = Client(address, verbose=False)
        assert not [each for each in client.config["components"] if each["type"] in ("tabitem", "chatbot")]
        assert shown(search(client, "hello there"))[0] == ("words", "1.000")


@needs_extra
def test_slips_of_the_command_are_one_line(folder, model_folder, tmp_path, capsys):  # noqa: F811
    assert main(["app", str(model_folder)]) == 2
    assert "embeds and writes no answers. Add --index INDEX" in capsys.readouterr().err
    other, processor = build(MMForRetrieval, projection_dim=8, seed=9)
    for part in (other, processor):
        part.save_pretrained(tmp_path / "other")
    assert main(["app", str(tmp_path / "other"), "--index", str(folder / "index")]) == 2
    assert "was built with other weights" in capsys.readouterr().err
