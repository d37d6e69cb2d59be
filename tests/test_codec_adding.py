"""A codec in a model: nothing is forgotten, codes start distinct, a reload is the same, codecs never learn."""

import copy

import pytest
import torch

from modeling_mm import MMForConditionalGeneration, MMProcessor
from modeling_mm.code_tokens import CodeTokens, code_tokens_of
from modeling_mm.codecs import load_codec
from modeling_mm.training import parts_of
from tests.fakes.codecs import tiny_codec
from tests.fakes.own_codecs import own_codec
from tests.fakes.processor_parts import make, picture
from tests.fakes.tiny import difference, gpt2, train, vit
from tests.fakes.writers import codecs, seeing, writing


@pytest.fixture(scope="module")
def before():
    return seeing()


@pytest.fixture(scope="module")
def after():
    return writing()


def batch(processor) -> dict[str, torch.Tensor]:
    texts = ["<|image|>What do you see?", "hello there"]
    return processor(text=texts, images=[[picture()], []], return_tensors="pt")


def test_logits_over_the_old_vocabulary_are_unchanged_with_and_without_media(before, after):
    (old, old_processor), (new, processor) = before, after
    inputs = batch(processor)
    assert inputs["input_ids"].tolist() == batch(old_processor)["input_ids"].tolist()
    with torch.no_grad():
        expected, found = old(**inputs).logits, new(**inputs).logits
    vocabulary = expected.shape[-1]
    assert found.shape[-1] == vocabulary + 2 + 16 + 2 + 4 * 16 == len(processor.tokenizer)
    assert difference(found[..., :vocabulary], expected) < 1e-5
    ids = old.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert new.generate(**inputs, max_new_tokens=8, do_sample=False).tolist() == ids.tolist()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_codec_without_attention_is_no_obstacle_to_an_implementation(implementation, tmp_path):
    processor = make(vision=False, audio=False)
    model = MMForConditionalGeneration.from_text_vision_audio_pretrained(gpt2(vocab_size=300), tokenizer=processor)
    own_codec("image").save_pretrained(tmp_path / "codec")
    codec = load_codec(tmp_path / "codec")
    processor.add_codec(codec)
    model.add_codec(codec, processor)
    model.save_pretrained(tmp_path / "model")
    loaded = MMForConditionalGeneration.from_pretrained(tmp_path / "model", attn_implementation=implementation)
    seeing = loaded.add_vision(vit(), cross_attention_layers=[0])
    assert seeing.config._attn_implementation == implementation
    media = torch.rand(1, 3, 16, 16)
    assert torch.equal(seeing.model.image_codec.encode(media), codec.encode(media))


def test_the_config_declares_codes_and_codecs(after):
    model, processor = after
    first = processor.tokenizer.convert_tokens_to_ids("<|image_start|>")
    assert code_tokens_of(model.config) == {
        "image": CodeTokens("image", first, 16, grid=(4, 4)),
        "audio": CodeTokens("audio", first + 18, 16, codebooks=4, layout="delayed"),
    }
    assert model.config.image_codec_config.model_type == "emu3_vqgan"
    assert processor.tokenizer.convert_tokens_to_ids("<audio_code_63>") == first + 18 + 65


def test_new_rows_start_distinct(after):
    model = after[0]
    for tokens in code_tokens_of(model.config).values():
        rows = model.get_input_embeddings().weight[tokens.first : tokens.stop].detach()
        cosine = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1)
        assert float(cosine.fill_diagonal_(0.0).max()) < 0.8
        known = model.get_input_embeddings().weight[:300].detach()
        assert 0.7 < float(rows.std() / known.std()) < 1.4


def test_a_reload_is_the_same(after, tmp_path):
    model, processor = after
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = MMForConditionalGeneration.from_pretrained(tmp_path)
    state = again.state_dict()
    assert any(name.startswith("model.image_codec.") for name in state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    loaded = MMProcessor.from_pretrained(tmp_path)
    assert loaded.written == {}
    loaded.use_codecs(again)
    assert {name: each.tokens for name, each in loaded.written.items()} == code_tokens_of(model.config)
    images = torch.rand(2, 3, 16, 16)
    codes = model.model.image_codec.encode(images)
    assert torch.equal(again.model.image_codec.encode(images), codes)
    assert torch.equal(again.model.image_codec.decode(codes), model.model.image_codec.decode(codes))
    assert not any(each.requires_grad for name, each in again.named_parameters() if "_codec." in name)


def test_codecs_never_learn(after):
    model = copy.deepcopy(after[0])
    assert not any("_codec." in name for named in parts_of(model).values() for name, _ in named)
    codec = {name: tensor.clone() for name, tensor in model.model.image_codec.state_dict().items()}
    head = model.lm_head.weight.detach().clone()
    ids = torch.randint(0, model.config.text_config.vocab_size - 1, (2, 9), generator=torch.Generator().manual_seed(3))
    ids[ids == model.config.image_token_id] = 1
    ids[ids == model.config.audio_token_id] = 1
    train(model, [{"input_ids": ids, "labels": ids}], steps=2)
    assert not model.model.image_codec.model.training
    assert all(torch.equal(tensor, codec[name]) for name, tensor in model.model.image_codec.state_dict().items())
    assert not torch.equal(model.lm_head.weight, head)


def test_the_model_keeps_a_copy(after):
    assert after[0].model.image_codec is not codecs()[0]


def test_what_does_not_fit_is_refused(before, after):
    model, processor = after
    image, audio = codecs()
    with pytest.raises(ValueError, match="has a codec of image already, of model_type 'emu3_vqgan'"):
        model.add_codec(image, processor)
    with pytest.raises(ValueError, match=r"The tokenizer lacks <\|image_start\|>\. Call `processor\.add_codec"):
        copy.deepcopy(before[0]).add_codec(image, before[1])
    other = tiny_codec("mimi", num_codebooks=2)
    with pytest.raises(ValueError, match="has 64 codes of audio, but the codec has 2 codebooks of 16, 32 codes"):
        copy.deepcopy(before[0]).add_codec(other, processor)
    with pytest.raises(ValueError, match="has 64 codes of audio already, but the codec has 32"):
        processor.add_codec(other)
    with pytest.raises(ValueError, match=r"must be one of 'interleaved', 'delayed', got 'late'"):
        copy.deepcopy(before[0]).add_codec(audio, processor, layout="late")
    with pytest.raises(ValueError, match=r"the tokenizer has none\. Use the model's tokenizer"):
        make().use_codecs(model)
    assert processor.add_codec(image) == code_tokens_of(model.config)["image"].first  # it has them already
