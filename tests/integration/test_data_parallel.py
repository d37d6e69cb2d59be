"""torch.nn.DataParallel: its replicas have plain tensors for parameters, and run as the model itself does.

`replicate` needs CUDA; what it makes of a module is done here by hand, on the CPU.
"""

import pytest
import torch
from torch import nn

from tests.fakes.tiny import AUDIO, CONNECTORS, IMAGE, difference, inputs, labels, opened, wave

ROWS = [[5, IMAGE, 6, AUDIO, 7], [8, 9, 10], [AUDIO, IMAGE, IMAGE, 11]]


def replica_of(network: nn.Module) -> nn.Module:
    """As torch.nn.parallel.replicate makes one, with `clone` for the broadcast: gradients flow to the original."""
    copies = {id(module): module._replicate_for_data_parallel() for module in network.modules()}
    tensors = {id(p): p.clone() for p in network.parameters()}  # a tied parameter is one copy
    for module in network.modules():
        replica = copies[id(module)]
        replica._former_parameters = {}
        for name, child in module._modules.items():
            if child is None:
                replica._modules[name] = None
            else:
                setattr(replica, name, copies[id(child)])
        for name, parameter in module._parameters.items():
            if parameter is None:
                replica._parameters[name] = None
            else:
                setattr(replica, name, tensors[id(parameter)])
                replica._former_parameters[name] = tensors[id(parameter)]
        for name, buffer in module._buffers.items():
            replica._buffers[name] = None if buffer is None else buffer.clone()
    return copies[id(network)]


def test_a_replica_lists_no_parameters():
    """Otherwise this file would test nothing."""
    replica = replica_of(opened())
    assert list(replica.parameters()) == [] and not isinstance(replica.model.language_model.wte.weight, nn.Parameter)


@pytest.mark.parametrize("rows", [ROWS, ROWS[1:2], [[5, IMAGE, 6]]], ids=["both", "text", "image"])
def test_a_replica_gives_the_same_logits(rows):
    model, batch = opened(), inputs(rows)
    with torch.no_grad():
        assert difference(replica_of(model)(**batch).logits, model(**batch).logits) == 0


@pytest.mark.parametrize("connector", CONNECTORS)
def test_a_replica_gives_the_same_logits_with_every_connector(connector):
    model, batch = opened(vision_connector=connector, audio_connector=connector), inputs(ROWS)
    with torch.no_grad():  # a GRU takes another kernel for weights that are no parameters, and rounds otherwise
        assert difference(replica_of(model)(**batch).logits, model(**batch).logits) <= 1e-5


def test_a_replica_gives_the_same_logits_for_waves():
    model, batch = opened(audio="wav2vec2"), inputs(ROWS, make_sound=wave)
    with torch.no_grad():
        assert difference(replica_of(model)(**batch).logits, model(**batch).logits) == 0


def gradients(model: nn.Module, run: nn.Module, batch: dict) -> dict[str, torch.Tensor | None]:
    model.zero_grad(set_to_none=True)
    run(**batch, labels=labels(batch)).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


FROZEN = ([], ["freeze_vision"], ["freeze_audio"], ["freeze_text", "freeze_vision", "freeze_audio"])


@pytest.mark.parametrize("frozen", FROZEN, ids=str)
def test_gradients_flow_through_a_replica_into_towers_that_are_not_frozen(frozen):
    model = opened(**dict.fromkeys(frozen, True)).train()
    batch = inputs(ROWS)
    expected = gradients(model, model, batch)
    found = gradients(model, replica_of(model), batch)
    assert {name for name, g in found.items() if g is None} == {name for name, g in expected.items() if g is None}
    for name, gradient in found.items():
        assert gradient is None or difference(gradient, expected[name]) <= 1e-6, name
    for tower in ("vision", "audio"):
        inside = [g for name, g in found.items() if name.startswith(f"model.{tower}_tower.") and g is not None]
        assert any(g.abs().max() > 0 for g in inside) == (f"freeze_{tower}" not in frozen)
