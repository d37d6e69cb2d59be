"""attention.py against GPT-2's own attention with the same weights, and the implementations against each other."""

import pytest
import torch
from torch import nn
from transformers import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from modeling_mm.attention import Attention, eager_attention
from modeling_mm.masks import cross_attention_mask
from tests.fakes.tiny import difference, gpt2_config

FIELDS = [
    {},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False},
    {"reorder_and_upcast_attn": True},
    {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
    {"n_head": 1},
    {"n_head": 32},
]
IDS = [",".join(fields) or "default" for fields in FIELDS]


def both(implementation: str, layer_idx: int = 2, cross: bool = False, **fields) -> tuple[Attention, GPT2Attention]:
    config = gpt2_config(**fields)
    config._attn_implementation = implementation
    theirs = GPT2Attention(config, is_cross_attention=cross, layer_idx=layer_idx).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours = Attention(config, layer_idx, is_cross_attention=cross).eval()
    ours.load_state_dict(theirs.state_dict())  # the same names and shapes, nothing left over
    return ours, theirs


def causal(config, x: torch.Tensor, attention_mask: torch.Tensor | None = None, cache=None):
    return create_causal_mask(
        config=config, inputs_embeds=x, attention_mask=attention_mask, past_key_values=cache, position_ids=None
    )


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("fields", FIELDS, ids=IDS)
def test_self_attention_equals_gpt2s(implementation, fields):
    ours, theirs = both(implementation, **fields)
    x = torch.randn(2, 5, 32)
    mask = causal(ours.config, x, torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]))
    one, weights = ours(x, mask)
    other, their_weights = theirs(x, attention_mask=mask)
    assert difference(one, other) < 1e-5
    if implementation == "eager":
        assert difference(weights, their_weights) < 1e-6
        assert weights.shape == (2, ours.config.n_head, 5, 5)
    else:
        assert weights is None


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("fields", FIELDS, ids=IDS)
def test_cross_attention_equals_gpt2s(implementation, fields):
    ours, theirs = both(implementation, cross=True, **fields)
    x, media = torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    visible = torch.ones(2, 5, 7).bool()
    visible[0, :, 4:] = False
    mask, _ = cross_attention_mask(visible, torch.float32, boolean=implementation == "sdpa")
    one, weights = ours(x, mask, media=ours.keys_and_values(media))
    other, their_weights = theirs(x, encoder_hidden_states=media, encoder_attention_mask=mask)
    assert difference(one, other) < 1e-5
    if implementation == "eager":
        assert difference(weights, their_weights) < 1e-6
        assert weights.shape == (2, ours.config.n_head, 5, 7)
        assert weights[0, ..., 4:].max() == 0


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_cached_self_attention_equals_gpt2s(implementation):
    """One step after another through a cache of each; layer 2 writes to its own slot."""
    ours, theirs = both(implementation)
    ours_cache, their_cache = DynamicCache(config=ours.config), DynamicCache(config=ours.config)
    for length in (3, 1, 1):
        x = torch.randn(2, length, 32)
        mask = causal(ours.config, x, cache=ours_cache) if length > 1 else None
        one, _ = ours(x, mask, ours_cache)
        other, _ = theirs(x, past_key_values=their_cache, attention_mask=mask)
        assert difference(one, other) < 1e-5
    assert ours_cache.get_seq_length(2) == 5 and ours_cache.get_seq_length(0) == 0


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_gradients_equal_gpt2s(cross):
    ours, theirs = both("sdpa", cross=cross)
    x, media = torch.randn(2, 4, 32), torch.randn(2, 6, 32)
    if cross:
        ours(x, media=ours.keys_and_values(media))[0].square().sum().backward()
        theirs(x, encoder_hidden_states=media)[0].square().sum().backward()
    else:
        mask = causal(ours.config, x)
        ours(x, mask)[0].square().sum().backward()
        theirs(x, attention_mask=mask)[0].square().sum().backward()
    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert their_gradients.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        scale = their_gradients[name].abs().max().item()
        assert difference(parameter.grad, their_gradients[name]) < 1e-5 * max(scale, 1.0), name


@pytest.fixture
def flex_uncompiled():
    """transformers compiles flex attention, a minute's work on a CPU; its plain form computes the same."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("implementation", ["sdpa", "flex_attention"])
def test_self_attention_is_the_same_in_every_implementation(implementation, flex_uncompiled):
    x, padding = torch.randn(2, 9, 32), torch.tensor([[0] * 3 + [1] * 6, [1] * 9])
    torch.manual_seed(1)
    eager, _ = both("eager")
    torch.manual_seed(1)
    other, _ = both(implementation)
    with torch.no_grad():
        expected, _ = eager(x, causal(eager.config, x, padding))
        got, _ = other(x, causal(other.config, x, padding))
    real = padding.bool()
    assert difference(got[real], expected[real]) < 1e-5


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("implementation", ["sdpa", "flex_attention"])
def test_cross_attention_is_the_same_in_every_implementation(implementation, flex_uncompiled):
    x, media, visible = torch.randn(2, 5, 32), torch.randn(2, 7, 32), torch.rand(2, 5, 7) < 0.5
    torch.manual_seed(1)
    eager, _ = both("eager", cross=True)
    torch.manual_seed(1)
    other, _ = both(implementation, cross=True)
    with torch.no_grad():
        mask, sees = cross_attention_mask(visible, torch.float32, boolean=False)
        expected, _ = eager(x, mask, media=eager.keys_and_values(media))
        mask, _ = cross_attention_mask(visible, torch.float32, boolean=implementation == "sdpa")
        got, _ = other(x, mask, media=other.keys_and_values(media))
    assert difference(torch.where(sees, got, 0.0), torch.where(sees, expected, 0.0)) < 1e-5


def test_an_implementation_given_in_the_call_overrides_the_configs():
    attention, _ = both("sdpa", cross=True)
    keys_and_values = attention.keys_and_values(torch.randn(1, 3, 32))
    assert attention(torch.randn(1, 2, 32), media=keys_and_values)[1] is None
    assert attention(torch.randn(1, 2, 32), media=keys_and_values, implementation="eager")[1] is not None


@pytest.mark.parametrize("fields", FIELDS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_query_alone_gives_what_it_gives_among_others(fields, dtype):
    """Decoding on a CPU takes another way than the fused kernel."""
    ours, _ = both("sdpa", cross=True, **fields)
    ours = ours.to(dtype)
    x, media = torch.randn(2, 3, 32, dtype=dtype), ours.keys_and_values(torch.randn(2, 7, 32, dtype=dtype))
    with torch.no_grad():
        together, weights = ours(x, media=media)
        alone, no_weights = ours(x[:, 1:2], media=media)
    assert weights is None and no_weights is None
    assert difference(alone, together[:, 1:2]) < (1e-5 if dtype == torch.float32 else 0.1)


def test_each_row_of_eager_weights_sums_to_one():
    attention, _ = both("eager")
    x = torch.randn(1, 6, 32)
    _, weights = attention(x, causal(attention.config, x))
    assert difference(weights.sum(-1), torch.ones(1, 4, 6)) < 1e-6
    assert weights.triu(1).max() == 0


def test_reorder_and_upcast_computes_scores_in_float32_in_a_half_precision_model():
    """Scores that float16 cannot hold: without upcasting they overflow, with it they do not, as in GPT-2."""
    query = torch.full((1, 4, 2, 8), 200.0, dtype=torch.float16)
    keys = torch.full((1, 4, 2, 8), 200.0, dtype=torch.float16)
    keys[:, :, 1] += 1
    values = torch.randn(1, 4, 2, 8, dtype=torch.float16)
    plain, _ = both("eager")
    upcast, _ = both("eager", reorder_and_upcast_attn=True)
    _, weights = eager_attention(upcast, query, keys, values, None, scaling=0.3)
    assert torch.isfinite(weights).all() and weights.dtype == torch.float16
    assert weights[0, 0, 0].tolist() == [0.0, 1.0]
    _, weights = eager_attention(plain, query, keys, values, None, scaling=0.3)
    assert not torch.isfinite(weights).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_reorder_and_upcast_equals_gpt2s_in_half_precision(dtype):
    ours, theirs = both("eager", reorder_and_upcast_attn=True)
    ours, theirs, x = ours.to(dtype), theirs.to(dtype), torch.randn(2, 5, 32, dtype=dtype)
    mask = causal(ours.config, x)
    assert difference(ours(x, mask)[0], theirs(x, attention_mask=mask)[0]) < 2e-2


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_drops_weights_in_training_only(implementation):
    ours, _ = both(implementation, attn_pdrop=0.5)
    x = torch.randn(1, 4, 32)
    assert difference(ours(x)[0], ours(x)[0]) == 0
    ours.train()
    assert difference(ours(x)[0], ours(x)[0]) > 1e-3


def test_heads_that_do_not_divide_the_width_are_refused_by_name():
    with pytest.raises(ValueError, match=r"n_embd must be a multiple of n_head, got n_embd=32, n_head=5"):
        Attention(gpt2_config(n_head=5))
