"""Adding a modality: nothing is forgotten (invariant 12), and only what is new learns."""

import copy

import pytest
import torch

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification, MMModel
from tests.fakes.encoder_decoders import (
    WHISPER_START,
    captioner,
    our_inputs,
    pixels,
    transcriber,
    transcribing_whisper,
    windows,
)
from tests.fakes.processor_parts import ids, make, make_vit, make_whisper, picture
from tests.fakes.processor_parts import sound as recording
from tests.fakes.tiny import (
    IMAGE,
    difference,
    draw,
    inputs,
    joined,
    open_gates,
    train,
    vit,
    vit_config,
    whisper,
)

convert = MMForConditionalGeneration.from_encoder_decoder


def hearing() -> MMForConditionalGeneration:
    return convert(transcribing_whisper())


def seeing() -> MMForConditionalGeneration:
    return convert(captioner(vit_config()))


def text(rows: int = 3, first: int = 1) -> torch.Tensor:
    return torch.randint(first, 60, (rows, 7), generator=torch.Generator().manual_seed(1))


# The model, what is added, what it knew and what is new.
CASES = {
    "Whisper sees": (hearing, "vision", vit, windows(), pixels()),
    "captioner hears": (seeing, "audio", whisper, pixels(), windows()),
    "wav2vec2 sees": (
        lambda: convert(transcriber()),
        "vision",
        vit,
        {"input_values": draw(3, 400, seed=13)},
        pixels(),
    ),
    "joined hears": (
        lambda: open_gates(joined(audio=None, vision_connector="mlp")),
        "audio",
        whisper,
        pixels(),
        windows(),
    ),
}
PLACEMENTS = ("before", "inside")


def added(name: str, **arguments):
    build, tower, encoder, known, new = CASES[name]
    model = build()
    return model, getattr(model, f"add_{tower}")(encoder(), **arguments), known, new


def given(model, media, first=1):
    """Inputs of a batch of text with these media; joined models see their placeholders."""
    batch = our_inputs(model, media, text(first=first))
    if model.config.placeholders == "text":
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    return batch


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", CASES)
def test_nothing_is_forgotten_when_the_new_modality_is_learned(name, placement):
    model, both, known, new = added(name, placement=placement)
    batch, words = given(model, known), {"input_ids": text()}
    with torch.no_grad():
        expected = [model(**batch).logits, model(**words).logits]
        assert [difference(both(**each).logits, e) for each, e in zip((batch, words), expected, strict=True)] == [0, 0]
        alone = both(**given(both, new)).logits
    seen = {**given(both, new), "labels": torch.cat([torch.full((3, 1), -100), text()], 1)}
    losses = train(both, [seen], steps=40, lr=3e-2)
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        assert difference(both(**given(both, new)).logits, alone) > 0.1
        assert [difference(both(**each).logits, e) for each, e in zip((batch, words), expected, strict=True)] == [0, 0]
        greedy = {"do_sample": False, "max_new_tokens": 8}
        assert torch.equal(both.generate(**batch, **greedy), model.generate(**batch, **greedy))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", CASES)
def test_new_blocks_add_zero_at_first(name, placement):
    _, both, _, new = added(name, placement=placement)
    batch = given(both, new)
    other = {key: value + 1 if value.is_floating_point() else value for key, value in batch.items()}
    with torch.no_grad():
        assert difference(both(**batch).logits, both(**other).logits) == 0.0


@pytest.mark.parametrize("name", CASES)
def test_only_the_new_connector_and_the_new_blocks_learn_also_after_a_reload(name, tmp_path):
    _, both, _, _ = added(name)
    tower = CASES[name][1]
    both.save_pretrained(tmp_path)
    reloaded = MMForConditionalGeneration.from_pretrained(tmp_path)
    for model in (both, reloaded):
        learn = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        new = (f"model.{tower}_connector.", f"model.language_model.{tower}_cross_blocks.")
        assert learn == {name for name, _ in model.named_parameters() if name.startswith(new)} != set()
    assert all(torch.equal(tensor, reloaded.state_dict()[name]) for name, tensor in both.state_dict().items())


def test_without_freezing_all_stays_trainable():
    _, both, _, _ = added("Whisper sees", freeze=False)
    assert all(parameter.requires_grad for parameter in both.parameters())
    assert not both.config.freeze_text
    assert both.config.frozen_modalities is None


def test_old_weights_are_bit_equal_and_not_shared():
    model, both, _, _ = added("Whisper sees")
    before = copy.deepcopy(model.state_dict())
    assert all(torch.equal(tensor, both.state_dict()[name]) for name, tensor in before.items())
    with torch.no_grad():
        for parameter in both.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.config.vision_config is None
    assert not model.config.freeze_text


def test_where_the_new_blocks_stand_can_be_chosen():
    config = hearing().add_vision(vit(), cross_attention_layers=[2], connector="perceiver", latents=3).config
    assert (config.vision_cross_attention_layers, config.vision_cross_attention_placement) == ([2], "before")
    assert (config.vision_connector, config.vision_latents) == ("perceiver", 3)
    default = seeing().add_audio(whisper()).config
    assert default.audio_cross_attention_layers == [0, 1, 2, 3]


def test_a_direct_connector_of_a_new_modality_learns():
    both = hearing().add_vision(vit(), connector="direct")
    assert both.model.vision_connector.linear.weight.requires_grad


def test_fields_of_all_modalities_are_arguments(tmp_path):
    both = hearing().add_vision(vit(), connector_dropout=0.25, max_media_items=2)
    both.save_pretrained(tmp_path)
    for config in (both.config, type(both).from_pretrained(tmp_path).config):
        assert (config.connector_dropout, config.max_media_items) == (0.25, 2)
    assert {m.dropout for m in both.model.vision_connector.modules() if hasattr(m, "dropout")} == {0.25}
    plain = hearing().add_vision(vit()).config
    assert (plain.connector_dropout, plain.max_media_items) == (0.0, None)


def test_a_folder_can_be_added(tmp_path):
    encoder = vit()
    encoder.save_pretrained(tmp_path)
    both = hearing().add_vision(tmp_path)
    found = both.model.vision_tower.state_dict()
    assert all(torch.equal(tensor, encoder.state_dict()[name]) for name, tensor in found.items())


def test_precision_and_generation_config_stay():
    both = hearing().to(torch.bfloat16).add_vision(vit())
    assert both.dtype == both.model.vision_tower.dtype == torch.bfloat16
    assert both.generation_config.begin_suppress_tokens == hearing().generation_config.begin_suppress_tokens


@pytest.mark.parametrize("cls", [MMModel, MMForSequenceClassification])
def test_models_with_other_heads_are_given_one_too(cls):
    model = open_gates(joined(audio=None, cls=cls))
    both = model.add_audio(whisper())
    batch = inputs([[5, IMAGE, 6], [7, 8, 9]])
    with torch.no_grad():
        for expected, got in zip(model(**batch).to_tuple()[:1], both(**batch).to_tuple()[:1], strict=True):
            assert difference(got, expected) == 0.0


def test_blocks_that_another_modality_has_for_itself_are_frozen():
    both = joined(audio=None, vision_cross_attention_layers=[0, 2]).add_audio(whisper())
    learn = {".".join(name.split(".")[1:3]) for name, parameter in both.named_parameters() if parameter.requires_grad}
    assert {part.split(".")[0] for part in learn} == {"audio_connector", "language_model"}
    assert "language_model.audio_cross_blocks" in learn
    assert "language_model.vision_cross_blocks" not in learn


def test_media_of_both_kinds_in_a_row_answer():
    both = hearing().add_vision(vit())
    answer = both.generate(**pixels(), **windows(), max_new_tokens=3, do_sample=False)
    start = [both.config.image_token_id, both.config.audio_token_id, WHISPER_START]
    assert answer[:, :3].tolist() == [start] * 3


# ---- Refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build, add, message",
    [
        (seeing, lambda m: m.add_vision(vit()), "encoder of images already, a ViTConfig"),
        (
            hearing,
            lambda m: m.add_vision(vit(), conector="mlp"),
            "add_vision got an unknown argument 'conector'.*'connector'",
        ),
        (hearing, lambda m: m.add_vision(vit(), cross_attention_layers=[9]), "vision_cross_attention_layers must be"),
        (hearing, lambda m: m.add_vision(vit(), placement="behind"), "'before', 'inside'"),
        (
            lambda: joined(audio=None),
            lambda m: m.add_audio(whisper(), cross_attention_sink=True),
            "cross_attention_sink .* has learned with False",
        ),
    ],
)
def test_slips_are_refused(build, add, message):
    with pytest.raises(ValueError, match=message):
        add(build())


def test_an_encoder_that_lacks_weights_is_refused(tmp_path):
    encoder = whisper()
    state = {name: tensor for name, tensor in encoder.state_dict().items() if "encoder.layers.1.fc1" not in name}
    encoder.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"2 weights are missing in the given encoder: .*fc1"):
        seeing().add_audio(tmp_path)


def test_a_new_modality_gets_a_feed_forward_of_its_width():
    model = hearing().add_vision(vit(), cross_attention_feed_forward=True, cross_attention_feed_forward_size=7)
    blocks = model.model.language_model.vision_cross_blocks.values()
    assert {tuple(block.mlp.c_fc.weight.shape) for block in blocks} == {(model.config.text_config.n_embd, 7)}
    assert all(parameter.requires_grad for block in blocks for parameter in block.mlp.parameters())


def test_a_new_modality_gets_sinks_and_positions():
    model = hearing().add_vision(
        vit(), cross_attention_sink=True, media_position_encoding="learned", max_media_positions=9
    )
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if ".sink." in name)
    sinks = [name for name, _ in model.named_parameters() if ".sink." in name]
    assert len(sinks) == len(model.config.vision_cross_attention_layers)
    assert model.model.vision_connector.positions.weight.shape[0] == 9


@pytest.mark.parametrize("name", ["Whisper sees", "wav2vec2 sees"])
def test_stand_ins_learn_and_nothing_is_forgotten(name):
    model, both, known, new = added(name, cross_attention_stand_in=True)
    batch, words = given(model, known), {"input_ids": text()}
    with torch.no_grad():
        expected = [model(**each).logits for each in (batch, words)]
    stand_ins = [parameter for name, parameter in both.named_parameters() if ".vision_stand_in." in name]
    assert stand_ins and all(parameter.requires_grad and not parameter.any() for parameter in stand_ins)
    train(both, [{**given(both, new), "labels": torch.cat([torch.full((3, 1), -100), text()], 1)}], steps=20, lr=3e-2)
    assert all(parameter.any() for parameter in stand_ins)
    with torch.no_grad():
        assert [difference(both(**each).logits, e) for each, e in zip((batch, words), expected, strict=True)] == [0, 0]


# ---- Processors -----------------------------------------------------------------------------------------------------


def test_a_processor_is_given_the_part_too(tmp_path):
    hears = make(vision=False, placeholders="hidden")
    both = hears.add_part("image", make_vit())
    both.save_pretrained(tmp_path)
    for processor in (both, type(both).from_pretrained(tmp_path)):
        made = processor(text="<|image|>a cat<|audio|>", images=picture(), audio=[recording()], return_tensors="pt")
        assert {"pixel_values", "input_features"} <= set(made)
        assert made["input_ids"][0].tolist() == ids(processor, "<|image|>a cat<|audio|>")
    assert hears.image_processor is None
    assert hears.image_token is None
    with pytest.raises(ValueError, match="`feature_extractor` already"):
        both.add_part("audio", make_whisper())


def test_a_part_is_loaded_from_a_folder(tmp_path):
    make_vit().save_pretrained(tmp_path)
    assert make(vision=False).add_part("image", tmp_path).image_processor.size == make_vit().size
