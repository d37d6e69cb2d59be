"""From a decoder that draws to one that points too: its eye, its recipe, a DETR beside it, and their figures."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops
from transformers import TrainerCallback

from modeling_mm import MMForConditionalGeneration, MMProcessor
from modeling_mm.boxes import ImageObject
from modeling_mm.codecs import load_codec
from modeling_mm.hub import measured_digests, weights_digest
from modeling_mm.recipes import read_recipe, run, to_yaml
from modeling_mm.training import parts_of
from scripts.workshop import detr, detr_training, find_folder, find_measures
from scripts.workshop.corpus import read_description
from scripts.workshop.detr import from_center, load_detr, map_of, open_cache, to_center
from scripts.workshop.detr_training import train_detr
from scripts.workshop.find_folder import build_find
from scripts.workshop.find_measures import CELL, Pointer, figures_of, measure, scene_sheet, table
from scripts.workshop.find_scenes import Found, prompts_of, question, scenes_of
from scripts.workshop.scenes import build_scenes
from tests.fakes.own_codecs import own_codec
from tests.fakes.processor_parts import make
from tests.fakes.tiny import difference, gpt2
from tests.workshop.test_scenes import SETTINGS, builder_of, write_discs

RECIPES = Path(__file__).resolve().parents[2] / "configuration/recipes"
RECIPE, TOGETHER = RECIPES / "mm-studio-find.yaml", RECIPES / "mm-studio-together.yaml"
SIDE = 64  # pixels: a grid of 4 by 4 tokens
COUNTS = {"train": 8, "validation": 0, "test_concepts": 2, "test_hand": 3}
SMALL = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
SMALL |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 6}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """Return a corpus of scenes, in which the unseen hand draws a known thing."""
    folder = tmp_path_factory.mktemp("scenes")
    images = write_discs(folder)
    images[3] = replace(images[3], names=images[0].names, key=images[0].key)
    builder = builder_of(images)
    known = builder.image_split
    builder.image_split = lambda image: "test_concepts" if image.key == "fig" else known(image)
    description = read_description("scenes")
    description = replace(description, settings={**SETTINGS, "counts": COUNTS, "sides": [48, 64], "things": [1, 3]})
    build_scenes(builder, folder / "corpus", description)
    return folder / "corpus"


@pytest.fixture(scope="module")
def drawing(tmp_path_factory) -> Path:
    """Return the folder of a tiny model that draws and does not see."""
    folder = tmp_path_factory.mktemp("drawing")
    processor = make(vision=False, audio=False)
    torch.manual_seed(0)
    model = MMForConditionalGeneration.from_text_vision_audio_pretrained(
        gpt2(vocab_size=300, n_positions=256), tokenizer=processor
    )
    own_codec("image").save_pretrained(folder / "codec")
    codec = load_codec(folder / "codec")
    processor.add_codec(codec)
    model.add_codec(codec, processor)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(drawing, packages, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("find") / "base"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(find_folder, "SIDE", SIDE)
        patch.setattr(find_folder, "CONNECTOR", 16)
        build_find(Namespace(model=drawing, folder=folder, packages=packages))
    return folder


@pytest.fixture(scope="module")
def drawn(scenes) -> Path:
    """Return chats whose answers are images."""
    rows = [
        {"messages": [{"role": "user", "content": [{"type": "text", "text": f"Draw {name}"}]}, drawing_of(path)]}
        for name, path in zip(("a", "b", "c"), sorted((scenes / "train").glob("*.jpg")), strict=False)
    ]
    path = scenes / "draw.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def drawing_of(path: Path) -> dict:
    return {"role": "assistant", "content": [{"type": "image", "path": str(path)}]}


@pytest.fixture(scope="module")
def recipe(base, scenes, drawn) -> list[str]:
    """Return the overrides that make a run of seconds of the recipe."""
    chats = scenes / "chats" / "train"
    sources = (chats / "detect.jsonl", chats / "find.jsonl", drawn, drawn)
    return [
        f"model.pretrained={base}",
        f"data.encoder_cache={base.parent / 'cache'}",
        *(f"data.train.{number}.source={path}" for number, path in enumerate(sources)),
        "training.per_device_train_batch_size=4",
        "training.save_steps=2",
        "training.lr_scheduler_type=constant",
        "training.lr_scheduler_kwargs={}",
        "training.report_to=none",
        "training.disable_tqdm=true",
    ]


class Interrupt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def trained(recipe, base) -> Path:
    """Return the folder of a run that was interrupted and resumed."""
    folder = base.parent / "trained"
    short = read_recipe(RECIPE, [*recipe, f"training.output_dir={folder}", "training.max_steps=4"])
    with pytest.raises(KeyboardInterrupt):
        run(short, lambda trainer, data: trainer.add_callback(Interrupt(3)))
    assert run(short)["steps"] == 4
    return folder


# ---- The eye --------------------------------------------------------------------------------------------------------


def test_the_eye_changes_nothing_that_was_learned(drawing, base):
    before, after = (MMForConditionalGeneration.from_pretrained(folder) for folder in (drawing, base))
    processor = MMProcessor.from_pretrained(base)
    processor.use_codecs(after)
    inputs = processor(text=["Draw a cat", "a red dog"], padding=True, return_tensors="pt")
    with torch.no_grad():
        old = before(**inputs).logits
        assert difference(after(**inputs).logits[..., : old.shape[-1]], old) == 0
    greedy = {"output_modalities": ("image",), "do_sample": False, "max_new_tokens": 70}
    assert torch.equal(after.generate(**inputs, **greedy), before.generate(**inputs, **greedy))


def test_the_eye_alone_learns_and_knows_rows_and_columns(base):
    model = MMForConditionalGeneration.from_pretrained(base)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    parts = parts_of(model)
    assert learning == {name for part in ("connectors", "cross_attention") for name, _ in parts[part]}
    assert len(model.config.vision_cross_attention_layers) == model.config.text_config.n_layer
    assert model.config.media_position_encoding == "sinusoidal_2d"
    states = model.model.get_image_features(torch.randn(1, 3, SIDE, SIDE)).last_hidden_state
    assert states.shape == (1, 16, 120 + 352), "the grid of stride 16, with the features of two stages"


# ---- The recipe -----------------------------------------------------------------------------------------------------


def changed_parts(before: Path, after: Path) -> set[str]:
    """Return the parts of a model whose weights differ in two folders."""
    one, other = (MMForConditionalGeneration.from_pretrained(folder).state_dict() for folder in (before, after))
    return {name.removeprefix("model.").split(".")[0] for name in one if not torch.equal(one[name], other[name])}


LEARNING = {"language_model", "vision_connector", "lm_head"}  # neither encoder nor codec


def test_an_interrupted_run_of_the_recipe_resumes_and_changes_what_is_not_frozen(trained, base):
    assert changed_parts(base, trained) == LEARNING


def test_what_the_recipe_has_taught_learns_all_together(trained, recipe, base):
    first, second = read_recipe(RECIPE), read_recipe(TOGETHER)
    assert second.model.pretrained == first.training_arguments().output_dir
    of_scenes = {file: number < 2 for number, file in enumerate(source.source for source in first.data.train)}
    assert [source.source for source in second.data.train] == list(of_scenes)
    parts = [
        sum(each.weight for each in one.data.train if of_scenes[each.source])
        / sum(each.weight for each in one.data.train)
        for one in (first, second)
    ]
    assert parts[0] == 0.75 and parts[1] < 0.4
    folder = base.parent / "together"
    few = [f"model.pretrained={trained}", f"training.output_dir={folder}", "training.max_steps=4"]
    run(read_recipe(TOGETHER, [*recipe, *few, "training.warmup_steps=0"]))
    assert changed_parts(trained, folder) == LEARNING


def test_batches_of_the_recipe_have_scenes_or_prompts_to_draw(recipe, base):
    short = read_recipe(RECIPE, [*recipe, f"training.output_dir={base.parent / 'batches'}", "training.max_steps=1"])
    counts = []

    def look(trainer, data):
        counts.extend(
            batch["image_mask"].any(1).float().mean().item() for batch in full(trainer.get_train_dataloader())
        )

    run(short, look)
    assert len(counts) > 4 and sum(0 < each < 1 for each in counts) <= 1, counts
    assert min(counts) == 0 and max(counts) == 1


def full(batches):
    """Yield batches of four, with a mask of no image where none has one."""
    for batch in batches:
        if len(batch["input_ids"]) == 4:
            yield {"image_mask": torch.zeros(4, 1, dtype=torch.bool), **batch}


def test_two_scenes_are_learned_by_heart(recipe, base, scenes):
    folder = base.parent / "by-heart"
    few = [f"training.output_dir={folder}", "training.max_steps=300", "training.learning_rate=4e-3"]
    few += ["data.train.0.limit=2", "data.train.1.limit=4", "training.warmup_steps=0", "training.save_strategy=no"]
    run(read_recipe(RECIPE, [*recipe, *few]))
    known = scenes_of(scenes, "train", 2)
    figures = figures_of(Pointer(folder, base.parent / "cache"), known, prompts_of(scenes, "train", known, None))
    assert figures["ap50"] > 0.9 and figures["any_ap50"] > 0.9
    assert figures["prompts"] and figures["referring"] == 1.0


# ---- A DETR beside it -----------------------------------------------------------------------------------------------


def test_boxes_of_detr_are_shares_of_the_image_and_back():
    size = (200, 100)
    box = ImageObject("apple", (20.0, 10.0, 80.0, 90.0))
    assert to_center(box, size) == pytest.approx((0.25, 0.5, 0.3, 0.8))
    assert from_center(to_center(box, size), size) == pytest.approx(box.place)
    assert from_center((0.0, 0.5, 0.5, 2.0), size) == pytest.approx((0.0, 0.0, 50.0, 100.0)), "clipped"


def detr_arguments(folder: Path, scenes: Path, recipe_file: Path, **values) -> Namespace:
    settings = {"steps": 4, "batch_size": 4, "learning_rate": 2e-3, "limit": None, "seed": 0, "bf16": False, **values}
    return Namespace(folder=folder, scenes=scenes, recipe=recipe_file, **settings)


@pytest.fixture(scope="module")
def recipe_file(recipe, base) -> Path:
    """Return a recipe as a file, with the paths of the tiny run."""
    path = base.parent / "recipe.yaml"
    path.write_text(to_yaml(read_recipe(RECIPE, recipe)), encoding="utf-8")
    return path


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(detr, "SIZES", {**detr.SIZES, **SMALL})


def test_a_detr_learns_the_scenes_and_resumes(scenes, recipe_file, tmp_path, small, monkeypatch):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    first = train_detr(detr_arguments(whole, scenes, recipe_file))
    train = detr_training.Trainer.train

    def interrupted(trainer, **options):
        trainer.add_callback(Interrupt(3))
        return train(trainer, **options)

    with monkeypatch.context() as patch:
        patch.setattr(detr_training.Trainer, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_detr(detr_arguments(halves, scenes, recipe_file))
    assert not (halves / "run.json").exists()
    train_detr(detr_arguments(halves, scenes, recipe_file))
    one, other = (load_detr(folder).state_dict() for folder in (whole, halves))
    assert all(difference(one[name], other[name]) < 1e-5 for name in one)
    assert json.loads((whole / "run.json").read_text())["steps"] == 4
    assert train_detr(detr_arguments(whole, scenes, recipe_file)) == first.replace(": {", ": finished before, {")


def test_a_detr_learns_in_bfloat16(scenes, recipe_file, tmp_path, small):
    learned = []
    for name, bf16 in (("half", True), ("whole", False)):
        train_detr(detr_arguments(tmp_path / name, scenes, recipe_file, steps=2, bf16=bf16))
        learned.append(load_detr(tmp_path / name).state_dict()["detr.class_labels_classifier.weight"])
    assert learned[0].dtype == torch.float32 and 0 < difference(*learned) < 1e-2


def test_a_detr_takes_as_many_steps_as_the_recipe(scenes, recipe, base, tmp_path, small):
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(read_recipe(RECIPE, [*recipe, "training.max_steps=3"])), encoding="utf-8")
    train_detr(detr_arguments(tmp_path / "detr", scenes, path, steps=None))
    assert json.loads((tmp_path / "detr/run.json").read_text())["steps"] == 3


def test_a_detr_finds_what_it_has_learned_by_heart(scenes, base, recipe_file, tmp_path, small):
    train_detr(detr_arguments(tmp_path, scenes, recipe_file, steps=150, limit=2, batch_size=2, learning_rate=5e-3))
    known = scenes_of(scenes, "train", 2)
    detector = detr.DetrDetector(tmp_path, open_cache(base, base.parent / "cache"))
    found = detector.detect(known)
    figures = find_measures.detection_figures([each.named for each in found], [scene.objects for scene in known])
    assert figures.ap50 > 0.5
    assert all(len(each.places) == SMALL["num_queries"] for each in found)
    unknown = replace(
        question(known[0].path, "Find the fig."), messages=[{"content": [{"objects": [{"label": "fig"}]}]}]
    )
    assert detector.find(known[:1], [unknown]) == [[]], "a thing without a class is not found"


def test_a_map_has_the_rows_and_columns_of_the_encoders(base, scenes):
    cache = open_cache(base, base.parent / "cache")
    (scene,) = scenes_of(scenes, "test_hand", 1)
    cache.fill([question(scene.path, "")], progress=False)
    (states,) = cache.states({"type": "image", "path": scene.path})
    assert torch.equal(map_of(cache, scene.path)[:, 1, 2], states[1 * 4 + 2])


# ---- Figures --------------------------------------------------------------------------------------------------------


class Oracle:
    """A detector that knows the truth, or nothing."""

    def __init__(self, knows: bool):
        self.knows = knows

    def detect(self, scenes):
        truths = [scene.objects if self.knows else [] for scene in scenes]
        renamed = [[replace(each, label="thing") for each in objects] for objects in truths]
        return [Found(named, places) for named, places in zip(truths, renamed, strict=True)]

    def find(self, scenes, rows):
        asked = [row.messages[0]["content"][1]["text"] for row in rows]
        return [
            [each for each in scene.objects if self.knows and f" {each.label}." in text]
            for scene, text in zip(scenes, asked, strict=True)
        ]


def test_who_knows_the_truth_has_all_figures_at_one(scenes):
    known = scenes_of(scenes, "train", None)
    prompts = prompts_of(scenes, "train", known, None)
    assert prompts and all(row.messages[-1]["content"][0]["text"] != "nothing" for _, row, _ in prompts)
    assert all(sum(each.label == truth.label for each in scene.objects) == 1 for scene, _, truth in prompts)
    figures = figures_of(Oracle(True), known, prompts)
    assert [figures[name] for name in ("ap", "ap50", "any_ap", "any_ap50", "referring")] == pytest.approx([1.0] * 5)
    assert (figures["scenes"], figures["prompts"]) == (len(known), len(prompts))
    blind = figures_of(Oracle(False), known, prompts)
    assert [blind[name] for name in ("ap", "ap50", "any_ap50", "referring")] == [0.0] * 4


def test_the_sheet_has_each_scene_with_what_was_found_in_it(scenes):
    known = scenes_of(scenes, "train", 4)
    found = Oracle(True).detect(known)
    image, empty = scene_sheet(known, found), scene_sheet(known, Oracle(False).detect(known))
    assert image.size == (3 * CELL, 2 * CELL)
    changed = [ImageChops.difference(image, empty).crop(cell_of(number)).getbbox() for number in range(6)]
    assert all(changed[:4]) and changed[4:] == [None, None]


def cell_of(number: int) -> tuple[int, int, int, int]:
    column, row = number % 3, number // 3
    return column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL


def test_both_are_measured_on_the_same_scenes(trained, scenes, recipe_file, tmp_path, small, base):
    train_detr(detr_arguments(tmp_path / "detr", scenes, recipe_file))
    arguments = Namespace(model=trained, detr=tmp_path / "detr", out=tmp_path / "out", scenes=scenes)
    vars(arguments).update(encoder_cache=base.parent / "cache", limit=2, splits=["test_hand", "test_concepts"])
    figures = measure(arguments)
    assert measured_digests((tmp_path / "out/weights.txt").read_text()) == [weights_digest(trained)]
    assert list(figures) == [f"{s}, {who}" for s in ("test_hand", "test_concepts") for who in ("ours", "DETR")]
    assert all(values["scenes"] == 2 and values["objects"] > 1 for values in figures.values())
    assert json.loads((tmp_path / "out/figures.json").read_text()) == figures
    with Image.open(tmp_path / "out/found.png") as image:
        assert image.size == (3 * CELL, CELL) and len(image.getcolors(1 << 20)) > 100
    assert table(figures).count("\n") == 5 and "| test_hand, DETR | " in table(figures)
    assert len(list((base.parent / "cache").glob("image-*"))) == 2, "one of states for both, and one of codes"
