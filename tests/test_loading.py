"""loading.py: weights that are missing, not finite or unreadable are named, through every way to load a model."""

import json
import math
import re

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification

from modeling_mm import (
    MMForConditionalGeneration,
    MMForPreTraining,
    MMForRetrieval,
    MMForSequenceClassification,
    MMModel,
)
from modeling_mm.configuration_mm import AUTO_MAP

from .fakes.tiny import gpt2, joined, vit, wav2vec2, whisper

BLOCK = "model.language_model.h.1.mlp.c_fc.weight"
MISSING = "1 weight is missing: {}. Save or download the model again, or pass ignore_missing=True"
AUTO_CLASSES = [name for name in AUTO_MAP if name.startswith("AutoModel")]


def saved(folder, model=None, change=None, **options):
    """Save a model, then change the tensors of its only file."""
    model = joined() if model is None else model
    model.save_pretrained(folder, **options)
    if change is not None:
        path = folder / "model.safetensors"
        state = {name: tensor.clone() for name, tensor in load_file(path).items()}  # not mapped from the file
        change(state)
        save_file(state, path, metadata={"format": "pt"})
    return folder


def without(*names):
    return lambda state: [state.pop(name) for name in names]


def with_value(name, value, place=3):
    def change(state):
        state[name].view(-1)[place] = value

    return change


@pytest.mark.parametrize("name", AUTO_CLASSES)
def test_every_auto_class_names_a_missing_weight(tmp_path, name):
    folder = saved(tmp_path, joined(cls=class_of(name)), without(named(name, BLOCK)))
    loader = getattr(transformers, name)
    with pytest.raises(ValueError, match=re.escape(MISSING.format(named(name, BLOCK)))):
        loader.from_pretrained(folder)
    _, report = loader.from_pretrained(folder, ignore_missing=True, output_loading_info=True)
    assert set(report["missing_keys"]) == {named(name, BLOCK)}


@pytest.mark.parametrize("name", AUTO_CLASSES)
def test_every_auto_class_names_a_weight_that_is_not_finite(tmp_path, name):
    folder = saved(tmp_path, joined(cls=class_of(name)), with_value(named(name, BLOCK), math.nan))
    message = f"1 weight is not finite (NaN or infinity): {named(name, BLOCK)}."
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(transformers, name).from_pretrained(folder, ignore_missing=True)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_weights_are_refused_whatever_is_ignored(tmp_path, value):
    folder = saved(tmp_path, change=with_value(BLOCK, value))
    with pytest.raises(ValueError, match="1 weight is not finite"):
        MMForConditionalGeneration.from_pretrained(folder, ignore_missing=True, ignore_mismatched_sizes=True)


def class_of(name):
    known = (MMModel, MMForConditionalGeneration, MMForPreTraining, MMForRetrieval, MMForSequenceClassification)
    return next(cls for cls in known if AUTO_MAP[name].endswith(f".{cls.__name__}"))


def named(name, weight):
    return weight.removeprefix("model.") if name == "AutoModel" else weight


def test_a_weight_of_any_part_is_missed(tmp_path):
    """Of both encoders, connectors, cross-attention and decoder."""
    model = joined(tie_word_embeddings=False)
    for name in list(model.state_dict())[::16]:
        saved(tmp_path, model, without(name))
        with pytest.raises(ValueError, match=re.escape(f": {name}.")):
            MMForConditionalGeneration.from_pretrained(tmp_path)


def test_the_first_names_and_their_number_are_given(tmp_path):
    names = [f"model.language_model.h.{layer}.mlp.c_fc.weight" for layer in range(4)]
    folder = saved(tmp_path, change=without(*names))
    with pytest.raises(
        ValueError,
        match=re.escape(f"{folder / 'model.safetensors'}: 4 weights are missing: {', '.join(names[:3])} and 1 more."),
    ):
        MMForConditionalGeneration.from_pretrained(folder)


# ---- Heads that are new ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [MMModel, MMForConditionalGeneration])
def test_a_classifiers_head_is_new_on_another_checkpoint(tmp_path, cls):
    saved(tmp_path, joined(cls=cls))
    model, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, num_labels=3, output_loading_info=True
    )
    assert set(report["missing_keys"]) == {"score.weight"} and model.score.weight.shape[0] == 3


def test_a_classifiers_own_head_must_be_there(tmp_path):
    saved(tmp_path, joined(cls=MMForSequenceClassification, num_labels=3), without("score.weight"))
    with pytest.raises(ValueError, match=re.escape(MISSING.format("score.weight"))):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is MMModel  # which has no head


def test_a_head_of_another_size_starts_again_if_that_is_wanted(tmp_path):
    saved(tmp_path, joined(cls=MMForSequenceClassification, num_labels=3))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert model.score.weight.shape[0] == 5


def test_a_users_own_head_is_new(tmp_path):
    class WithRanking(MMForConditionalGeneration):
        def __init__(self, config):
            super().__init__(config)
            self.ranking = nn.Linear(config.text_config.n_embd, 1)
            self.post_init()

    _, report = WithRanking.from_pretrained(saved(tmp_path), output_loading_info=True)
    assert set(report["missing_keys"]) == {"ranking.weight", "ranking.bias"}


def test_a_tied_head_is_not_missed(tmp_path):
    assert "lm_head.weight" not in load_file(saved(tmp_path) / "model.safetensors")
    MMForConditionalGeneration.from_pretrained(tmp_path)


def test_no_weights_at_all_mean_random_ones_but_some_must_be_all():
    config, state = joined().config, joined().state_dict()
    MMForConditionalGeneration.from_pretrained(None, config=config, state_dict={})
    with pytest.raises(ValueError, match=re.escape(f"The given weights: {MISSING.format(BLOCK)}")):
        MMForConditionalGeneration.from_pretrained(
            None, config=config, state_dict={name: tensor for name, tensor in state.items() if name != BLOCK}
        )


# ---- Ways to load ---------------------------------------------------------------------------------------------------


ENCODING = ("model.vision_tower", "model.audio_tower", "model.vision_connector", "model.audio_connector")


def broken(folder, change):
    """Save a model in shards, one of which is changed."""
    joined().save_pretrained(folder, max_shard_size="20KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    path = folder / index["weight_map"][BLOCK]
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}  # not mapped from the file
    change(state)
    save_file(state, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": torch.bfloat16},
        {"device_map": "cpu"},
        {"device_map": {"": "disk"}},
        {"device_map": {**dict.fromkeys(ENCODING, "cpu"), "model.language_model": "disk", "lm_head": "disk"}},
        {"low_cpu_mem_usage": True},
    ],
    ids=str,
)
def test_shards_and_offloaded_weights_are_checked(tmp_path, options):
    options = {**options, **({"offload_folder": tmp_path / "offload"} if "disk" in str(options) else {})}
    joined().save_pretrained(tmp_path / "whole", max_shard_size="20KB")
    MMForConditionalGeneration.from_pretrained(tmp_path / "whole", **options)
    for kind, change in (("missing", without(BLOCK)), ("not finite", with_value(BLOCK, math.nan))):
        with pytest.raises(ValueError, match=rf"1 weight is {kind}.*{re.escape(BLOCK)}"):
            MMForConditionalGeneration.from_pretrained(broken(tmp_path / kind, change), **options)


def test_quantized_weights_are_checked(tmp_path):
    torchao = pytest.importorskip("torchao.quantization")
    config = transformers.TorchAoConfig(torchao.Int8WeightOnlyConfig())
    name = "model.audio_tower.layers.1.fc1.weight"
    MMForConditionalGeneration.from_pretrained(saved(tmp_path / "whole"), quantization_config=config)
    for kind, change in (("missing", without(name)), ("not finite", with_value(name, math.nan))):
        with pytest.raises(ValueError, match=rf"1 weight is {kind}.*{re.escape(name)}"):
            MMForConditionalGeneration.from_pretrained(
                saved(tmp_path / kind, change=change), quantization_config=config
            )


def test_an_adapter_whose_weights_are_missing_or_not_finite(tmp_path):
    peft = pytest.importorskip("peft")
    base = saved(tmp_path / "base")
    model = peft.get_peft_model(
        MMForConditionalGeneration.from_pretrained(base), peft.LoraConfig(target_modules=["c_fc"], fan_in_fan_out=True)
    )
    model.save_pretrained(tmp_path / "adapter")
    assert MMForConditionalGeneration.from_pretrained(tmp_path / "adapter").active_adapters() == ["default"]
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}  # not mapped from the file
    name = sorted(state)[0]
    state[name][0, 0] = math.nan
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 weight is not finite"):
        MMForConditionalGeneration.from_pretrained(tmp_path / "adapter")
    del state[name]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 weight is missing"):
        MMForConditionalGeneration.from_pretrained(tmp_path / "adapter")


# ---- Components -----------------------------------------------------------------------------------------------------

COMPONENTS = {"text": gpt2, "vision": vit, "audio": whisper}


def components(folder, kind, change):
    paths = {}
    for name, build in COMPONENTS.items():
        paths[name] = str(saved(folder / name, build(), change if name == kind else None))
    return paths


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("text", "transformer.h.1.mlp.c_fc.weight"),
        ("vision", "encoder.layer.1.output.dense.weight"),
        ("audio", "encoder.layers.1.fc1.weight"),
    ],
)
def test_components_are_checked_when_they_are_joined(tmp_path, kind, name):
    join = MMForConditionalGeneration.from_text_vision_audio_pretrained
    join(**components(tmp_path / "whole", kind, None))
    known = load_file(tmp_path / "whole" / kind / "model.safetensors")
    name = next(n for n in known if n.endswith(name))
    lost = components(tmp_path / "lost", kind, without(name))
    with pytest.raises(ValueError, match=r"1 weight is missing.*ignore_missing=True"):
        join(**lost)
    join(**lost, ignore_missing=True)
    with pytest.raises(ValueError, match="1 weight is not finite"):
        join(**components(tmp_path / "nan", kind, with_value(name, math.nan)))


def test_what_joining_leaves_out_of_a_component_need_not_be_there(tmp_path):
    """A pooling head, and the decoder of an encoder-decoder: the joint model has neither."""
    folder = components(
        tmp_path, "audio", lambda state: [state.pop(n) for n in list(state) if n.startswith("decoder.")]
    )
    saved(tmp_path / "vision", vit(), lambda state: [state.pop(n) for n in list(state) if "pooler" in n])
    MMForConditionalGeneration.from_text_vision_audio_pretrained(**folder)


def test_a_component_in_memory_must_be_finite():
    audio = wav2vec2()
    with torch.no_grad():
        next(audio.encoder.parameters())[0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        MMForConditionalGeneration.from_text_vision_audio_pretrained(gpt2(), audio=audio)


# ---- Cost -----------------------------------------------------------------------------------------------------------


def test_float8_and_infinite_buffers_pass():
    model = joined()
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    model.scale = nn.Parameter(torch.ones(4).to(torch.float8_e4m3fn), requires_grad=False)
    from modeling_mm.loading import check_finite

    check_finite(model, "here")
    model.mask[0] = math.nan
    with pytest.raises(ValueError, match=r"here: 1 weight is not finite.*: mask"):
        check_finite(model, "here")
