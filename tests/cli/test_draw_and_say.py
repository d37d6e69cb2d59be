"""`modeling-mm draw` and `modeling-mm say`: what the pipelines give, in files; and slips, in one line."""

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from transformers import pipeline

from modeling_mm.cli import main
from modeling_mm.cli.draw import AT_ONCE, GAP, contact_sheet
from tests.fakes.pipeline_parts import noise
from tests.fakes.processor_parts import RATE, picture
from tests.fakes.tiny import difference
from tests.fakes.writers import seeing, writing


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A `writer`, a model that only `reads`, and an image and a voice to go by."""
    folder = tmp_path_factory.mktemp("draw")
    for name, make in (("writer", writing), ("reads", seeing)):
        model, processor = make()
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    picture("red").save(folder / "red.png")
    soundfile.write(folder / "voice.wav", noise(), RATE, "FLOAT")
    return folder


@pytest.fixture(scope="module")
def pipes(folder):
    return {task: pipeline(task, str(folder / "writer"), device="cpu") for task in ("text-to-image", "text-to-audio")}


def run(folder, command: str, out, *more: str, text: str = "a cat", model: str = "writer") -> int:
    return main([command, text, "--out", str(out), "--model", str(folder / model), "--device", "cpu", *more])


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def files_of(path) -> set[str]:
    return {each.name for each in path.iterdir()}


# ---- draw -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cat.png", "cat.JPG", "deep/er/cat.webp"])
def test_an_image_is_what_the_pipeline_draws(folder, pipes, tmp_path, capsys, name):
    assert run(folder, "draw", tmp_path / name, "--seed", "3") == 0
    assert capsys.readouterr().out == f"Drawn: {tmp_path / name}\n"
    expected = pipes["text-to-image"]("a cat", generator=seeded())
    with Image.open(tmp_path / name) as found:
        assert found.size == expected.size
        assert found.format == {"cat.png": "PNG", "cat.JPG": "JPEG"}.get(name, "WEBP")
        if name == "cat.png":
            assert found.copy() == expected
    assert files_of((tmp_path / name).parent) == {name.split("/")[-1]}


def test_an_image_to_draw_after_and_guidance_count(folder, pipes, tmp_path):
    options = {"generator": seeded(), "image": str(folder / "red.png"), "guidance_scale": 2.5}
    like, more = ("--like", str(folder / "red.png")), ("--guidance-scale", "2.5")
    for number, given in enumerate([(*like, *more), like, more, ()]):
        assert run(folder, "draw", tmp_path / f"{number}.png", "--seed", "3", *given) == 0
    drawn = [Image.open(tmp_path / f"{number}.png").copy() for number in range(4)]
    assert drawn[0] == pipes["text-to-image"]("a cat", **options)
    assert all(one != other for number, one in enumerate(drawn) for other in drawn[:number])


def test_several_images_are_a_sheet_or_files_in_a_folder(folder, pipes, tmp_path, capsys):
    count = ("--count", "5", "--seed", "3")
    assert run(folder, "draw", tmp_path / "cats", *count) == run(folder, "draw", tmp_path / "cats.png", *count) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"Drawn: {tmp_path}/cats/{n}.png" for n in range(1, 6)] + [f"Drawn: {tmp_path}/cats.png"]
    images = [Image.open(tmp_path / "cats" / f"{number}.png").copy() for number in range(1, 6)]
    assert images == pipes["text-to-image"]("a cat", generator=seeded(), num_images_per_prompt=5)
    with Image.open(tmp_path / "cats.png") as sheet:
        assert sheet.size == (3 * 16 + 2 * GAP, 2 * 16 + GAP) and sheet.copy() == contact_sheet(images)
        assert sheet.crop((18, 18, 34, 34)) == images[4]
        assert sheet.getpixel((16, 0)) == sheet.getpixel((40, 20)) == (255, 255, 255)


def test_many_images_are_drawn_some_at_a_time(folder, tmp_path, capsys):
    assert run(folder, "draw", tmp_path / "cats", "--count", str(AT_ONCE + 2), "--seed", "3") == 0
    assert len(files_of(tmp_path / "cats")) == AT_ONCE + 2
    assert f"drawing, tokens: {2 * 19} of {2 * 19}, " in capsys.readouterr().err  # 16 codes, 2 edges, and an end


# ---- say ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hello.wav", "hello.FLAC", "new/hello.mp3"])
def test_audio_is_what_the_pipeline_says(folder, pipes, tmp_path, capsys, name):
    spoken = pipes["text-to-audio"]("a cat")
    assert run(folder, "say", tmp_path / name) == 0
    seconds = len(spoken["audio"]) / spoken["sampling_rate"]
    printed = capsys.readouterr()
    assert printed.out == f"Said: {tmp_path / name}, {seconds:.1f} s\n"
    assert f"saying, samples: {len(spoken['audio'])}" in printed.err
    samples, rate = soundfile.read(tmp_path / name, dtype="float32")
    if name.endswith("mp3"):
        assert rate == 8000 and abs(len(samples) / rate - seconds) < 0.2
    else:
        assert rate == spoken["sampling_rate"] and len(samples) == len(spoken["audio"])
        expected = torch.from_numpy(spoken["audio"].clip(-1, 1))
        assert difference(torch.from_numpy(samples), expected) <= 1 / 2**15
    assert files_of((tmp_path / name).parent) == {name.split("/")[-1]}


def test_a_voice_and_a_seed_count(folder, pipes, tmp_path):
    voice = ("--voice", str(folder / "voice.wav"))
    for number, given in enumerate([voice, (), ("--seed", "3"), ("--seed", "4")]):
        assert run(folder, "say", tmp_path / f"{number}.wav", *given) == 0
    said = [soundfile.read(tmp_path / f"{number}.wav", dtype="float32")[0] for number in range(4)]
    expected = pipes["text-to-audio"]("a cat", audio=str(folder / "voice.wav"))["audio"].clip(-1, 1)
    assert np.abs(said[0] - expected).max() <= 1 / 2**15
    assert not any(np.array_equal(one, other) for number, one in enumerate(said) for other in said[:number])


# ---- Slips ----------------------------------------------------------------------------------------------------------


def slips(folder) -> list[tuple[str, str, tuple[str, ...], str]]:
    return [
        ("draw", "cat.tiff", (), r"--out .*cat.tiff: expected a file of type .png, .jpg, .jpeg, .webp."),
        ("say", "cat.ogg", (), r"--out .*cat.ogg: expected a file of type .wav, .flac, .mp3."),
        ("say", "cat", (), "expected a file of type .wav"),
        ("draw", "cat.png", ("--count", "0"), "--count: expected at least 1, got 0."),
        ("draw", "cat.png", ("--like", f"{folder}/rad.png"), f"there is no file {folder}/rad.png. Did you mean"),
        ("say", "cat.wav", ("--voice", f"{folder}/none.wav"), f"--voice: there is no file {folder}/none.wav."),
        ("draw", "cat.png", ("--model", f"{folder}/nowhere"), f"There is no folder {folder}/nowhere."),
        ("draw", "cat.png", ("--device", "nothing"), "--device nothing"),
    ]


@pytest.mark.parametrize("number", range(8))
def test_slips_are_told_in_one_line(folder, tmp_path, capsys, number):
    command, name, more, message = slips(folder)[number]
    assert run(folder, command, tmp_path / name, *more) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"modeling-mm {command}: ")
    if message.startswith("--out"):
        assert message.split(": ")[1] in line
    else:
        assert message in line
    assert files_of(tmp_path) == set()


@pytest.mark.parametrize(("command", "name"), [("draw", "image"), ("say", "audio")])
def test_a_model_that_cannot_and_an_empty_text(folder, tmp_path, capsys, command, name):
    out = tmp_path / ("a.png" if command == "draw" else "a.wav")
    assert run(folder, command, out, model="reads") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"expected a model that writes {name}" in line and "model.add_codec(codec, processor)" in line
    assert run(folder, command, out, text=" ") == 2
    assert f"The text is empty, so there is nothing to {command}." in capsys.readouterr().err
    assert files_of(tmp_path) == set()
