"""codecs.py: every codec of the ecosystem, of its real class at tiny size, behind one interface."""

import copy
import json

import pytest
import torch
import transformers
from transformers import GPT2Config, PreTrainedConfig, PreTrainedModel

from modeling_mm.codecs import codec_from_config, load_codec
from tests.fakes.codecs import (
    AUDIO,
    CODES,
    CONFIGS,
    IMAGES,
    RATE,
    SIZE,
    emu3_config,
    encodec_config,
    images,
    media_of,
    tiny_codec,
    waves,
)

CLASSES = {
    "encodec": "EncodecModel",
    "dac": "DacModel",
    "mimi": "MimiModel",
    "xcodec": "XcodecModel",
    "emu3_vqgan": "Emu3VQVAE",
    "janus_vqgan": "JanusVQVAE",
    "chameleon_vqgan": "ChameleonVQVAE",
}
# Kind -> codebooks, samples of one code.
AUDIO_SHAPES = {"encodec": (2, 8), "dac": (3, 8), "mimi": (4, 16), "xcodec": (2, 8)}
DECODE = tuple(kind for kind in CONFIGS if kind != "chameleon_vqgan")


# ---- The interface --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_codec_wraps_the_class_of_transformers(kind):
    codec = tiny_codec(kind)
    assert type(codec.model) is getattr(transformers, CLASSES[kind])
    assert codec.codebook_size == CODES


@pytest.mark.parametrize("kind", AUDIO)
@pytest.mark.parametrize("samples", [240, 241, 247])
def test_audio_becomes_codes_and_audio_again(kind, samples):
    codec = tiny_codec(kind)
    books, hop = AUDIO_SHAPES[kind]
    length = -(-samples // hop)
    codes = codec.encode(waves(samples))
    assert (codec.modality, codec.num_codebooks, codec.hop_length, codec.grid) == ("audio", books, hop, None)
    assert (codec.sampling_rate, codec.rate) == (RATE, RATE / hop)
    assert codes.shape == (2, books, length) and codes.dtype == torch.int64
    assert length == codec.num_codes(samples)
    assert codes.min() >= 0 and codes.max() < CODES and codes.unique().numel() > 3
    wave = codec.decode(codes)
    assert wave.shape == (2, length * hop) and wave.dtype == torch.float32 and torch.isfinite(wave).all()


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_becomes_a_grid_of_codes(kind):
    codec = tiny_codec(kind)
    codes = codec.encode(images())
    assert (codec.modality, codec.grid, codec.num_codebooks, codec.num_codes) == ("image", (4, 4), 1, 16)
    assert (codec.rate, codec.sampling_rate, codec.image_size) == (None, None, (SIZE, SIZE))
    assert codes.shape == (2, 1, 16) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < CODES and codes.unique().numel() > 3


@pytest.mark.parametrize("kind", [kind for kind in IMAGES if kind in DECODE])
def test_codes_become_an_image(kind):
    codec = tiny_codec(kind)
    found = codec.decode(codec.encode(images()))
    assert found.shape == (2, 3, SIZE, SIZE) and found.dtype == torch.float32
    assert found.min() >= 0 and found.max() <= 1


def test_chameleon_encodes_only():
    codec = tiny_codec("chameleon_vqgan")
    with pytest.raises(ValueError, match=r"the encoder of ChameleonVQVAE alone.*Use the codec of"):
        codec.decode(codec.encode(images()))


@pytest.mark.parametrize("kind", DECODE)
def test_decoding_is_deterministic_and_rows_are_independent(kind):
    codec = tiny_codec(kind).train()
    media = media_of(codec, rows=3)
    codes = codec.encode(media)
    assert torch.equal(codec.encode(media), codes)
    found = codec.decode(codes)
    assert torch.equal(codec.decode(codes), found)
    for row in range(3):
        assert torch.equal(codec.encode(media[row : row + 1]), codes[row : row + 1])
        assert torch.allclose(codec.decode(codes[row : row + 1])[0], found[row], atol=1e-5)
    assert not torch.equal(codec.decode((codes + 1) % CODES), found)


@pytest.mark.parametrize("kind", ["encodec", "mimi", "dac"])
def test_codes_are_those_of_the_model(kind):
    codec = tiny_codec(kind)
    wave = waves(240)
    with torch.no_grad():
        found = codec.model.encode(wave[:, None], **({"bandwidth": 0.8} if kind == "encodec" else {})).audio_codes
    assert torch.equal(codec.encode(wave), found.reshape(2, codec.num_codebooks, -1))


@pytest.mark.parametrize("kind", ["emu3_vqgan", "janus_vqgan", "chameleon_vqgan"])
def test_codes_are_those_of_the_model_for_pixels_from_minus_one_to_one(kind):
    codec = tiny_codec(kind)
    more = {"image_sizes": [(SIZE, SIZE)] * 2} if kind == "emu3_vqgan" else {}
    with torch.no_grad():
        found = codec.model.encode(images() * 2 - 1, **more).image_tokens
    found = torch.stack(list(found)) if kind == "emu3_vqgan" else found
    assert torch.equal(codec.encode(images()), found.reshape(2, 1, 16))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_codec_is_frozen_and_remains_in_evaluation_mode(kind):
    codec = tiny_codec(kind).train()
    assert not any(module.training for module in codec.modules())
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    assert not codec.encode(media_of(codec)).requires_grad


def test_half_precision_reads_float32():
    codec = tiny_codec("dac").to(torch.bfloat16)
    assert codec.decode(codec.encode(waves())).dtype == torch.float32


# ---- Options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "books"), [("encodec", 4), ("dac", 2), ("mimi", 2), ("xcodec", 1)])
def test_fewer_or_more_codebooks(kind, books):
    codec = tiny_codec(kind, num_codebooks=books)
    codes = codec.encode(waves())
    assert codec.num_codebooks == codes.shape[1] == books
    assert codec.decode(codes).shape[0] == 2
    shared = min(books, AUDIO_SHAPES[kind][0])
    assert torch.equal(codes[:, :shared], tiny_codec(kind).encode(waves())[:, :shared])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("encodec", {"num_codebooks": 3}, "num_codebooks is 3; the bandwidths of this encodec have 2, 4"),
        ("dac", {"num_codebooks": 4}, "num_codebooks is 4; expected 1 to 3"),
        ("mimi", {"num_codebooks": 0}, "num_codebooks is 0; expected 1 to 4"),
        ("emu3_vqgan", {"image_size": None}, "Emu3VQVAE takes images of any size: pass image_size, a multiple of 4"),
        ("emu3_vqgan", {"image_size": 18}, "image_size is 18; expected a multiple of 4"),
        ("janus_vqgan", {"image_size": 32}, "image_size is 32; the grid of this JanusVQVAE is for images of 16"),
        ("dac", {"image_size": 16}, "Unknown option 'image_size' of the codec dac; it has num_codebooks"),
    ],
)
def test_options_that_do_not_fit(kind, options, message):
    with pytest.raises(ValueError, match=message):
        codec_from_config(CONFIGS[kind](), **options)


@pytest.mark.parametrize(
    "fields", [{"normalize": True}, {"chunk_length_s": 0.1, "overlap": 0.1}, {"audio_channels": 2}]
)
def test_an_encodec_whose_codes_are_not_all_is_refused(fields):
    with pytest.raises(ValueError, match=r"Use one like facebook/encodec_24khz"):
        codec_from_config(encodec_config(**fields))


@pytest.mark.parametrize("kind", ["mimi", "emu3_vqgan"])
def test_the_config_alone_builds_the_codec_again(kind):
    options = {"mimi": {"num_codebooks": 2}, "emu3_vqgan": {"image_size": 24}}[kind]
    codec = tiny_codec(kind, **options)
    fields = json.loads(json.dumps(codec.config.to_dict()))
    again = codec_from_config(fields)
    assert (again.num_codebooks, again.grid) == (codec.num_codebooks, codec.grid)
    assert again.config.codec_options == options


def test_other_models_are_refused_with_the_supported_ones():
    with pytest.raises(
        ValueError, match=r"model_type 'gpt2' is not a supported codec. Supported are chameleon_vqgan, dac"
    ):
        codec_from_config(GPT2Config())
    with pytest.raises(ValueError, match="has no model_type"):
        codec_from_config({"hidden_size": 8})


# ---- Folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_saved_codec_is_loaded_by_its_folder(kind, tmp_path):
    codec = tiny_codec(kind)
    codec.model.save_pretrained(tmp_path)
    again = load_codec(tmp_path)
    media = media_of(codec)
    assert torch.equal(again.encode(media), codec.encode(media))
    for name, tensor in codec.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


class Holder(PreTrainedModel):
    """A model that keeps a codec's weights beside its own."""

    config_class = PreTrainedConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.codec = codec_from_config(copy.deepcopy(self.parts[config.kind]))
        self.post_init()

    def _init_weights(self, module):
        pass


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_model_that_holds_a_codec_is_reloaded_exactly(kind, tmp_path):
    codec = tiny_codec(kind)
    Holder.parts = {kind: codec.config}
    config = PreTrainedConfig()
    config.kind = kind
    holder = Holder(config)
    holder.codec.load_state_dict(codec.state_dict())
    holder.save_pretrained(tmp_path)
    again, report = Holder.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for (name, tensor), (_, other) in zip(
        [*codec.named_parameters(), *codec.named_buffers()],
        [*again.codec.named_parameters(), *again.codec.named_buffers()],
        strict=True,
    ):
        assert torch.equal(tensor, other), name
    media = media_of(codec)
    assert torch.equal(again.codec.encode(media), codec.encode(media))
    if kind in DECODE:
        assert torch.equal(again.codec.decode(codec.encode(media)), codec.decode(codec.encode(media)))


def test_the_vq_model_is_loaded_out_of_the_model_that_holds_it(tmp_path):
    vq = emu3_config()
    text = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    config = transformers.Emu3Config(text_config=text, vq_config=vq.to_dict(), vocabulary_map={"<image>": 3})
    model = transformers.Emu3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    codec = load_codec(tmp_path, image_size=SIZE)
    assert type(codec.model) is transformers.Emu3VQVAE
    for name, tensor in model.model.vqmodel.state_dict().items():
        assert torch.equal(codec.model.state_dict()[name], tensor), name


def test_a_folder_that_lacks_weights_is_refused(tmp_path):
    codec = tiny_codec("dac")
    state = {name: tensor for name, tensor in codec.model.state_dict().items() if "decoder" not in name}
    codec.model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match="lacks weights of its DacModel, such as decoder"):
        load_codec(tmp_path)


# ---- Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DECODE)
@pytest.mark.parametrize("value", [-1, CODES])
def test_codes_outside_the_range(kind, value):
    codec = tiny_codec(kind)
    codes = codec.encode(media_of(codec))
    codes[1, codec.num_codebooks - 1, 3] = value
    place = f"Row 1, codebook {codec.num_codebooks - 1}, position 3: code {value} is outside 0 to 15"
    with pytest.raises(ValueError, match=place):
        codec.decode(codes)


@pytest.mark.parametrize("kind", AUDIO)
def test_bad_audio(kind):
    codec = tiny_codec(kind)
    wave = waves()
    with pytest.raises(ValueError, match=r"a sampling rate of 16000 Hz.*reads 800 Hz. Resample it first"):
        codec.encode(wave, sampling_rate=16000)
    assert codec.encode(wave, sampling_rate=RATE).shape[0] == 2
    wave[1, 5] = float("nan")
    with pytest.raises(ValueError, match="Row 1 of the waves has NaN or infinite values"):
        codec.encode(wave)
    with pytest.raises(ValueError, match=r"Waves have shape \(2, 1, 240\); expected \(N, samples\)"):
        codec.encode(waves()[:, None])
    with pytest.raises(ValueError, match=r"Waves have shape \(2, 0\)"):
        codec.encode(torch.zeros(2, 0))
    with pytest.raises(ValueError, match=r"waves are torch\.int16; pass floating-point values"):
        codec.encode(torch.zeros(2, 80, dtype=torch.int16))


@pytest.mark.parametrize("kind", IMAGES)
def test_bad_images(kind):
    codec = tiny_codec(kind)
    with pytest.raises(ValueError, match=r"Images have shape \(2, 3, 12, 12\); expected \(N, 3, 16, 16\)"):
        codec.encode(images(size=12))
    with pytest.raises(ValueError, match="values from -1 to"):
        codec.encode((images() * 2 - 1).clamp(max=0.9).index_fill(0, torch.tensor([1]), -1.0))
    pixels = images()
    pixels[1, 0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="Row 1 of the images has NaN or infinite values"):
        codec.encode(pixels)
    with pytest.raises(ValueError, match=r"images are torch\.uint8"):
        codec.encode((images() * 255).to(torch.uint8))


@pytest.mark.parametrize("kind", DECODE)
def test_codes_of_another_shape(kind):
    codec = tiny_codec(kind)
    codes = codec.encode(media_of(codec))
    books = codec.num_codebooks
    with pytest.raises(ValueError, match=rf"expected \(items, {books} codebooks, codes\)"):
        codec.decode(codes[:, 0])
    with pytest.raises(ValueError, match=rf"expected \(items, {books} codebooks, codes\)"):
        codec.decode(torch.cat([codes, codes], 1))
    with pytest.raises(ValueError, match=r"Codes are torch\.float32; pass integers"):
        codec.decode(codes.float())
    with pytest.raises(ValueError, match=r"An image has 15 codes; its grid of 4 rows and 4 columns has 16|no codes"):
        codec.decode(codes[:, :, : 15 if codec.modality == "image" else 0])


# ---- diffusers ------------------------------------------------------------------------------------------------------


def diffusers_config(**fields):
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    sizes = {"block_out_channels": [8, 8], "latent_channels": 4, "norm_num_groups": 4, "sample_size": SIZE}
    return {"_class_name": "VQModel", **blocks, **sizes, "num_vq_embeddings": CODES, **fields}


@pytest.mark.parametrize(
    "fields", [{}, {"lookup_from_codebook": True}, {"norm_type": "spatial", "block_out_channels": [32, 32]}]
)
def test_the_vq_model_of_diffusers(fields, tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="not in the locks: `make test-diffusers`")
    codec = codec_from_config(diffusers_config(**fields), image_size=24)
    assert type(codec.model) is diffusers.VQModel
    torch.nn.init.normal_(codec.model.quantize.embedding.weight, std=0.1)
    pixels = images(size=24)
    codes = codec.encode(pixels)
    assert (codec.grid, codec.codebook_size, codes.shape) == ((12, 12), CODES, (2, 1, 144))
    assert codes.unique().numel() > 3
    with torch.no_grad():
        if not fields.get("lookup_from_codebook"):
            forward = codec.model(pixels * 2 - 1).sample
            assert torch.allclose(codec.decode(codes), (forward / 2 + 0.5).clamp(0, 1), atol=1e-5)
    codec.model.save_pretrained(tmp_path)
    again = load_codec(tmp_path, image_size=24)
    assert torch.equal(again.decode(codes), codec.decode(codes)) and again.config["sample_size"] == 24
    with pytest.raises(ValueError, match="Unknown option 'num_codebooks' of the codec VQModel"):
        load_codec(tmp_path, num_codebooks=2)


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'modeling_mm\[diffusers\]'"):
        codec_from_config(diffusers_config())
