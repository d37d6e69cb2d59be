"""Images, voices and names that belong together, and the baseline beside them."""

from collections import Counter

import numpy as np
import pytest

from scripts.tasks import retrieval
from scripts.tasks.correlation import NameFeatures, best_correlation, correlate, recall
from scripts.tasks.examples import answer_of, check_groups
from tests.tasks.tiny_captions import WORDS, media, write_corpora


def test_an_example_has_an_image_a_voice_that_names_it_and_the_name(tmp_path):
    splits = retrieval.build(write_corpora(tmp_path))
    numbers = {"train": 16, "train_voices": 16, "train_words": 2, "test_hand": 4, "test_concepts": 3}
    assert {split: len(rows) for split, rows in splits.items()} == numbers
    for row in (row for split, rows in splits.items() if split not in retrieval.SPOKEN for row in rows):
        image, voice = media(row)
        assert image.partition("-")[2][:5] == voice.partition("-")[2][:5], row["id"]
    assert Counter(map(answer_of, splits["test_hand"])) == dict.fromkeys(
        ("man judge", "woman judge", "cook", "pilot"), 1
    )
    hands = {media(row)[0].partition("-")[0] for row in splits["train"]}
    assert hands == {"noto", "fluent"}  # the stamp has no voice


def test_all_voices_of_training_and_words_without_an_image_are_heard_with_their_text(tmp_path):
    splits = retrieval.build(write_corpora(tmp_path))
    check_groups(splits)
    heard = {name: answer_of(row) for row in splits["train_voices"] for name in media(row)}
    assert len(heard) == 16 and heard["flite_slt-1f404.flac"] == heard["flite_awb-1f404.flac"] == "pear"
    assert {name: answer_of(row) for row in splits["train_words"] for name in media(row)} == {
        f"{word}.flac": word for word in WORDS
    }
    assert not any("rms" in name for name in heard)  # the voice of the tests


def sides(rows: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two sides (N, 30) and (N, 20) that share 8 directions."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(9)
    shared = rng.normal(size=(rows, 8))
    both = (shared @ mix.normal(size=(8, size)) + noise * rng.normal(size=(rows, size)) + 3 for size in (30, 20))
    return tuple(both)


def test_correlation_finds_what_two_sides_share():
    fitted = correlate(*sides(400, 0.1), ridge=0.01, size=8)
    names = [str(number) for number in range(50)]
    fresh = sides(50, 0.1, seed=1)
    assert min(recall(fitted, fresh, names, query) for query in (0, 1)) > 0.95
    assert recall(fitted, (fresh[0], fresh[1][::-1].copy()), names) < 0.2
    assert recall(fitted, (fresh[0], fresh[1][::-1].copy()), ["same"] * 50) == 1.0  # rows of one name match
    for side in (0, 1):
        np.testing.assert_allclose(np.linalg.norm(fitted.project(fresh[side], side), axis=1), 1)


def test_correlation_is_that_of_scikit_learn():
    """Without a ridge the first direction correlates as much as that of the library's iteration."""
    from sklearn.cross_decomposition import CCA

    one, other = sides(300, 1.0)
    fitted = correlate(one, other, ridge=1e-9, size=1)
    theirs = CCA(1, max_iter=2000).fit(one, other).transform(one, other)
    ours = [(values - fitted.means[n]) @ fitted.weights[n] for n, values in enumerate((one, other))]
    strength = [abs(np.corrcoef(pair[0][:, 0], pair[1][:, 0])[0, 1]) for pair in (ours, theirs)]
    assert strength[0] == pytest.approx(strength[1], abs=1e-3) and strength[0] > 0.5


def test_the_ridge_is_chosen_on_concepts_that_are_held_out():
    """With nearly as many features as rows, a small ridge learns noise by heart."""
    one, other = sides(34, 2.0)
    concepts = [str(number) for number in range(34)]
    chosen = best_correlation(one, other, concepts, concepts)
    tried = [
        correlate(one, other, ridge, size).weights[0] for ridge in (0.01, 0.1, 1.0) for size in (32, 64, 128, 256)
    ]
    assert any(chosen.weights[0].shape == each.shape and np.allclose(chosen.weights[0], each) for each in tried)


def test_names_with_the_same_words_have_similar_features():
    features = NameFeatures(["red apple", "green apple", "grey whale", "blue whale", "tall tower", "old tower"])
    found = features(["yellow apple", "a whale", "new tower", "ripe apple"])
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    similar = found @ found.T
    assert similar[0, 3] > max(similar[0, 1], similar[0, 2])


def random_features(model, folder, names):
    """Features (N, 12) of the sides that each split has, in place of the encoders'."""
    rng, sides_of = np.random.default_rng(0), retrieval.LEARNED
    return {
        split: {side: rng.normal(size=(len(each), 12)) for side in sides_of.get(split, retrieval.SIDES)}
        for split, each in names.items()
    }


def test_baselines_are_measured_for_every_figure_that_is_to_be_reached(tmp_path, monkeypatch):
    from scripts.tasks.build import write_task

    sources = write_corpora(tmp_path)
    sources.folder.mkdir()
    write_task(sources.folder, retrieval.build(sources))
    monkeypatch.setattr(retrieval, "frozen_features", random_features)
    found = retrieval.measure(tmp_path, sources)
    assert {(each["dataset"], each["metric"]) for each in found} == {*retrieval.REACH} and len(found) == 12
    assert all(0 <= each["value"] <= 1 and each["name"] == "CCA" for each in found)


def test_the_baseline_of_voices_learns_from_all_that_the_model_hears(tmp_path, monkeypatch):
    from scripts.tasks import correlation
    from scripts.tasks.build import write_task

    sources = write_corpora(tmp_path)
    sources.folder.mkdir()
    write_task(sources.folder, retrieval.build(sources))
    learned = []

    def fit(one, other, concepts, names):
        learned.append({len(one), len(other), len(concepts), len(names)})
        return best_correlation(one, other, concepts, names)

    monkeypatch.setattr(retrieval, "frozen_features", random_features)
    monkeypatch.setattr(correlation, "best_correlation", fit)
    retrieval.measure(tmp_path, sources)
    assert learned == [{16}, {16 + 16 + 2}, {16}]  # text and image, text and audio, image and audio
