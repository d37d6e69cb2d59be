"""Invariant 1: a freshly joined model gives GPT2LMHeadModel's logits, with and without media (float32, 1e-5)."""

import pytest
import torch

from tests.fakes.tiny import (
    AUDIO,
    CONNECTORS,
    EOS,
    IMAGE,
    PAD,
    difference,
    gpt2,
    inputs,
    joined,
    open_gates,
    vit,
    whisper,
)

TOLERANCE = 1e-5
VARIANTS = {
    "plain": {},
    "scaled_by_layer": {"scale_attn_by_inverse_layer_idx": True},
    "unscaled": {"scale_attn_weights": False},
    "upcast": {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
    "relu": {"activation_function": "relu"},
    "gelu": {"activation_function": "gelu"},
    "narrow_ffn": {"n_inner": 40},
    "other_epsilon": {"layer_norm_epsilon": 1e-3},
    "untied": {"tie_word_embeddings": False},
    "two_heads_three_layers": {"n_head": 2, "n_layer": 3},
}


def reference_of(model, text):
    """GPT-2 of the joint model's vocabulary: the old rows are its own, the rows of special tokens are copied."""
    old = text.get_input_embeddings().weight.shape[0]
    size = model.config.text_config.vocab_size
    reference = gpt2(**{**text.config.to_diff_dict(), "vocab_size": size})
    weights = {name: tensor.clone() for name, tensor in text.state_dict().items()}
    for name in ("transformer.wte.weight", "lm_head.weight"):
        table = model.get_input_embeddings() if "wte" in name else model.get_output_embeddings()
        weights[name] = torch.cat([weights[name], table.weight.detach()[old:]])
    reference.load_state_dict(weights)
    return reference.eval()


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_logits_of_a_text_equal_gpt2_to_1e_5(variant):
    text = gpt2(**VARIANTS[variant])
    batch = {"input_ids": torch.randint(1, 90, (3, 40)), "attention_mask": torch.ones(3, 40, dtype=torch.long)}
    expected = text(**batch).logits
    model = joined(text, cross_attention_layers=[1, 2])
    assert difference(model(**batch).logits[..., :90], expected) <= TOLERANCE
    assert expected.std() > 0.1  # the figure above says something


@pytest.mark.parametrize("feed_forward", [True, False], ids=["ffn", "no_ffn"])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "ungated"])
@pytest.mark.parametrize("connector", CONNECTORS)
@torch.no_grad()
def test_logits_with_media_equal_gpt2_to_1e_5(connector, gated, feed_forward):
    text = gpt2()
    model = joined(
        text,
        vision_connector=connector,
        audio_connector=connector,
        cross_attention_gated=gated,
        cross_attention_feed_forward=feed_forward,
    )
    batch = inputs([[5, IMAGE, 6, 7, AUDIO, IMAGE, 9], [AUDIO, 3, 4, 8, 2, 11, 12]])
    expected = reference_of(model, text)(input_ids=batch["input_ids"]).logits
    actual = model(**batch).logits
    assert difference(actual, expected) <= TOLERANCE
    # ... and not because the model is blind: once its gates open, the media move it.
    assert difference(open_gates(model)(**batch).logits, expected) > 1e-2


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_every_gpt2_variant_keeps_its_logits_beside_media(variant):
    text = gpt2(**VARIANTS[variant])
    model = joined(text, cross_attention_layers=[0, 2])
    batch = inputs([[5, IMAGE, 6, 7, AUDIO, 9]])
    expected = reference_of(model, text)(input_ids=batch["input_ids"]).logits
    assert difference(model(**batch).logits, expected) <= TOLERANCE


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_each_attention_implementation_equals_gpt2_to_1e_5(implementation):
    text = gpt2()
    model = joined(text)
    model.set_attn_implementation(implementation)
    batch = inputs([[5, IMAGE, 6, 7], [8, 9, AUDIO, 4]])
    expected = reference_of(model, text)(input_ids=batch["input_ids"]).logits
    assert difference(model(**batch).logits, expected) <= TOLERANCE


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_rows_equal_gpt2_alone_to_1e_5(side):
    text = gpt2()
    model = joined(text)
    rows = [[5, IMAGE, 6, 7, 8, 9], [11, 12, 13], [AUDIO, 14]]
    batch = inputs(rows, side=side)
    actual = model(**batch).logits
    reference = reference_of(model, text)
    for i, row in enumerate(rows):
        expected = reference(input_ids=torch.tensor([row])).logits[0]
        assert difference(actual[i][batch["attention_mask"][i] == 1], expected) <= TOLERANCE, f"row {i}"


@torch.no_grad()
def test_the_whole_length_of_64_positions_equals_gpt2():
    text = gpt2()
    ids = torch.randint(1, 90, (2, 64))
    assert difference(joined(text)(input_ids=ids).logits[..., :90], text(input_ids=ids).logits) <= TOLERANCE


@pytest.mark.parametrize("how", [{"do_sample": False}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("with_media", [False, True], ids=["text", "media"])
def test_generated_text_equals_gpt2(how, with_media):
    text = gpt2()
    model = joined(text)
    batch = inputs([[5, IMAGE, 6, 7, 8], [9, 10, AUDIO, 11, 12]] if with_media else [[5, 6, 7, 8], [9, 10, 11, 12]])
    kwargs = {"max_new_tokens": 20, "pad_token_id": PAD, "eos_token_id": EOS, "suppress_tokens": [IMAGE, AUDIO], **how}
    prompt = {name: batch[name] for name in ("input_ids", "attention_mask")}
    expected = reference_of(model, text).generate(**prompt, **kwargs)
    assert torch.equal(model.generate(**batch, **kwargs), expected)


def test_weights_of_all_three_parts_land_bit_for_bit():
    text, vision, audio = gpt2(), vit(), whisper()
    inner = joined(text, vision, audio).model
    mine = inner.language_model.state_dict()
    for name, tensor in text.transformer.state_dict().items():
        assert torch.equal(mine[name][: tensor.shape[0]], tensor), name
    for theirs, ours in ((vision, inner.vision_tower), (audio.encoder, inner.audio_tower)):
        ours = ours.state_dict()
        for name, tensor in theirs.state_dict().items():
            if not name.startswith("pooler"):  # not run, hence not kept
                assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("trained", [False, True], ids=["joined", "trained"])
def test_the_parts_are_left_as_they_were(trained):
    """Joining changes no part, and training the joint model afterwards does not either: nothing is shared."""
    parts = gpt2(), vit(), whisper()
    before = [{name: tensor.clone() for name, tensor in part.state_dict().items()} for part in parts]
    configs = [part.config.to_dict() for part in parts]
    model = joined(*parts)
    if trained:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
    for part, states, config in zip(parts, before, configs, strict=True):
        assert part.config.to_dict() == config
        changed = [name for name, tensor in part.state_dict().items() if not torch.equal(tensor, states[name])]
        assert changed == [], f"{len(changed)} of {len(states)} tensors of {type(part).__name__} changed"
