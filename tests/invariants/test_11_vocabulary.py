"""Invariant 11: resize, train a step, generate, save, reload; new tokens never collide with placeholders (90, 91)."""

import pytest
import torch

from modeling_mm import MMConfig, MMForConditionalGeneration
from tests.fakes.tiny import (
    AUDIO,
    IMAGE,
    PAD,
    difference,
    gpt2,
    gpt2_config,
    inputs,
    joined,
    labels,
    open_gates,
    opened,
    train,
    vit_config,
    whisper_config,
)

ROWS = [[5, IMAGE, 6, 7, AUDIO, 8], [9, 10, 11, 12]]
GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
TEXTS = {"tied": {}, "untied": {"tie_word_embeddings": False}}


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("size", [110, 128])
def test_resize_keeps_the_logits_of_the_old_words(kind, size):
    model = opened(text=gpt2(**TEXTS[kind]))
    batch = inputs(ROWS)
    with torch.no_grad():
        before = model(**batch).logits
        table = model.resize_token_embeddings(size)
        after = model(**batch).logits
    assert table.weight.shape == model.lm_head.weight.shape == (size, 32)
    assert model.config.text_config.vocab_size == size
    assert after.shape[-1] == size and difference(after[..., :97], before) <= 1e-6
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == (kind == "tied")
    assert (model.config.image_token_id, model.config.audio_token_id) == (IMAGE, AUDIO)


@pytest.mark.parametrize("kind", TEXTS)
def test_resize_train_a_step_generate_save_and_reload(tmp_path, kind):
    model = opened(text=gpt2(**TEXTS[kind]))
    model.resize_token_embeddings(110)
    rows = [[5, IMAGE, 100, 101, AUDIO, 102], [103, 104, 105, 109]]
    batch = inputs(rows)
    before = model.get_input_embeddings().weight.detach().clone()
    train(model, [batch | {"labels": labels(batch)}], steps=1)
    changed = (model.get_input_embeddings().weight != before).any(-1)
    assert changed[[100, 101, 103, 105, IMAGE, AUDIO]].all()
    tokens = model.generate(**inputs(rows, side="left"), **GREEDY)
    assert tokens.shape == (2, 14)
    model.save_pretrained(tmp_path)
    loaded, info = MMForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert loaded.config.text_config.vocab_size == 110
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == (kind == "tied")
    with torch.no_grad():
        assert difference(loaded(**batch).logits, model(**batch).logits) == 0.0
    assert torch.equal(loaded.generate(**inputs(rows, side="left"), **GREEDY), tokens)


def test_a_frozen_decoder_stays_frozen_after_a_resize():
    model = opened()
    model.model.language_model.requires_grad_(False)
    model.resize_token_embeddings(110)
    assert not model.get_input_embeddings().weight.requires_grad


def tempted(**fields):
    """A model whose head wants nothing but placeholders: untied, with a huge bias towards them."""
    model = open_gates(joined(text=gpt2(tie_word_embeddings=False), **fields))
    hidden = []
    with torch.no_grad():
        model.model.register_forward_hook(lambda module, args, out: hidden.append(out.last_hidden_state))
        model(**inputs(ROWS))
        mean = hidden[-1].mean((0, 1))
        model.lm_head.weight[[IMAGE, AUDIO]] = 50 * mean
        logits = model(**inputs(ROWS)).logits
    assert set(logits[:, -1].argmax(-1).tolist()) <= {IMAGE, AUDIO}
    return model


HOW = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "temperature": 5.0, "num_return_sequences": 8},
    "beams": {"num_beams": 4, "num_return_sequences": 4},
    "own_suppression": {"do_sample": False, "suppress_tokens": [3]},
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("reloaded", [False, True], ids=["joined", "reloaded"])
def test_placeholders_are_never_generated(tmp_path, how, reloaded):
    model = tempted()
    if reloaded:
        model.save_pretrained(tmp_path)
        model = MMForConditionalGeneration.from_pretrained(tmp_path)
    tokens = model.generate(**inputs(ROWS, side="left"), max_new_tokens=20, min_new_tokens=20, **HOW[how])[:, 6:]
    assert not torch.isin(tokens, torch.tensor([IMAGE, AUDIO])).any()


def test_a_model_made_from_its_config_does_not_generate_placeholders_either():
    model = MMForConditionalGeneration(tempted().config).eval()
    with torch.no_grad():
        model.lm_head.weight[[IMAGE, AUDIO]] = 50 * model.model(**inputs(ROWS)).last_hidden_state.mean((0, 1))
    tokens = model.generate(**inputs(ROWS, side="left"), max_new_tokens=10, min_new_tokens=10, do_sample=False)[:, 6:]
    assert not torch.isin(tokens, torch.tensor([IMAGE, AUDIO])).any()


def test_joining_appends_the_special_tokens_behind_all_words():
    config = joined().config
    ids = [config.image_token_id, config.audio_token_id, config.system_token_id, config.user_token_id]
    ids += [config.assistant_token_id, config.end_token_id, config.text_config.pad_token_id]
    assert ids == list(range(90, 97)) and PAD == 96
    assert config.text_config.vocab_size == 97


def test_given_placeholder_ids_are_kept_and_the_vocabulary_does_not_grow():
    text, vision, audio = gpt2_config(vocab_size=95), vit_config(), whisper_config()
    config = MMConfig.from_text_vision_audio_configs(text, vision, audio, image_token_id=93, audio_token_id=94)
    assert (config.image_token_id, config.audio_token_id, config.text_config.vocab_size) == (93, 94, 95)


def test_new_rows_of_a_join_do_not_move_the_words():
    text = gpt2()
    table = joined(text).get_input_embeddings().weight
    assert torch.equal(table[:90], text.get_input_embeddings().weight)
    assert torch.isfinite(table[90:]).all() and (table[90:].std(-1) > 0).all()
