"""Metrics of retrieval: values that are computed by hand, and no dependence on order or device."""

import numpy as np
import pytest
import torch

from modeling_mm.evaluation import first_ranks, mean_average_precision, median_rank, recall_at_k

# Ranks of the item of the same number: 1, 3, 2.
SCORES = [[0.9, 0.5, 0.1], [0.8, 0.2, 0.7], [0.6, 0.1, 0.4]]


def test_one_item_for_each_query():
    assert first_ranks(SCORES).tolist() == [1, 3, 2]
    assert [recall_at_k(SCORES, k) for k in (1, 2, 3, 9)] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert median_rank(SCORES) == 2
    assert mean_average_precision(SCORES) == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)


def test_an_even_number_of_queries_has_the_mean_of_the_middle_ranks():
    assert median_rank([[0.9, 0.5, 0.1], [0.8, 0.2, 0.7]], [0, 1]) == 2  # of ranks 1 and 3


def test_the_median_is_not_the_mean():
    scores = [[4.0, 3.0, 2.0, 1.0]] * 3
    assert median_rank(scores, [0, 0, 3]) == 1  # of ranks 1, 1 and 4


def test_several_items_for_a_query_and_other_shapes():
    """By hand: the first query has its two items at ranks 1 and 3, the second its only one at rank 4."""
    scores = [[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]]
    relevant = np.array([[True, False, True, False], [False, False, False, True]])
    assert first_ranks(scores, relevant).tolist() == [1, 4]
    assert recall_at_k(scores, 1, relevant) == 0.5 and median_rank(scores, relevant) == 2.5
    assert mean_average_precision(scores, relevant) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 4) / 2)


def test_ties_count_against_the_model_in_every_order():
    """A model whose embeddings are all the same finds nothing, wherever the items stand."""
    scores = np.ones((4, 4))
    assert first_ranks(scores).tolist() == [4, 4, 4, 4] and recall_at_k(scores, 3) == 0
    assert mean_average_precision(scores) == 0.25
    order = np.random.default_rng(0).permutation(6)
    scores = np.random.default_rng(1).integers(0, 3, (5, 6)).astype(float)
    relevant = np.random.default_rng(2).random((5, 6)) < 0.3
    relevant[:, 0] = True
    for metric in (median_rank, mean_average_precision, lambda s, r: recall_at_k(s, 2, r)):
        assert metric(scores, relevant) == metric(scores[:, order], relevant[:, order])


def test_equal_relevant_items_do_not_count_against_each_other():
    assert first_ranks([[1.0, 1.0, 0.5]], np.array([[True, True, False]])).tolist() == [1]
    assert mean_average_precision([[1.0, 1.0, 0.5]], np.array([[True, True, False]])) == 1


def test_both_directions_of_one_matrix():
    scores = np.array(SCORES)
    assert first_ranks(scores.T).tolist() == [1, 2, 2]  # query 1 is a column: 0.5, 0.2, 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_tensors_of_any_precision_and_with_gradients(dtype):
    scores = torch.tensor(SCORES, dtype=dtype, requires_grad=True)
    assert recall_at_k(scores, 1, torch.tensor([0, 1, 2])) == pytest.approx(1 / 3)
    assert mean_average_precision(scores, torch.eye(3, dtype=torch.bool)) == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)


def test_whole_numbers_are_similarities_too():
    assert median_rank([[3, 1], [2, 1]]) == 1.5


@pytest.mark.parametrize(
    "scores, relevant, message",
    [
        ([0.1, 0.2], None, r"similarities must be \(queries, items\).*got \(2,\)"),
        (np.zeros((0, 3)), None, r"got \(0, 3\)"),
        ([["a", "b"], ["c", "d"]], None, "similarities must be numbers"),
        (np.zeros((2, 3)), None, "2 queries and 3 items do not pair up one by one. Pass `relevant`"),
        ([[0.1, np.nan], [0.2, 0.3]], None, "similarity of query 0 and item 1 is nan. Check for empty or zero"),
        ([[0.1, 0.2], [np.inf, 0.3]], None, "similarity of query 1 and item 0 is inf"),
        (np.zeros((2, 3)), [0, 3], "relevant item of query 1 is 3, but items are 0 to 2"),
        (np.zeros((2, 3)), [-1, 2], "relevant item of query 0 is -1"),
        (np.zeros((2, 3)), [0.0, 1.0], r"got float64 of shape \(2,\)"),
        (
            np.zeros((2, 3)),
            np.ones((3, 2), bool),
            r"booleans of shape \(2, 3\) or one index.*got bool of shape \(3, 2",
        ),
        (np.zeros((2, 3)), np.array([[True, False, True], [False] * 3]), "Query 1 has no relevant item"),
    ],
)
def test_what_cannot_be_ranked_is_refused(scores, relevant, message):
    for metric in (median_rank, mean_average_precision, lambda s, r: recall_at_k(s, 1, r)):
        with pytest.raises(ValueError, match=message):
            metric(scores, relevant)


@pytest.mark.parametrize("k", [0, -1, 1.0, True, None])
def test_a_list_has_a_length(k):
    with pytest.raises(ValueError, match=f"must be an integer of at least 1, got {k}"):
        recall_at_k(SCORES, k)


def test_values_of_torchmetrics():
    """Its functions take one query and one of its orders of ties; here are no ties."""
    retrieval = pytest.importorskip("torchmetrics.functional.retrieval")
    draws = np.random.default_rng(3)
    scores, relevant = draws.random((20, 30)), draws.random((20, 30)) < 0.2
    relevant[:, 0] = True
    pairs = [(torch.tensor(s), torch.tensor(r)) for s, r in zip(scores, relevant, strict=True)]
    theirs = [float(retrieval.retrieval_average_precision(s, r)) for s, r in pairs]
    assert mean_average_precision(scores, relevant) == pytest.approx(np.mean(theirs), abs=1e-6)
    theirs = [float(retrieval.retrieval_hit_rate(s, r, top_k=5)) for s, r in pairs]
    assert recall_at_k(scores, 5, relevant) == pytest.approx(np.mean(theirs), abs=1e-6)
