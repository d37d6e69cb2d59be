"""layers.py: building blocks, and how every weight starts."""

import math

import pytest
import torch
from torch import nn
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.pytorch_utils import Conv1D

from modeling_mm import layers
from modeling_mm.layers import (
    MLP,
    Head,
    Projection,
    ResidualProjection,
    TanhGate,
    init_weights,
    sinusoidal_positions,
    turn_weights,
)
from tests.fakes.tiny import difference, gpt2_config


def test_tanh_gate_starts_closed_with_a_gradient_that_can_open_it():
    gate, x = TanhGate(), torch.randn(2, 3)
    out = gate(x)
    assert out.abs().max() == 0
    out.sum().backward()
    assert gate.weight.grad.item() == pytest.approx(x.sum().item(), rel=1e-6)  # tanh'(0) = 1


def test_tanh_gate_scales_by_the_tanh_of_its_weight():
    gate, x = TanhGate(), torch.randn(2, 3)
    nn.init.constant_(gate.weight, 0.5)
    assert difference(gate(x), x * math.tanh(0.5)) < 1e-7


@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu", "silu"])
@pytest.mark.parametrize("n_inner", [None, 20])
def test_mlp_equals_gpt2s_with_its_weights(activation, n_inner):
    config = gpt2_config(activation_function=activation, n_inner=n_inner)
    theirs = GPT2MLP(n_inner or 4 * config.n_embd, config).eval()
    ours = MLP(config).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, config.n_embd)
    assert difference(ours(x), theirs(x)) < 1e-6


@pytest.mark.parametrize("n_inner", [None, 20])
def test_an_mlp_has_the_width_that_it_is_given_first(n_inner):
    config = gpt2_config(n_inner=n_inner)
    assert MLP(config, inner=6).c_fc.weight.shape == (config.n_embd, 6)


def test_mlp_drops_out_in_training_only():
    mlp, x = MLP(gpt2_config(resid_pdrop=0.5)), torch.randn(1, 8, 32)
    init_weights(mlp.c_fc, gpt2_config())
    init_weights(mlp.c_proj, gpt2_config())
    assert (mlp.train()(x) == 0).float().mean() > 0.3
    assert (mlp.eval()(x) == 0).sum() == 0


@pytest.mark.parametrize("width", [1, 2, 7, 8])
def test_sinusoidal_positions_equal_the_formula(width):
    positions = torch.tensor([[0, 1, 5], [700, 2, 3]])
    encoding = sinusoidal_positions(positions, width)
    assert encoding.shape == (2, 3, width) and encoding.dtype == torch.float32
    half = (width + 1) // 2
    for place in ((0, 0), (0, 2), (1, 0)):
        angles = [positions[place].item() / 10000 ** (i / half) for i in range(half)]
        expected = ([math.sin(a) for a in angles] + [math.cos(a) for a in angles])[:width]
        assert encoding[place].tolist() == pytest.approx(expected, abs=1e-4)


def test_sinusoidal_positions_differ_between_positions():
    encoding = sinusoidal_positions(torch.arange(512), 32)
    distances = torch.cdist(encoding, encoding) + torch.eye(512) * 9
    assert distances.min() > 0.1


# ---- init_weights: one assertion for each line of its table ---------------------------------------------------------


def started(module: nn.Module, **fields) -> nn.Module:
    for parameter in module.parameters():
        nn.init.constant_(parameter, 9.0)
    for part in module.modules():
        init_weights(part, gpt2_config(initializer_range=0.02, n_layer=8, **fields))
    return module


@pytest.mark.parametrize(
    "module",
    [Conv1D(200, 200), nn.Linear(200, 200), nn.Conv1d(100, 100, 4)],
    ids=["Conv1D", "Linear", "Conv1d"],
)
def test_projections_start_normal_with_zero_bias(module):
    started(module)
    assert module.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(module.weight.mean().item()) < 5e-4
    assert module.bias.abs().max() == 0


def test_a_linear_layer_without_bias_starts_too():
    assert started(nn.Linear(200, 200, bias=False)).weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_residual_projections_start_smaller_with_depth():
    module = started(ResidualProjection(200, 200))
    assert module.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * 8), rel=0.02)
    assert module.bias.abs().max() == 0


def test_a_zero_residual_projection_starts_at_zero():
    module = started(ResidualProjection(20, 20, zero=True))
    assert module.weight.abs().max() == 0 and module.bias.abs().max() == 0


def test_embeddings_norms_and_gates_start_as_the_table_says():
    assert started(nn.Embedding(200, 200)).weight.std().item() == pytest.approx(0.02, rel=0.02)
    norm = started(nn.LayerNorm(8))
    assert norm.weight.unique().tolist() == [1.0] and norm.bias.unique().tolist() == [0.0]
    assert started(TanhGate()).weight.item() == 0.0


def test_recurrent_layers_start_uniform_with_zero_bias():
    gru = started(nn.GRU(24, 40, num_layers=2))
    for name, parameter in gru.named_parameters():
        if "bias" in name:
            assert parameter.abs().max() == 0, name
        else:
            bound = math.sqrt(6 / (parameter.shape[0] + parameter.shape[1]))
            assert 0.9 * bound < parameter.abs().max() <= bound, name


def test_loaded_tensors_are_left_alone():
    """`from_pretrained` marks what it has loaded; initialising the module again must not touch it."""
    linear = nn.Linear(4, 4)
    nn.init.constant_(linear.weight, 3.0)
    nn.init.constant_(linear.bias, 9.0)
    linear.weight._is_hf_initialized = True
    init_weights(linear, gpt2_config())
    assert linear.weight.unique().tolist() == [3.0]
    assert linear.bias.unique().tolist() == [0.0]


@pytest.fixture
def without_kernels(monkeypatch):
    """A CPU without instructions for half precision, whatever this one has."""
    monkeypatch.setattr(layers, "has_half_kernels", lambda dtype: False)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (4, 1), (2, 0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_products_in_half_precision_are_those_of_float64_rounded(dtype, shape, without_kernels, monkeypatch):
    monkeypatch.setattr(layers, "COLUMNS", 7)  # several blocks, the last of them smaller
    text = gpt2_config()
    modules = [Projection(20, 32), ResidualProjection(20, 32), Head(32, 20, bias=False)]
    for module in modules:
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=text.initializer_range)
        module.to(dtype)
        x = torch.randn(*shape, 32).to(dtype)
        weight = module.weight.T if isinstance(module, Head) else module.weight
        bias = 0.0 if module.bias is None else module.bias.double()
        expected = x.double() @ weight.double() + bias
        with torch.no_grad():
            got = module(x)
        assert got.dtype == dtype and got.shape == expected.shape and got.is_contiguous()
        assert torch.allclose(got.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)


def test_half_precision_is_multiplied_by_torch_where_it_learns_and_where_it_has_kernels(without_kernels, monkeypatch):
    calls = []
    monkeypatch.setattr(layers, "multiply", lambda *args: calls.append(len(args)))
    projection, head, x = Projection(4, 3).bfloat16(), Head(3, 4, bias=False).bfloat16(), torch.ones(2, 3).bfloat16()
    assert projection(x).requires_grad and head(x).requires_grad
    with torch.no_grad():
        assert Projection(4, 3)(x.float()).shape == (2, 4), "float32"
        assert calls == []
        projection(x), head(x)
        assert calls == [3, 3]
        monkeypatch.setattr(layers, "has_half_kernels", lambda dtype: True)
        assert projection(x).shape == head(x).shape == (2, 4)
    assert calls == [3, 3]


@pytest.mark.parametrize("rows", [(1, 1), (2, 1), (2, 3), (1, 13), (0, 1)], ids=str)
def test_the_head_gives_the_same_scores_for_any_number_of_rows(rows):
    head, x = Head(32, 50, bias=False), torch.randn(*rows, 32)
    with torch.no_grad():
        got = head(x)
    assert got.shape == (*rows, 50) and got.is_contiguous()
    assert difference(got, x @ head.weight.T) < 1e-5 if x.numel() else True


@pytest.mark.parametrize("has_kernels", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_turned_weights_differ_in_memory_alone(dtype, has_kernels, monkeypatch):
    monkeypatch.setattr(layers, "has_half_kernels", lambda dtype: has_kernels)
    mlp = MLP(gpt2_config()).to(dtype)
    x, before = torch.randn(2, 3, 32, dtype=dtype), {name: p.clone() for name, p in mlp.named_parameters()}
    expected = mlp(x)
    turn_weights(mlp)
    turned = {name: p for name, p in mlp.named_parameters() if name.endswith(".weight")}
    is_turned = dtype == torch.float16 or (dtype == torch.bfloat16 and has_kernels)
    assert {p.stride() for p in turned.values()} == ({(1, 32), (1, 128)} if is_turned else {(128, 1), (32, 1)})
    assert all(torch.equal(p, before[name]) for name, p in mlp.named_parameters())
    assert difference(mlp(x), expected) < 0.02
    with torch.no_grad():
        assert difference(mlp(x), expected) < 0.02
        assert difference(mlp(x[:1, :1]), expected[:1, :1]) < 0.02
    pointers = {p.data_ptr() for p in turned.values()}
    turn_weights(mlp)
    assert {p.data_ptr() for p in turned.values()} == pointers, "turned twice"
