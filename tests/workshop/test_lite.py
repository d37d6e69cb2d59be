"""EfficientNet-Lite from a file of tensors: all variants, without squeeze-excite, and their head."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers import EfficientNetModel

from scripts.workshop.lite import (
    LITE_SIZES,
    SQUEEZE_EXCITE,
    efficientnet_lite,
    lite_config,
    lite_head,
    lite_processor,
)

PARAMETERS = {"lite0": 3_397_904, "lite1": 4_170_645, "lite2": 4_849_061}


def drawn(tensor: torch.Tensor) -> torch.Tensor:
    """Return a kernel that keeps the size of its inputs, so that no activation saturates; others as they are."""
    return torch.randn_like(tensor) * (2 / tensor[0].numel()) ** 0.5 if tensor.ndim == 4 else tensor


def random_state(variant: str) -> dict[str, torch.Tensor]:
    """The tensors of a package in their order, under names of another framework."""
    torch.manual_seed(0)
    state = EfficientNetModel(lite_config(variant)).state_dict()
    names = [name for name in state if SQUEEZE_EXCITE not in name]
    given = {f"block.{number}": drawn(state[name]) for number, name in enumerate(names)}
    return {**given, "_fc.weight": torch.randn(1000, 1280), "_fc.bias": torch.randn(1000)}


@pytest.mark.parametrize("variant", LITE_SIZES)
def test_a_variant_is_read_in_the_order_of_its_tensors(tmp_path, variant):
    state = random_state(variant)
    torch.save(state, tmp_path / "weights.pth")
    model = efficientnet_lite(tmp_path / "weights.pth", variant)
    assert model.num_parameters() == PARAMETERS[variant]
    loaded = [tensor for name, tensor in model.state_dict().items() if SQUEEZE_EXCITE not in name]
    given = [tensor for name, tensor in state.items() if "_fc." not in name]
    assert all(torch.equal(a, b) for a, b in zip(loaded, given, strict=True))
    weight, bias = lite_head(tmp_path / "weights.pth")
    assert torch.equal(weight, state["_fc.weight"]) and torch.equal(bias, state["_fc.bias"])


def test_tensors_of_another_variant_are_refused(tmp_path):
    torch.save(random_state("lite0"), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth does not hold the tensors of EfficientNet-Lite2"):
        efficientnet_lite(tmp_path / "weights.pth", "lite2")


def test_squeeze_excite_changes_nothing_and_has_next_to_no_weights(tmp_path):
    torch.save(random_state("lite0"), tmp_path / "weights.pth")
    model = efficientnet_lite(tmp_path / "weights.pth", "lite0")
    without = deepcopy(model)
    for block in without.encoder.blocks:
        block.squeeze_excite = nn.Identity()
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = model(pixels).last_hidden_state, without(pixels).last_hidden_state
    assert ours.abs().max() > 0 and torch.equal(ours, theirs)
    assert 0 < model.num_parameters() - without.num_parameters() < 0.01 * model.num_parameters()


@pytest.mark.parametrize("variant", LITE_SIZES)
def test_images_get_the_size_of_their_variant(variant):
    pixels = lite_processor(variant)(torch.zeros(3, 50, 40, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, LITE_SIZES[variant], LITE_SIZES[variant])
    assert torch.equal(pixels, torch.full_like(pixels, -1.0))
