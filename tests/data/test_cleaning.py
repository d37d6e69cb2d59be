"""Cleaning: every kind of fault is found, named and left out, and nothing else is."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from modeling_mm.data import ChatDataset, CleaningReport, Rejected, clean, load_chats

RATE = 16_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (4, 3), "red").save(tmp_path / "red.png")
    Image.new("RGB", (4, 3), "blue").save(tmp_path / "blue.png")
    tone = np.sin(np.arange(RATE // 10) / 5).astype(np.float32)
    soundfile.write(tmp_path / "tone.wav", 0.5 * tone, RATE)
    soundfile.write(tmp_path / "quiet.wav", 0.01 * tone, RATE)
    soundfile.write(tmp_path / "silent.wav", 0 * tone, RATE)
    (tmp_path / "same.png").write_bytes((tmp_path / "red.png").read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:600])
    (tmp_path / "cut.wav").write_bytes((tmp_path / "tone.wav").read_bytes()[:600])
    (tmp_path / "empty.png").touch()
    soundfile.write(tmp_path / "no_samples.wav", tone[:0], RATE)
    (tmp_path / "sound.png").write_bytes((tmp_path / "tone.wav").read_bytes())
    (tmp_path / "picture.wav").write_bytes((tmp_path / "red.png").read_bytes())
    return tmp_path


def chat(question="What is this?", answer="a cat", **media: str) -> dict:
    parts = [{"type": kind, "path": path} for kind, path in media.items()]
    user = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
    return {"messages": [user, {"role": "assistant", "content": answer}]}


GOOD = [
    chat(image="red.png"),
    chat(image="blue.png"),
    chat(image="red.png", answer="another answer"),
    chat(image="red.png", question="And this?"),
    chat(audio="tone.wav"),
    chat(audio="quiet.wav"),
    chat(image="red.png", audio="tone.wav", question="Does the sound belong to the picture?"),
    chat("How are you?", "Well."),
    chat("Listen to the picture.", image="red.png"),
    {"messages": [{"role": "user", "content": [{"type": "image", "path": "red.png"}]}, *chat()["messages"][1:]]},
    {"messages": [{"role": "system", "content": "Be brief."}, *chat(image="red.png")["messages"]]},
    {"messages": chat(image="red.png")["messages"] + chat("Sure?", "Yes.")["messages"]},
]


def only(sample: dict, folder: Path, **options) -> Rejected:
    kept, report = clean([sample], folder, progress=False, **options)
    assert kept == [] and report.kept == 0
    (row,) = report.left_out
    return row


def test_good_examples_are_kept_in_order(folder: Path) -> None:
    kept, report = clean(GOOD, folder, progress=False)
    assert report.left_out == [] and report.counts == {}
    assert report.kept == len(kept) == len(GOOD)
    assert kept == list(ChatDataset(GOOD, folder))


@pytest.mark.parametrize(
    ("media", "reason", "detail"),
    [
        ({"image": "gone.png"}, "missing", "does not exist"),
        ({"audio": "gone.wav"}, "missing", "does not exist"),
        ({"image": "cut.png"}, "unreadable", "damaged or cut short"),
        ({"audio": "cut.wav"}, "unreadable", "cut short"),
        ({"image": "empty.png"}, "unreadable", "0 bytes"),
        ({"audio": "no_samples.wav"}, "unreadable", "no samples"),
        ({"image": "sound.png"}, "wrong modality", "expected image, got audio"),
        ({"audio": "picture.wav"}, "wrong modality", "expected audio, got image"),
        ({"audio": "silent.wav"}, "silent", "the loudest of 1600 samples is 0"),
    ],
)
def test_media_that_nothing_can_be_learned_from(folder: Path, media, reason: str, detail: str) -> None:
    row = only({**chat(**media), "id": "x"}, folder)
    assert (row.number, row.id, row.reason) == (0, "x", reason)
    assert row.file == str(folder / next(iter(media.values())))
    assert detail in row.detail


def test_an_image_without_pixels_and_an_empty_part() -> None:
    empty = {"type": "image", "image": np.zeros((0, 4, 3), np.uint8)}
    row = only({"messages": [{"role": "user", "content": [empty]}, *chat()["messages"][1:]]}, None)
    assert (row.reason, row.file) == ("unreadable", None) and "no pixels" in row.detail
    pathless = {"type": "image", "image": {"bytes": None, "path": None}}
    row = only({"messages": [{"role": "user", "content": [pathless]}, *chat()["messages"][1:]]}, None)
    assert (row.reason, row.detail) == ("no medium", "its image part holds no image")


def test_the_limit_of_silence_can_be_set(folder: Path) -> None:
    row = only(chat(audio="quiet.wav"), folder, silence_peak=0.02)
    assert row.reason == "silent"
    assert "the loudest of 1600 samples is 0.0100098" in row.detail


USER, ASSISTANT = ({"role": role, "content": "Hi."} for role in ("user", "assistant"))


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([USER], "no answer"),
        ([USER, {"role": "assistant", "content": " \n"}], "no answer"),
        ([USER, ASSISTANT, USER], "no answer"),
        ([USER, USER, ASSISTANT], "roles"),
        ([ASSISTANT, USER], "roles"),
        ([USER, ASSISTANT, ASSISTANT], "roles"),
        ([{"role": "system", "content": "Hi."}], "roles"),
        ([{"role": "user", "content": "  "}, ASSISTANT], "empty"),
        ([{"role": "user", "content": "<|image|> What?"}, ASSISTANT], "placeholder"),
        ([USER, {"role": "assistant", "content": "<|audio|>"}], "placeholder"),
        ([{"role": "user", "content": [{"type": "image"}]}, ASSISTANT], "malformed"),
        ("Hi.", "malformed"),
    ],
)
def test_conversations_that_nothing_can_be_learned_from(messages, reason: str) -> None:
    row = only({"messages": messages}, None)
    assert (row.reason, row.file) == (reason, None)


@pytest.mark.parametrize(
    ("question", "media"),
    [
        ("What is in the picture?", {"audio": "tone.wav"}),
        ("图片里是什么？", {"audio": "tone.wav"}),
        ("Que montre cette photo ?", {"audio": "tone.wav"}),
        ("¿Qué sonido es?", {"image": "red.png"}),
        ("Что слышно?", {"image": "red.png"}),
    ],
)
def test_questions_about_what_is_not_there(folder: Path, question: str, media) -> None:
    assert only(chat(question, **media), folder).reason == "wording"
    kept, _ = clean([chat(question, **media)], folder, check_wording=False, progress=False)
    assert len(kept) == 1
    assert len(clean([chat(question)], folder, progress=False)[0]) == 1, "text alone may speak of anything"


def test_duplicates_are_the_same_bytes_and_words_under_any_name(folder: Path) -> None:
    samples = [chat(image="red.png"), chat(image="blue.png"), chat("What  is this?", image="same.png"), chat(), chat()]
    kept, report = clean(samples, folder, progress=False)
    assert [row.messages for row in kept] == [ChatDataset(samples, folder)[i].messages for i in (0, 1, 3)]
    assert [(row.number, row.reason, row.detail) for row in report.left_out] == [
        (2, "duplicate", "the same media and words as example 0"),
        (4, "duplicate", "the same media and words as example 3"),
    ]
    in_memory = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (2, 2), color)}]},
                ASSISTANT,
            ]
        }
        for color in ("red", "blue", "red")
    ]
    assert [row.number for row in clean(in_memory, progress=False)[1].left_out] == [2]


def test_datasets_and_streams_are_cleaned_too(folder: Path) -> None:
    samples = [GOOD[0], chat(image="cut.png"), {"messages": []}, GOOD[4], GOOD[0]]
    _, report = clean(ChatDataset(samples, folder), progress=False)
    assert [(row.number, row.reason) for row in report.left_out] == [
        (1, "unreadable"),
        (2, "malformed"),
        (4, "duplicate"),
    ]
    good = [json.dumps(sample) + "\n" for sample in (samples[0], samples[1], samples[3])]
    (folder / "train.jsonl").write_text("".join(good))
    for streaming in (False, True):
        kept, report = clean(load_chats(folder, streaming=streaming), progress=False)
        assert len(kept) == 2 and [row.number for row in report.left_out] == [1]


def test_a_file_is_read_once(folder: Path, monkeypatch) -> None:
    from modeling_mm.data import cleaning

    looked = []
    monkeypatch.setattr(cleaning, "read_bytes", lambda source: looked.append(source) or Path(source).read_bytes())
    samples = [chat(f"Question {i}", image=name) for i in range(3) for name in ("red.png", "cut.png")]
    _, report = clean(samples, folder, progress=False)
    assert len(looked) == 2 and report.counts == {"unreadable": 3}


def test_the_report_is_written_for_programs_and_readers(folder: Path) -> None:
    samples = [chat(image="red.png"), {**chat(image="gone.png"), "id": "s1"}, chat(image="red.png"), {"messages": []}]
    _, report = clean(samples, folder, progress=False)
    report.save(folder / "report")
    assert sorted(path.name for path in (folder / "report").iterdir()) == ["cleaning.json", "cleaning.txt"]
    saved = json.loads((folder / "report" / "cleaning.json").read_text())
    assert (saved["kept"], saved["counts"]) == (1, {"missing": 1, "duplicate": 1, "malformed": 1})
    assert saved["left_out"][0] == {
        "number": 1,
        "id": "s1",
        "file": str(folder / "gone.png"),
        "reason": "missing",
        "detail": f"the file {folder / 'gone.png'} does not exist",
    }
    lines = (folder / "report" / "cleaning.txt").read_text().splitlines()
    assert lines[0] == "1 examples kept, 3 left out (1 missing, 1 duplicate, 1 malformed)"
    assert lines[1].split("\t")[:3] == ["1 (s1)", "missing", str(folder / "gone.png")]
    assert lines[2] == "2\tduplicate\t-\tthe same media and words as example 0"
    assert str(CleaningReport(3)) == "3 examples kept, 0 left out\n"


def test_progress_is_shown(folder: Path, capsys) -> None:
    clean(GOOD, folder)
    assert re.search(r"cleaning: \d+ of \d+, 0 s", capsys.readouterr().err)
