"""The servers of these tests, each started once."""

import pytest

from modeling_mm import MMForConditionalGeneration
from tests.fakes import gallery as galleries
from tests.fakes.processor_parts import picture
from tests.fakes.serving_parts import ENDLESS, MISSING, SMALL_BODY, Server, model, needs_extra, png, run_here
from tests.fakes.tiny_chats import chat_model, processor
from tests.fakes.writers import speaking, writing


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "tiny"
    model().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def eager(folder):
    return MMForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")


@pytest.fixture(scope="session")
def server(folder):
    server = Server(folder)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def open_server(folder, tmp_path_factory):
    """One whose flags allow what the other refuses."""
    files = tmp_path_factory.mktemp("files")
    (files / "red.png").write_bytes(png(picture("red")))
    server = Server(folder, "--allow-private-urls", "--allow-files", str(files))
    server.files = files
    yield server
    server.stop()


@pytest.fixture(scope="session")
def gallery():
    with galleries.gallery() as pictures:
        yield pictures


@pytest.fixture(scope="session")
def endless_server(tmp_path_factory):
    """One of a model whose positions have no end, so that an answer can take minutes."""
    folder = tmp_path_factory.mktemp("endless") / "tiny"
    chat_model(text_position_encoding="sinusoidal").save_pretrained(folder)
    processor().save_pretrained(folder)
    server = Server(folder, "--max-tokens", str(ENDLESS))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def writer_folder(tmp_path_factory):
    """A model that draws and speaks."""
    folder = tmp_path_factory.mktemp("writes") / "tiny"
    for part in writing():
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def writer_server(writer_folder):
    if MISSING:
        pytest.skip(needs_extra.kwargs["reason"])
    with run_here(writer_folder) as server:
        yield server


@pytest.fixture(scope="session")
def speaker_folder(tmp_path_factory):
    """A model that has learned to say two texts."""
    folder = tmp_path_factory.mktemp("speaks") / "tiny"
    for part in speaking():
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def speaker_server(speaker_folder):
    if MISSING:
        pytest.skip(needs_extra.kwargs["reason"])
    with run_here(speaker_folder) as server:
        yield server


@pytest.fixture(scope="session")
def server_here(folder):
    if MISSING:
        pytest.skip(needs_extra.kwargs["reason"])
    with run_here(folder, body_bytes=SMALL_BODY) as server:
        yield server
