"""joining.py: components from ids, paths and memory, in any subset; their weights are kept bit for bit."""

import itertools

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    GPT2LMHeadModel,
    GPT2Model,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    ViTForImageClassification,
    Wav2Vec2ForCTC,
    WhisperForConditionalGeneration,
)

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification, MMModel
from modeling_mm.configuration_mm import SPECIAL_TOKENS
from tests.fakes.tiny import (
    ASSISTANT,
    AUDIO,
    END,
    EOS,
    IMAGE,
    PAD,
    SYSTEM,
    USER,
    VOCABULARY,
    difference,
    gpt2,
    gpt2_config,
    image,
    inputs,
    joined,
    pad_images,
    pad_text,
    seeded,
    vit,
    vit_config,
    wav2vec2,
    wav2vec2_config,
    whisper,
    whisper_config,
)

join = MMForConditionalGeneration.from_text_vision_audio_pretrained
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
IMAGE_SIZES = {"image_size": 16, "patch_size": 8}


def assert_landed(model, text=None, vision=None, audio=None) -> None:
    """The parts' weights are there, bit for bit, and nothing but what only pooling uses is left out."""
    base = getattr(model, "model", model)
    if text is not None:
        for name, tensor in text.base_model.state_dict().items():
            ours = base.language_model.state_dict()[name]
            assert torch.equal(ours[: len(tensor)], tensor), name
    for tower, encoder in ((base.vision_tower, vision), (base.audio_tower, audio)):
        if encoder is None:
            continue
        theirs, ours = encoder.state_dict(), tower.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        left_out = {name for name in theirs if name not in ours}
        assert all("pool" in name or "post_layernorm" in name or "head" in name for name in left_out), left_out


@pytest.mark.parametrize("source", ["memory", "path"])
@pytest.mark.parametrize("sees,hears", list(itertools.product([True, False], repeat=2)))
def test_any_subset_from_memory_and_from_paths(source, sees, hears, tmp_path):
    text, vision, audio = gpt2(), vit() if sees else None, whisper() if hears else None
    parts = [text, vision, audio]
    if source == "path":
        parts = []
        for name, part in (("text", text), ("vision", vision), ("audio", audio)):
            if part is not None:
                part.save_pretrained(tmp_path / name)
            parts.append(None if part is None else str(tmp_path / name))
    model = join(*parts)
    assert_landed(model, text, vision, audio.get_encoder() if hears else None)
    assert (model.config.vision_config is not None, model.config.audio_config is not None) == (sees, hears)
    assert (model.model.vision_tower is not None, model.model.audio_tower is not None) == (sees, hears)
    assert bool(model.model.language_model.cross_blocks) == (sees or hears)
    assert not model.training
    batch = inputs([[5, 6, *([IMAGE] if sees else []), *([AUDIO] if hears else []), 7]])
    with torch.no_grad():
        expected = text(torch.where(batch["input_ids"] >= VOCABULARY, 5, batch["input_ids"])).logits
        got = model(**batch).logits
    assert difference(got[:, :2, :VOCABULARY], expected[:, :2]) < 1e-5


def test_hub_ids_go_to_the_loaders_with_the_loading_arguments(monkeypatch, tmp_path):
    """Without network an id is one that the cache has; what matters is that the arguments reach every loader."""
    import modeling_mm.joining as joining

    gpt2().save_pretrained(tmp_path / "text")
    vit().save_pretrained(tmp_path / "vision")
    loads = []
    original = joining.AutoConfig.from_pretrained

    def from_pretrained(name, **kwargs):
        loads.append((name, kwargs))
        return original(tmp_path / {"owner/text": "text", "owner/vision": "vision"}[name])

    monkeypatch.setattr(joining.AutoConfig, "from_pretrained", from_pretrained)
    loaded = []
    for model_class in (GPT2LMHeadModel, type(vit())):
        plain = model_class.from_pretrained

        def load(name, *args, plain=plain, **kwargs):
            loaded.append((name, kwargs.get("revision"), kwargs.get("cache_dir")))
            return plain(tmp_path / name.split("/")[-1], output_loading_info=kwargs["output_loading_info"])

        monkeypatch.setattr(model_class, "from_pretrained", load)
    model = join("owner/text", "owner/vision", revision="r1", cache_dir="elsewhere")
    assert_landed(model, gpt2(), vit())
    assert [(name, kwargs.get("revision")) for name, kwargs in loads] == [
        ("owner/text", "r1"),
        ("owner/vision", "r1"),
    ]
    assert loaded == [("owner/text", "r1", "elsewhere"), ("owner/vision", "r1", "elsewhere")]


@pytest.mark.parametrize("cls", [MMModel, MMForConditionalGeneration, MMForSequenceClassification])
def test_every_class_can_be_joined(cls):
    text = gpt2()
    model = seeded(lambda: cls.from_text_vision_audio_pretrained(text, vit(), whisper()))
    assert type(model) is cls
    assert_landed(model, text, vit(), whisper().get_encoder())


def test_number_of_labels_and_problem_type():
    model = MMForSequenceClassification.from_text_vision_audio_pretrained(gpt2(), num_labels=7)
    assert model.score.out_features == model.config.num_labels == 7
    model = MMForSequenceClassification.from_text_vision_audio_pretrained(
        gpt2(), num_labels=7, problem_type="regression"
    )
    assert model.config.problem_type == "regression"


def test_the_parts_are_not_changed_and_not_shared():
    text, vision, audio = gpt2(), vit(), whisper()
    before = [
        (part.config.to_dict(), {k: v.clone() for k, v in part.state_dict().items()}) for part in (text, vision, audio)
    ]
    model = join(text, vision, audio, text_position_encoding="learned")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    for part, (config, state) in zip((text, vision, audio), before, strict=True):
        assert part.config.to_dict() == config
        assert all(torch.equal(tensor, state[name]) for name, tensor in part.state_dict().items())


# ---- The decoder ----------------------------------------------------------------------------------------------------


def test_new_rows_of_the_embedding_lie_around_the_mean_of_the_old_apart_and_tied():
    text = gpt2()
    model = join(text, vit())
    embedding = model.get_input_embeddings().weight
    assert embedding.shape[0] == VOCABULARY + len(SPECIAL_TOKENS)
    mean, spread = text.transformer.wte.weight.mean(0), text.transformer.wte.weight.std(0)
    new = embedding[VOCABULARY:]
    assert ((new - mean).abs() < 0.5 * spread).all()
    assert len({tuple(row.tolist()) for row in new}) == len(new)
    assert torch.equal(new, join(text, vit()).get_input_embeddings().weight[VOCABULARY:])
    assert model.lm_head.weight is embedding


def test_an_untied_head_lands_and_stays_untied(tmp_path):
    text = gpt2(tie_word_embeddings=False)
    model = join(text, vit())
    assert not model.config.tie_word_embeddings and not model.config.text_config.tie_word_embeddings
    assert torch.equal(model.lm_head.weight[:VOCABULARY], text.lm_head.weight)
    assert torch.equal(model.get_input_embeddings().weight[:VOCABULARY], text.transformer.wte.weight)
    assert ((model.lm_head.weight[-1] - text.lm_head.weight.mean(0)).abs() < 0.5 * text.lm_head.weight.std(0)).all()
    ids = torch.tensor([[5, 6, 7]])
    assert difference(model(ids).logits[..., :VOCABULARY], text(ids).logits) < 1e-5
    model.save_pretrained(tmp_path)
    again = MMForConditionalGeneration.from_pretrained(tmp_path)
    assert again.lm_head.weight is not again.get_input_embeddings().weight
    assert difference(again(ids).logits, model(ids).logits) == 0


@pytest.mark.parametrize("source", ["memory", "path"])
def test_a_decoder_without_head_is_tied(source, tmp_path):
    text = seeded(lambda: GPT2Model(gpt2_config()))
    text.save_pretrained(tmp_path)
    model = join(text if source == "memory" else str(tmp_path), vit())
    assert_landed(model, text, vit())
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_buffers_of_very_old_checkpoints_are_no_weights():
    text = gpt2()
    for block in text.transformer.h:
        block.attn.register_buffer("bias", torch.ones(1, 1, 4, 4))
        block.attn.register_buffer("masked_bias", torch.tensor(-1e4))
    model = join(text)
    assert not any(name.endswith((".attn.bias", ".masked_bias")) for name in model.state_dict())


@pytest.mark.parametrize("source", ["memory", "path"])
@pytest.mark.parametrize("family", ["opt", "bert"])
def test_a_decoder_outside_the_family_is_refused_by_name(source, family, tmp_path):
    if family == "opt":
        config = OPTConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, ffn_dim=16, num_attention_heads=2,
                           word_embed_proj_dim=16, max_position_embeddings=16)  # fmt: skip
        text = OPTForCausalLM(config)
    else:
        text = BertModel(BertConfig(**SIZES, vocab_size=20))
    text.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"GPT-2 family \(model_type 'gpt2'\), got model_type '{family}'"):
        join(text if source == "memory" else str(tmp_path))


def test_what_the_decoder_generates_with_is_kept():
    text = gpt2()
    text.generation_config.temperature, text.generation_config.do_sample = 0.6, True
    model = join(text, vit())
    assert model.generation_config.temperature == 0.6 and model.generation_config.do_sample
    assert model.generation_config.eos_token_id == [END, EOS]
    assert model.generation_config.pad_token_id == PAD


# ---- The encoders ---------------------------------------------------------------------------------------------------


def clip() -> CLIPModel:
    text = CLIPTextConfig(**SIZES, vocab_size=20, max_position_embeddings=8, bos_token_id=1, eos_token_id=2)
    vision = CLIPVisionConfig(**SIZES, **IMAGE_SIZES)
    return seeded(lambda: CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())))


def siglip() -> SiglipModel:
    text = SiglipTextConfig(**SIZES, vocab_size=20, max_position_embeddings=8, projection_size=16)
    vision = SiglipVisionConfig(**SIZES, **IMAGE_SIZES)
    return seeded(lambda: SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())))


@pytest.mark.parametrize("source", ["memory", "path"])
@pytest.mark.parametrize("two_towers", [clip, siglip])
def test_of_a_two_tower_model_the_vision_half_is_taken(two_towers, source, tmp_path):
    whole = two_towers()
    whole.save_pretrained(tmp_path)
    model = join(gpt2(), whole if source == "memory" else str(tmp_path))
    assert type(model.config.vision_config) is type(whole.config.vision_config)
    tower = model.model.vision_tower
    theirs = {name.removeprefix("vision_model."): tensor for name, tensor in whole.vision_model.state_dict().items()}
    ours = {name.removeprefix("vision_model."): tensor for name, tensor in tower.state_dict().items()}
    assert ours.keys() <= theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    pixels = pad_images([[image(0)]])["pixel_values"][0]
    with torch.no_grad():
        expected = whole.vision_model(pixels).last_hidden_state
        assert difference(model.get_image_features(pixels).last_hidden_state, expected) < 1e-6


@pytest.mark.parametrize("source", ["memory", "path"])
@pytest.mark.parametrize("headed", [True, False])
def test_of_an_encoder_decoder_the_encoder_is_taken(source, headed, tmp_path):
    whole = seeded(lambda: WhisperForConditionalGeneration(whisper_config()), 2) if headed else whisper()
    whole.save_pretrained(tmp_path)
    model = join(gpt2(), None, whole if source == "memory" else str(tmp_path))
    assert_landed(model, audio=(whole.model if headed else whole).get_encoder())
    assert type(model.model.audio_tower).__name__ == "WhisperEncoder"


def test_an_encoder_alone_in_memory():
    encoder = whisper().get_encoder()
    assert_landed(join(gpt2(), None, encoder), audio=encoder)


@pytest.mark.parametrize("source", ["memory", "path"])
@pytest.mark.parametrize("kind", ["vit", "wav2vec2"])
def test_of_a_model_with_a_head_the_base_is_taken(kind, source, tmp_path):
    if kind == "vit":
        whole = seeded(lambda: ViTForImageClassification(vit_config()))
    else:
        whole = seeded(lambda: Wav2Vec2ForCTC(wav2vec2_config()))
    whole.save_pretrained(tmp_path)
    part = whole if source == "memory" else str(tmp_path)
    model = join(gpt2(), part, None) if kind == "vit" else join(gpt2(), None, part)
    assert_landed(model, **({"vision": whole.vit} if kind == "vit" else {"audio": whole.wav2vec2}))


def test_wav2vec2_lands_with_its_weight_norm():
    audio = wav2vec2()
    assert_landed(join(gpt2(), None, audio), audio=audio)


# ---- Arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_dtype_is_that_of_the_argument_or_else_the_parts(dtype):
    model = join(gpt2(), vit(), whisper(), dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype} and model.dtype == dtype
    weights = model.model.vision_tower.state_dict()
    assert all(torch.equal(weights[name], vit().state_dict()[name].to(dtype)) for name in weights)
    model = join(gpt2().to(dtype), vit().to(dtype), whisper().to(dtype))
    assert {p.dtype for p in model.parameters()} == {dtype} and model.dtype == dtype


@pytest.mark.parametrize("source", ["memory", "path"])
@pytest.mark.parametrize(
    ("dtypes", "widest"),
    [
        ((torch.bfloat16, torch.float32, torch.bfloat16), torch.float32),
        ((torch.float32, torch.bfloat16, torch.float16), torch.float32),
        ((torch.float16, torch.float16, torch.float32), torch.float32),
        ((torch.bfloat16, torch.float16, torch.float16), torch.float32),  # neither holds the other's bits
        ((torch.bfloat16, torch.bfloat16, torch.bfloat16), torch.bfloat16),
    ],
    ids=str,
)
def test_parts_of_different_precisions_keep_their_bits(dtypes, widest, source, tmp_path):
    parts = [part.to(dtype) for part, dtype in zip((gpt2(), vit(), whisper()), dtypes, strict=True)]
    given = parts
    if source == "path":
        for name, part in zip(("text", "vision", "audio"), parts, strict=True):
            part.save_pretrained(tmp_path / name)
        given = [str(tmp_path / name) for name in ("text", "vision", "audio")]
    model = join(*given)
    assert {p.dtype for p in model.parameters()} == {widest} and model.dtype == widest
    base, encoder = model.model, parts[2].get_encoder()
    pairs = ((base.language_model, parts[0].base_model), (base.vision_tower, parts[1]), (base.audio_tower, encoder))
    for module, part in pairs:
        ours, theirs = module.state_dict(), part.state_dict()
        shared = [name for name in theirs if name in ours]
        assert len(shared) > 5
        for name in shared:  # casting back loses nothing, and nothing was lost before
            row = ours[name][: len(theirs[name])]
            assert torch.equal(row, theirs[name].to(widest)) and torch.equal(row.to(theirs[name].dtype), theirs[name])


@pytest.mark.parametrize("kind", ["vision", "audio"])
def test_a_part_in_memory_whose_weights_do_not_land_is_refused_by_a_weights_name(kind):
    """Its layers have another name: without them the tower would silently be random."""
    parts = {"vision": vit(), "audio": whisper().get_encoder()}
    part = parts[kind]
    parent = part if hasattr(part, "layers") else next(m for m in part.modules() if hasattr(m, "layer"))
    child = "layers" if hasattr(part, "layers") else "layer"
    modules = getattr(parent, child)
    names = {id(tensor): name for name, tensor in part.named_parameters()}
    lost = names[id(next(modules.parameters()))]
    del parent._modules[child]
    parent.add_module("renamed", modules)
    with pytest.raises(ValueError, match=rf"weights are missing.*model\.{kind}_tower\.") as raised:
        join(gpt2(), **{kind: part})
    number = sum(1 for _ in modules.parameters())
    assert str(raised.value).startswith(f"{number} weights"), (str(raised.value), lost)


def test_a_decoder_in_memory_whose_weights_do_not_land_is_refused():
    text = gpt2()
    del text.transformer._modules["ln_f"]
    with pytest.raises(ValueError, match=r"2 weights are missing.*model\.language_model\.ln_f\.bias"):
        join(text, vit())


def test_attention_implementation_reaches_decoder_and_encoders():
    model = join(gpt2(), vit(), whisper(), attn_implementation="eager")
    configs = [model.config, model.config.text_config, model.config.vision_config, model.config.audio_config]
    assert [config._attn_implementation for config in configs] == ["eager"] * 4


@pytest.mark.parametrize(
    ("argument", "nearest"),
    [
        ("freeze_visoin", "freeze_vision"),
        ("cross_attention_layer", "cross_attention_layers"),
        ("torch_dtpye", None),
        ("attn_implemantation", "attn_implementation"),
        ("vision_conector", "vision_connector"),
        ("xyz", None),
    ],
)
def test_an_unknown_argument_is_refused_with_the_nearest_name(argument, nearest):
    with pytest.raises(ValueError) as raised:
        join(gpt2(), **{argument: 1})
    assert repr(argument) in str(raised.value)
    if nearest is not None:
        assert f"Did you mean {nearest!r}?" in str(raised.value)


def test_fields_of_the_config_reach_it():
    model = join(gpt2(), vit(), vision_connector="perceiver", vision_latents=2, cross_attention_layers=[2])
    assert model.config.vision_connector == "perceiver" and model.config.vision_latents == 2
    assert list(model.model.language_model.cross_blocks) == ["2"]


FREEZE = {
    "freeze_text": lambda name: name.startswith("model.language_model.") and ".cross_blocks." not in name,
    "freeze_vision": lambda name: name.startswith("model.vision_tower."),
    "freeze_audio": lambda name: name.startswith("model.audio_tower."),
}


@pytest.mark.parametrize("how", ["joined", "loaded", "constructed"])
@pytest.mark.parametrize("fields", [[], ["freeze_text"], ["freeze_vision"], ["freeze_audio"], [*FREEZE]], ids=str)
def test_exactly_the_frozen_parts_are_frozen(fields, how, tmp_path):
    """Whole sets of names. Whisper's own class freezes its table of positions, and its own loader forgets it."""
    model = joined(**dict.fromkeys(fields, True))
    if how == "loaded":
        model.save_pretrained(tmp_path)
        model = MMForConditionalGeneration.from_pretrained(tmp_path)
    elif how == "constructed":
        model = MMForConditionalGeneration(model.config)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    expected = {name for name, _ in model.named_parameters() if any(FREEZE[field](name) for field in fields)}
    assert frozen - {"model.audio_tower.embed_positions.weight"} == expected - {
        "model.audio_tower.embed_positions.weight"
    }
    assert model.lm_head.weight.requires_grad == ("freeze_text" not in fields)


# ---- Tokenizers -----------------------------------------------------------------------------------------------------


def tokenizer(words: int, first: tuple[str, ...] = (), special: tuple[str, ...] = SPECIAL_TOKENS, pad: bool = True):
    from tokenizers import Tokenizer, models

    names = [*first, *(f"w{i}" for i in range(words)), *special]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|pad|>" if pad else None)


def test_ids_come_from_the_tokenizer():
    model = join(gpt2(), vit(), whisper(), tokenizer=tokenizer(VOCABULARY))
    names = ("image", "audio", "system", "user", "assistant", "end")
    ids = [getattr(model.config, f"{name}_token_id") for name in names]
    assert ids == [IMAGE, AUDIO, SYSTEM, USER, ASSISTANT, END]
    assert model.config.text_config.vocab_size == VOCABULARY + 7 and model.config.text_config.pad_token_id == PAD


def test_a_tokenizer_that_is_larger_than_the_vocabulary_makes_room():
    given = tokenizer(VOCABULARY + 20)
    model = join(gpt2(), vit(), tokenizer=given)
    assert model.config.text_config.vocab_size == len(given) == VOCABULARY + 27
    assert model.get_input_embeddings().weight.shape[0] == VOCABULARY + 27
    assert model.config.image_token_id == VOCABULARY + 20
    assert torch.equal(model.get_input_embeddings().weight[:VOCABULARY], gpt2().transformer.wte.weight)


def test_a_tokenizer_that_is_smaller_than_the_vocabulary_leaves_its_rows():
    """GPT-2 sizes are often rounded up: the spare rows stay, and the special tokens are where the tokenizer says."""
    model = join(gpt2(), vit(), tokenizer=tokenizer(50))
    assert model.config.image_token_id == 50
    assert model.config.text_config.vocab_size == VOCABULARY
    assert torch.equal(model.get_input_embeddings().weight, gpt2().transformer.wte.weight)
    inputs_ = {**pad_text([[5, 50, 6]]), **pad_images([[image(0)]])}
    assert model(**inputs_).logits.shape == (1, 3, VOCABULARY)


def test_a_processor_serves_as_tokenizer():
    class Processor:
        tokenizer = tokenizer(VOCABULARY + 3)

    assert join(gpt2(), vit(), tokenizer=Processor()).config.image_token_id == VOCABULARY + 3


def test_a_tokenizer_without_the_special_tokens_is_refused_with_their_names():
    with pytest.raises(ValueError, match=r"lacks <\|audio\|>, <\|end\|>.*MMProcessor"):
        special = tuple(token for token in SPECIAL_TOKENS if token not in ("<|audio|>", "<|end|>"))
        join(gpt2(), vit(), tokenizer=tokenizer(VOCABULARY, special=special))


def test_a_tokenizers_own_padding_token_is_kept():
    given = tokenizer(VOCABULARY, first=("[PAD]",), special=SPECIAL_TOKENS[:-1], pad=False)
    given.pad_token = "[PAD]"
    model = join(gpt2(), vit(), tokenizer=given)
    assert model.config.text_config.pad_token_id == 0 and model.generation_config.pad_token_id == 0
