"""Places and readers of cross-attention: before or inside decoder blocks, for all media or for one modality."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import StaticCache

from modeling_mm import MMConfig, MMForConditionalGeneration, MMMediaOutput
from modeling_mm.configuration_mm import BEFORE_ALONE
from modeling_mm.cross_attention import CROSS_ATTENTION, cross_attention_groups, recording_order
from tests.fakes.tiny import (
    AUDIO,
    IMAGE,
    WIDTH,
    difference,
    gpt2_config,
    image,
    inputs,
    joined,
    labels,
    open_gates,
    seeded,
    sound,
    train,
    vit_config,
    whisper_config,
)

INSIDE = {"cross_attention_placement": "inside", "cross_attention_gated": False, "cross_attention_feed_forward": False}
LAYOUTS = {
    "inside": INSIDE,
    "own, before": {"vision_cross_attention_layers": [0, 2]},
    "own, inside": {**INSIDE, "vision_cross_attention_layers": [0, 1], "audio_cross_attention_layers": [1, 2]},
    "shared inside, own before": {
        **INSIDE,
        "vision_cross_attention_layers": [0, 1],
        "vision_cross_attention_placement": "before",
    },
    "stand-ins": {
        **INSIDE,
        "vision_cross_attention_layers": [0, 1],
        "vision_cross_attention_placement": "before",
        "cross_attention_stand_in": True,
        "cross_attention_sink": True,
        "cross_attention_query_gate": True,
        "cross_attention_token_gate": True,
    },
    "both own": {"vision_cross_attention_layers": [0], "audio_cross_attention_layers": [0, 3]},
}
ROWS = [[5, IMAGE, 6, AUDIO, 7, 8], [9, 10, 11], [IMAGE, 12, IMAGE, 13], [AUDIO, 14, 15, 16, 17]]
GREEDY = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
TOLERANCE = 1e-5


@pytest.fixture(params=sorted(set(LAYOUTS) - {"own, before"}))  # the others hold what it consists of
def layout(request):
    return LAYOUTS[request.param]


def opened(layout, **fields):
    return open_gates(joined(**{**layout, **fields}))


def media_of(batch):
    return {name: tensor for name, tensor in batch.items() if name not in ("input_ids", "attention_mask")}


# ---- Structure ------------------------------------------------------------------------------------------------------


def names_of(layout) -> set[str]:
    names = (name for name, _ in joined(**layout).named_parameters() if CROSS_ATTENTION.search(name))
    return {name.removeprefix("model.language_model.") for name in names if "c_attn.weight" in name}


def test_the_modules_of_each_layout_have_their_places_and_names():
    assert names_of(LAYOUTS["inside"]) == {f"h.{i}.crossattention.c_attn.weight" for i in (1, 3)}
    assert names_of(LAYOUTS["own, before"]) == {
        *(f"cross_blocks.{i}.cross_attn.c_attn.weight" for i in (1, 3)),
        *(f"vision_cross_blocks.{i}.cross_attn.c_attn.weight" for i in (0, 2)),
    }
    assert names_of(LAYOUTS["own, inside"]) == {  # nothing would read the shared ones
        *(f"h.{i}.vision_crossattention.c_attn.weight" for i in (0, 1)),
        *(f"h.{i}.audio_crossattention.c_attn.weight" for i in (1, 2)),
    }
    assert names_of(LAYOUTS["shared inside, own before"]) == {
        *(f"h.{i}.crossattention.c_attn.weight" for i in (1, 3)),
        *(f"vision_cross_blocks.{i}.cross_attn.c_attn.weight" for i in (0, 1)),
    }


STOOD_IN = [[IMAGE, 6, 7, 8], [AUDIO, 9, 10, 11], [12, 13, 14, 15], [IMAGE, 12, AUDIO, 13]]


def test_stand_ins_are_for_tokens_that_see_images_and_hear_nothing():
    model, batch = opened(LAYOUTS["stand-ins"]), inputs(STOOD_IN)
    names = [name for name, _ in model.named_parameters() if "stand_in" in name]
    assert names == [f"model.language_model.h.{i}.vision_stand_in.weight" for i in (1, 3)]
    without = copy.deepcopy(model)
    with torch.no_grad():
        for name in names:
            without.get_parameter(name).zero_()
        moved = (model(**batch).logits - without(**batch).logits).abs().amax(-1)
    assert (moved[0] > 1e-3).all()
    assert moved[1].max() == moved[2].max() == 0.0
    # The last row's first two tokens have seen an image alone; later ones differ as they attend to these.
    assert (moved[3, :2] > 1e-3).all()


def test_a_stand_in_stands_where_cross_attention_stands_in_the_block():
    """A row with images equals one with audio whose cross-attention adds just this vector."""
    model, given = opened(LAYOUTS["stand-ins"]), inputs([[IMAGE, 6, 7, 8]])
    vectors = {i: model.model.language_model.h[i].vision_stand_in.weight for i in (1, 3)}

    def add(vector):
        return lambda module, arguments, output: (output[0] + vector, *output[1:])

    bare = copy.deepcopy(model)
    for i, vector in vectors.items():
        bare.model.language_model.h[i].vision_stand_in.weight.data.zero_()
        bare.model.language_model.h[i].attn.register_forward_hook(add(vector.detach()))
    with torch.no_grad():
        assert difference(bare(**given).logits, model(**given).logits) < TOLERANCE


def test_a_stand_in_starts_at_zero_and_learns():
    model, batch = joined(**LAYOUTS["stand-ins"]), inputs(STOOD_IN)
    stand_in = model.model.language_model.h[1].vision_stand_in
    assert stand_in.weight.tolist() == [0.0] * 32
    model(**batch).logits.square().sum().backward()
    assert stand_in.weight.grad.abs().min() > 0


def test_gates_need_cross_attention_before_blocks():
    configs = (gpt2_config(), vit_config(), whisper_config())
    for field in BEFORE_ALONE:
        fields = {"cross_attention_placement": "inside", field: 8 if field.endswith("_size") else True}
        with pytest.raises(ValueError, match=f"{field} belongs to cross-attention before decoder blocks"):
            MMConfig.from_text_vision_audio_configs(*configs, **fields)
        own = {"vision_cross_attention_layers": [0], "vision_cross_attention_placement": "before"}
        MMConfig.from_text_vision_audio_configs(*configs, **fields, **own)  # the images' own are gated


def test_recorded_weights_are_in_the_order_that_is_told(layout):
    model = opened(layout)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        media = model.encode_media(
            **{k: v for k, v in inputs(ROWS[:1]).items() if "ids" not in k and k != "attention_mask"}
        )
        found = model(torch.tensor(ROWS[:1]), media=media, output_attentions=True)
    order = recording_order(model.model.language_model.groups, 4)
    sizes = [sum(media.sizes[number] for number in group.modalities) for group in order]
    assert [weights.shape[-1] for weights in found.cross_attentions] == sizes
    assert len(found.attentions) == 4
    for group, weights in zip(order, found.cross_attentions, strict=True):
        shares = weights.sum(-1)
        if group.placement == "before" and model.config.cross_attention_sink:
            assert shares.min() > 0 and shares.max() < 1, "the rest is the sink's"
        else:
            assert difference(shares, torch.ones_like(shares)) < 1e-5


# ---- The invariants, for each layout --------------------------------------------------------------------------------


def test_joining_changes_nothing_until_media_are_learned(layout):
    batch = inputs(ROWS)
    fresh = joined(**layout)
    with torch.no_grad():
        states = fresh.model.language_model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        expected = fresh.lm_head(states)
        assert difference(fresh(**batch).logits, expected) < TOLERANCE
        assert difference(opened(layout)(**batch).logits, expected) > 1e-2


def test_media_matter_from_their_placeholder_on_and_only_in_their_row(layout):
    model = opened(layout)
    with torch.no_grad():
        one, other = (model(**inputs(ROWS, seed=seed)).logits for seed in (0, 50))
    for row, blind in zip(range(4), (1, 3, 0, 0), strict=True):
        assert difference(one[row, :blind], other[row, :blind]) == 0.0
        moved = difference(one[row, blind : len(ROWS[row])], other[row, blind : len(ROWS[row])])
        assert moved == 0.0 if row == 1 else moved > 1e-3


def test_a_row_is_the_same_alone(layout):
    model = opened(layout)
    batch = inputs(ROWS, side="left")
    with torch.no_grad():
        together = model(**batch).logits
        for number, row in enumerate(ROWS):
            images = [[image(10 * number + j) for j in range(row.count(IMAGE))]]
            audio = [[sound(10 * number + j) for j in range(row.count(AUDIO))]]
            alone = model(**inputs([row], images, audio)).logits
            assert difference(together[number, -len(row) :], alone[0]) < TOLERANCE


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_generated_tokens_are_those_without_a_cache(layout, options):
    model, batch = opened(layout), inputs(ROWS, side="left")
    if "cache_implementation" in options:
        options = {**options, "disable_compile": True}
    cached = model.generate(**batch, **GREEDY, **options)
    plain = {name: value for name, value in options.items() if name == "num_beams"}
    assert cached.tolist() == model.generate(**batch, **GREEDY, **plain, use_cache=False).tolist()
    assert cached.tolist() != model.generate(**inputs(ROWS, side="left", seed=50), **GREEDY, **options).tolist()


def test_media_of_a_later_step_join_those_in_the_cache(layout):
    """Sound first, a picture in the second step: a group may have its first media in any step."""
    model, row = opened(layout), [5, AUDIO, 6, 7, IMAGE, 8, AUDIO, 9]
    whole = inputs([row])
    media = media_of(whole)
    first = {name: tensor[:, :1] for name, tensor in media.items() if name not in ("pixel_values", "image_mask")}
    second = {**{name: tensor[:, 1:] for name, tensor in media.items()}, "pixel_values": media["pixel_values"]}
    second["image_mask"] = media["image_mask"]
    with torch.no_grad():
        start = model(torch.tensor([row[:3]]), **first, use_cache=True)
        later = model(torch.tensor([row[3:]]), **second, past_key_values=start.past_key_values, use_cache=True)
        assert difference(later.logits, model(**whole).logits[:, 3:]) < TOLERANCE


def test_reload_is_identity(layout, tmp_path):
    model, batch = opened(layout), inputs(ROWS)
    model.save_pretrained(tmp_path)
    again = MMForConditionalGeneration.from_pretrained(tmp_path)
    state, other = model.state_dict(), again.state_dict()
    assert state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)
    with torch.no_grad():
        assert difference(model(**batch).logits, again(**batch).logits) == 0.0


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_gradients_are_the_plain_ones(layout, reentrant):
    """Re-entrant checkpointing carries the gradient of positional tensors alone: media must be among them."""
    batch = inputs(ROWS)
    gradients = []
    for checkpointed in (False, True):
        model = opened(layout).train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(**batch, labels=labels(batch)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    connectors = [name for name in gradients[0] if "_connector." in name]
    assert connectors and all(gradients[0][name].abs().max() > 0 for name in connectors if "weight" in name)
    for name, gradient in gradients[0].items():
        assert difference(gradient, gradients[1][name]) < 1e-5, name


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "shared inside, own before")) for name in LAYOUTS]
)
def test_compiled_forward_and_decoding_are_whole_graphs(name):
    counters.clear()
    torch.compiler.reset()
    model, batch = opened(LAYOUTS[name]), inputs(ROWS, side="left")
    step = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert difference(step(**batch).logits, model(**batch).logits) <= TOLERANCE
        length = batch["input_ids"].shape[1]
        cache = StaticCache(config=model.config, max_cache_len=length + 1)
        model(**batch, past_key_values=cache, use_cache=True)
        token = torch.full((4, 1), 20)
        mask = torch.cat([batch["attention_mask"], torch.ones_like(token)], dim=1)
        positions = mask.sum(-1, keepdim=True) - 1
        found = step(token, mask, positions, past_key_values=cache, use_cache=True).logits
        whole = {**batch, "input_ids": torch.cat([batch["input_ids"], token], dim=1), "attention_mask": mask}
        assert difference(found[:, -1], model(**whole, use_cache=False).logits[:, -1]) <= 1e-4
    torch.compiler.reset()


# ---- Media that do not say what they are ----------------------------------------------------------------------------


def test_media_without_sizes_are_refused_where_modalities_have_their_own():
    model, batch = opened(LAYOUTS["both own"]), inputs(ROWS)
    media = MMMediaOutput(*model.encode_media(**media_of(batch)).tensors)
    with pytest.raises(ValueError, match="do not say how many of their tokens are of which modality"):
        model(batch["input_ids"], batch["attention_mask"], media=media)


# ---- What is frozen -------------------------------------------------------------------------------------------------


def test_frozen_cross_attention_is_the_shared_one_with_direct_connectors():
    """Weights that a converted model brought stay; those that were added to it learn."""
    layout = {**LAYOUTS["shared inside, own before"], "audio_connector": "direct"}
    model = opened(layout, freeze_cross_attention=True, freeze_text=True, freeze_vision=True, freeze_audio=True)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    batch = inputs(ROWS)
    train(model, [{**batch, "labels": labels(batch)}], steps=2)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if "vision_cross_blocks" in name or "vision_connector" in name}


# ---- The direct connector -------------------------------------------------------------------------------------------


def test_a_direct_connector_of_equal_widths_is_the_encoder_itself():
    configs = (gpt2_config(), vit_config(hidden_size=WIDTH, num_attention_heads=4))
    config = MMConfig.from_text_vision_audio_configs(*configs, vision_connector="direct")
    model = seeded(lambda: MMForConditionalGeneration(config))
    assert not list(model.model.vision_connector.parameters())
    pixels = torch.stack([image(0), image(1)])
    with torch.no_grad():
        found = model.get_image_features(pixels)
        states = model.model.vision_tower(pixels).last_hidden_state
        assert torch.equal(found.pooler_output, states) and torch.equal(found.last_hidden_state, states)
        precomputed = model.encode_media(vision_states=states[:, None])  # its type is the encoder's
    assert torch.equal(precomputed.states, states)


# ---- Whisper's attention to padding ---------------------------------------------------------------------------------


def test_padding_behind_an_audio_window_is_seen_if_the_config_says_so():
    row = [[5, AUDIO, 6, 7]]
    short = inputs(row, audio=[[sound(frames=6)]])
    whole = {**short, "feature_attention_mask": torch.ones_like(short["feature_attention_mask"])}
    for attends, expected in ((False, False), (True, True)):
        model = open_gates(joined(audio_attends_padding=attends))
        with torch.no_grad():
            assert (difference(model(**short).logits, model(**whole).logits) < TOLERANCE) == expected
    with torch.no_grad():
        assert model.encode_media(**media_of(short)).mask.all()
        states = model.get_audio_features(short["input_features"][:, 0], feature_attention_mask=None).last_hidden_state
        few = {"audio_states": states[:, None], "audio_states_mask": torch.arange(states.shape[1])[None, None] < 2}
        assert model.encode_media(**few).mask.all()


def test_an_absent_window_stays_absent():
    model = open_gates(joined(audio_attends_padding=True))
    with torch.no_grad():
        media = model.encode_media(**{k: v for k, v in inputs(ROWS).items() if k.startswith(("input_f", "feature"))})
    assert media.mask.any(-1).tolist() == [True, False, False, True]


# ---- Hidden placeholders --------------------------------------------------------------------------------------------


def hidden(batch):
    is_placeholder = (batch["input_ids"] == IMAGE) | (batch["input_ids"] == AUDIO)
    return {**batch, "attention_mask": batch["attention_mask"].masked_fill(is_placeholder, 0)}


def test_hidden_placeholders_take_no_position_and_are_not_read():
    """The text is as without them where media add nothing, and as it is whatever the placeholder's embedding says."""
    fields = {"placeholders": "hidden", "prompt_token_ids": [5]}
    model, closed = open_gates(joined(**fields)), joined(**fields)
    rows = [[5, IMAGE, 6, AUDIO, 7, 8], [9, 10, IMAGE, 11]]
    batch = hidden(inputs(rows, side="left"))
    texts = [[token for token in row if token not in (IMAGE, AUDIO)] for row in rows]
    with torch.no_grad():
        found = closed(**batch).logits
        for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
            kept = torch.tensor([token not in (IMAGE, AUDIO) for token in row])
            alone = closed(torch.tensor([text])).logits[0]
            assert difference(found[number, -len(row) :][kept], alone) < TOLERANCE
        changed = copy.deepcopy(model)
        changed.get_input_embeddings().weight[IMAGE] += 1.0
        changed.lm_head.weight = model.lm_head.weight
        real = batch["attention_mask"].bool()
        assert difference(changed(**batch).logits[real], model(**batch).logits[real]) < TOLERANCE


def test_a_hidden_placeholder_that_is_not_masked_is_refused_by_its_row():
    model = joined(placeholders="hidden")
    batch = inputs(ROWS)
    for mask in (batch["attention_mask"], None):
        with pytest.raises(ValueError, match=r"Row 0: 1 image placeholder\(s\).*placeholders='hidden'"):
            model(**{**batch, "attention_mask": mask})
    late = hidden(batch)
    late["attention_mask"][3, 0] = 1
    with pytest.raises(ValueError, match=r"Row 3: 1 audio placeholder\(s\)"):
        model(**late)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}], ids=str)
def test_generate_hides_placeholders_itself_without_a_mask(options):
    model = open_gates(joined(placeholders="hidden"))
    batch = hidden(inputs([ROWS[0]]))
    expected = model.generate(**batch, **GREEDY, **options)
    bare = {name: tensor for name, tensor in batch.items() if name != "attention_mask"}
    assert model.generate(**bare, **GREEDY, **options).tolist() == expected.tolist()


def test_media_alone_start_from_the_prompt_of_the_config():
    model = open_gates(joined(placeholders="hidden", prompt_token_ids=[5, 6]))
    pixels = torch.stack([image(0), image(1)])
    found = model.generate(pixel_values=pixels, **GREEDY)
    assert found[:, :3].tolist() == [[IMAGE, 5, 6]] * 2
    prompt = hidden(inputs([[IMAGE, 5, 6]] * 2, images=[[image(0)], [image(1)]]))
    assert found.tolist() == model.generate(**prompt, **GREEDY).tolist()
    with pytest.raises(ValueError, match="nothing is left to start from"):
        joined(placeholders="hidden").generate(pixel_values=pixels, **GREEDY)


def test_the_positions_of_hidden_placeholders_are_free_for_the_answer():
    """As many tokens as the decoder has positions, with three placeholders before them."""
    model = joined(placeholders="hidden")
    positions = model.config.text_config.n_positions
    batch = hidden(inputs([[IMAGE, IMAGE, AUDIO, 5, 6]]))
    found = model.generate(**batch, do_sample=False, max_new_tokens=positions, min_new_tokens=positions - 2)
    assert found.shape[1] - 3 == positions + 1  # the last token of an answer takes no position


# ---- Groups ---------------------------------------------------------------------------------------------------------


def test_a_model_without_a_modality_has_no_group_for_it():
    config = MMConfig.from_text_vision_audio_configs(
        gpt2_config(), None, whisper_config(), vision_cross_attention_layers=[0], cross_attention_layers=[1]
    )
    assert [(group.name, group.layers) for group in cross_attention_groups(config)] == [("shared", (1,))]
    assert cross_attention_groups(MMConfig(text_config=gpt2_config())) == ()
