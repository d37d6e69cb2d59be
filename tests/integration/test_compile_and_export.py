"""`torch.compile` without a graph break, of forward and of decoding with a static cache; `torch.export`."""

import copy

import pytest
import torch
import transformers
from packaging.version import Version
from torch._dynamo.exc import Unsupported
from torch._dynamo.utils import counters
from transformers import (
    AutoModel,
    ParakeetEncoderConfig,
    ResNetConfig,
    ResNetModel,
    StaticCache,
    Wav2Vec2BertConfig,
)

from modeling_mm.deploy import DecoderStep, MediaEncoder, state_of
from tests.fakes.tiny import (
    AUDIO,
    END,
    EOS,
    IMAGE,
    MELS,
    difference,
    gpt2,
    inputs,
    joined,
    labels,
    open_gates,
    seeded,
    sound,
    vit,
    wav2vec2,
    wave,
    whisper,
)

ROWS = {
    "text": [[5, 6, 7, 8], [9, 10]],
    "images": [[5, IMAGE, 6, IMAGE, 7], [8, IMAGE, 9]],
    "audio": [[5, AUDIO, 6, 7], [AUDIO, 8, AUDIO, 9, 10]],
    "mixed": [[5, IMAGE, 6, AUDIO, 7, 8], [9, 10, 11], [IMAGE, 12, IMAGE, 13], [AUDIO, 14, 15, 16, 17]],
}
# Before, Whisper asks chance in training whether to leave out a layer, even if it never does, and breaks the graph.
TRAINS_IN_ONE_GRAPH = Version(transformers.__version__) >= Version("5.23.0.dev0")
CONNECTORS = ("linear", "mlp", "conv", "perceiver")
NEW = 5
slow = pytest.mark.slow


@pytest.fixture(autouse=True)
def fresh_graphs():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def choose(logits: torch.Tensor) -> torch.Tensor:
    """The next token (B, 1) of (B, V), as `generate` chooses it: no placeholder, and here no end."""
    return logits.index_fill(1, torch.tensor([EOS, END, IMAGE, AUDIO]), -torch.inf).argmax(-1, keepdim=True)


def shallow(audio=whisper, **fields):
    """As `opened`, with one layer in each encoder and two in the decoder: a graph grows with every layer."""
    tower = audio(num_hidden_layers=1) if audio is wav2vec2 else audio and audio(encoder_layers=1)
    parts = {"text": gpt2(n_layer=2), "vision": vit(num_hidden_layers=1), "audio": tower}
    return open_gates(joined(**{**parts, "cross_attention_layers": [0, 1], **fields}))


def compiled(model, backend="eager"):
    """A graph break raises under `fullgraph`."""
    return torch.compile(model, fullgraph=True, backend=backend)


# ---- Forward --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ["text", "mixed", *(pytest.param(name, marks=slow) for name in ("images", "audio"))])
def test_forward_is_one_graph_and_gives_the_same(rows):
    model, batch = shallow(), inputs(ROWS[rows])
    with torch.no_grad():
        found, expected = compiled(model)(**batch).logits, model(**batch).logits
    assert difference(found, expected) <= 1e-5
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(
    "vision, audio",
    [("conv", "perceiver"), ("perceiver", "linear"), *(pytest.param(kind, kind, marks=slow) for kind in CONNECTORS)],
)
def test_every_connector_but_the_gru_is_part_of_the_graph(vision, audio):
    """`torch.compile` takes no recurrent networks."""
    model = shallow(vision_connector=vision, audio_connector=audio)
    batch = inputs(ROWS["mixed"])
    with torch.no_grad():
        assert difference(compiled(model)(**batch).logits, model(**batch).logits) <= 1e-5


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_media_encoded_before(implementation):
    model = shallow(attn_implementation=implementation)
    batch = inputs(ROWS["mixed"])
    text = {name: batch.pop(name) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        media = model.encode_media(**batch)
        assert difference(compiled(model)(**text, media=media).logits, model(**text, **batch).logits) <= 1e-5


def test_raw_waves():
    model, batch = shallow(wav2vec2), inputs(ROWS["mixed"], make_sound=wave)
    with torch.no_grad():
        assert difference(compiled(model)(**batch).logits, model(**batch).logits) <= 1e-5


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SPECTROGRAM_ENCODERS = {
    "wav2vec2-bert": lambda: Wav2Vec2BertConfig(**SIZES, feature_projection_input_dim=MELS, vocab_size=20),
    "parakeet": lambda: ParakeetEncoderConfig(
        **SIZES, num_mel_bins=MELS, subsampling_conv_channels=4, conv_kernel_size=5
    ),
}


@pytest.mark.parametrize("name", SPECTROGRAM_ENCODERS)
def test_spectrograms_with_a_mask(name):
    tower = seeded(lambda: AutoModel.from_config(SPECTROGRAM_ENCODERS[name]()))
    model = open_gates(joined(vision=None, audio=tower))
    batch = inputs(ROWS["audio"], audio=[[sound(0, 30)], [sound(1, 20), sound(2)]])
    graph = compiled(model)
    with torch.no_grad():
        assert difference(graph(**batch).logits, model(**batch).logits) <= 1e-5


def test_what_pads_images_and_windows_has_no_part_in_the_graph():
    """It is encoded, because a graph cannot know how many are real, and masked."""
    model, batch = shallow(), inputs(ROWS["mixed"])
    noise = {name: tensor.clone() for name, tensor in batch.items()}
    noise["pixel_values"][~batch["image_mask"]] = 9.0
    noise["input_features"][~batch["feature_attention_mask"].any(-1).bool()] = 9.0
    assert any(not torch.equal(noise[name], batch[name]) for name in ("pixel_values", "input_features"))
    graph = compiled(model)
    with torch.no_grad():
        assert difference(graph(**noise).logits, graph(**batch).logits) == 0.0


@pytest.mark.skipif(not TRAINS_IN_ONE_GRAPH, reason="Whisper is compiled in training from transformers 5.23 on")
@pytest.mark.parametrize("gated", [True, pytest.param(False, marks=slow)])
def test_a_training_step_has_the_same_gradients(gated):
    model = shallow(cross_attention_gated=gated).train()
    other = copy.deepcopy(model)
    batch = inputs(ROWS["mixed"])
    batch["labels"] = labels(batch)
    loss, expected = compiled(model, "aot_eager")(**batch).loss, other(**batch).loss
    loss.backward(), expected.backward()
    assert abs(loss.item() - expected.item()) <= 1e-5
    theirs = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (theirs[name].grad is None), name
        if parameter.grad is not None:
            scale = max(1.0, theirs[name].grad.abs().max().item())
            assert difference(parameter.grad, theirs[name].grad) <= 1e-4 * scale, name


def with_batch_norms(**fields):
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    tower = seeded(lambda: ResNetModel(ResNetConfig(**sizes)))
    return shallow(vision=tower, **fields)


@pytest.mark.parametrize(
    "fullgraph, error, message",
    [
        (False, ValueError, r"ResNetModel has batch norms that are in training\. .* over the padding .* Freeze it"),
        (True, Unsupported, r"batch norm in training: freeze the encoder, or compile"),
    ],
)
def test_an_encoder_that_learns_from_its_batch_is_not_compiled(fullgraph, error, message):
    """It would learn from the padding; the error comes before it has."""
    model = with_batch_norms().train()
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    batch = inputs(ROWS["mixed"])
    with pytest.raises(error, match=message):
        torch.compile(model, fullgraph=fullgraph, backend="eager")(**batch, labels=labels(batch))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())


@pytest.mark.parametrize("way", ["frozen", pytest.param("evaluation", marks=slow)])
def test_batch_norms_that_do_not_learn_are_compiled(way):
    model = with_batch_norms(freeze_vision=way == "frozen")
    if way == "frozen":
        model.train()
        model.model.audio_tower.eval()  # Whisper's breaks the graph in training before transformers 5.23
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    batch = inputs(ROWS["mixed"])
    with torch.no_grad():
        assert difference(compiled(model)(**batch).logits, model(**batch).logits) <= 1e-5
    assert before and all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())


def test_the_decoder_alone_is_compiled_where_the_encoder_learns_from_its_batch():
    """As the error advises."""
    model = with_batch_norms().train()
    other = copy.deepcopy(model)
    model.model.language_model.compile(backend="eager", fullgraph=True)
    batch = inputs(ROWS["mixed"])
    assert difference(model(**batch).logits, other(**batch).logits) <= 1e-5
    theirs = dict(other.named_buffers())
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.named_buffers())
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
def test_inductor_gives_the_same():
    model, batch = shallow(), inputs(ROWS["mixed"])
    with torch.no_grad():
        assert difference(compiled(model, "inductor")(**batch).logits, model(**batch).logits) <= 1e-4


# ---- Decoding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ["mixed", pytest.param("images", marks=slow)])
def test_decoding_with_a_static_cache_is_one_graph(rows):
    """By hand, step after step; tests/test_generation.py has it by `generate`."""
    model, batch = shallow(), inputs(ROWS[rows], side="left")
    step = compiled(model)
    length = batch["input_ids"].shape[1]
    cache = StaticCache(config=model.config, max_cache_len=length + NEW)
    expected = dict(batch)
    with torch.no_grad():
        logits = model(**batch, past_key_values=cache, use_cache=True).logits[:, -1]
        for _ in range(NEW):
            token = choose(logits)
            mask = torch.cat([expected["attention_mask"], torch.ones_like(token)], dim=1)
            text = torch.cat([expected["input_ids"], token], dim=1)
            expected |= {"input_ids": text, "attention_mask": mask}
            whole = torch.zeros(len(mask), length + NEW, dtype=torch.long)  # a graph wants masks of one size
            whole[:, : mask.shape[1]] = mask
            positions = mask.sum(-1, keepdim=True) - 1
            found = {"input_ids": token, "attention_mask": whole, "position_ids": positions}
            logits = step(**found, past_key_values=cache, use_cache=True).logits[:, -1]
            assert difference(logits, model(**expected, use_cache=False).logits[:, -1]) <= 1e-4
    assert counters["stats"]["unique_graphs"] == 1


# ---- Export ---------------------------------------------------------------------------------------------------------


def media_inputs(rows, make_sound=None):
    batch = inputs(ROWS[rows], **({"make_sound": make_sound} if make_sound else {}))
    return {name: tensor for name, tensor in batch.items() if name not in ("input_ids", "attention_mask")}


@pytest.mark.parametrize(
    "modality, connector",
    [
        *(("image", "conv"), ("image", "perceiver"), ("audio", "mlp"), ("audio", "linear")),
        *(pytest.param("image", connector, marks=slow) for connector in ("linear", "mlp")),
        *(pytest.param("audio", connector, marks=slow) for connector in ("conv", "perceiver")),
    ],
)
def test_the_exported_encoder_gives_what_encode_media_gives(modality, connector, tmp_path):
    model = shallow(vision_connector=connector, audio_connector=connector)
    media = media_inputs("images" if modality == "image" else "audio")
    encoder = MediaEncoder(model, modality)
    with torch.no_grad():
        exported = torch.export.export(encoder, tuple(media.values()))
    torch.export.save(exported, tmp_path / "encoder.pt2")
    graph = torch.export.load(tmp_path / "encoder.pt2").module()
    other = {name: tensor.flip(0) for name, tensor in media.items()}  # other media, absent elsewhere
    for batch in (media, other):
        with torch.no_grad():
            found, expected = graph(*batch.values()), model.encode_media(**batch).tensors
        for one, two in zip(found, expected, strict=True):
            assert difference(one, two) <= 1e-5


def exported_step(model, rows, count=None):
    """The step, its arguments after a prompt of so many rows, and the prompt."""
    batch = inputs(ROWS[rows][:count], side="left")
    with torch.no_grad():
        output = model(**batch, use_cache=True)
    step = DecoderStep(model)
    token = choose(output.logits[:, -1])
    mask = torch.cat([batch["attention_mask"], torch.ones_like(token)], dim=1)
    state = state_of(output.past_key_values)
    return step, (token, mask, *state), batch


def check_steps(model, run, arguments, batch, tolerance=1e-4) -> None:
    """
    Consecutive steps, of which each is one longer than the one before, against the eager model over the whole text
    without a cache; then fewer rows, down to one, with other media, after a shorter prompt.

    Args:
        run: the step's arguments -> logits, keys and values, by the graph
    """
    token, mask, keys, values, *media = arguments
    text, lengths = batch["input_ids"], []
    with torch.no_grad():
        for _ in range(3):
            lengths.append(keys.shape[3])
            text = torch.cat([text, token], dim=1)
            logits, keys, values = run(token, mask, keys, values, *media)
            whole = {**batch, "input_ids": text, "attention_mask": mask}
            assert difference(logits, model(**whole, use_cache=False).logits[:, -1]) <= tolerance
            token = choose(logits)
            mask = torch.cat([mask, torch.ones_like(token)], dim=1)
        assert lengths == list(range(lengths[0], lengths[0] + 3))
        for count in (2, 1):
            step, others, _ = exported_step(model, "images", count)
            assert others[0].shape[0] == count and others[2].shape[3] < lengths[0]
            for found, expected in zip(run(*others), step(*others), strict=True):
                assert difference(found, expected) <= tolerance


@pytest.mark.parametrize("gated", [True, pytest.param(False, marks=slow)])
def test_the_exported_step_decodes_as_the_model_does(gated, tmp_path):
    model = shallow(cross_attention_gated=gated)
    step, arguments, batch = exported_step(model, "mixed")
    exported = torch.export.export(step, arguments, dynamic_shapes=step.SHAPES)
    torch.export.save(exported, tmp_path / "step.pt2")
    check_steps(model, torch.export.load(tmp_path / "step.pt2").module(), arguments, batch)


def test_what_cannot_be_exported_is_said():
    model = shallow(audio=None)
    with pytest.raises(ValueError, match=r"it has no encoder for them .audio_config is None"):
        MediaEncoder(model, "audio")
    with pytest.raises(ValueError, match="modality must be one of image, audio, got 'video'"):
        MediaEncoder(model, "video")
    with torch.no_grad():
        cache = model(**inputs(ROWS["text"]), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="This cache has seen no media"):
        state_of(cache)
