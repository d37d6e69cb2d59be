"""The released studio, mm-studio: it draws and finds what it has learned, and says what it was given."""

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import pipeline

from modeling_mm import MMForConditionalGeneration, MMProcessor
from modeling_mm.boxes import BOX, DETECT_PROMPT, FIND_PROMPT, ImageObject
from modeling_mm.cli import main
from modeling_mm.evaluation import iou, prompt_inputs, referring_accuracy
from tests.fakes.without_package import run_without_package

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "model_cards" / "mm-studio"
SAMPLE = ROOT / "processing" / "corpora" / "sample"
SIZE = 64  # pixels a side
NAMES = 24  # of the sample's images, which training had
RECOGNIZED = 17  # of them; two less than where it was released, as sums differ between machines
SCENES = 8  # of two things each
# Of these, found among all, and given when asked for; two less than where it was released. Who does not read the name
# gives both prompts of a scene the same box, and is right 8 times at most.
FOUND, RIGHT = 12, 9
SENTENCES = ("The house is old", "he went to the sea")


def test_the_card_is_whole():
    card = ModelCard.load(FOLDER / "README.md")
    assert card.data.pipeline_tag == "any-to-any" and card.data.license == "other"
    for heading in (
        "## Use",
        "## Data",
        "## Training",
        "## Limits",
        "## What is recognized",
        "## Drawings",
        "## Speech",
        "## What is found",
    ):
        assert heading in card.text
    for path in re.findall(r"\]\(([^)#:]+)\)", card.text):
        assert (FOLDER / path).is_file(), path
    assert len(re.findall(r"^\d+\. ", card.text, re.MULTILINE)) == 36 and card.text.count("](sounds/") == 6


def test_its_samples_are_images_and_audio_of_its_codecs():
    with Image.open(FOLDER / "images.png") as sheet:
        assert sheet.size == (6 * SIZE, 6 * SIZE)
    for path in (FOLDER / "sounds").iterdir():
        samples, rate = soundfile.read(path)
        assert rate == 16000 and 0.5 < len(samples) / rate < 6 and np.abs(samples).max() > 0.05


def small(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float32) / 255


def test_it_draws_what_it_has_learned():
    """Of the sample's images the one that is nearest to a drawing by its pixels is the one that was named."""
    rows = [json.loads(line) for line in (SAMPLE / "images.jsonl").read_text(encoding="utf-8").splitlines()]
    images = np.stack([small(SAMPLE / row["file"]) for row in rows])
    learned = {row["caption"]: row for row in reversed(rows)}
    names = sorted(learned)[:: max(1, len(learned) // NAMES)][:NAMES]
    draw = pipeline("text-to-image", str(FOLDER))
    drawings = draw(names, batch_size=NAMES, do_sample=False)
    distances = [((images - np.asarray(drawing) / 255.0) ** 2).mean((1, 2, 3)) for drawing in drawings]
    found = [rows[distance.argmin()]["caption"] for distance in distances]
    right = sum(each == name for each, name in zip(found, names, strict=True))
    assert right >= RECOGNIZED, list(zip(names, found, strict=True))


def test_what_it_says_depends_on_the_sentence_and_has_its_length():
    say = pipeline("text-to-audio", str(FOLDER))
    spoken = say([*SENTENCES, "no"], do_sample=False)
    seconds = [len(each["audio"]) / each["sampling_rate"] for each in spoken]
    assert all(0.8 < each < 4 for each in seconds[:2]) and seconds[2] < min(seconds[:2])
    again = say(SENTENCES[0], do_sample=False)
    assert np.allclose(again["audio"], spoken[0]["audio"], atol=1e-3)


def test_it_draws_where_the_package_is_not_installed(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "copy")
    script = (
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        "model = AutoModelForImageTextToText.from_pretrained('copy', trust_remote_code=True)\n"
        "processor = AutoProcessor.from_pretrained('copy', trust_remote_code=True)\n"
        "processor.use_codecs(model)\n"
        "inputs = processor(text='Draw cat', return_tensors='pt')\n"
        "ids = model.generate(**inputs, output_modalities=('image',), max_new_tokens=70)\n"
        "(part,) = processor.decode_media(ids[0, inputs['input_ids'].shape[1] :])\n"
        "print(part['image'].size)"
    )
    assert run_without_package(script, tmp_path).strip() == f"({SIZE}, {SIZE})"


def scene(rng: random.Random, rows: list[dict]) -> tuple[Image.Image, list[ImageObject]]:
    """Images of the sample side by side on one color, and where each is."""
    image, objects = Image.new("RGB", (128 * len(rows), 256), rng.choice(["white", "lightblue", "khaki", "gray"])), []
    for number, row in enumerate(rows):
        with Image.open(SAMPLE / row["file"]) as opened:
            thing = opened.convert("RGBA")
        thing = thing.crop(thing.getbbox())
        thing.thumbnail((rng.randint(60, 100),) * 2)
        left, top = 128 * number + rng.randint(4, 124 - thing.width), rng.randint(4, 252 - thing.height)
        image.paste(thing, (left, top), thing)
        objects.append(ImageObject(row["caption"], (left, top, left + thing.width, top + thing.height)))
    return image, objects


def test_it_finds_things_and_the_one_that_is_asked_for():
    model: Any = MMForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32)
    processor = MMProcessor.from_pretrained(FOLDER)
    rows = [json.loads(line) for line in (SAMPLE / "images.jsonl").read_text(encoding="utf-8").splitlines()]
    rng = random.Random(0)
    drawn = rng.sample(rows, 2 * SCENES)
    scenes = [scene(rng, drawn[start : start + 2]) for start in range(0, len(drawn), 2)]

    def answer(asked: list[tuple[Image.Image, str]]) -> list[list[ImageObject]]:
        contents = [[{"type": "image", "image": image}, {"type": "text", "text": text}] for image, text in asked]
        inputs = prompt_inputs(processor, [[{"role": "user", "content": content}] for content in contents])
        given = model.generate(
            **inputs, max_new_tokens=60, do_sample=False, output_scores=True, return_dict_in_generate=True
        )
        sizes = [(image.height, image.width) for image, _ in asked]
        return [answer.objects for answer in processor.parse_answers(given, sizes, (BOX,))]

    seen = answer([(image, DETECT_PROMPT) for image, _ in scenes])
    found = sum(
        any(iou(each, thing) > 0.5 for each in at)
        for at, (_, things) in zip(seen, scenes, strict=True)
        for thing in things
    )
    asked = [(image, thing) for image, things in scenes for thing in things]
    given = answer([(image, FIND_PROMPT.format(label=thing.label)) for image, thing in asked])
    right = len(asked) * referring_accuracy(given, [thing for _, thing in asked])
    assert found >= FOUND and right >= RIGHT, (found, right)


def test_its_codecs_keep_what_they_code():
    model = MMForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32)
    processor = MMProcessor.from_pretrained(FOLDER)
    processor.use_codecs(model)
    pixels = torch.from_numpy(small(SAMPLE / "images/cat.png")).permute(2, 0, 1)[None]
    codec = model.model.image_codec
    error = (codec.decode(codec.encode(pixels)) - pixels).pow(2).mean()
    assert -10 * error.log10() > 20  # dB


@pytest.mark.parametrize(
    ("command", "given", "out"),
    [("draw", "cat", "cat.png"), ("say", "cat", "hello.wav"), ("find", str(SAMPLE / "images/cat.png"), "found.png")],
)
def test_the_commands_use_it_without_a_name(command, given, out, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main([command, given, "--out", str(tmp_path / out)]) == 0
    assert (tmp_path / out).stat().st_size > 1000
