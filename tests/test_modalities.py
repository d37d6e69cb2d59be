"""modalities.py: one row has every name of a modality, so that a new one needs a row and an encoder's config."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from modeling_mm import MMConfig, MMForConditionalGeneration, MMForSequenceClassification, MMModel
from modeling_mm.encoder_shapes import dummy_item
from modeling_mm.modalities import MODALITIES, Modality, media_inputs, register_modality, unregister_modality
from tests.fakes.radar import RADAR, SENSORS, STEPS, RadarConfig, RadarEncoder, radar_registered
from tests.fakes.tiny import (
    IMAGE,
    difference,
    gpt2,
    gpt2_config,
    image,
    open_gates,
    pad_images,
    pad_text,
    seeded,
    vit_config,
)

PACKAGE = Path(__file__).parents[1] / "modeling_mm"

# ---- A third modality -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def radar():
    with radar_registered() as modality:
        yield modality


@pytest.fixture
def model(radar) -> MMForConditionalGeneration:
    config = MMConfig.from_text_vision_audio_configs(
        gpt2_config(), vit_config(), radar_config=RadarConfig(), cross_attention_layers=[1, 3]
    )
    return seeded(lambda: open_gates(MMForConditionalGeneration(config)))


def echoes(*rows: list[float]) -> dict[str, torch.Tensor]:
    """Windows of constant echoes, one for each level of each row, half of each window padded."""
    values, mask = torch.zeros(len(rows), 2, STEPS, SENSORS), torch.zeros(len(rows), 2, STEPS, dtype=torch.bool)
    for i, row in enumerate(rows):
        for j, level in enumerate(row):
            values[i, j, : STEPS // 2], mask[i, j, : STEPS // 2] = level, True
    return {"echoes": values, "echo_mask": mask}


def test_a_row_and_a_config_field_give_a_model_all_that_a_modality_has(model):
    config, base = model.config, model.model
    assert config.radar_token_id == 97 and config.radar_connector == "mlp" and config.freeze_radar is False
    assert isinstance(base.radar_tower, RadarEncoder) and base.audio_tower is None
    assert [modality.name for modality in config.modalities] == ["image", "radar"]
    for cls in (MMModel, MMForConditionalGeneration, MMForSequenceClassification):
        assert {"echoes", "echo_mask", "radar_states"} <= set(inspect.signature(cls.forward).parameters)
    with pytest.raises(ValueError, match="radar_connector must be one of"):
        MMConfig(text_config=gpt2_config(), radar_connector="none")
    with pytest.raises(ValueError, match="radar_token_id must be set when the model has a RadarConfig"):
        MMConfig(text_config=gpt2_config(), radar_config=RadarConfig())


def test_its_encoder_is_joined_like_any_other(radar):
    encoder = seeded(lambda: RadarEncoder(RadarConfig()))
    model = MMForConditionalGeneration.from_text_vision_audio_pretrained(
        gpt2(), radar=encoder, radar_connector="linear"
    )
    assert torch.equal(model.model.radar_tower.linear.weight, encoder.linear.weight)
    assert model.model.radar_connector.projector.linear.in_features == 12 and model.config.audio_config is None
    with pytest.raises(ValueError, match=r"unknown argument 'radar_conector'\. Did you mean 'radar_connector'"):
        MMForConditionalGeneration.from_text_vision_audio_pretrained(gpt2(), radar=encoder, radar_conector="linear")


def test_it_is_seen_from_its_placeholder_on_and_no_row_sees_anothers(model):
    radar = model.config.radar_token_id
    text = pad_text([[5, radar, 6, radar, 7], [8, 9, 10, 11, 12], [IMAGE, 5, radar, 6]])
    media = {**echoes([0.5, -0.5], [], [0.3]), **pad_images([[], [], [image(0)]])}
    other = {**media, **echoes([0.5, 0.9], [], [0.3])}
    with torch.no_grad():
        logits, changed = model(**text, **media).logits, model(**text, **other).logits
        alone = model(input_ids=text["input_ids"][1:2], attention_mask=text["attention_mask"][1:2]).logits
        images = model(**pad_text([[IMAGE, 5]]), **pad_images([[image(0)]])).logits
    moved = (logits != changed).any(-1)
    assert moved.tolist() == [[False, False, False, True, True], [False] * 5, [False] * 5]
    assert difference(logits[1:2], alone) < 1e-5
    assert difference(logits[2:, :2], images) < 1e-5


def test_it_is_checked_row_by_row(model):
    radar = model.config.radar_token_id
    with pytest.raises(ValueError, match=r"Row 1: 2 radar placeholder token\(s\) \(id 97\) in the text for 1 radar"):
        model(**pad_text([[radar, 5, 6], [radar, radar, 7]]), **echoes([1.0], [1.0]))
    with pytest.raises(ValueError, match=r"echo_mask must have shape \(1, 2, 6\)"):
        model(**pad_text([[radar]]), **{**echoes([1.0]), "echo_mask": torch.ones(1, 2, 5)})
    with pytest.raises(ValueError, match=r"not used by the model: .*echo"):
        model.generate(**pad_text([[radar]]), echo=torch.zeros(1))
    plain = seeded(lambda: MMForConditionalGeneration(MMConfig.from_text_vision_audio_configs(gpt2_config())))
    with pytest.raises(ValueError, match=r"given radars, but .* \(radar_config is None\)"):
        plain(input_ids=torch.tensor([[5]]), **echoes([1.0]))


def test_media_encoded_once_reload_and_training_of_the_rest(model, tmp_path):
    batch = {**pad_text([[5, model.config.radar_token_id, 6]]), **echoes([0.4])}
    media_only = {name: batch[name] for name in RADAR.model_inputs if name in batch}
    with torch.no_grad():
        expected = model(**batch).logits
        media = model.encode_media(**media_only)
        assert media.count(2).tolist() == [1] and media.item_counts()["radar"] == [1]
        states = model.model.get_media_features("radar", batch["echoes"]).last_hidden_state  # (2, T, W)
        encoded = {"radar_states": states[None], "radar_states_mask": batch["echo_mask"]}
        for given in ({"media": media}, encoded):
            assert difference(model(input_ids=batch["input_ids"], **given).logits, expected) < 1e-5
        model.save_pretrained(tmp_path)
        again = MMForConditionalGeneration.from_pretrained(tmp_path)
        assert difference(again(**batch).logits, expected) == 0
    frozen = MMForConditionalGeneration(MMConfig(**{**model.config.to_dict(), "freeze_radar": True}))
    frozen.train()(**batch, labels=batch["input_ids"]).loss.backward()
    assert not frozen.model.radar_tower.training
    assert all(parameter.grad is None for parameter in frozen.model.radar_tower.parameters())
    assert all(parameter.grad is not None for parameter in frozen.model.radar_connector.parameters())


def test_the_stock_trainer_teaches_to_answer_by_it(model, tmp_path):
    """Trainer keeps the columns that the signature shows and drops the others; the answer is read from the sensors."""
    near, far, question = 20, 30, [5, model.config.radar_token_id, 6]
    examples = []
    for level, word in ((0.8, near), (-0.8, far)) * 4:
        text = pad_text([[*question, word]])
        one = {**text, "labels": torch.tensor([[-100, -100, -100, word]]), **echoes([level])}
        examples.append({**{name: tensor[0] for name, tensor in one.items()}, "file": "drive.bag"})
    arguments = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    arguments |= {"max_steps": 20, "per_device_train_batch_size": 8, "learning_rate": 5e-3, "seed": 0}
    trainer = Trainer(model, TrainingArguments(str(tmp_path), **arguments), train_dataset=examples)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.2 * losses[0]
    prompts = {**pad_text([question] * 2), **echoes([-0.8], [0.8])}
    answers = model.generate(**prompts, max_new_tokens=1, do_sample=False, pad_token_id=0)[:, -1]
    assert answers.tolist() == [far, near]
    model.lm_head.weight.data[model.config.radar_token_id] = 50.0
    assert model.config.radar_token_id not in model.generate(**prompts, max_new_tokens=5, pad_token_id=0)[:, 3:]


def test_an_item_for_processes_without_media_is_the_encoders(radar):
    encoder = RadarEncoder(RadarConfig())
    assert dummy_item(encoder, torch.device("cpu")).shape == (1, 1, SENSORS)

    class Bare(RadarEncoder):
        dummy_inputs = {}

    with pytest.raises(ValueError, match=r"rows have no radars must run Bare .* dummy_inputs have no 'echoes'"):
        dummy_item(Bare(RadarConfig()), torch.device("cpu"))


# ---- The table ------------------------------------------------------------------------------------------------------


def test_names_follow_from_name_and_tower():
    image, audio = MODALITIES["image"], MODALITIES["audio"]
    assert (image.config_field, image.tower_attribute, image.connector_attribute) == (
        "vision_config", "vision_tower", "vision_connector",
    )  # fmt: skip
    assert (audio.freeze_field, audio.token_id_field, audio.has_frames) == ("freeze_audio", "audio_token_id", True)
    assert image.model_inputs == ("pixel_values", "image_mask", "vision_states")
    assert {*image.model_inputs, *audio.model_inputs} <= set(media_inputs())
    assert len(media_inputs()) == len(set(media_inputs()))
    assert {field for modality in (image, audio) for field in modality.config_defaults} <= set(MMConfig().to_dict())
    for modality in (image, audio):
        assert {name: getattr(MMConfig(), name) for name in modality.config_defaults} == modality.config_defaults


def test_a_name_or_an_input_that_is_taken_is_refused(radar):
    with pytest.raises(ValueError, match=r"'radar' cannot be registered: echo_mask, echoes, radar, .* is taken"):
        register_modality(RADAR)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"name": "video"}, "'video' cannot be registered: video is taken"),
        ({"name": "text"}, "text is taken"),
        ({"name": "smell", "tower": "vision"}, "'smell' cannot be registered: vision, vision_states is taken"),
    ],
)
def test_names_of_parts_and_towers_are_refused(row, message):
    with pytest.raises(ValueError, match=message):
        register_modality(Modality(**row, dimensions=(2,)))
    assert row["name"] not in MODALITIES


@pytest.mark.parametrize("row", [{}, {"dimensions": (2, 3)}, {"dimensions": (2,), "frame_axes": (2, 3)}])
def test_a_row_needs_dimensions_and_axes_for_each_input(row):
    with pytest.raises(ValueError, match=r"'smell' has inputs .*Give each input its dimensions"):
        Modality("smell", **row)


def test_a_short_row_has_all_names():
    row = Modality("smell", dimensions=(1,), frame_axes=(2,))
    assert row.model_inputs == ("smell_values", "smell_mask", "smell_states", "smell_states_mask")
    assert (row.tower, row.token, row.plural, row.processor) == ("smell", "<|smell|>", "smells", "smell_processor")
    assert Modality("smell", "nose", dimensions=(1,)).model_inputs == ("smell_values", "smell_mask", "nose_states")


def test_an_unregistered_modality_leaves_no_trace():
    register_modality(Modality("smell", "nose", ("odors",), (1,)))
    assert "odors" in media_inputs() and "odors" in inspect.signature(MMModel.forward).parameters
    unregister_modality("smell")
    assert "odors" not in media_inputs() and "odors" not in inspect.signature(MMModel.forward).parameters


# ---- Nothing lists images beside audio ------------------------------------------------------------------------------

IMAGE_NAME = re.compile(
    r"images?|pictures?|vision|pixel_values|(images?|vision|picture)_\w+|\w+_images?|_?IMAGES?(_\w+)?"
)
AUDIO_NAME = re.compile(
    r"audios?|sounds?|input_features|input_values|feature_attention_mask|feature_extractor|(audio|sound)_\w+|\w+_audio"
    r"|_?AUDIO(_\w+)?"
)
LIMIT = 10  # signatures of transformers, and tables of functions and words for each modality


def names_of(node: ast.expr) -> set[str]:
    """The strings, names and attributes that an element is, or that the tuple or list in it consists of."""
    if isinstance(node, ast.Constant):
        return {node.value} if isinstance(node.value, str) else set()
    if isinstance(node, (ast.Tuple, ast.List)):
        return set().union(*map(names_of, node.elts))
    if isinstance(node, ast.Starred):
        return names_of(node.value)
    return {getattr(node, "id", getattr(node, "attr", ""))}


def elements_of(node: ast.AST) -> list[ast.expr]:
    """The elements of a tuple, list, set, dict, call, boolean expression or chain of `if`, in which names may pair."""
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return node.elts
    if isinstance(node, ast.Dict):
        return [*filter(None, node.keys), *node.values]
    if isinstance(node, ast.Call):
        return node.args  # by keyword, `f(images=images, audio=audio)` passes on what a caller gave under these names
    compared = []
    if isinstance(node, ast.BoolOp):
        compared = node.values
    while isinstance(node, (ast.If, ast.IfExp)):
        compared.append(node.test)
        rest = node.orelse if isinstance(node.orelse, list) else [node.orelse]
        node = rest[0] if len(rest) == 1 else None
    parts = [[test.left, *test.comparators] if isinstance(test, ast.Compare) else [test] for test in compared]
    return [part for several in parts for part in several]


def paired_literals(tree: ast.Module) -> list[tuple[int, list[str]]]:
    """The line and the names of each literal that has an image's name beside an audio's."""
    chained = {id(node.orelse[0]) for node in ast.walk(tree) if isinstance(node, ast.If) and len(node.orelse) == 1}
    found = []
    for node in ast.walk(tree):
        names = set().union(*map(names_of, elements_of(node))) if id(node) not in chained else set()
        pair = [sorted(filter(kind.fullmatch, names)) for kind in (IMAGE_NAME, AUDIO_NAME)]
        if all(pair):
            found.append((node.lineno, [*pair[0], *pair[1]]))
    return found


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ('("image", "audio")', 1),
        ("[vision_tower, audio_tower]", 1),
        ('{"image": a, "audio": b}', 1),
        ("f(images, audio)", 1),
        ("f(images=images, audio=audio)", 0),
        ("a.vision_config is None and a.audio_config is None", 1),
        ('for name, row in (("image", 1), ("audio", 2)): pass', 1),
        ('if kind == "image":\n    pass\nelif kind == "audio":\n    pass\nelse:\n    pass', 1),
        ('x = 1 if kind == "image" else 2', 0),
        ('("image", "text")', 0),
        ("(MODALITIES[name] for name in names)", 0),
    ],
)
def test_the_counter_counts(code, count):
    assert len(paired_literals(ast.parse(code))) == count


def test_names_of_images_and_audio_are_paired_in_the_table_alone():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        pairs = [] if path.name == "modalities.py" else paired_literals(tree)
        found += [f"{path.relative_to(PACKAGE)}:{line} {', '.join(names)}" for line, names in pairs]
    found = sorted(set(found))  # a literal within another is counted once
    assert len({entry.split()[0] for entry in found}) <= LIMIT, "\n".join(["", *found])
