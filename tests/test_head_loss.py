"""head_loss.py against the loss of all logits: equal loss and gradients, and never a tensor of all logits."""

import copy

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_mm.head_loss import head_loss, takes_states
from modeling_mm.layers import Head
from modeling_mm.losses import causal_lm_loss
from tests.fakes.tiny import IMAGE, inputs, joined, open_gates

N, D, V = 33, 12, 70


def sample(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, Head, torch.Tensor]:
    torch.manual_seed(0)
    head = Head(D, V, bias=False).to(dtype)
    targets = torch.randint(0, V, (3, N // 3))
    targets[0, :4], targets[2, 7:] = -100, -100
    return torch.randn(3, N // 3, D).mul(3).to(dtype).requires_grad_(), head, targets


def plain(states: torch.Tensor, head: Head, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(states, head.weight).flatten(0, 1).float(), targets.flatten())


def gradients(loss, states, head, targets, **options) -> tuple[float, torch.Tensor, torch.Tensor]:
    value = loss(states, head, targets, **options)
    of_states, of_weight = torch.autograd.grad(value, [states, head.weight])
    return value.item(), of_states, of_weight


@pytest.mark.parametrize("tokens", [1, 2, 7, 21, 22, 1000])
def test_loss_and_gradients_equal_those_of_all_logits_whatever_the_chunk(tokens):
    given = sample()
    got, expected = gradients(head_loss, *given, chunk_bytes=4 * V * tokens), gradients(plain, *given)
    assert got[0] == pytest.approx(expected[0], abs=1e-6)
    for mine, theirs in zip(got[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_nearer_to_float32_than_all_logits_are(dtype):
    states, head, targets = sample(dtype)
    exact = gradients(plain, states.detach().float().requires_grad_(), copy.deepcopy(head).float(), targets)
    got, whole = (gradients(loss, states, head, targets) for loss in (head_loss, plain))
    assert got[1].dtype == got[2].dtype == dtype and abs(got[0] - exact[0]) < 0.02
    for mine, theirs, true in zip(got[1:], whole[1:], exact[1:], strict=True):
        assert (mine - true).abs().max() <= 1.5 * (theirs - true).abs().max() + 1e-4


def test_autocast_multiplies_in_its_type_and_returns_gradients_in_that_of_the_weights():
    states, head, targets = sample()
    with torch.autocast("cpu", torch.bfloat16):
        got = gradients(head_loss, states, head, targets)
    expected = gradients(plain, states, head, targets)
    assert got[1].dtype == got[2].dtype == torch.float32
    torch.testing.assert_close(got[2], expected[2], atol=0.02, rtol=0.05)


def test_num_items_in_batch_replaces_the_mean():
    given = sample()
    learned = int((given[2] != -100).sum())
    mean, some = gradients(head_loss, *given), gradients(head_loss, *given, num_items_in_batch=torch.tensor(100))
    assert some[0] == pytest.approx(mean[0] * learned / 100, rel=1e-6)
    torch.testing.assert_close(some[2], mean[2] * learned / 100)


def test_without_any_target_loss_and_gradients_are_zero():
    states, head, targets = sample()
    value, of_states, of_weight = gradients(head_loss, states, head, torch.full_like(targets, -100))
    assert value == 0 and not of_states.any() and not of_weight.any()


def test_a_frozen_head_gets_no_gradient_and_evaluation_makes_none():
    states, head, targets = sample()
    expected = gradients(head_loss, states, head, targets)
    head.weight.requires_grad_(False)
    loss = head_loss(states, head, targets)
    loss.backward()
    torch.testing.assert_close(states.grad, expected[1])
    assert head.weight.grad is None
    with torch.no_grad():
        assert head_loss(states, head, targets).item() == pytest.approx(expected[0])


def test_gradients_are_kept_for_one_backward_pass():
    loss = head_loss(*sample())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="skip_logits=False"):
        loss.backward()


def test_targets_of_other_tokens_are_refused():
    states, head, targets = sample()
    with pytest.raises(ValueError, match=r"\(3, 10\), but the states before the head are of \(3, 11\)"):
        head_loss(states, head, targets[:, 1:])


class Largest(TorchDispatchMode):
    """Records the largest number of values of a tensor that is made."""

    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.values = max(self.values, tensor.numel())
        return made


def test_logits_of_all_tokens_are_never_made():
    states, head, targets = sample()
    with Largest() as chunked:
        head_loss(states, head, targets, chunk_bytes=4 * V * 5).backward()
    with Largest() as whole:
        plain(states, head, targets).backward()
    assert chunked.values == V * D < N * V == whole.values


# ---- In the model ---------------------------------------------------------------------------------------------------


def learning(model):
    batch = inputs([[5, IMAGE, 6, 7, 8, 9], [7, 8, IMAGE, 3]])
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :3] = -100
    return batch | {"labels": labels}


def grads(model, **options) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    output = model(**learning(model), **options)
    output.loss.backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("count", [None, 17])
def test_a_model_that_skips_logits_learns_the_same(count):
    model = open_gates(joined()).train()
    whole, expected = grads(model, num_items_in_batch=count)
    some, got = grads(model, num_items_in_batch=count, skip_logits=True)
    assert some.logits is None and whole.logits is not None
    assert some.loss.item() == pytest.approx(whole.loss.item(), abs=1e-5)
    assert got.keys() == expected.keys()
    for name in got:
        torch.testing.assert_close(got[name], expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_a_model_without_targets_skips_no_logits():
    model = open_gates(joined())
    batch = {name: value for name, value in learning(model).items() if name != "labels"}
    assert model(**batch, skip_logits=True).logits is not None


def test_targets_that_are_kept_are_learned_alone():
    model = open_gates(joined())
    batch = learning(model)
    targets = F.pad(batch.pop("labels"), (0, 1), value=-100)[:, 1:]
    options = {"shift_labels": targets, "logits_to_keep": targets != -100}
    with torch.no_grad():
        some, whole = model(**batch, **options, skip_logits=True), model(**batch, **options)
    assert some.loss.item() == pytest.approx(whole.loss.item(), abs=1e-5) and some.logits is None


def hooked(model):
    model.lm_head.register_forward_hook(lambda *_: None)


def other_loss(model):
    model.loss_function = lambda **given: causal_lm_loss(**given) * 2


def with_bias(model):
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(model.lm_head.weight)))


@pytest.mark.parametrize("change", [hooked, other_loss, with_bias])
def test_a_head_that_somebody_watches_or_a_loss_of_a_user_gets_logits(change):
    model = open_gates(joined())
    change(model)
    calls = []
    whole = model(**learning(model))
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    some = model(**learning(model), skip_logits=True)
    assert calls and some.logits is None and some.loss.item() == whole.loss.item()


def test_a_quantized_or_absent_head_is_called():
    assert takes_states(Head(D, V, bias=False), torch.zeros(1, D))
    assert not takes_states(torch.nn.Linear(D, V, bias=False), torch.zeros(1, D))
    assert not takes_states(Head(D, V, bias=False).to("meta"), torch.zeros(1, D))
