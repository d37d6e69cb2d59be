"""scripts/app.py: what the page shows, and the page itself in headless Chromium, where a picture and a sound are
uploaded and asked about."""

import contextlib
import importlib.util
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from modeling_mm import MMForConditionalGeneration
from modeling_mm.explain.attention import AnswerAttention
from modeling_mm.serving.answering import encode, room_after
from modeling_mm.serving.conversation import (
    SHOWN_WIDTH,
    STRIP_HEIGHT,
    light,
    look,
    stream_answer,
    user_turn,
)
from scripts.app import main
from tests.fakes.processor_parts import RATE, picture, sound
from tests.fakes.ranks import ROOT, free_port, quiet_environment
from tests.fakes.serving_parts import generated, model
from tests.fakes.tiny_chats import processor

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
MISSING += [] if CHROMIUM else ["chromium"]
START_SECONDS = 180
UNSEEN = ROOT / "processing" / "corpora" / "unseen" / "media" / "twemoji-1f369.png"  # of those held out
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


@contextlib.contextmanager
def endless(model, seconds=0.0):
    """While it lasts the model ends no answer, and takes its time for each token; yields what grows with each."""
    steps: list[float] = []

    def wait(*_) -> None:
        steps.append(time.monotonic())
        time.sleep(seconds)

    ends, model.generation_config.eos_token_id = model.generation_config.eos_token_id, None
    hook = model.register_forward_pre_hook(wait)
    try:
        yield steps
    finally:
        hook.remove()
        model.generation_config.eos_token_id = ends


def settled(steps: list[float]) -> int:
    """How many steps there are, once a second has passed without one."""
    while not steps or time.monotonic() - steps[-1] < 1:
        time.sleep(0.1)
    return len(steps)


def answered(model, turns) -> tuple[str, list[int]]:
    """The whole answer, and its tokens."""
    *_, last = stream_answer(model, processor(), turns, LENGTH)
    return last


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
    steps = [text for text, _ in stream_answer(eager, processor(), turns, LENGTH)]
    assert steps[-1] == generated(turns, max_new_tokens=LENGTH) and len(steps[-1]) > 0
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(steps))


def test_errors_reach_who_asks(eager, files, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match=r"^broken\.png: .*no format that Pillow knows"):
        user_turn("x", str(tmp_path / "broken.png"), None)
    with pytest.raises(ValueError, match=r"^broken\.wav: .*cannot be decoded"):
        user_turn("x", None, str(tmp_path / "broken.wav"))
    with pytest.raises(
        ValueError, match=r"takes \d+ tokens, and the model has 128 positions; shorten it, or start over"
    ):
        list(stream_answer(eager, processor(), [user_turn("a dog " * 500, None, None)], LENGTH))


def test_an_answer_ends_where_the_positions_do(eager, files):
    """More is allowed than fits: the answer is as long as it can be. Its view takes one step, and no second answer."""
    turns = [user_turn("Look and listen." + " dog" * 100, files["image"], files["audio"])]
    room = room_after(eager, encode(eager, processor(), turns)["input_ids"].shape[1])
    assert 0 < room < LENGTH
    with endless(eager) as steps:
        text, tokens = answered(eager, turns)
        assert len(steps) == len(tokens) == room
        assert text and look(eager, processor(), turns, tokens)
        assert len(steps) == room + 1


def test_what_nobody_reads_is_not_generated(eager):
    with endless(eager, seconds=0.02) as steps:
        answer = stream_answer(eager, processor(), [user_turn("hello", None, None)], 100)
        next(answer)
        answer.close()
        assert settled(steps) < 50


def test_each_word_lights_what_it_looked_at(eager, files):
    turns = [user_turn("Look and listen.", files["image"], files["audio"])]
    found = look(eager, processor(), turns, answered(eager, turns)[1])
    words = " ".join(word for _, word in found)
    assert words.split() == generated(turns, max_new_tokens=LENGTH).split()
    height = round(40 * SHOWN_WIDTH / 60)
    assert {image.size for image, _ in found} == {(SHOWN_WIDTH, height + STRIP_HEIGHT)}
    heard = [user_turn("What do you hear?", None, files["audio"])]
    alone = look(eager, processor(), heard, answered(eager, heard)[1])
    assert {image.size for image, _ in alone} == {(SHOWN_WIDTH, STRIP_HEIGHT)}
    assert look(eager, processor(), [user_turn("hello", None, None)], [5]) == []


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


needs_extra = pytest.mark.skipif(bool(MISSING), reason=f"needs the extra `app`, and {', '.join(MISSING)}")
BOTS = "#chat .bot, #chat [data-testid=bot]"
QUESTION = "#question textarea, #question input"
TOAST = ".toast-body"
# A microphone that beeps, and nobody who has to allow it.
CHROMIUM_OPTIONS = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]


@contextlib.contextmanager
def served(folder, log, length):
    """scripts/app.py in a process of its own; its address."""
    port = free_port()
    command = [sys.executable, str(ROOT / "scripts" / "app.py"), str(folder), "--port", str(port)]
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--max-new-tokens", str(length)], env=quiet_environment(), stdout=out, stderr=subprocess.STDOUT
        )
    deadline, address = time.monotonic() + START_SECONDS, f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(address, timeout=10).read()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.3)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def log(folder):
    return folder.parent / "log.txt"


@pytest.fixture(scope="module")
def address(folder, log):
    with served(folder, log, LENGTH) as address:
        yield address


@contextlib.contextmanager
def shown_here(model, length=LENGTH):
    """The page in this process, where what lies behind it can be made to fail; its address."""
    from modeling_mm.serving.page import build_page

    page = build_page(model, processor(), "tiny", length)
    _, address, _ = page.launch(server_name="127.0.0.1", server_port=free_port(), prevent_thread_lock=True, quiet=True)
    try:
        yield address
    finally:
        page.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens an address as a new visitor, who leaves when the test ends."""
    with contextlib.ExitStack() as stack:

        def opened(address):
            context = browser.new_context(viewport={"width": 1280, "height": 1100}, permissions=["microphone"])
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(60_000)
            page.goto(address)
            page.wait_for_selector(QUESTION)
            return page

        yield opened


def upload(page, files) -> None:
    page.set_input_files("#picture input[type=file]", files["image"])
    page.set_input_files("#sound input[type=file]", files["audio"])
    page.wait_for_selector("#picture img")
    page.wait_for_selector(
        "#sound audio, #sound .waveform-container, #sound [data-testid*=waveform]", state="attached"
    )


def ask(page, question: str) -> None:
    page.fill(QUESTION, question)
    page.click("#ask")


@needs_extra
def test_a_picture_and_a_sound_are_uploaded_and_asked_about_in_a_browser(address, visit, files, log):
    page = visit(address)
    strangers = []
    page.on("request", lambda request: strangers.append(request.url) if not request.url.startswith(address) else None)
    page.reload()
    turns = [user_turn("Look and listen.", files["image"], files["audio"])]
    expected = generated(turns, max_new_tokens=LENGTH)
    upload(page, files)
    ask(page, "Look and listen.")
    page.locator(BOTS).last.get_by_text(expected, exact=False).wait_for()
    page.wait_for_selector("#view img")
    assert page.locator("#view img").count() >= len(expected.split())
    assert page.locator("#chat img").count() >= 1, "the picture stands in the chat"
    assert page.input_value(QUESTION) == "" and page.locator("#picture img").count() == 0
    # A second answer of the same chat follows from all that was said before.
    turns.append({"role": "assistant", "content": [{"type": "text", "text": expected}]})
    question, second = next(
        (question, text)
        for question in ("hello", "You see", "What do you hear?", "hello there", "You are", "a dog", "What?")
        if (text := generated([*turns, later := user_turn(question, None, None)], max_new_tokens=LENGTH))
        not in (expected, generated([later], max_new_tokens=LENGTH))
    )
    page.fill(QUESTION, question)
    page.keyboard.press("Enter")
    page.wait_for_function(f"document.querySelectorAll('{BOTS}').length >= 2")
    page.locator(BOTS).last.get_by_text(second, exact=False).first.wait_for()
    assert expected in page.locator(BOTS).first.inner_text()
    page.click("#restart")
    page.wait_for_function(f"document.querySelectorAll('{BOTS}').length == 0")
    page.click("#ask")
    page.get_by_text("There is nothing to answer").first.wait_for()
    assert [url for url in strangers if url.startswith("http")] == [], "the page asks no other machine"
    assert "Traceback" not in log.read_text()


@needs_extra
@pytest.mark.parametrize(
    ("part", "name", "word"),
    [("picture", "broken.png", "no format that Pillow knows"), ("sound", "broken.wav", "cannot be decoded")],
)
def test_a_broken_file_is_told_and_the_question_given_back(address, visit, log, tmp_path, part, name, word):
    (tmp_path / name).write_bytes(b"neither a picture nor a sound")
    page = visit(address)
    page.set_input_files(f"#{part} input[type=file]", str(tmp_path / name))
    page.wait_for_selector("#picture img, #sound audio", state="attached")
    ask(page, "What is this?")
    toast = page.wait_for_selector(TOAST).inner_text()
    assert f"{name}: " in toast and word in toast and "/" not in toast and "Error" not in toast, toast
    page.wait_for_function("document.querySelector('#question textarea, #question input').value == 'What is this?'")
    assert page.locator(BOTS).count() == 0 and "Traceback" not in log.read_text()


@needs_extra
def test_a_microphone_is_recorded_and_asked_about(address, visit):
    page = visit(address)
    page.click("#sound button[aria-label='Record audio']")
    page.click("#sound button.record-button")
    page.wait_for_selector("#sound button.stop-button", state="visible")
    page.wait_for_timeout(700)
    page.click("#sound button.stop-button")
    page.wait_for_selector("#sound button[aria-label='Play']")
    ask(page, "What do you hear?")
    page.wait_for_selector("#view img")
    assert page.locator(BOTS).count() >= 1 and page.locator("#chat audio, #chat [data-testid*=waveform]").count() >= 1


@needs_extra
@pytest.mark.parametrize("failure", [ValueError("nothing can be told"), RuntimeError("out of memory")])
def test_an_answer_stays_where_the_view_fails(eager, visit, files, monkeypatch, failure):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr("modeling_mm.serving.conversation.attend", fail)
    expected = generated([user_turn("Look and listen.", files["image"], files["audio"])], max_new_tokens=LENGTH)
    with shown_here(eager) as address:
        page = visit(address)
        upload(page, files)
        ask(page, "Look and listen.")
        # What is foreseen has its reason; for all else gradio marks the view.
        said = "cannot be shown: nothing can be told" if isinstance(failure, ValueError) else "Error"
        page.locator(f"{TOAST}, #view").get_by_text(said).first.wait_for()
        assert expected in page.locator(BOTS).last.inner_text() and page.locator("#view img").count() == 0
        assert page.input_value(QUESTION) == ""


@needs_extra
@pytest.mark.parametrize("leave", ["closes the page", "starts over"])
def test_the_generation_ends_when_the_visitor_leaves(eager, visit, leave):
    """The answer is seen before it is whole; then it is left, and another is asked for."""
    with endless(eager, seconds=0.1) as steps, shown_here(eager, 100) as address:
        page = visit(address)
        ask(page, "hello")
        page.wait_for_function(f"document.querySelector('{BOTS}')?.innerText.trim()")
        assert len(steps) < 90, "it was shown while it grew"
        if leave == "starts over":
            page.click("#restart")
        else:
            page.close()
        assert settled(steps) < 100
        if leave == "starts over":
            page.wait_for_function(f"document.querySelectorAll('{BOTS}').length == 0")
        else:
            page = visit(address)
        steps.clear()
        ask(page, "hello")
        page.wait_for_function(f"document.querySelector('{BOTS}')?.innerText.trim()")
        page.click("#restart")
        settled(steps)


@needs_extra
def test_the_released_model_answers_and_shows_what_it_looked_at(visit, tmp_path):
    """APP_SCREENSHOT names a file for the screenshot, which is otherwise thrown away."""
    with served(ROOT / "model_cards" / "mm-pocket", tmp_path / "log.txt", 16) as address:
        page = visit(address)
        page.set_viewport_size({"width": 1000, "height": 800})
        page.set_input_files("#picture input[type=file]", str(UNSEEN))
        page.wait_for_selector("#picture img")
        ask(page, "What does the picture show?")
        page.wait_for_selector("#view img")
        assert page.locator(BOTS).last.inner_text().strip()
        page.wait_for_timeout(1000)  # what fades in
        page.screenshot(path=os.environ.get("APP_SCREENSHOT", str(tmp_path / "page.png")), full_page=True)


def test_the_sounds_are_at_the_encoders_rate():
    assert processor().feature_extractor.sampling_rate == RATE
