"""scripts/app.py: the page in headless Chromium, where an image and audio are uploaded and asked about."""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import types
import urllib.request

import pytest
import torch

from modeling_mm import MMForConditionalGeneration
from modeling_mm.cli import main
from modeling_mm.serving.conversation import user_turn
from tests.fakes.processor_parts import picture
from tests.fakes.ranks import ROOT, free_port, quiet_environment
from tests.fakes.serving_parts import counted, endless, generated, media_files, model, settled
from tests.fakes.tiny_chats import processor
from tests.fakes.writers import speaking

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
MISSING += [] if CHROMIUM else ["chromium"]
START_SECONDS = 180
UNSEEN = ROOT / "processing" / "corpora" / "unseen" / "media" / "twemoji-1f6cf-fe0f.png"  # of those held out
LENGTH = 24  # of answers, in tokens


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return media_files(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shown") / "tiny"
    model().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def eager(folder):
    return MMForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")


def test_the_script_says_what_is_missing(tmp_path, folder, capsys, monkeypatch):
    if "gradio" not in MISSING:
        assert main(["app", str(tmp_path / "nothing")]) == 2
        assert "There is no folder" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "modeling_mm.cli.app", raising=False)
    assert main(["app", str(folder)]) == 1
    assert 'pip install "modeling_mm[app]"' in capsys.readouterr().err


# ---- The page -------------------------------------------------------------------------------------------------------


needs_extra = pytest.mark.skipif(bool(MISSING), reason=f"needs the extra `app`, and {', '.join(MISSING)}")
BOTS = "#chat [data-testid=bot]"
QUESTION = "#question textarea"
SUBMIT = "#question .submit-button"
# A microphone that beeps, and nobody who has to allow it.
CHROMIUM_OPTIONS = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]


@contextlib.contextmanager
def served(folder, log, length, *more):
    """scripts/app.py in a process of its own; its address."""
    port = free_port()
    command = [sys.executable, str(ROOT / "scripts" / "app.py"), str(folder), "--port", str(port), *more]
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
    from modeling_mm.serving import build_page

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


def upload(page, *files) -> None:
    page.set_input_files("#question input[type=file]", files)
    page.wait_for_function(f"document.querySelectorAll('#question .thumbnail-item').length == {len(files)}")


def ask(page, question: str, *files) -> None:
    if files:
        upload(page, *files)
    page.fill(QUESTION, question)
    page.click(SUBMIT)


def wait_for_answer(page, text: str) -> None:
    """Wait until an answer is complete, which gives the text box back."""
    page.locator(BOTS).last.get_by_text(text, exact=False).first.wait_for()
    page.wait_for_selector(f"{QUESTION}:enabled")


@needs_extra
@pytest.mark.parametrize(
    ("parts", "sources"),
    [
        (("image_processor", "feature_extractor"), ["upload", "microphone"]),
        (("feature_extractor",), ["upload", "microphone"]),
        (("image_processor",), ["upload"]),
        ((), []),
    ],
)
def test_the_page_offers_the_modalities_of_the_processor(parts, sources):
    from modeling_mm.serving import build_page

    taken = {"image_processor": None, "feature_extractor": None, **dict.fromkeys(parts, True)}
    page = build_page(torch.nn.Identity(), types.SimpleNamespace(**taken), "tiny", LENGTH)
    (textbox,) = (block for block in page.blocks.values() if block.elem_id == "question")
    kinds = [name for name, part in (("image", "image_processor"), ("audio", "feature_extractor")) if part in parts]
    assert (textbox.file_types, textbox.sources) == (kinds, sources)


@needs_extra
def test_an_image_and_audio_are_uploaded_and_asked_about_in_a_browser(address, visit, files, log):
    page = visit(address)
    strangers = []
    page.on("request", lambda request: strangers.append(request.url) if not request.url.startswith(address) else None)
    page.reload()
    page.wait_for_selector(QUESTION)
    turns = [user_turn("Look and listen.", files.values())]
    expected = generated(turns, max_new_tokens=LENGTH)
    ask(page, "Look and listen.", *files.values())
    wait_for_answer(page, expected)
    page.wait_for_selector("#view img")
    assert page.locator("#view img").count() >= len(expected.split())
    assert page.locator("#chat img").count() == 1 and page.locator("#chat audio, #chat .play-btn").count() >= 1
    assert page.input_value(QUESTION) == "" and page.locator("#question .thumbnail-item").count() == 0
    # A second answer of the same chat follows from all earlier turns.
    turns.append({"role": "assistant", "content": [{"type": "text", "text": expected}]})
    question, second = next(
        (question, text)
        for question in ("hello", "You see", "What do you hear?", "hello there", "You are", "a dog", "What?")
        if (text := generated([*turns, later := user_turn(question, [])], max_new_tokens=LENGTH))
        not in (expected, generated([later], max_new_tokens=LENGTH))
    )
    page.fill(QUESTION, question)
    page.keyboard.press("Enter")
    page.wait_for_function(f"document.querySelectorAll('{BOTS}').length == 2")
    wait_for_answer(page, second)
    assert expected in page.locator(BOTS).first.inner_text()
    page.click("#restart")
    page.wait_for_function(f"document.querySelectorAll('{BOTS}, #view img').length == 0")
    page.wait_for_selector(f"{QUESTION}:enabled")
    ask(page, " ")
    page.get_by_text("There is nothing to answer").first.wait_for()
    assert [url for url in strangers if url.startswith("http")] == [], "the page asks no other machine"
    assert "Traceback" not in log.read_text()


@needs_extra
@pytest.mark.parametrize(
    ("name", "word"), [("broken.png", "no format that Pillow knows"), ("broken.wav", "cannot be decoded")]
)
def test_a_broken_file_is_refused_by_its_name_and_the_question_stays(address, visit, log, tmp_path, name, word):
    (tmp_path / name).write_bytes(b"neither image nor audio")
    page = visit(address)
    ask(page, "What is this?", str(tmp_path / name))
    said = page.get_by_text(f"{name}: ").first.inner_text()
    assert word in said and "/" not in said and "Error" not in said, said
    assert page.input_value(QUESTION) == "What is this?"
    assert page.locator(BOTS).count() == 0 and "Traceback" not in log.read_text()


@needs_extra
def test_a_question_that_is_too_long_is_given_back_and_forgotten(address, visit, log):
    page = visit(address)
    ask(page, "hello")
    wait_for_answer(page, hello := generated(turns := [user_turn("hello", [])], max_new_tokens=LENGTH))
    ask(page, "a dog " * 200)
    wait_for_answer(page, "the model has 128 positions; shorten it, or start over")
    page.click("#chat button[aria-label=Undo]")
    page.wait_for_function(f"document.querySelector('{QUESTION}').value.startsWith('a dog a dog')")
    assert page.locator(BOTS).count() == 1
    ask(page, "a dog " * 200)
    wait_for_answer(page, "the model has 128 positions; shorten it, or start over")
    turns += [{"role": "assistant", "content": hello}, user_turn("You see", [])]
    ask(page, "You see")
    page.wait_for_function(f"document.querySelectorAll('{BOTS}').length == 3")
    wait_for_answer(page, generated(turns, max_new_tokens=LENGTH))
    assert "Traceback" not in log.read_text()


@needs_extra
def test_an_answer_is_given_again_from_the_files_in_the_chat(eager, visit, files):
    expected = generated([user_turn("Look and listen.", files.values())], max_new_tokens=LENGTH)
    with shown_here(eager) as address:
        page = visit(address)
        ask(page, "Look and listen.", *files.values())
        page.wait_for_selector("#view img")
        with counted(eager) as steps:
            page.click("#chat button[aria-label=Retry]")
            settled(steps)
        wait_for_answer(page, expected)
        page.wait_for_selector("#view img")
        assert page.locator(BOTS).count() == 1


@needs_extra
def test_a_microphone_is_recorded_and_asked_about(address, visit):
    page = visit(address)
    page.click("#question .microphone-button")
    page.click("#question button.record-button")
    page.wait_for_selector("#question button.stop-button", state="visible")
    page.wait_for_timeout(700)
    page.click("#question button.stop-button")
    page.click("#question .confirm-button")
    page.wait_for_selector("#question .thumbnail-item")
    ask(page, "What do you hear?")
    page.wait_for_selector("#view img")
    assert page.locator(BOTS).count() >= 1 and page.locator("#chat audio, #chat .play-btn").count() >= 1


@needs_extra
@pytest.mark.parametrize("failure", [ValueError("nothing to show"), RuntimeError("out of memory")])
def test_an_answer_stays_if_the_view_fails(eager, visit, files, monkeypatch, failure):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr("modeling_mm.serving.conversation.make_target", fail)
    expected = generated([user_turn("Look and listen.", files.values())], max_new_tokens=LENGTH)
    with shown_here(eager) as address:
        page = visit(address)
        ask(page, "Look and listen.", *files.values())
        # A ValueError has its reason; for all other errors gradio marks the view.
        said = "cannot be shown: nothing to show" if isinstance(failure, ValueError) else "Error"
        page.locator(".toast-body, #view").get_by_text(said).first.wait_for()
        assert expected in page.locator(BOTS).last.inner_text() and page.locator("#view img").count() == 0
        assert page.input_value(QUESTION) == ""


@needs_extra
def test_a_visitor_chooses_the_method_of_explaining(eager, visit, files, monkeypatch):
    """A heatmap for each word by any method, a table of modality contributions, and no method that takes too long."""
    with shown_here(eager) as address:
        page = visit(address)
        ask(page, "Look and listen.", *files.values())
        page.wait_for_selector("#view img")
        count, shown = page.locator("#view img").count(), page.locator("#view img").first
        for method in ("gradient-attention", "integrated-gradients", "occlusion"):
            before = shown.get_attribute("src")
            page.locator("#method").get_by_label(method).check()
            page.wait_for_function(
                "before => !['', before].includes(document.querySelector('#view img')?.getAttribute('src') ?? '')",
                arg=before,
            )
            assert page.locator("#view img").count() == count
        page.locator("#method").get_by_label("modality contributions").check()
        page.wait_for_selector("#contributions table")
        table = page.locator("#contributions").inner_text()
        assert all(column in table for column in ("nothing", "+ image", "+ audio", "+ text", "all"))
        monkeypatch.setattr("modeling_mm.serving.conversation.MOST_RUNS", 1)
        page.locator("#method").get_by_label("occlusion").check()
        page.get_by_text("places and words takes too long here").first.wait_for()
        page.locator("#method").get_by_label("attention", exact=True).check()
        page.wait_for_selector("#view img")
        assert not page.locator("#contributions").is_visible()


@needs_extra
def test_what_a_model_writes_is_heard_and_seen_and_what_it_finds_has_a_box(visit, tmp_path):
    """An answer that is audio, one that is an image, and one with a place in the image of the question; then text."""
    for part in speaking():
        part.save_pretrained(tmp_path / "tiny")
    picture("red", (60, 40)).save(tmp_path / "red.png")
    with served(tmp_path / "tiny", tmp_path / "log.txt", LENGTH) as address:
        page = visit(address)
        ask(page, "Say: hello")
        page.locator(f"{BOTS} audio, {BOTS} .play-btn").first.wait_for(state="attached")
        page.wait_for_selector(f"{QUESTION}:enabled")
        assert page.locator(f"{BOTS} img").count() == 0 and page.locator("#view img").count() == 0
        page.click("#restart")
        page.wait_for_function(f"document.querySelectorAll('{BOTS}').length == 0")
        page.wait_for_selector(f"{QUESTION}:enabled")
        ask(page, "Draw a dog")
        page.wait_for_function(f"document.querySelector('{BOTS} img')?.naturalWidth == 16")
        page.wait_for_selector(f"{QUESTION}:enabled")
        ask(page, "hello")  # follows from the image
        page.wait_for_function(f"document.querySelectorAll('{BOTS}').length == 2")
        page.wait_for_selector(f"{QUESTION}:enabled")
        page.click("#restart")
        page.wait_for_function(f"document.querySelectorAll('{BOTS}').length == 0")
        page.wait_for_selector(f"{QUESTION}:enabled")
        ask(page, "Find the dog.", str(tmp_path / "red.png"))
        page.locator(BOTS).first.get_by_text("dog", exact=True).wait_for()  # location tokens look like tags
        page.wait_for_function(f"document.querySelector('{BOTS} img')?.naturalWidth == 320")
        page.wait_for_selector("#view img")
        assert "Traceback" not in (tmp_path / "log.txt").read_text()


@needs_extra
@pytest.mark.parametrize("leave", ["#restart", "#chat button[aria-label=Clear]", ".stop-button", None])
def test_the_generation_ends_when_the_visitor_leaves(eager, visit, leave):
    """The answer is seen before it is whole; then it is left, and another question is asked."""
    with endless(eager, seconds=0.1) as steps, shown_here(eager, 100) as address:
        page = visit(address)
        ask(page, "hello")
        page.wait_for_function(f"document.querySelector('{BOTS}')?.innerText.trim()")
        assert len(steps) < 90, "it was shown while it grew"
        if leave:
            page.click(leave)
        else:
            page.close()
        assert settled(steps) < 100
        page = page if leave else visit(address)
        kept = 1 if leave == ".stop-button" else 0
        page.wait_for_function(f"document.querySelectorAll('{BOTS}').length == {kept}")
        page.wait_for_selector(f"{QUESTION}:enabled")
        steps.clear()
        ask(page, "hello")
        page.wait_for_function(f"document.querySelectorAll('{BOTS}')[{kept}]?.innerText.trim()")
        page.click("#restart")
        settled(steps)


@needs_extra
def test_the_released_model_answers_and_shows_what_it_looked_at(visit, tmp_path):
    """APP_SCREENSHOT names a file for the screenshot, which is otherwise thrown away."""
    with served(ROOT / "model_cards" / "mm-whisper-tiny", tmp_path / "log.txt", 16) as address:
        page = visit(address)
        page.set_viewport_size({"width": 1000, "height": 800})
        ask(page, "What does the picture show?", str(UNSEEN))
        page.wait_for_selector("#view img")
        assert page.locator(BOTS).last.inner_text().strip()
        page.wait_for_timeout(1000)  # what fades in
        page.screenshot(path=os.environ.get("APP_SCREENSHOT", str(tmp_path / "page.png")), full_page=True)


# ---- What it shows before the first question ------------------------------------------------------------------------


@needs_extra
@pytest.mark.parametrize("height", [844, 664])
def test_a_phone_shows_name_examples_and_the_text_box_at_once(address, browser, height):
    """The chat comes first, nothing is wider than the screen, and one tap asks an example."""
    context = browser.new_context(viewport={"width": 390, "height": height}, has_touch=True)
    try:
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(address)
        page.wait_for_selector(QUESTION)
        assert page.locator("h1").inner_text() == "tiny"
        page.get_by_text("that reads text, images and audio").wait_for()
        chat, question, view = (page.locator(name).bounding_box() for name in ("#chat", "#question", "#view"))
        assert 0 < chat["y"] < question["y"] < view["y"]
        assert question["y"] + question["height"] <= height and chat["height"] >= 200
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        examples = page.locator("#chat button.example")
        assert examples.count() == 3
        examples.first.tap()
        page.wait_for_selector(f"{QUESTION}:enabled")
        page.wait_for_selector("#view img")
        assert page.locator("#chat img").count() == 1 and page.locator(BOTS).count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") == 390
    finally:
        context.close()


@needs_extra
def test_an_example_gets_the_answer_of_its_question(eager, visit):
    from modeling_mm.serving import build_page
    from modeling_mm.serving.introduction import introduce

    shown = introduce("tiny", eager, processor())
    asked = [user_turn(shown.examples[2]["text"], shown.examples[2]["files"])]
    page = build_page(eager, processor(), "tiny", LENGTH, shown)
    _, address, _ = page.launch(server_name="127.0.0.1", server_port=free_port(), prevent_thread_lock=True, quiet=True)
    try:
        visitor = visit(address)
        visitor.locator("#chat button.example").nth(2).click()
        wait_for_answer(visitor, generated(asked, max_new_tokens=LENGTH))
        assert visitor.locator("#chat img").count() == 1
        assert visitor.locator("#chat audio, #chat .play-btn").count() >= 1
    finally:
        page.close(verbose=False)
