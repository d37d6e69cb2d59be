"""
The GPT-2 family at reduced size: shapes and switches of real checkpoints, weights of transformers' own class.

The joint model has both encoders and fresh cross-attention, so it is the decoder as users get it. It has the seven
special tokens behind the original vocabulary; comparisons are over the original vocabulary.
"""

import pytest
import torch
from transformers import GPT2LMHeadModel

from modeling_mm import MMForConditionalGeneration
from tests.fakes.tiny import EOS, VOCABULARY, difference, gpt2_config, image, joined, pad_images, seeded

FAMILY = {
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 48},
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 32},
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 40},
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 50},
    "gelu": {"activation_function": "gelu"},
    "relu": {"activation_function": "relu"},
    "silu": {"activation_function": "silu"},
    "n_inner": {"n_inner": 40},
    "mistral": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    "inverse layer": {"scale_attn_by_inverse_layer_idx": True},
    "unscaled": {"scale_attn_weights": False},
    "untied": {"tie_word_embeddings": False},
    "epsilon": {"layer_norm_epsilon": 1e-3},
}
DEEP = ("gpt2-medium", "gpt2-large", "gpt2-xl")
IMPLEMENTATIONS = ("eager", "sdpa")
IDS = torch.randint(1, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(0))


def pair(name: str, implementation: str = "sdpa", **fields) -> tuple[MMForConditionalGeneration, GPT2LMHeadModel]:
    config = gpt2_config(**{**FAMILY[name], **fields})
    # Deep models with wide weights saturate: as deep checkpoints do, they start narrower.
    config.initializer_range = 0.15 if config.n_layer == 4 else 0.08
    config._attn_implementation = implementation
    theirs = seeded(lambda: GPT2LMHeadModel(config))
    # GPT-2's class starts biases at zero, where a bias that is lost would not be missed.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim == 1:
                parameter += torch.randn(parameter.shape, generator=generator) * 0.1
    return joined(text=theirs, attn_implementation=implementation), theirs


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return difference(one, other) <= tolerance * max(1.0, other.abs().max().item())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", FAMILY)
def test_logits_are_equal(name, implementation):
    ours, theirs = pair(name, implementation)
    with torch.no_grad():
        expected = theirs(IDS, output_hidden_states=True)
        got = ours(IDS, output_hidden_states=True)
    assert expected.logits.std() > 0.1  # they say something
    assert close(got.logits[..., :VOCABULARY], expected.logits)
    for one, other in zip(got.hidden_states, expected.hidden_states, strict=True):
        assert close(one, other)


@pytest.mark.parametrize("name", FAMILY)
def test_logits_are_equal_where_media_are_shown_to_a_fresh_model(name):
    ours, theirs = pair(name)
    ids = IDS.clone()
    ids[:, 2] = ours.config.image_token_id
    with torch.no_grad():
        got = ours(ids, **pad_images([[image(i)] for i in range(3)])).logits
        text_only = theirs(inputs_embeds=ours.get_input_embeddings()(ids)).logits
    assert close(got[..., :VOCABULARY], text_only)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_logits_are_equal_with_padding(implementation, side):
    ours, theirs = pair("gpt2", implementation)
    mask = torch.ones_like(IDS)
    mask[1, :3] = mask[2, :5] = 0
    mask = mask if side == "left" else mask.flip(1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        got = ours(IDS, attention_mask=mask).logits[..., :VOCABULARY]
        expected = theirs(IDS, attention_mask=mask, position_ids=positions).logits
    assert close(got[mask.bool()], expected[mask.bool()])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["gpt2", *DEEP, "mistral", "untied", "relu"])
def test_greedy_generation_is_equal_token_for_token(name, implementation):
    ours, theirs = pair(name, implementation)
    # The special tokens behind the vocabulary are no part of the comparison.
    special = list(range(VOCABULARY, ours.config.text_config.vocab_size))
    kwargs = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": EOS}
    mask = torch.ones_like(IDS)
    mask[1, :3] = 0
    got = ours.generate(IDS, attention_mask=mask, suppress_tokens=special, **kwargs)
    assert torch.equal(got, theirs.generate(IDS, attention_mask=mask, **kwargs))


@pytest.mark.parametrize("kwargs", [{"num_beams": 3}, {"do_sample": True, "top_k": 5}], ids=["beams", "sampling"])
def test_beams_and_samples_are_equal_too(kwargs):
    ours, theirs = pair("gpt2")
    special = list(range(VOCABULARY, ours.config.text_config.vocab_size))
    kwargs = {"max_new_tokens": 8, "eos_token_id": None, "pad_token_id": EOS, "do_sample": False, **kwargs}
    mask = torch.ones_like(IDS)
    if kwargs["do_sample"]:  # of the same distribution: filtered by the same five tokens
        one = ours.generate(IDS, attention_mask=mask, suppress_tokens=special, output_scores=True,
                            return_dict_in_generate=True, **{**kwargs, "max_new_tokens": 1})  # fmt: skip
        other = theirs.generate(IDS, attention_mask=mask, output_scores=True, return_dict_in_generate=True,
                                **{**kwargs, "max_new_tokens": 1})  # fmt: skip
        one, other = one.scores[0][:, :VOCABULARY].softmax(-1), other.scores[0].softmax(-1)
        assert (one > 0).sum(-1).tolist() == [5, 5, 5] and difference(one, other) < 1e-5
        return
    got = ours.generate(IDS, attention_mask=mask, suppress_tokens=special, **kwargs)
    assert torch.equal(got, theirs.generate(IDS, attention_mask=mask, **kwargs))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", FAMILY)
def test_loss_and_gradients_are_equal(name, implementation):
    """Over the same vocabulary: the special tokens of ours would take a share of every softmax."""
    ours, theirs = pair(name, implementation)
    theirs.resize_token_embeddings(ours.config.text_config.vocab_size, mean_resizing=False)
    with torch.no_grad():
        theirs.transformer.wte.weight.copy_(ours.get_input_embeddings().weight)
        theirs.lm_head.weight.copy_(ours.lm_head.weight)
    labels = IDS.clone()
    labels[0, :4] = -100
    one, other = ours(IDS, labels=labels), theirs(IDS, labels=labels)
    assert one.loss.item() == pytest.approx(other.loss.item(), rel=1e-5)
    one.loss.backward()
    other.loss.backward()
    gradients = {key: p.grad for key, p in ours.named_parameters() if p.grad is not None}
    for key, parameter in theirs.named_parameters():
        name = key.replace("transformer.", "model.language_model.")
        scale = parameter.grad.abs().max().item()
        assert difference(gradients[name], parameter.grad) <= 1e-4 * scale + 1e-7, key


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_half_precision_is_as_close_as_half_precision_is(dtype, implementation):
    ours, theirs = pair("gpt2", implementation)
    with torch.no_grad():
        exact = theirs(IDS).logits
        expected, got = theirs.to(dtype)(IDS).logits, ours.to(dtype)(IDS).logits[..., :VOCABULARY]
    assert difference(got, expected) <= 2 * difference(expected, exact) + 1e-3


def test_every_parameter_of_gpt2_has_its_place():
    ours, theirs = pair("gpt2")
    names = {name.replace("transformer.", "model.language_model.") for name in theirs.state_dict()}
    assert names <= set(ours.state_dict())
    rest = set(ours.state_dict()) - names
    assert {name.split(".")[1] for name in rest if not name.startswith("model.language_model.cross_blocks.")} == {
        "vision_tower", "audio_tower", "vision_connector", "audio_connector"
    }  # fmt: skip
