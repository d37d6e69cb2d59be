"""scripts/app.py: what the page shows, and the page itself in headless Chromium, where a picture and a sound are
uploaded and asked about."""

import importlib.util
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from modeling_mm import MMForConditionalGeneration
from modeling_mm.explain.attention import AnswerAttention
from modeling_mm.serving.conversation import SHOWN_WIDTH, STRIP_HEIGHT, light, look, stream_answer, user_turn
from scripts.app import main
from tests.processor_parts import RATE, picture, sound
from tests.test_serve import generated, model
from tests.tiny_chats import processor

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
MISSING += [] if CHROMIUM else ["chromium"]
START_SECONDS = 180
LENGTH = 24  # of answers, in tokens


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    picture("blue", (60, 40)).save(folder / "blue.png")
    soundfile.write(folder / "noise.wav", *sound(), "FLOAT")
    return {"image": str(folder / "blue.png"), "audio": str(folder / "noise.wav")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shown") / "tiny"
    model().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def eager(folder):
    return MMForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")


# ---- What is shown --------------------------------------------------------------------------------------------------


def test_a_question_has_parts_in_order_and_at_least_one(files):
    turn = user_turn(" Look and listen. ", files["image"], files["audio"])
    assert [part["type"] for part in turn["content"]] == ["image", "audio", "text"]
    assert turn["content"][2]["text"] == "Look and listen."
    assert [part["type"] for part in user_turn("", files["image"], None)["content"]] == ["image"]
    with pytest.raises(ValueError, match="nothing to answer: write a question"):
        user_turn("  ", None, None)


def test_an_answer_grows_to_what_generate_says(eager, files):
    turns = [user_turn("Look and listen.", files["image"], files["audio"])]
    steps = list(stream_answer(eager, processor(), turns, LENGTH))
    assert steps[-1] == generated(turns, max_new_tokens=LENGTH) and len(steps[-1]) > 0
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(steps))


def test_errors_reach_who_asks(eager, files, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="no format that Pillow knows"):
        list(stream_answer(eager, processor(), [user_turn("x", str(tmp_path / "broken.png"), None)], LENGTH))
    with pytest.raises(ValueError, match="position"):
        list(stream_answer(eager, processor(), [user_turn("a dog " * 500, None, None)], LENGTH))


def test_each_word_lights_what_it_looked_at(eager, files):
    turns = [user_turn("Look and listen.", files["image"], files["audio"])]
    found = look(eager, processor(), turns, LENGTH)
    words = " ".join(word for _, word in found)
    assert words.split() == generated(turns, max_new_tokens=LENGTH).split()
    height = round(40 * SHOWN_WIDTH / 60)
    assert {image.size for image, _ in found} == {(SHOWN_WIDTH, height + STRIP_HEIGHT)}
    alone = look(eager, processor(), [user_turn("What do you hear?", None, files["audio"])], LENGTH)
    assert {image.size for image, _ in alone} == {(SHOWN_WIDTH, STRIP_HEIGHT)}
    assert look(eager, processor(), [user_turn("hello", None, None)], LENGTH) == []


def test_the_hottest_place_glows_most():
    patches = torch.zeros(1, 1, 2, 2)
    patches[0, 0, 1, 0] = 0.5
    attention = AnswerAttention(["a"], patches, None, 0.0, torch.ones(1), torch.zeros(1))
    shown = np.asarray(light(attention, 0, Image.new("RGB", (100, 100), "white"))).astype(int)
    corners = [shown[10, 10], shown[10, -10], shown[-10, 10], shown[-10, -10]]
    assert [tuple(corner) == (255, 255, 255) for corner in corners] == [True, True, False, True]
    assert corners[2][0] == 255 and corners[2][2] < 80  # orange


def test_the_script_says_what_is_missing(tmp_path, capsys, monkeypatch):
    if "gradio" not in MISSING:
        assert main([str(tmp_path / "nothing")]) == 1
        assert "cannot be shown" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main([str(tmp_path)]) == 1
    assert 'pip install "modeling_mm[app]"' in capsys.readouterr().err


# ---- The page -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "scripts" / "app.py"), str(folder), "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    log = folder.parent / "log.txt"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--max-new-tokens", str(LENGTH)], env=environment, stdout=out, stderr=subprocess.STDOUT
        )
    deadline, address = time.monotonic() + START_SECONDS, f"http://127.0.0.1:{port}"
    while True:
        try:
            urllib.request.urlopen(address, timeout=10).read()
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.3)
    yield address
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.skipif(bool(MISSING), reason=f"needs the extra `app`, and {', '.join(MISSING)}")
def test_a_picture_and_a_sound_are_uploaded_and_asked_about_in_a_browser(address, browser, files, tmp_path):
    """APP_SCREENSHOT names a file for the screenshot, which is otherwise thrown away."""
    page = browser.new_page(viewport={"width": 1280, "height": 1100})
    strangers = []
    page.on("request", lambda request: strangers.append(request.url) if not request.url.startswith(address) else None)
    page.goto(address)
    expected = generated([user_turn("Look and listen.", files["image"], files["audio"])], max_new_tokens=LENGTH)
    page.set_input_files("#picture input[type=file]", files["image"])
    page.set_input_files("#sound input[type=file]", files["audio"])
    page.wait_for_selector("#picture img")
    page.wait_for_selector(
        "#sound audio, #sound .waveform-container, #sound [data-testid*=waveform]", state="attached"
    )
    page.fill("#question textarea, #question input", "Look and listen.")
    page.click("#ask")
    answer = page.locator("#chat .bot, #chat [data-testid=bot]").last
    answer.get_by_text(expected, exact=False).wait_for(timeout=60_000)
    page.wait_for_selector("#view img", timeout=60_000)
    assert page.locator("#view img").count() >= len(expected.split())
    assert page.locator("#chat img").count() >= 1, "the picture stands in the chat"
    page.screenshot(path=os.environ.get("APP_SCREENSHOT", str(tmp_path / "page.png")), full_page=True)
    page.fill("#question textarea, #question input", "hello there")  # a second question of the same conversation
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('#chat .bot, #chat [data-testid=bot]').length >= 2")
    page.click("#restart")
    page.wait_for_function("document.querySelectorAll('#chat .bot, #chat [data-testid=bot]').length == 0")
    page.click("#ask")
    page.get_by_text("There is nothing to answer").first.wait_for(timeout=30_000)
    assert [url for url in strangers if url.startswith("http")] == [], "the page asks no other machine"


def test_the_sounds_are_at_the_encoders_rate():
    assert processor().feature_extractor.sampling_rate == RATE
