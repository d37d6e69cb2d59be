"""objectives.py against torch's own losses, computed in one piece."""

import pytest
import torch
from torch.nn import functional as F

from modeling_mm.losses import (
    causal_lm_loss,
    check_classes,
    classification_loss,
    problem_type,
    scaled_similarities,
    summed_info_nce,
    summed_sigmoid,
)

B, L, V = 3, 11, 17


def sample(dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.randn(B, L, V).mul(3).to(dtype).requires_grad_()
    labels = torch.randint(0, V, (B, L))
    labels[0, :4] = -100
    labels[2, 7:] = -100
    return logits, labels


def reference(logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    return F.cross_entropy(logits[:, :-1].reshape(-1, V).float(), labels[:, 1:].reshape(-1), reduction=reduction)


@pytest.mark.parametrize("chunk_tokens", [1, 2, 7, 32, 33, 34, 2048])
def test_loss_and_gradients_equal_cross_entropy_whatever_the_chunk(chunk_tokens):
    logits, labels = sample()
    loss = causal_lm_loss(logits, labels, V, chunk_tokens=chunk_tokens)
    assert loss.dtype == torch.float32 and loss.shape == ()
    loss.backward()
    got, logits.grad = logits.grad, None
    expected = reference(logits, labels)
    expected.backward()
    assert abs(loss.item() - expected.item()) < 1e-6
    assert (got - logits.grad).abs().max() < 1e-7


@pytest.mark.parametrize("chunk_tokens", [4, 2048])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_logits_are_summed_in_float32(dtype, chunk_tokens):
    logits, labels = sample(dtype)
    loss = causal_lm_loss(logits, labels, V, chunk_tokens=chunk_tokens)
    assert loss.dtype == torch.float32
    assert abs(loss.item() - reference(logits, labels).item()) < 1e-6
    loss.backward()
    assert logits.grad.dtype == dtype


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("chunk_tokens", [4, 2048])
def test_num_items_in_batch_replaces_the_mean(as_tensor, chunk_tokens):
    logits, labels = sample()
    items = torch.tensor(100) if as_tensor else 100
    loss = causal_lm_loss(logits, labels, V, num_items_in_batch=items, chunk_tokens=chunk_tokens)
    assert loss.item() == pytest.approx(reference(logits, labels, "sum").item() / 100, rel=1e-6)


def test_accumulated_halves_equal_the_whole_batch():
    """As Trainer accumulates: each part is divided by the number of targets of all parts together."""
    logits, labels = sample()
    items = (labels[:, 1:] != -100).sum()
    parts = [causal_lm_loss(logits[i : i + 1], labels[i : i + 1], V, num_items_in_batch=items) for i in range(B)]
    assert sum(parts).item() == pytest.approx(causal_lm_loss(logits, labels, V).item(), rel=1e-6)


def test_shift_labels_are_taken_as_they_are():
    logits, labels = sample()
    shifted = torch.cat([labels[:, 1:], torch.full((B, 1), -100)], dim=1)
    assert causal_lm_loss(logits, None, V, shift_labels=shifted).item() == causal_lm_loss(logits, labels, V).item()
    # They win over labels: those would be shifted a second time.
    both = causal_lm_loss(logits, labels.roll(3, 1), V, shift_labels=shifted)
    assert both.item() == causal_lm_loss(logits, labels, V).item()


def test_neither_labels_nor_shift_labels_is_an_error_that_names_both():
    with pytest.raises(ValueError, match="labels or shift_labels"):
        causal_lm_loss(torch.randn(1, 2, V), None, V)


@pytest.mark.parametrize("chunk_tokens", [4, 2048])
def test_without_any_target_the_loss_is_zero_and_so_are_its_gradients(chunk_tokens):
    logits, labels = sample()
    loss = causal_lm_loss(logits, torch.full_like(labels, -100), V, chunk_tokens=chunk_tokens)
    loss.backward()
    assert loss.item() == 0.0 and logits.grad.abs().max() == 0


@pytest.mark.parametrize("items", [0, torch.tensor(0), torch.tensor([0])], ids=["int", "tensor", "vector"])
@pytest.mark.parametrize("chunk_tokens", [4, 2048])
def test_no_items_in_batch_is_a_zero_loss_and_no_nan(items, chunk_tokens):
    logits, labels = sample()
    labels = torch.full_like(labels, -100)
    loss = causal_lm_loss(logits, labels, V, num_items_in_batch=items, chunk_tokens=chunk_tokens)
    loss.sum().backward()
    assert loss.sum().item() == 0.0 and logits.grad.abs().max() == 0


def test_a_batch_of_one_token_has_no_target_and_a_zero_loss():
    logits = torch.randn(B, 1, V, requires_grad=True)
    loss = causal_lm_loss(logits, torch.ones(B, 1, dtype=torch.long), V)
    loss.backward()
    assert loss.item() == 0.0 and logits.grad.abs().max() == 0


def test_another_ignore_index_is_respected():
    logits, labels = sample()
    loss = causal_lm_loss(logits, labels.masked_fill(labels == -100, 3), V, ignore_index=3)
    expected = F.cross_entropy(
        logits[:, :-1].reshape(-1, V), labels.masked_fill(labels == -100, 3)[:, 1:].reshape(-1), ignore_index=3
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_unknown_keywords_pass_by():
    logits, labels = sample()
    assert causal_lm_loss(logits, labels, V, output_attentions=True).item() == causal_lm_loss(logits, labels, V).item()


def test_chunks_keep_no_float32_copy_of_all_logits_for_the_backward_pass():
    """What autograd keeps in float32: a copy of all logits in one piece, next to nothing in chunks."""
    logits = torch.randn(1, 256, 64, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(0, 64, (1, 256))

    def float32_bytes_saved(chunk_tokens: int) -> int:
        saved = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.numel() * 4 if tensor.dtype == torch.float32 else 0
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            causal_lm_loss(logits, labels, 64, chunk_tokens=chunk_tokens)
        return saved

    whole_copy = logits.numel() * 4
    assert float32_bytes_saved(2048) >= whole_copy
    assert float32_bytes_saved(16) < whole_copy / 8


# ---- Classification -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configured", "num_labels", "labels", "expected"),
    [
        (None, 1, torch.tensor([0.5]), "regression"),
        (None, 1, torch.tensor([1]), "regression"),
        (None, 3, torch.tensor([1]), "single_label_classification"),
        (None, 3, torch.tensor([[1.0, 0.0, 1.0]]), "multi_label_classification"),
        ("regression", 3, torch.tensor([1]), "regression"),
        ("single_label_classification", 1, torch.tensor([0.0]), "single_label_classification"),
    ],
)
def test_the_problem_type_is_the_configured_one_or_told_from_the_labels(configured, num_labels, labels, expected):
    assert problem_type(configured, num_labels, labels) == expected


def test_each_problem_type_has_torchs_loss():
    logits = torch.randn(4, 3)
    classes, several, values = torch.tensor([0, 2, 1, 1]), torch.randint(0, 2, (4, 3)).float(), torch.randn(4, 3)
    expected = {
        "single_label_classification": (classes, F.cross_entropy(logits, classes)),
        "multi_label_classification": (several, F.binary_cross_entropy_with_logits(logits, several)),
        "regression": (values, F.mse_loss(logits, values)),
    }
    for problem, (labels, loss) in expected.items():
        assert classification_loss(logits, labels, problem).item() == pytest.approx(loss.item(), rel=1e-6)


def test_regression_of_one_value_takes_labels_with_and_without_the_last_dimension():
    logits, values = torch.randn(4, 1), torch.randn(4)
    expected = (logits[:, 0] - values).square().mean()
    assert classification_loss(logits, values, "regression").item() == pytest.approx(expected.item(), rel=1e-6)
    assert classification_loss(logits, values[:, None], "regression").item() == pytest.approx(
        expected.item(), rel=1e-6
    )


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification", "single_label_classification"])
def test_classification_losses_of_half_precision_logits_are_float32(problem):
    logits = torch.randn(4, 3, dtype=torch.float16)
    labels = torch.zeros(4, dtype=torch.long) if problem.startswith("single") else torch.zeros(4, 3)
    assert classification_loss(logits, labels, problem).dtype == torch.float32


def test_num_items_in_batch_replaces_the_mean_of_classification_losses():
    logits, classes = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    several, values = torch.randint(0, 2, (4, 3)).float(), torch.randn(4, 3)
    for labels, problem in ((classes, "single_label"), (several, "multi_label"), (values, "regression")):
        problem = problem if problem == "regression" else f"{problem}_classification"
        mean = classification_loss(logits, labels, problem)
        for items in (10, torch.tensor(10)):
            loss = classification_loss(logits, labels, problem, items)
            assert loss.item() == pytest.approx(mean.item() * labels.numel() / 10, rel=1e-6)


@pytest.mark.parametrize("shape", [(4,), (4, 1)], ids=str)
@pytest.mark.parametrize("wrong", [3, -1])
def test_a_class_out_of_range_is_refused_with_its_row(shape, wrong):
    labels = torch.tensor([0, 2, -100, 1])
    check_classes(labels.view(shape), 3)
    labels[2] = wrong
    with pytest.raises(
        ValueError, match=f"Row 2: the label is {wrong}, but the model has 3 classes, from 0 to 2; -100"
    ):
        check_classes(labels.view(shape), 3)


def test_an_unlabelled_row_counts_for_nothing_in_single_label_classification():
    logits, classes = torch.randn(3, 4), torch.tensor([1, -100, 2])
    assert classification_loss(logits, classes, "single_label_classification").item() == pytest.approx(
        F.cross_entropy(logits, classes).item(), rel=1e-6
    )


def test_minus_a_hundred_is_a_value_like_any_other_in_regression():
    """It marks what is not to be learned among class ids; a temperature may be just that."""
    logits, values = torch.randn(3, 1), torch.tensor([-100.0, 2.0, 3.0])
    expected = F.mse_loss(logits[:, 0], values)
    assert classification_loss(logits, values, "regression").item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("items", [None, 0, torch.tensor(0)], ids=["none", "int", "tensor"])
@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
def test_classification_losses_without_any_label_are_zero_and_so_are_their_gradients(problem, items):
    single = problem.startswith("single")
    rows = 3 if single else 0  # of several labels and of values none is ignored: there are none in an empty batch
    logits = torch.randn(rows, 4, requires_grad=True)
    labels = torch.full((3,), -100) if single else torch.zeros(0, 4)
    loss = classification_loss(logits, labels, problem, items)
    loss.backward()
    assert loss.item() == 0.0 and loss.dtype == torch.float32
    assert torch.equal(logits.grad, torch.zeros_like(logits))


# ---- Retrieval ------------------------------------------------------------------------------------------------------

ALL = torch.ones(4, dtype=torch.bool)


def test_info_nce_is_the_cross_entropy_of_the_match_among_all():
    logits, targets = torch.randn(3, 4), torch.tensor([1, 2, 3])
    expected = F.cross_entropy(logits, targets, reduction="sum")
    assert summed_info_nce(logits, targets, ALL).item() == pytest.approx(expected.item(), rel=1e-6)


def test_rows_without_a_match_are_neither_counted_nor_candidates():
    logits, kept = torch.randn(3, 4), torch.tensor([True, True, False, True])
    targets = torch.tensor([0, -100, 3])
    expected = F.cross_entropy(logits[[0, 2]][:, kept], torch.tensor([0, 2]), reduction="sum")
    assert summed_info_nce(logits, targets, kept).item() == pytest.approx(expected.item(), rel=1e-6)
    each = torch.tensor([[True, True, False, True], [False] * 4, [False, False, True, True]])  # candidates by row
    expected = F.cross_entropy(logits[:1, kept], targets[:1]) + F.cross_entropy(logits[2:, 2:], torch.tensor([1]))
    assert summed_info_nce(logits, targets, each).item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_sigmoid_loss_judges_the_pairs_that_count():
    logits, counted = torch.randn(2, 3), torch.tensor([[True, True, False], [True, False, True]])
    matches = torch.tensor([[True, False, False], [True, False, True]])
    expected = F.binary_cross_entropy_with_logits(logits[counted], matches[counted].float(), reduction="sum")
    assert summed_sigmoid(logits, matches, counted).item() == pytest.approx(expected.item(), rel=1e-6)


def test_without_any_match_both_losses_are_zero_and_so_are_their_gradients():
    none = torch.zeros(2, 4, dtype=torch.bool)
    for loss, given in ((summed_info_nce, (torch.full((2,), -100), ALL)), (summed_sigmoid, (none, none))):
        logits = torch.randn(2, 4, requires_grad=True)
        total = loss(logits, *given)
        total.backward()
        assert total.item() == 0.0 and torch.equal(logits.grad, torch.zeros_like(logits))


def test_similarities_are_float32_under_autocast():
    rows, others = F.normalize(torch.randn(3, 8), dim=-1), F.normalize(torch.randn(4, 8), dim=-1)
    expected = 20 * rows @ others.T - 10
    with torch.autocast("cpu", torch.bfloat16):
        found = scaled_similarities(rows, others, torch.tensor(20.0), torch.tensor(-10.0))
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-5
