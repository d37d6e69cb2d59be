"""`modeling-mm find`: the boxes of an answer, as lines and drawn; and slips, in one line."""

import pytest
from PIL import Image, ImageChops

from modeling_mm import MMForConditionalGeneration
from modeling_mm.cli import main
from tests.fakes.processor_parts import picture
from tests.fakes.writers import seeing, speaking

BOX = (12, 4, 36, 20)  # what it has learned, in an image of 60 by 40 pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that has learned to find something, one that has not, and an image."""
    folder = tmp_path_factory.mktemp("find")
    for name, make in (("finder", speaking), ("reads", seeing)):
        model, processor = make()
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    picture("red", (60, 40)).save(folder / "red.png")
    return folder


def run(folder, *more: str, image: str = "red.png", model: str = "finder") -> int:
    return main(["find", str(folder / image), "--model", str(folder / model), "--device", "cpu", *more])


def test_a_thing_is_found_with_its_score_and_drawn(folder, tmp_path, capsys):
    out = tmp_path / "deep" / "found.png"
    assert run(folder, "dog", "--out", str(out)) == 0
    line, drawn = capsys.readouterr().out.splitlines()
    name, score, *edges = line.split()
    assert name == "dog" and 0.5 < float(score) <= 1 and tuple(map(int, edges)) == BOX
    assert drawn == f"Drawn: {out}"
    with Image.open(out) as found, Image.open(folder / "red.png") as image:
        assert found.size == (320, 213)
        left, top, right, bottom = ImageChops.difference(found, image.convert("RGB").resize(found.size)).getbbox()
    scale = 320 / 60
    assert abs(left - BOX[0] * scale) < 3 and abs(top - BOX[1] * scale) < 3
    assert abs(right - BOX[2] * scale) < 3 and abs(bottom - BOX[3] * scale) < 3


def test_boxes_of_low_scores_are_left_out(folder, capsys):
    assert run(folder, "dog", "--threshold", "1") == 0
    assert capsys.readouterr().out == "Nothing found.\n"


def test_the_prompt_is_for_the_thing_or_for_all_that_is_there(folder, monkeypatch):
    from modeling_mm.cli import find

    prompts = []
    monkeypatch.setattr(
        find, "find", lambda model, processor, image, prompt, most: prompts.append((prompt, most)) or []
    )
    assert run(folder, "red apple") == run(folder, "--max-new-tokens", "9") == 0
    assert prompts == [("Find the red apple.", 256), ("What is where?", 9)]


def test_an_answer_stays_within_the_positions_of_the_model(folder, monkeypatch):
    given, generate = [], MMForConditionalGeneration.generate

    def spy(model, **kwargs):
        given.append((kwargs["max_new_tokens"], kwargs["input_ids"].shape[1], model.config.text_config.n_positions))
        return generate(model, **kwargs)

    monkeypatch.setattr(MMForConditionalGeneration, "generate", spy)
    assert run(folder, "dog", "--max-new-tokens", "10000") == run(folder, "dog", "--max-new-tokens", "9") == 0
    (most, length, positions), (few, _, _) = given
    assert positions - length <= most <= positions - length + 1 and few == 9


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"image": "rad.png"}, "There is no file"),
        ({"more": ["  "]}, "nothing to find"),
        ({"more": ["dog", "--out", "found.gif"]}, ".png, .jpg, .jpeg, .webp"),
        ({"more": ["dog", "--threshold", "2"]}, "scores are from 0 to 1"),
        ({"model": "reads"}, "does not find things: it has no location tokens"),
        ({"image": "reads/config.json"}, "expected an image"),
    ],
)
def test_slips_are_named_in_one_line(folder, capsys, arguments, part):
    more = arguments.pop("more", [])
    assert run(folder, *more, **arguments) == 2
    error = capsys.readouterr().err
    assert part in error and error.count("\n") == 1 and error.startswith("modeling-mm find: ")
