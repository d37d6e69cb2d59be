"""modeling_codec.py: our codec, with each bottleneck, of images and audio."""

import copy
import json
import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence
from transformers import AutoConfig, AutoModel

from modeling_mm import MMCodec, MMCodecConfig, MMForConditionalGeneration
from modeling_mm.codecs import codec_from_config, load_codec
from tests.fakes.own_codecs import HOP, SIZE, own_codec, own_config, own_media
from tests.fakes.writers import seeing

EVERY = [(modality, bottleneck) for modality in ("image", "audio") for bottleneck in ("kl", "vq", "fsq")]
WITH_CODES = [pair for pair in EVERY if pair[1] != "kl"]


# ---- Shapes and gradients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("modality", "bottleneck"), EVERY)
def test_shapes(modality, bottleneck):
    model = own_codec(modality, bottleneck)
    media = own_media(modality)
    channels = 3 if bottleneck == "fsq" else 4
    grid = (8, 8) if modality == "image" else (6,)
    output = model(media)
    assert output.loss.shape == () and torch.isfinite(output.loss)
    assert output.latents.shape == model.encode_latents(media).shape == (2, channels, *grid)
    assert output.reconstruction.shape == ((2, 3, SIZE, SIZE) if modality == "image" else (2, 6, 12))
    assert (output.codes is None) == (bottleneck == "kl")
    decoded = model.decode_latents(output.latents)
    assert decoded.shape == media.shape and decoded.dtype == torch.float32
    if modality == "image":
        assert decoded.min() >= 0 and decoded.max() <= 1


@pytest.mark.parametrize(("modality", "bottleneck"), EVERY)
def test_every_parameter_has_a_gradient(modality, bottleneck):
    model = own_codec(modality, bottleneck).train()
    model(own_media(modality)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_the_spectral_loss_teaches_the_vocoder_alone():
    model, media = own_codec("audio", "fsq").train(), own_media("audio")
    gradients = []
    for weight in (0.0, 1.0):
        model.config.stft_weight = weight
        model.zero_grad()
        model(media).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[1].items():
        if name.startswith("vocoder."):
            assert gradients[0][name] is None and gradient.abs().sum() > 0, name
        else:
            assert torch.equal(gradients[0][name], gradient), name


def test_a_codebook_rests_while_the_encoder_is_frozen():
    model, media = own_codec("audio", "vq").train(), own_media("audio")
    model(media)
    before = model.bottleneck.codebook.clone()
    model.encoder.requires_grad_(False)
    model(media)
    assert torch.equal(model.bottleneck.codebook, before)
    model.encoder.requires_grad_(True)
    model(media)
    assert not torch.equal(model.bottleneck.codebook, before)


def test_spectrograms_are_not_rounded_by_autocast():
    model, media = own_codec("audio", "vq"), own_media("audio")
    plain = model.to_features(media)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.to_features(media), plain)


@pytest.mark.parametrize("size", [64, 128, 256])
def test_images_of_every_size(size):
    config = own_config(image_size=size, strides=[2, 2, 2], hidden_sizes=[4, 4, 4, 4])
    model = MMCodec(config)
    assert model(torch.rand(1, 3, size, size)).codes.shape == (1, size // 8, size // 8)
    assert config.grid == (size // 8, size // 8)


@pytest.mark.parametrize("strides", [[3], [2, 5], [4]])
def test_every_stride_divides_the_length_exactly(strides):
    model = own_codec("audio", strides=strides, hidden_sizes=[4] * (len(strides) + 1), hop_length=20)
    waves = torch.randn(1, 7 * 20 * math.prod(strides))
    assert model.encode_codes(waves).shape == (1, 7)
    assert model.decode_latents(model.encode_latents(waves)).shape == waves.shape


@pytest.mark.parametrize(("modality", "bottleneck"), EVERY)
def test_a_row_does_not_depend_on_the_others(modality, bottleneck):
    model = own_codec(modality, bottleneck)
    media = own_media(modality, rows=3)
    together = model.encode_latents(media)
    assert torch.allclose(model.encode_latents(media[1:2]), together[1:2], atol=1e-5)
    decoded = model.decode_latents(together)
    assert torch.allclose(model.decode_latents(together[1:2]), decoded[1:2], atol=1e-5)


def test_residual_blocks_start_by_adding_zero():
    model = MMCodec(own_config())
    assert not any(p.any() for name, p in model.named_parameters() if "conv2" in name)
    assert all(p.any() for name, p in model.named_parameters() if "conv1.weight" in name)


# ---- The loss of `kl` -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_the_elbo_is_that_of_torchs_distributions(learn_sigma):
    model = own_codec(bottleneck="kl", sigma=0.3, learn_sigma=learn_sigma, kl_weight=0.5)
    media = own_media("image")
    torch.manual_seed(1)
    output = model(media)
    features = media * 2 - 1
    mean, log_variance = model.encoder(features).chunk(2, dim=1)
    posterior = Independent(Normal(mean, (0.5 * log_variance).exp()), 3)
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 3)
    torch.manual_seed(1)
    sample = posterior.rsample()
    likelihood = Independent(Normal(model.decoder(sample), 0.3), 3).log_prob(features)
    divergence = kl_divergence(posterior, prior)
    size = 3 * SIZE * SIZE
    assert torch.allclose(output.latents, sample, atol=1e-6)
    assert torch.allclose(output.nll, -likelihood.mean() / size, atol=1e-5)
    assert torch.allclose(output.divergence, divergence.mean() / size, atol=1e-6)
    assert torch.allclose(output.elbo, (likelihood - divergence).mean() / size, atol=1e-5)
    assert torch.allclose(output.loss, (0.5 * divergence - likelihood).mean() / size, atol=1e-5)


class Halves(nn.Sequential):
    """A network and the convolution that AutoencoderKL has beside it."""


def test_the_loss_is_that_of_autoencoder_kl():
    diffusers = pytest.importorskip("diffusers", reason="not in the locks: `make test-diffusers`")
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    sizes = {"block_out_channels": [8, 8], "norm_num_groups": 4, "latent_channels": 4}
    theirs = diffusers.AutoencoderKL(**sizes, **blocks).eval()
    ours = own_codec(bottleneck="kl", sigma=0.2, kl_weight=0.7)
    ours.encoder = Halves(copy.deepcopy(theirs.encoder), copy.deepcopy(theirs.quant_conv))
    ours.decoder = Halves(copy.deepcopy(theirs.post_quant_conv), copy.deepcopy(theirs.decoder))
    media = own_media("image")
    features = media * 2 - 1
    torch.manual_seed(2)
    output = ours(media)
    posterior = theirs.encode(features).latent_dist
    torch.manual_seed(2)
    sample = posterior.sample()
    reconstruction = theirs.decode(sample).sample
    squares = (features - reconstruction).pow(2).flatten(1).sum(1)
    size = features[0].numel()
    nll = 0.5 * squares / 0.2**2 + size * (math.log(0.2) + 0.5 * math.log(2 * math.pi))
    expected = (nll + 0.7 * posterior.kl()).mean() / size
    assert torch.allclose(output.reconstruction, reconstruction, atol=1e-5)
    assert torch.allclose(output.loss, expected, rtol=1e-5)
    names = {"0": theirs.encoder, "1": theirs.quant_conv}
    output.loss.backward()
    expected.backward()
    for number, module in names.items():
        for name, parameter in module.named_parameters():
            found = ours.encoder.get_parameter(f"{number}.{name}").grad
            assert torch.allclose(found, parameter.grad, rtol=1e-3, atol=1e-5), name


def test_beta_warms_up_in_training_and_is_whole_in_evaluation():
    model = own_codec(bottleneck="kl", kl_weight=0.5, kl_warmup_steps=4)
    media = own_media("image")
    weights = []
    for _ in range(6):
        output = model.train()(media)
        weights.append(((output.loss - output.nll) / output.divergence).item())
    assert weights == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5, 0.5], rel=1e-3)
    fresh = own_codec(bottleneck="kl", kl_weight=0.5, kl_warmup_steps=4)
    output = fresh(media)
    assert ((output.loss - output.nll) / output.divergence).item() == pytest.approx(0.5, rel=1e-3)
    with torch.no_grad():
        fresh.train()(media)
    assert fresh.bottleneck.steps == 0


def test_a_learned_sigma_becomes_the_deviation_of_the_reconstruction():
    model = own_codec(bottleneck="kl", sigma=1.0).requires_grad_(False)
    model.log_sigma.requires_grad_(True)
    media = own_media("image", rows=8)
    optimizer = torch.optim.Adam([model.log_sigma], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        output = model(media)
        output.loss.backward()
        optimizer.step()
    expected = (output.reconstruction - (media * 2 - 1)).pow(2).mean().sqrt()
    assert model.log_sigma.exp().item() == pytest.approx(expected.item(), rel=0.05)


def test_the_mean_is_what_is_decoded_and_the_loss_is_that_of_a_sample():
    model = own_codec(bottleneck="kl")
    media = own_media("image")
    assert torch.equal(model.encode_latents(media), model.encode_latents(media))
    assert not torch.equal(model(media).latents, model(media).latents)


# ---- Training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("modality", "bottleneck"), EVERY)
def test_a_few_steps_lower_the_loss(modality, bottleneck):
    torch.manual_seed(0)
    model = MMCodec(own_config(modality, bottleneck, kl_warmup_steps=0, sigma=0.5)).train()
    # One color for each image, and one tone for each wave.
    media = torch.rand(8, 3, 1, 1).expand(8, 3, SIZE, SIZE)
    if modality == "audio":
        time = torch.arange(6 * HOP) / 800
        media = 0.3 * torch.sin(2 * math.pi * torch.linspace(50, 300, 8)[:, None] * time)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(media).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5]), losses


# ---- Folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("modality", "bottleneck"), EVERY)
def test_a_reload_is_identical(modality, bottleneck, tmp_path):
    model = own_codec(modality, bottleneck)
    model.train()(own_media(modality))  # buffers of training differ from where they start
    model.eval().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is MMCodecConfig
    for load in (MMCodec.from_pretrained, AutoModel.from_pretrained):
        again, report = load(tmp_path, output_loading_info=True)
        assert type(again) is MMCodec and not report["missing_keys"] and not report["unexpected_keys"]
        assert again.config.to_dict().keys() == model.config.to_dict().keys()
        for (name, tensor), (other_name, other) in zip(
            [*model.named_parameters(), *model.named_buffers()],
            [*again.named_parameters(), *again.named_buffers()],
            strict=True,
        ):
            assert name == other_name and torch.equal(tensor, other), name
        latents = model.encode_latents(own_media(modality))
        assert torch.equal(again.encode_latents(own_media(modality)), latents)
        assert torch.equal(again.decode_latents(latents), model.decode_latents(latents))


def test_the_folder_loads_by_its_own_code(tmp_path):
    own_codec().save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map == {"AutoConfig": "configuration_codec.MMCodecConfig", "AutoModel": "modeling_codec.MMCodec"}
    for path in auto_map.values():
        assert (tmp_path / f"{path.split('.')[0]}.py").is_file()
    assert {"bottlenecks.py", "codec_layers.py", "spectrograms.py"} <= {path.name for path in tmp_path.iterdir()}


# ---- The interface of codecs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("modality", "bottleneck"), WITH_CODES)
def test_it_has_the_interface_of_codecs(modality, bottleneck, tmp_path):
    model = own_codec(modality, bottleneck)
    model.save_pretrained(tmp_path)
    codec = load_codec(tmp_path)
    media = own_media(modality)
    codes = codec.encode(media)
    assert codec.modality == modality
    assert codec.codebook_size == {"vq": 16, "fsq": 36}[bottleneck] and codec.num_codebooks == 1
    length = 64 if modality == "image" else 6
    assert codes.shape == (2, 1, length) and codes.min() >= 0 and codes.max() < codec.codebook_size
    assert codes.unique().numel() > 3
    decoded = codec.decode(codes)
    assert decoded.shape == media.shape
    assert torch.equal(decoded, model.decode_latents(model.encode_latents(media)).detach())
    if modality == "audio":
        assert (codec.rate, codec.sampling_rate, codec.hop_length) == (20.0, 800, HOP)
        assert codec.encode(media[:, :-3]).shape == (2, 1, 6)
        with pytest.raises(ValueError, match="Row 0 of the waves has NaN"):
            codec.encode(media * float("nan"))
    else:
        assert codec.grid == (8, 8)
        with pytest.raises(ValueError, match="An image has 63 codes"):
            codec.decode(codes[..., :-1])
    with pytest.raises(ValueError, match=r"code \d+ is outside 0 to"):
        codec.decode(codes + codec.codebook_size)
    again = codec_from_config(json.loads(json.dumps(codec.config.to_dict())))
    assert (again.codebook_size, again.grid, again.rate) == (codec.codebook_size, codec.grid, codec.rate)


def test_kl_has_no_codes():
    with pytest.raises(ValueError, match="has the bottleneck 'kl', whose latents are not codes"):
        codec_from_config(own_config(bottleneck="kl"))


def test_it_takes_no_option():
    with pytest.raises(ValueError, match="Unknown option 'image_size' of the codec mm_codec; it has none"):
        codec_from_config(own_config(), image_size=32)


# ---- The config -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modality": "video"}, "modality is 'video'; expected one of image, audio"),
        ({"bottleneck": "gan"}, "bottleneck is 'gan'; expected one of kl, vq, fsq"),
        ({"vocoder": "none"}, "vocoder is 'none'; expected one of istft, griffin_lim"),
        ({"strides": [2, 2]}, "hidden_sizes has 2 values and strides 2; give one more"),
        ({"image_size": 15}, "image_size is 15; expected a multiple of the strides' product, 2"),
        ({"kernel_size": 4}, "kernel_size is 4; expected an odd number"),
        ({"sigma": 0.0}, "sigma is 0.0; expected a positive deviation"),
        ({"fsq_levels": [4, 1]}, "fsq_levels 2 at least"),
    ],
)
def test_a_config_that_does_not_fit(fields, message):
    with pytest.raises(ValueError, match=message):
        own_config(**fields)


def test_fsq_fixes_the_codebook():
    config = own_config(fsq_levels=[8, 5, 5, 5])
    assert (config.codebook_size, config.latent_channels) == (1000, 4)
    assert MMCodecConfig.from_dict(config.to_dict()).codebook_size == 1000


# ---- In a joint model -----------------------------------------------------------------------------------------------


def test_a_joint_model_keeps_our_codecs(tmp_path):
    model, processor = seeing()
    for modality, bottleneck in (("image", "vq"), ("audio", "fsq")):
        own_codec(modality, bottleneck).save_pretrained(tmp_path / modality)
        codec = load_codec(tmp_path / modality)
        processor.add_codec(codec)
        model.add_codec(codec, processor)
    model.save_pretrained(tmp_path)
    again, report = MMForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for modality in ("image", "audio"):
        one, other = (getattr(each.base_model, f"{modality}_codec") for each in (model, again.train()))
        codes = one.encode(own_media(modality))
        assert torch.equal(other.encode(own_media(modality)), codes)
        assert torch.equal(other.decode(codes), one.decode(codes))
        assert type(other.model) is MMCodec and not other.model.training
