"""configuration/encoders.yaml: every row joins, learns, generates, reloads, and keeps padding out of its tokens."""

import importlib.util
import inspect
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from PIL import Image
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from modeling_mm import MMForConditionalGeneration, MMProcessor
from modeling_mm.encoder_padding import PADDING_RULES
from modeling_mm.encoder_shapes import image_shape
from modeling_mm.encoders import encode
from modeling_mm.modalities import MODALITIES
from tests.fakes.processor_parts import make_bpe
from tests.fakes.tiny import AUDIO, IMAGE, cross_parameters, difference, joined, labels, open_gates, pad_text, seeded

PATH = Path(__file__).resolve().parents[1] / "configuration" / "encoders.yaml"
TABLE = yaml.safe_load(PATH.read_text(encoding="utf-8"))
ROWS = {row["name"]: row for row in TABLE["encoders"]}
AUDIO_ROWS = [name for name, row in ROWS.items() if "audio" in row]
RATE = 16_000

# ---- Tiny models of the real classes --------------------------------------------------------------------------------

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
PATCHES = {"image_size": 16, "patch_size": 8}
STAGES = {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]}
WAVE = {
    **SIZES,
    "conv_dim": (12, 12),
    "conv_kernel": (10, 8),
    "conv_stride": (8, 5),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
HALVES = ("encoder", "decoder")
SPEECH = {f"{half}_{field}": 2 for half in HALVES for field in ("layers", "attention_heads")}
MOONSHINE = {
    f"{half}_{field}": 2
    for half in HALVES
    for field in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
}
# Two stages of Swin: the tokens of 64 mel bands go through 256 x 256 patches.
CLAP = {"patch_embeds_hidden_size": 8, "hidden_size": 16, "depths": [1, 1], "num_attention_heads": [1, 2]}
CLAP |= {"patch_size": 16, "patch_stride": [16, 16], "window_size": 4}
TINY: dict[str, dict] = {
    "ViT": {**SIZES, **PATCHES},
    "DeiT": {**SIZES, **PATCHES},
    "CLIP": {**SIZES, **PATCHES},
    "SigLIP": {**SIZES, **PATCHES},
    "SigLIP2": {**SIZES, **PATCHES},
    "DINOv2": {**SIZES, **PATCHES},
    "DINOv2 with registers": {**SIZES, **PATCHES},
    "DINOv3": {**SIZES, **PATCHES},
    "DINOv3 ConvNeXt": {"hidden_sizes": [8, 16], "depths": [1, 1], "image_size": 16},
    "Swin": {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2],
             "window_size": 4},
    "ConvNeXt": {**STAGES, "image_size": 16},
    "ConvNeXt V2": {**STAGES, "image_size": 16},
    "ResNet": {**STAGES, "embedding_size": 8, "layer_type": "basic"},
    "EfficientNet": {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320},
    "MobileNetV2": {"image_size": 32, "depth_multiplier": 0.1, "min_depth": 8},
    "MobileViT": {
        "image_size": 64,
        "hidden_sizes": [8, 8, 8],
        "neck_hidden_sizes": [4, 4, 8, 8, 8, 8, 16],
        "num_attention_heads": 2,
    },
    "timm": {"architecture": "test_resnet", "pretrained_cfg": {"input_size": [3, 32, 32]}},
    "Whisper": {**SPEECH, "d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_mel_bins": 8,
                "max_source_positions": 50, "vocab_size": 60, "pad_token_id": 0},
    **dict.fromkeys([name for name in AUDIO_ROWS if "norm" in name], WAVE),
    "Data2Vec": {**WAVE, "conv_pos_kernel_size": 5},
    "Wav2Vec2-Conformer": {**WAVE, "conv_depthwise_kernel_size": 5},
    "SEW": WAVE,
    "SEW-D": WAVE,
    "Moonshine": {**MOONSHINE, "hidden_size": 16, "intermediate_size": 24, "vocab_size": 60},
    "Wav2Vec2-BERT": {**SIZES, "vocab_size": 60},
    "Parakeet": {**SIZES, "num_mel_bins": 16, "subsampling_conv_channels": 8, "conv_kernel_size": 5},
    "AST": {**SIZES, "max_length": 24, "num_mel_bins": 16, "patch_size": 8, "frequency_stride": 4, "time_stride": 4},
    "CLAP": CLAP,
    "CLAP, fused": CLAP,
}  # fmt: skip
# Options of the real feature extractor, so that it fits the tiny encoder.
EXTRACTORS = {
    "Whisper": {"feature_size": 8, "chunk_length": 1},
    "Parakeet": {"feature_size": 16},
    "AST": {"max_length": 24, "num_mel_bins": 16},
}


def config_of(row: dict, **fields) -> PreTrainedConfig:
    return getattr(transformers, row["config"])(**{**row.get("fields", {}), **fields})


def tiny_encoder(name: str) -> PreTrainedModel:
    """The class that AutoModel names, with weights wide enough to matter."""
    if ROWS[name]["config"] == "TimmWrapperConfig" and importlib.util.find_spec("timm") is None:
        pytest.skip("timm needs torchvision, which fails beside a CPU build of torch")
    config = config_of(ROWS[name], **TINY[name])
    encoder = seeded(lambda: auto_model(config), seed=7)
    generator = torch.Generator().manual_seed(8)
    for key, parameter in encoder.named_parameters():
        if parameter.ndim > 1 and "pos" not in key:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    return calibrate_norms(encoder)


@torch.no_grad()
def calibrate_norms(encoder: PreTrainedModel) -> PreTrainedModel:
    """Take statistics of batch norms from noise, as training does: with those of a fresh model no image shows."""
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms or encoder.main_input_name != "pixel_values":
        return encoder
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        if encoder.config.model_type == "efficientnet":  # its large epsilon drowns what forty fresh norms leave
            nn.init.constant_(norm.weight, 3.0)
    encoder.train()(torch.randn(4, *image_shape(encoder.config), generator=torch.Generator().manual_seed(9)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return encoder.eval()


def auto_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The model in a checkpoint: the class of its config; AutoModel knows CLAP's two towers only as a whole."""
    is_clap = config.model_type == "clap_audio_model"
    return transformers.ClapAudioModel(config) if is_clap else AutoModel.from_config(config)


def make_extractor(name: str, **options) -> object:
    try:
        return getattr(transformers, ROWS[name]["processor"])(**options)
    except ImportError as error:  # Parakeet's needs librosa in older versions of transformers
        pytest.skip(str(error).strip())


def extractor_of(name: str) -> object:
    options = {"truncation": "rand_trunc"} if name == "CLAP" else EXTRACTORS.get(name, {})
    return make_extractor(name, **options)


# ---- Inputs of both sizes -------------------------------------------------------------------------------------------


def clip(seconds: float, seed: int, rate: int) -> tuple[np.ndarray, int]:
    """Noise that swells, so that no two spans are alike; (samples,) and the rate."""
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate))
    return (noise * np.linspace(0.2, 1.0, len(noise))).astype(np.float32), rate


def audio_inputs(extractor: object, clips: list) -> dict[str, torch.Tensor]:
    """The media inputs of rows with one clip each, as the processor makes them."""
    processor = MMProcessor(None, extractor, make_bpe())
    inputs = processor(text=["<|audio|>"] * len(clips), audio=[[each] for each in clips], return_tensors="pt")
    return {name: inputs[name] for name in MODALITIES["audio"].model_inputs if name in inputs}


def batch_of(row: dict, extractor: object | None, size: tuple[int, ...], seconds: float) -> dict[str, torch.Tensor]:
    """Three rows: with an image or a clip, with a second one that differs (a third of its length), and with none."""
    token = IMAGE if "vision" in row else AUDIO
    inputs = pad_text([[5, token, 6, 7], [8, token, 9, 10], [11, 12]], side="left")
    if "vision" in row:
        images = torch.randn(3, 1, *size, generator=torch.Generator().manual_seed(1))
        return {**inputs, "pixel_values": images, "image_mask": torch.tensor([[True], [True], [False]])}
    rate = extractor.sampling_rate
    media = audio_inputs(extractor, [clip(seconds, 1, rate), clip(seconds / 3, 2, rate)])
    for name, tensor in media.items():
        media[name] = torch.cat([tensor[:, :1], torch.zeros_like(tensor[:1, :1])])
    return {**inputs, **media}


def check_row(name: str, model: MMForConditionalGeneration, inputs: dict, folder: Path) -> None:
    """A training step that moves the cross-attention and leaves no weight out, generation, and a reload."""
    model.train()
    before = {key: parameter.detach().clone() for key, parameter in cross_parameters(model).items()}
    loss = model(**inputs, labels=labels(inputs)).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    new = [p for key, p in model.named_parameters() if ".cross_blocks." in key or "_connector." in key]
    torch.optim.AdamW(new, lr=1e-3).step()
    model.zero_grad(set_to_none=True)
    moved = [key for key, parameter in cross_parameters(model).items() if not torch.equal(parameter, before[key])]
    assert any("attn" in key for key in moved), f"{name}: a step left the cross-attention as it was"
    model.eval()
    with torch.no_grad():
        logits = model(**inputs).logits
        media = next(key for key in inputs if key in ("pixel_values", "input_values", "input_features"))
        other = {**inputs, media: torch.cat([inputs[media][1:2], inputs[media][:1], inputs[media][2:]])}
        assert difference(logits[:2], model(**other).logits[:2]) > 1e-3, f"{name}: other media, same logits"
    ids = model.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert ids.shape == (3, inputs["input_ids"].shape[1] + 3)
    model.save_pretrained(folder)
    again = MMForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        # Equal weights; a convolution may still sum in another order where its memory lies elsewhere.
        assert difference(again(**inputs).logits, logits) < 5e-5
    weights = again.state_dict()
    assert all(torch.equal(weight, weights[key]) for key, weight in model.state_dict().items())


def check_padding(name: str, tower: PreTrainedModel, extractor: object, seconds: float) -> float:
    """States of clips alone against those in a batch with a longer one; return the largest difference."""
    rate = extractor.sampling_rate
    clips = [clip(seconds * share, seed, rate) for seed, share in enumerate((1 / 3, 1, 0.5, 0.05))]

    def tokens(chosen: list) -> list[torch.Tensor]:
        media = audio_inputs(extractor, chosen)
        items = next(value for key, value in media.items() if key != "feature_attention_mask")
        with torch.no_grad():
            _, states, real = encode(tower, items[:, 0], media["feature_attention_mask"][:, 0].bool())
        return [row[kept] for row, kept in zip(states, real, strict=True)]

    together = tokens(clips)
    alone = [tokens([each])[0] for each in clips]
    assert all(len(states) > 0 for states in alone)
    assert difference(together[0], together[2][: len(together[0])]) > 1e-3, f"{name}: all clips give the same states"
    return max(difference(one, other) for one, other in zip(together, alone, strict=True))


# ---- The rows -------------------------------------------------------------------------------------------------------


def test_rows_are_complete_and_every_one_has_a_tiny_model():
    assert set(TINY) == set(ROWS)
    for name, row in ROWS.items():
        kind = "vision" if "vision" in row else "audio"
        needed = {"name", kind, "config", "processor", "tokens"}
        needed |= {"image_size"} if kind == "vision" else {"seconds", "padding"}
        assert needed <= set(row) <= needed | {"note", "fields"}, name
        assert row[kind].count("/") == 1 and row.get("padding", "window") in PADDING_RULES, name
        assert issubclass(getattr(transformers, row["config"]), PreTrainedConfig), name
        assert hasattr(transformers, row["processor"]), name


@pytest.mark.parametrize("name", ROWS)
def test_a_row_joins_learns_generates_and_reloads(name, tmp_path):
    row, encoder = ROWS[name], tiny_encoder(name)
    kinds = {"vision": None, "audio": None, ("vision" if "vision" in row else "audio"): encoder}
    model = open_gates(joined(**kinds))
    if "vision" in row:
        size = getattr(encoder.config, "image_size", None) or 32
        check_row(name, model, batch_of(row, None, (3, size, size), 0.0), tmp_path)
    else:
        assert model.model.audio_tower.padding_rule == row["padding"]
        check_row(name, model, batch_of(row, extractor_of(name), (), 0.3), tmp_path)


@pytest.mark.parametrize("name", AUDIO_ROWS)
def test_a_padded_clip_has_the_states_of_the_clip_alone(name):
    model = joined(vision=None, audio=tiny_encoder(name))
    assert check_padding(name, model.model.audio_tower, extractor_of(name), 0.6) <= 1e-5


@pytest.mark.parametrize("row", TABLE["refused"], ids=lambda row: row["name"])
def test_a_refused_row_names_what_its_forward_needs(row):
    config = config_of(row, **SIZES)
    with pytest.raises(ValueError, match=f"forward also needs {', '.join(row['needs'])};"):
        joined(vision=AutoModel.from_config(config), audio=None)
    assert set(row["needs"]) <= set(inspect.signature(AutoModel.from_config(config).forward).parameters)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if "vision" in row and name != "timm"])
def test_an_image_processor_makes_what_the_encoder_reads(name):
    image_class = getattr(transformers, ROWS[name]["processor"])
    if "Placeholder" in repr(image_class):
        pytest.skip("needs torchvision, which has no CPU build beside torch's on every machine")
    image_processor = image_class()
    if image_processor.size and "height" in image_processor.size:
        image_processor.size = {"height": 224, "width": 224}
    processor = MMProcessor(image_processor, None, make_bpe())
    inputs = processor(text=["<|image|>"], images=[[Image.new("RGB", (300, 260), "red")]], return_tensors="pt")
    assert inputs["pixel_values"].ndim == 5 and inputs["pixel_values"].shape[2] == 3


# ---- Full size ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_row_at_full_size(name, tmp_path):
    """Random weights from the fields of the checkpoint's config; the decoder is small, as it is not what is tested."""
    row = ROWS[name]
    if name == "timm" and importlib.util.find_spec("timm") is None:
        pytest.skip("timm needs torchvision, which fails beside a CPU build of torch")
    start = time.perf_counter()
    encoder = calibrate_norms(seeded(lambda: auto_model(config_of(row))))
    kinds = {"vision": None, "audio": None, ("vision" if "vision" in row else "audio"): encoder}
    model = open_gates(joined(**kinds))
    del encoder, kinds
    tower = model.model.vision_tower if "vision" in row else model.model.audio_tower
    extractor = None if "vision" in row else extractor_at_full_size(name)
    size = (3, row.get("image_size"), row.get("image_size"))
    inputs = batch_of(row, extractor, size, row.get("seconds", 0))
    with torch.no_grad():
        if extractor is None:
            tokens = encode(tower, inputs["pixel_values"][:1, 0])[1].shape[1]
        else:
            media = audio_inputs(extractor, [clip(row["seconds"], 1, extractor.sampling_rate)])
            mask = media.pop("feature_attention_mask")
            (items,) = media.values()
            tokens = int(encode(tower, items[:, 0], mask[:, 0].bool())[2].sum())
    assert tokens == row["tokens"]
    worst = 0.0
    if extractor is not None:
        # Masked, two dozen layers add up the rounding of float32 to 2e-5; float64 tells it from padding that shows.
        is_masked = row["padding"] == "mask"
        worst = check_padding(name, tower.double() if is_masked else tower, extractor, min(3.0, row["seconds"]))
        tower.float()
    assert worst <= 1e-5
    check_row(name, model, inputs, tmp_path)
    shutil.rmtree(tmp_path)  # gigabytes
    parameters = sum(parameter.numel() for parameter in tower.parameters())
    seconds = time.perf_counter() - start
    print(f"{name}: {parameters / 1e6:.0f} M parameters, {seconds:.0f} s, padding {worst:.1e}")


def extractor_at_full_size(name: str) -> object:
    options = {"truncation": "rand_trunc"} if name == "CLAP" else {"return_attention_mask": True}
    return make_extractor(name, **options)
