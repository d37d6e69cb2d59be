"""The page of examples: parsed strictly, as a browser that may not ask the network would show it."""

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
from PIL import Image

from modeling_mm.data import ChatRow
from modeling_mm.evaluation import Figure, examples_page
from modeling_mm.evaluation.examples_page import choose
from modeling_mm.evaluation.inline_media import AUDIO_RATE, inline_media
from tests.fakes.processor_parts import RATE, picture, sound
from tests.fakes.videos import make_video

VOID = {"meta", "img", "br"}
EVIL = '<script>alert(1)</script> & "quotes" \''


class Page(HTMLParser):
    """Elements in order; raises if a tag is not closed in its turn."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), "an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} closes another element"

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def row(number, truth, task="name/en", question="What?", media=("image",)):
    samples, rate = sound()
    sources = {"image": {"image": picture(size=(600, 300))}, "audio": {"audio": samples, "sampling_rate": rate}}
    content = [{"type": kind, **sources[kind]} for kind in media] + [{"type": "text", "text": question}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": truth}]}
    return ChatRow([{"role": "user", "content": content}, answer], task=task, id=f"row {number}")


def record(row, answer, text_only="", dataset="test"):
    return {"dataset": dataset, "task": row.task, "id": row.id, "answer": answer, "text_only": text_only,
            "truth": row.answer}  # fmt: skip


def figure(task="name/en", metric="exact_match", text_only=None):
    return Figure("test", task, metric, 0.5, 0.25, text_only, 4)


def render(rows, answers, *figures, text_only="blind", **options):
    records = [record(row, answer, text_only) for row, answer in zip(rows, answers, strict=True)]
    return examples_page("Evaluation of mine", figures or (figure(),), {"test": rows}, records, **options)


def test_the_page_needs_no_network_and_runs_nothing():
    rows = [row(1, EVIL, question=EVIL, media=("image", "audio")), row(2, "a dog")]
    text = render(rows, [EVIL, EVIL])
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>") and not page.named("script") and not page.named("link")
    sources = [
        value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "href")
    ]
    assert len(sources) == 3 and all(source.startswith("data:") for source in sources)
    (policy,) = [m["content"] for m in page.named("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
    assert not re.search(r"url\(|@import|https?:", text)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    shown = [data for _, data in page.texts if data == EVIL]
    assert len(shown) == 4, "one question, one truth and two answers, as they are written"


def test_both_color_schemes_have_every_color():
    style = re.search(r"<style>(.*?)</style>", render([row(1, "a")], ["a"]), re.DOTALL)[1]
    light, dark = (set(re.findall(r"(--\w+):", part)) for part in style.split("prefers-color-scheme: dark")[:2])
    assert light == set(re.findall(r"var\((--\w+)\)", style))
    assert light == {name for name in dark if name in light} and "color-scheme: light dark" in style


def test_media_are_inside():
    page = Page(render([row(1, "a", media=("image", "audio"))], ["a"]))
    (image,), (audio,) = page.named("img"), page.named("audio")
    kind, data = image["src"].split(",", 1)
    shown = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert kind == "data:image/jpeg;base64" and shown.format == "JPEG" and shown.size == (256, 128)
    assert shown.getpixel((100, 60))[0] > 240 and "controls" in audio and image["alt"]
    kind, data = audio["src"].split(",", 1)
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(data, validate=True)))
    assert kind == "data:audio/flac;base64" and rate == AUDIO_RATE
    assert len(wave) == len(sound()[0]) * AUDIO_RATE // RATE


def test_long_audio_is_cut_and_unreadable_files_are_named(tmp_path):
    (long,) = inline_media({"type": "audio", "audio": np.full(31 * 8000, 2.0, np.float32), "sampling_rate": 8000})
    wave, _ = soundfile.read(io.BytesIO(base64.b64decode(long.uri.split(",")[1])))
    assert len(wave) == 30 * AUDIO_RATE and long.note == "the first 30 of 31 seconds" and wave.max() <= 1
    (gone,) = inline_media({"type": "image", "path": str(tmp_path / "gone.png")})
    assert gone.uri is None and "image that cannot be read" in gone.note and "gone.png" in gone.note
    (other,) = inline_media({"type": "radar", "radar": 1})
    assert other.uri is None and other.note == "radar, which the page does not show"
    answered = row(1, "a")
    answered.messages[0]["content"][0] = {"type": "image", "path": str(tmp_path / "<gone>.png")}
    page = Page(render([answered], ["a"]))
    assert not page.named("img") and any("<gone>.png" in text for _, text in page.texts)


def test_videos_are_frames_and_their_audio():
    data = make_video("h264", times=[number / 5 for number in range(50)])
    items = inline_media({"type": "video", "bytes": data, "fps": 2})
    assert [item.kind for item in items] == [*["image"] * 8, "video", "audio"]
    assert items[8].note.startswith("8 frames of a video of 20 from 0.0 to 9.") and items[8].uri is None
    assert len({item.uri for item in items[:8]}) > 4
    silent = inline_media({"type": "video", "bytes": data, "num_frames": 3, "load_audio_from_video": False})
    assert [item.kind for item in silent] == ["image"] * 3 + ["video"]
    (broken,) = inline_media({"type": "video", "bytes": b"no video"})
    assert broken.uri is None and "video that cannot be read" in broken.note
    answered = row(1, "a")
    answered.messages[0]["content"][0] = {"type": "video", "bytes": data, "num_frames": 2}
    page = Page(render([answered], ["a"]))
    assert len(page.named("img")) == 2 and len(page.named("audio")) == 1


def test_right_and_wrong_answers_stand_apart_beside_the_text_only_answer():
    rows = [row(i, f"truth {i}") for i in range(4)]
    text = render(rows, ["truth 0", "no", "truth 2", ""], figure(text_only=0.1))
    page = Page(text)
    good, bad = text.split("<h4>Good")[1].split("<h4>Bad")
    assert all(f"row {i}," in good for i in (0, 2)) and all(f"row {i}," in bad for i in (1, 3))
    assert [a["class"] for a in page.named("dd") if "class" in a] == ["right", "right", "wrong", "wrong"]
    assert text.count("blind") == 4 and "(empty)" in bad and "exact_match 1.000" in good
    assert "blind" not in render(rows, ["a"] * 4), "there were no answers without media"


def test_figures_and_other_turns_are_shown():
    chat = row(1, "a")
    earlier = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}]
    text = render([ChatRow([*earlier, *chat.messages], task=chat.task, id=chat.id)], ["a"])
    assert "By exact_match, 1 question." in text and "Be brief." in text and '<div class="role">system</div>' in text
    page = Page(text)
    cells = [data for tag, data in page.texts if tag == "td"]
    assert cells == ["name/en", "exact_match", "0.500", "0.250", "4"]
    assert [data for tag, data in page.texts if tag == "h3"] == ["name/en"]


def test_a_finer_metric_orders_the_answers():
    pytest.importorskip("jiwer")
    rows = [row(i, "one two three four", task="transcribe") for i in range(3)]
    both = figure("transcribe"), figure("transcribe", "wer")
    text = render(rows, ["one two", "one two three four", "x y z w v"], *both, count=1)
    good, bad = text.split("<h4>Good")[1].split("<h4>Bad")
    assert "row 1, wer 0.000" in good and "row 2, wer 1.250" in bad and "row 0" not in text


def test_ties_are_not_broken_by_the_order_of_the_examples():
    values, names = dict.fromkeys(range(50), 1.0), {i: f"row {i}" for i in range(50)}
    good, bad = choose("exact_match", values, names, 5)
    assert len(good) == 5 and not bad and good != [0, 1, 2, 3, 4]
    moved = {49 - i: name for i, name in names.items()}
    assert {moved[i] for i in choose("exact_match", values, moved, 5)[0]} == {names[i] for i in good}
    assert choose("wer", {0: 0.0, 1: 0.5, 2: 3.0}, names, 5) == ([0, 1], [2])
    assert choose("chrf", {0: 100.0, 1: 30.0, 2: 0.0}, names, 1) == ([0], [2])


def test_no_examples_but_the_figures():
    page = Page(render([row(1, "a")], ["a"], count=0))
    assert not page.named("article") and len(page.named("td")) == 6


def test_records_of_other_data_are_refused():
    with pytest.raises(ValueError, match="The 1 records of test are not those of its 1 examples"):
        examples_page("t", [figure()], {"test": [row(1, "a")]}, [record(row(1, "b"), "a")])
    with pytest.raises(ValueError, match="The 0 records of other"):
        examples_page("t", [figure()], {"other": [row(1, "a")]}, [record(row(1, "a"), "a")])
    with pytest.raises(ValueError, match="got -1"):
        render([row(1, "a")], ["a"], count=-1)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


# CI has no browser; there the page is parsed strictly by the tests above.
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("scheme, paper", [(1, (255, 255, 255)), (0, (20, 23, 29))], ids=["light", "dark"])
def test_a_browser_shows_the_page_in_both_schemes(scheme, paper, tmp_path):
    """The image is a red field; the policy blocks nothing that the page has."""
    path, shot = tmp_path / "page.html", tmp_path / "page.png"
    path.write_text(render([row(1, "a", media=("image", "audio"))], ["a"]), encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=900,900"]
    options += [
        f"--blink-settings=preferredColorScheme={scheme}",
        f"--user-data-dir={tmp_path}",
        "--enable-logging=stderr",
    ]
    ran = subprocess.run([CHROMIUM, *options, f"--screenshot={shot}", path.as_uri()], capture_output=True, timeout=600)
    assert b"Content Security Policy" not in ran.stderr and b"CONSOLE" not in ran.stderr
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert tuple(pixels[2, 2]) == paper
    red = (pixels[..., 0] > 240) & (pixels[..., 1:].max(-1) < 20)
    assert red.sum() > 0.9 * 256 * 128
