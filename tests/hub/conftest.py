"""A folder with nothing wrong, a copy to spoil, and the Hub."""

import os
import shutil
import types
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

from modeling_mm.hub import write_card
from modeling_mm.recipes import card_content
from tests.fakes.hub_parts import CARD_FIELDS, RESULT, ROOT
from tests.fakes.hub_server import HubServer
from tests.fakes.recipe_runs import recipe
from tests.fakes.tiny_chats import chat_model, processor


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with nothing wrong, its code as links to the package like those in model_cards/."""
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    model = chat_model()
    model.save_pretrained(folder)
    processor().save_pretrained(folder)
    for path in [*folder.glob("*.py"), *folder.glob("*.jinja")]:
        path.unlink()
        path.symlink_to(os.path.relpath(ROOT / "modeling_mm" / path.name, folder))
    write_card(folder, card_content(recipe(folder, {"card": CARD_FIELDS}), model, RESULT))
    return folder


@pytest.fixture
def folder(good, tmp_path):
    """A copy to spoil."""
    return Path(shutil.copytree(good, tmp_path / "tiny"))


@pytest.fixture
def hub(monkeypatch):
    """The server, and a client in this process that may reach it and waits for nothing."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_http, "time", types.SimpleNamespace(sleep=lambda seconds: None))
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    from tests.fakes.processor_parts import picture

    path = tmp_path_factory.mktemp("photo") / "green.png"
    picture("green").save(path)
    return str(path)
