"""Conversion: configs, generation configs, what is refused and what is kept. Parity of logits: tests/parity."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    GPT2LMHeadModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    WhisperModel,
)

from modeling_mm import MMForConditionalGeneration, conversion, converted_weights
from tests.fakes.encoder_decoders import (
    ENGLISH,
    GERMAN,
    NO_TIMES,
    START,
    TRANSCRIBE,
    TRANSLATE,
    WHISPER_EOS,
    WHISPER_ROWS,
    WHISPER_START,
    captioner,
    decoder_config,
    our_inputs,
    our_media,
    pixels,
    transcriber,
    transcribing_whisper,
    waves,
    windows,
)
from tests.fakes.tiny import EOS, VOCABULARY, difference, gpt2_config, vit_config, wav2vec2_config, whisper_config
from tests.fakes.without_package import run_without_package

convert = MMForConditionalGeneration.from_encoder_decoder


class Tokenizer:
    """The part of a tokenizer that conversion asks for: the ids of our tokens, and how many it had of itself."""

    def __init__(self, first: int, vocab_size: int, pad_token_id: int | None = None):
        names = ("image", "audio", "system", "user", "assistant", "end")
        self.tokens = {f"<|{name}|>": first + number for number, name in enumerate(names)}
        self.vocab_size, self.pad_token_id, self.length = vocab_size, pad_token_id, first + len(names)

    def get_vocab(self) -> dict[str, int]:
        return self.tokens

    def __len__(self) -> int:
        return self.length


def placeholders(model) -> tuple:
    return model.config.image_token_id, model.config.audio_token_id, model.config.end_token_id


# ---- Configs --------------------------------------------------------------------------------------------------------


def test_a_captioner_keeps_its_layout():
    config = convert(captioner(vit_config())).config
    assert config.cross_attention_layers == [0, 1, 2, 3]
    assert config.cross_attention_placement == "inside"
    assert (config.vision_connector, config.placeholders, config.audio_config) == ("direct", "hidden", None)
    assert config.prompt_token_ids == [START]
    text = config.text_config
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == (EOS, EOS, EOS)
    assert not any(getattr(config, f"freeze_{part}") for part in ("text", "vision", "audio", "cross_attention"))


def test_a_whisper_becomes_a_gpt2_of_its_sizes():
    original = transcribing_whisper(dropout=0.1, attention_dropout=0.2, activation_function="relu")
    config = convert(original).config
    text = config.text_config
    assert (text.n_layer, text.n_head, text.n_inner, text.n_embd, text.n_positions) == (3, 4, 40, 16, 48)
    assert (text.resid_pdrop, text.embd_pdrop, text.attn_pdrop) == (0.1, 0.1, 0.2)
    assert (text.activation_function, text.tie_word_embeddings) == ("relu", True)
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == (WHISPER_EOS,) * 3
    assert config.audio_attends_padding
    assert config.prompt_token_ids == [WHISPER_START, NO_TIMES]


def test_only_encoders_without_a_mask_are_seen_with_their_padding():
    assert not convert(transcriber()).config.audio_attends_padding


def test_a_head_of_its_own_stays_one():
    model = convert(captioner(tie_word_embeddings=False))
    assert model.lm_head.weight is not model.model.language_model.wte.weight
    assert not model.config.tie_word_embeddings


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, [ENGLISH, TRANSCRIBE]),
        ({"language": "de"}, [GERMAN, TRANSCRIBE]),
        ({"language": "German", "task": "translate"}, [GERMAN, TRANSLATE]),
        ({"language": "<|de|>"}, [GERMAN, TRANSCRIBE]),
        ({"forced_decoder_ids": [[1, None], [2, TRANSLATE]]}, [ENGLISH, TRANSLATE]),
        ({"forced_decoder_ids": [[1, GERMAN], [2, TRANSCRIBE]]}, [GERMAN, TRANSCRIBE]),
    ],
)
def test_the_prompt_of_a_multilingual_whisper_names_language_and_task(given, expected):
    original = transcribing_whisper(is_multilingual=True)
    for name, value in given.items():
        setattr(original.generation_config, name, value)
    assert convert(original).config.prompt_token_ids == [WHISPER_START, *expected, NO_TIMES]


def test_forced_tokens_of_a_captioner_are_in_its_prompt():
    original = captioner()
    original.generation_config.forced_bos_token_id = 5
    model = convert(original)
    assert model.config.prompt_token_ids == [START, 5]
    assert model.generation_config.forced_bos_token_id is None
    expected = original.generate(**pixels(), max_new_tokens=6, do_sample=False)[:, 1:]
    got = model.generate(**pixels(), max_new_tokens=5, do_sample=False)[:, 2:]
    assert torch.equal(got, expected)


def test_a_prompt_and_freezing_can_be_given():
    model = convert(captioner(), prompt_token_ids=[3], freeze_vision=True)
    assert model.config.prompt_token_ids == [3]
    assert not any(parameter.requires_grad for parameter in model.model.vision_tower.parameters())


def test_an_original_without_a_start_token_is_refused():
    original = captioner()
    for config in (original.config, original.generation_config, original.config.decoder):
        config.decoder_start_token_id = config.bos_token_id = None
    with pytest.raises(ValueError, match="decoder_start_token_id"):
        convert(original)


# ---- Generation configs ---------------------------------------------------------------------------------------------


def test_the_generation_config_is_carried_over():
    original = transcribing_whisper(is_multilingual=True)
    generation = convert(original).generation_config
    for name in ("suppress_tokens", "begin_suppress_tokens", "lang_to_id", "task_to_id", "alignment_heads"):
        assert getattr(generation, name) == getattr(original.generation_config, name), name
    assert generation.no_timestamps_token_id == NO_TIMES
    assert generation.decoder_start_token_id is None
    assert (generation.eos_token_id, generation.pad_token_id) == (WHISPER_EOS, WHISPER_EOS)
    assert generation.max_length == original.generation_config.max_length + 1


def test_what_it_does_not_know_survives_saving(tmp_path):
    original = transcribing_whisper(is_multilingual=True)
    original.generation_config._from_model_config = True  # as that of a checkpoint without such a file
    convert(original).save_pretrained(tmp_path)
    generation = MMForConditionalGeneration.from_pretrained(tmp_path).generation_config
    assert generation.lang_to_id == {"<|en|>": ENGLISH, "<|de|>": GERMAN}


def test_lengths_count_the_same_answers():
    original = captioner()
    original.generation_config.update(max_length=9, min_length=7)
    model = convert(original)
    expected = original.generate(**pixels(), do_sample=False)
    got = model.generate(**pixels(), do_sample=False)
    assert torch.equal(got[:, 1:], expected)
    assert expected.shape[1] == 9
    assert (model.generation_config.max_length, model.generation_config.min_length) == (10, 8)


def test_the_default_length_is_the_same():
    original = captioner()
    expected = original.generate(**pixels(), do_sample=False)
    assert torch.equal(convert(original).generate(**pixels(), do_sample=False)[:, 1:], expected)


# ---- Vocabulary -----------------------------------------------------------------------------------------------------


def test_special_tokens_stand_behind_the_table():
    model = convert(captioner())
    assert placeholders(model) == (VOCABULARY, VOCABULARY + 1, VOCABULARY + 5)
    assert model.config.text_config.vocab_size == VOCABULARY + 7
    assert model.config.suppressed_token_ids == list(range(VOCABULARY, VOCABULARY + 7))


def test_special_tokens_are_those_of_a_tokenizer():
    model = convert(captioner(), tokenizer=Tokenizer(VOCABULARY + 3, VOCABULARY, pad_token_id=VOCABULARY + 2))
    assert placeholders(model) == (VOCABULARY + 3, VOCABULARY + 4, VOCABULARY + 8)
    assert model.config.text_config.vocab_size == VOCABULARY + 9
    assert model.config.text_config.pad_token_id == model.generation_config.pad_token_id == VOCABULARY + 2


def test_tokens_in_the_rows_of_others_are_refused():
    lacking_times = Tokenizer(first=WHISPER_ROWS - 11, vocab_size=WHISPER_EOS)
    with pytest.raises(ValueError, match=r"image_token_id is 67, .* 78 rows.*MMProcessor\.from_encoder_decoder"):
        convert(transcribing_whisper(), tokenizer=lacking_times)


def test_tokens_of_the_tokenizer_itself_stay_where_they_are():
    assert placeholders(convert(captioner(), tokenizer=Tokenizer(80, VOCABULARY)))[0] == 80


def test_suppressed_tokens_are_not_generated_and_have_no_share_of_beams():
    original = captioner()
    model = convert(original)
    prompt = our_inputs(model, pixels(), torch.tensor([[START]] * 3))
    with torch.no_grad():
        state = model.model(**prompt).last_hidden_state[0, -1]
        model.lm_head.weight[-7:] = state / state.norm()  # the likeliest tokens, and their rows of the table
        assert model(**prompt).logits[0, -1].argmax() >= VOCABULARY
    options = {"max_new_tokens": 8, "num_beams": 4, "return_dict_in_generate": True, "output_scores": True}
    got, expected = model.generate(**pixels(), **options), original.generate(**pixels(), **options)
    assert torch.equal(got.sequences[:, 1:], expected.sequences)
    assert difference(got.sequences_scores, expected.sequences_scores) <= 1e-5


def test_a_token_that_is_no_longer_suppressed_is_generated():
    model = convert(captioner())
    prompt, end = our_inputs(model, pixels(1), torch.tensor([[START]])), model.config.end_token_id
    with torch.no_grad():
        model.lm_head.weight[end] = model.model(**prompt).last_hidden_state[0, -1]
    answer = model.generate(**prompt, max_new_tokens=1)
    model.config.suppressed_token_ids.remove(end)
    assert answer[0, -1] != end == model.generate(**prompt, max_new_tokens=1)[0, -1]


# ---- Refusals -------------------------------------------------------------------------------------------------------


def bart() -> BartForConditionalGeneration:
    return BartForConditionalGeneration(
        BartConfig(vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8, decoder_ffn_dim=8)
    )


def with_decoder(decoder) -> VisionEncoderDecoderModel:
    return VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(vit_config(), decoder))


def bert_captioner() -> VisionEncoderDecoderModel:
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return with_decoder(BertConfig(**sizes, vocab_size=40, is_decoder=True, add_cross_attention=True))


def trocr() -> VisionEncoderDecoderModel:
    from transformers import TrOCRConfig

    sizes = {"d_model": 24, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8}
    return with_decoder(TrOCRConfig(**sizes, vocab_size=40, cross_attention_hidden_size=24))


def widening_adapter():
    return transcriber(wav2vec2_config(add_adapter=True, num_adapter_layers=1, output_hidden_size=32))


REFUSED = {
    "BART": (bart, "'bart', which normalizes behind each branch.*can be converted"),
    "BERT decoder": (bert_captioner, "decoder of VisionEncoderDecoderModel is of model_type 'bert', which normalizes"),
    "TrOCR": (trocr, "'trocr', which normalizes behind"),
    "GPT-2 alone": (lambda: GPT2LMHeadModel(gpt2_config()), "'gpt2'.*can be converted"),
    "no cross-attention": (lambda: with_decoder(decoder_config()), "no cross-attention"),
    "adapter": (widening_adapter, "output_hidden_size 32, hidden_size 16"),
    "scaled embeddings": (lambda: transcribing_whisper(scale_embedding=True), "scale_embedding=True"),
    "no head": (lambda: WhisperModel(whisper_config()), "a WhisperForConditionalGeneration is converted"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_with_the_reason(name):
    build, message = REFUSED[name]
    source = build()
    if name == "no cross-attention":
        source.config.decoder.add_cross_attention = False
    with pytest.raises(ValueError, match=message):
        convert(source)


def test_a_folder_is_refused_before_its_weights_are_loaded(tmp_path):
    bart().config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is of model_type 'bart'"):
        convert(tmp_path)


def test_an_unknown_argument_is_refused_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"from_encoder_decoder got an unknown argument 'freeze_visoin'.*freeze_vision"
    ):
        convert(captioner(), freeze_visoin=True)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    original = captioner()
    state = {name: tensor for name, tensor in original.state_dict().items() if "crossattention.q_attn" not in name}
    original.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"8 weights are missing: decoder.transformer.h.0.crossattention"):
        convert(tmp_path)


def test_group_norm_is_noted(caplog):
    from transformers.utils import logging

    logging.enable_propagation()
    convert(transcriber(wav2vec2_config("group")))
    logging.disable_propagation()
    assert "its padded batches differ" in caplog.text


# ---- Weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", (captioner, transcriber, transcribing_whisper))
def test_the_source_is_neither_changed_nor_shared(build):
    original = build()
    before = copy.deepcopy(original.state_dict())
    settings = copy.deepcopy((original.config.to_dict(), original.generation_config.to_dict()))
    model = convert(original)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in original.state_dict().items())
    assert (original.config.to_dict(), original.generation_config.to_dict()) == settings


MEDIA = {captioner: pixels(), transcriber: waves(400, 230, 310), transcribing_whisper: windows()}


@pytest.mark.parametrize("build", MEDIA)
def test_a_folder_converts_as_the_model_does_and_reloads_bit_equal(build, tmp_path):
    original = build()
    original.save_pretrained(tmp_path / "original")
    expected, model = convert(original), convert(tmp_path / "original")
    model.save_pretrained(tmp_path / "ours")
    reloaded = MMForConditionalGeneration.from_pretrained(tmp_path / "ours")
    for other in (model, reloaded):
        found = other.state_dict()
        assert found.keys() == expected.state_dict().keys()
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.state_dict().items())
    media = our_media(MEDIA[build])
    options = {"max_new_tokens": 6, "num_beams": 2}
    assert torch.equal(reloaded.generate(**media, **options), expected.generate(**media, **options))
    assert reloaded.generation_config.to_dict() == model.generation_config.to_dict()


@pytest.fixture
def classes_built(monkeypatch):
    """Classes of originals that are loaded, in their order."""
    built, load = [], converted_weights.load_reporting
    monkeypatch.setattr(
        converted_weights, "load_reporting", lambda loader, *args: built.append(loader.__name__) or load(loader, *args)
    )
    return built


def test_a_captioners_files_are_read_without_its_class(tmp_path, classes_built):
    kinds = (captioner, lambda: captioner(vit_config()), lambda: captioner(tie_word_embeddings=False), transcriber)
    for number, build in enumerate(kinds):
        folder = tmp_path / str(number)
        build().save_pretrained(folder, max_shard_size="40KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
        assert_equal(convert(folder), convert(build()))
        folder = folder / "half"
        build().half().save_pretrained(folder)
        assert convert(folder).dtype == torch.float16
        assert_equal(convert(folder), convert(build().half()))
    assert classes_built == []


def assert_equal(model, expected):
    found = model.state_dict()
    assert found.keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, found[name]), name
    assert model.config.to_dict() == {**expected.config.to_dict(), "dtype": model.config.to_dict()["dtype"]}
    assert model.generation_config.to_dict() == expected.generation_config.to_dict()


def without_generation_config(folder):
    (folder / "generation_config.json").unlink()


def in_another_precision(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))


def rewrite_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})


def with_its_head_twice(folder):
    table = "decoder.transformer.wte.weight"
    rewrite_weights(folder, lambda tensors: {**tensors, converted_weights.HEAD: tensors[table].clone()})


def with_a_head_of_its_own(folder):
    table = "decoder.transformer.wte.weight"
    rewrite_weights(folder, lambda tensors: {**tensors, converted_weights.HEAD: tensors[table] + 1})


def in_two_precisions(folder):
    name = "decoder.transformer.ln_f.weight"
    rewrite_weights(folder, lambda tensors: {**tensors, name: tensors[name].half()})


@pytest.mark.parametrize(
    "change",
    (
        without_generation_config,
        in_another_precision,
        with_its_head_twice,
        with_a_head_of_its_own,
        in_two_precisions,
    ),
)
def test_files_that_only_the_class_understands_are_left_to_it(change, tmp_path, classes_built):
    captioner().save_pretrained(tmp_path)
    change(tmp_path)
    assert_equal(convert(tmp_path), convert(VisionEncoderDecoderModel.from_pretrained(tmp_path)))
    assert classes_built == ["VisionEncoderDecoderModel"]


def test_names_that_only_the_class_understands_are_left_to_it(tmp_path, classes_built, monkeypatch):
    captioner().save_pretrained(tmp_path)
    read = converted_weights.read_captioner

    def with_an_older_name(*args):
        original = read(*args)
        original.weights["decoder.transformer.older_name"] = original.weights.pop("decoder.transformer.ln_f.bias")
        return original

    monkeypatch.setattr(conversion, "read_captioner", with_an_older_name)
    assert_equal(convert(tmp_path), convert(captioner()))
    assert classes_built == ["VisionEncoderDecoderModel"]


def test_what_a_file_holds_beside_the_model_is_left_out(tmp_path, classes_built):
    captioner().save_pretrained(tmp_path)
    more = {"decoder.transformer.h.0.attn.bias": torch.ones(1, 1, 9, 9), "optimizer.step": torch.ones(1)}
    rewrite_weights(tmp_path, lambda tensors: {**tensors, **more})
    assert_equal(convert(tmp_path), convert(captioner()))
    assert classes_built == []


def test_a_downloaded_captioner_is_read_without_its_class(tmp_path, classes_built, monkeypatch):
    folder = tmp_path / "models--someone--captioner" / "snapshots" / ("0" * 40)
    captioner().save_pretrained(folder)
    refs = folder.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    model = convert("someone/captioner", cache_dir=tmp_path, local_files_only=True)
    assert_equal(model, convert(captioner()))
    assert classes_built == []


def test_damaged_files_are_named(tmp_path):
    captioner().save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match=r"model.safetensors: damaged or cut short"):
        convert(tmp_path)


def test_a_weight_that_is_not_finite_is_named(tmp_path):
    captioner().save_pretrained(tmp_path)
    name = "decoder.transformer.ln_f.bias"
    rewrite_weights(tmp_path, lambda tensors: {**tensors, name: tensors[name] / 0})
    with pytest.raises(ValueError, match=r"language_model.ln_f.bias"):
        convert(tmp_path)


def test_a_converted_model_does_not_write_into_the_files_of_its_original(tmp_path):
    captioner().save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with torch.no_grad():
        for parameter in convert(tmp_path).parameters():
            parameter.zero_()
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_precision_can_be_chosen(tmp_path):
    captioner().save_pretrained(tmp_path)
    assert convert(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_it_loads_without_the_package(tmp_path):
    model = convert(captioner())
    model.save_pretrained(tmp_path / "ours")
    script = f"""
import torch
from transformers import AutoModelForImageTextToText
model = AutoModelForImageTextToText.from_pretrained({str(tmp_path / "ours")!r}, trust_remote_code=True)
print(model.generate(pixel_values=torch.ones(1, 3, 16, 16), max_new_tokens=5, do_sample=False).tolist())
"""
    expected = model.generate(pixel_values=torch.ones(1, 3, 16, 16), max_new_tokens=5, do_sample=False).tolist()
    assert run_without_package(script, tmp_path).splitlines()[-1] == str(expected)
