"""train_codec and codec_figures: a codec is trained, resumed and measured on a corpus of a few files."""

import json
import math
from argparse import Namespace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch.distributions import MultivariateNormal
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from modeling_mm import MMCodec
from scripts.workshop import codec_measures, codec_training
from scripts.workshop.codec_measures import code_use, mean_psnr, measure, pca_log_likelihood
from scripts.workshop.codec_training import train_codec


@pytest.fixture
def corpora(tmp_path, monkeypatch):
    """Images of one color, and tones, with a codec of a few channels."""
    generator = np.random.default_rng(0)
    for split, number in (("train", 6), ("validation", 3)):
        for corpus in ("images", "studio-speech"):
            folder = tmp_path / corpus / split
            folder.mkdir(parents=True)
            rows = []
            for index in range(number):
                if corpus == "images":
                    name = f"{index}.png"
                    color = tuple(int(value) for value in generator.integers(0, 255, 3))
                    Image.new("RGB", (80, 80), color).save(folder / name)
                else:
                    name = f"{index}.flac"
                    tone = 0.3 * np.sin(2 * np.pi * (200 + 50 * index) * np.arange(8000) / 16000)
                    soundfile.write(folder / name, tone, 16000)
                rows.append({"file_name": name, "text": "a tone"})
            (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    whole = codec_training.codec_config

    def small(modality, bottleneck):
        config = whole(modality, bottleneck)
        config.hidden_sizes = [4, 6, 8][: len(config.hidden_sizes)]
        config.vocoder_size, config.vocoder_layers, config.latent_channels = 8, 1, 4
        return config

    monkeypatch.setattr(codec_training, "codec_config", small)
    return tmp_path


def settings(corpora, modality, bottleneck, **more):
    fields = {"modality": modality, "bottleneck": bottleneck, "folder": corpora / modality, "corpora": corpora}
    fields |= {"steps": 4, "vocoder_steps": 4, "batch_size": 2, "learning_rate": 1e-3, "bf16": False, "limit": None}
    fields |= {"seed": 0, "split": "validation"}
    return Namespace(**{**fields, **more})


def test_the_codecs_have_the_tokens_that_are_wanted():
    image = codec_training.codec_config("image", "fsq")
    assert image.grid == (8, 8) and image.image_size == 64 and image.codebook_size == 4096
    speech = codec_training.codec_config("audio", "vq")
    assert speech.sampling_rate / (speech.hop_length * speech.downsampling) == 50
    assert speech.codebook_size == 1024


@pytest.mark.parametrize("bottleneck", ["fsq", "kl"])
def test_a_codec_of_images_is_trained_and_measured(corpora, bottleneck):
    arguments = settings(corpora, "image", bottleneck)
    assert "after 4 steps" in train_codec(arguments)
    figures = measure(arguments)
    names = {"fsq": {"codes_used", "perplexity"}, "kl": {"elbo_nats_per_dimension", "pca_nats_per_dimension"}}
    assert figures.keys() == {"psnr_db"} | names[bottleneck]
    assert all(math.isfinite(value) for value in figures.values())
    with Image.open(arguments.folder / "images.png") as image:
        assert image.size == (8 * 64, {"fsq": 3, "kl": 4}[bottleneck] * 64)


class Interrupt(TrainerCallback):
    def on_save(self, arguments, state, control, **kwargs):
        if state.global_step == 2:
            raise KeyboardInterrupt


class Interrupted(Trainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(Interrupt())


def test_an_interrupted_training_resumes_as_if_unbroken(corpora, monkeypatch):
    whole = settings(corpora, "image", "vq", folder=corpora / "whole")
    train_codec(whole)
    broken = settings(corpora, "image", "vq", folder=corpora / "broken")
    with monkeypatch.context() as patch:
        patch.setattr(codec_training, "Trainer", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_codec(broken)
    assert get_last_checkpoint(str(broken.folder / "checkpoints")).endswith("checkpoint-2")
    assert not (broken.folder / "model.safetensors").exists()
    for _ in range(2):  # resumed, then finished already
        train_codec(broken)
        resumed = MMCodec.from_pretrained(broken.folder).state_dict()
        for name, tensor in MMCodec.from_pretrained(whole.folder).state_dict().items():
            assert torch.equal(resumed[name], tensor), name


def test_a_codec_of_speech_is_trained_and_measured(corpora, monkeypatch):
    arguments = settings(corpora, "audio", "fsq", transcriber="whisper")
    train_codec(arguments)
    heard = []

    def transcribe(transcriber, paths, truths):
        heard.append((transcriber, [soundfile.info(path).frames for path in paths], truths))
        return 0.25 * len(heard)

    monkeypatch.setattr(codec_measures, "word_error_rate", transcribe)
    figures = measure(arguments)
    assert (figures["wer_original"], figures["wer_decoded"], figures["codes_a_second"]) == (0.25, 0.5, 50.0)
    assert 0 < figures["codes_used"] < 1
    assert heard == [("whisper", [8000] * 3, ["a tone"] * 3)] * 2


def test_the_vocoder_is_trained_last_and_alone(corpora):
    arguments = settings(corpora, "audio", "vq")
    assert "with waves after 4 steps of the vocoder" in train_codec(arguments)
    first = MMCodec.from_pretrained(get_last_checkpoint(str(arguments.folder / "checkpoints")))
    last = MMCodec.from_pretrained(arguments.folder)
    assert (first.config.stft_weight, last.config.stft_weight) == (0.0, 1.0)
    torch.manual_seed(0)
    before = MMCodec(codec_training.codec_config("audio", "vq")).state_dict()
    unchanged = {name for name, tensor in last.state_dict().items() if torch.equal(tensor, first.state_dict()[name])}
    assert unchanged == {name for name in before if not name.startswith("vocoder.")}
    moved = {name for name, tensor in first.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in moved} == {"encoder", "bottleneck", "decoder"}


def test_speech_resumes_in_either_stage(corpora, monkeypatch):
    whole = settings(corpora, "audio", "vq", folder=corpora / "whole")
    train_codec(whole)
    broken = settings(corpora, "audio", "vq", folder=corpora / "broken")
    for stage in ("checkpoints", "checkpoints-vocoder"):
        with monkeypatch.context() as patch:
            patch.setattr(codec_training, "Trainer", Interrupted)
            with pytest.raises(KeyboardInterrupt):
                train_codec(broken)
        assert get_last_checkpoint(str(broken.folder / stage)).endswith("checkpoint-2")
        with monkeypatch.context() as patch:
            if stage == "checkpoints":  # to the end of the first stage alone
                patch.setattr(codec_training, "VOCODER_CHECKPOINTS", "unused")
            train_codec(broken)
    resumed = MMCodec.from_pretrained(broken.folder).state_dict()
    for name, tensor in MMCodec.from_pretrained(whole.folder).state_dict().items():
        assert torch.equal(resumed[name], tensor), name


def test_bfloat16_is_used_where_it_is_wanted(corpora):
    losses = [
        train_codec(settings(corpora, "image", "fsq", folder=corpora / str(bf16), bf16=bf16)) for bf16 in (False, True)
    ]
    weights = [
        MMCodec.from_pretrained(corpora / str(bf16)).state_dict()["decoder.conv_out.weight"] for bf16 in (False, True)
    ]
    assert losses[0] != losses[1] and all(each.dtype == torch.float32 for each in weights)
    assert torch.allclose(*weights, atol=0.01) and not torch.equal(*weights)


def test_psnr_and_the_use_of_codes():
    originals = torch.rand(2, 3, 4, 4)
    assert mean_psnr(originals + 0.1, originals) == pytest.approx(20, abs=1e-3)
    used = code_use(torch.tensor([[0, 1], [1, 0]]), 8)
    assert used == pytest.approx({"codes_used": 0.25, "perplexity": 2.0})


def test_pca_is_the_gaussian_that_it_stands_for():
    torch.manual_seed(0)
    train = torch.randn(200, 6).double() @ torch.randn(6, 6).double()
    new = torch.randn(5, 6).double()
    centered = train - train.mean(0)
    values, vectors = torch.linalg.eigh(centered.T @ centered / 200)
    values = torch.cat([values[:4].mean().expand(4), values[4:]])
    gaussian = MultivariateNormal(train.mean(0), vectors @ values.diag() @ vectors.T)
    assert pca_log_likelihood(train, new, 2) == pytest.approx(gaussian.log_prob(new).mean().item() / 6, rel=1e-4)
