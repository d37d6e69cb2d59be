"""Speakers, on tiny packages."""

import numpy as np
import pytest

from scripts.tasks import figures, speakers
from scripts.tasks.examples import answer_of, write_task
from tests.tasks.tiny_voices import sources_of


@pytest.fixture(scope="module")
def built_splits(voices, tmp_path_factory):
    return speakers.build(sources_of(voices, tmp_path_factory.mktemp("speakers")))


def test_no_text_and_no_unknown_speaker_is_in_training(built_splits, tmp_path):
    write_task(tmp_path, built_splits, speakers.LABELS, speakers.WITHOUT_LABEL)  # it checks groups and labels
    texts = {name: {row["group"] for row in rows} for name, rows in built_splits.items()}
    assert not texts["train"] & set().union(*(texts[name] for name in texts if name != "train"))
    assert not texts["threshold"] & texts["test"] and not texts["unknown_threshold"] & texts["unknown_test"]
    unknown = {name: {answer_of(row) for row in built_splits[name]} for name in speakers.UNKNOWN}
    assert unknown == {"unknown_threshold": {"Asterisk Russian"}, "unknown_test": {"Tux Paint Danish"}}


def test_every_known_speaker_is_in_every_split(built_splits):
    for name in ("train", "threshold", "test"):
        assert {answer_of(row) for row in built_splits[name]} == set(speakers.LABELS)
    assert len(speakers.LABELS) == 11 and "Asterisk English and Spanish" in speakers.LABELS


def test_a_speaker_out_of_range_is_refused(built_splits, tmp_path):
    with pytest.raises(
        ValueError, match=r"the answer of speakers/tuxpaint-bg-.*'Tux Paint Bulgarian', expected one of"
    ):
        write_task(tmp_path, built_splits, speakers.LABELS[:4] + speakers.LABELS[5:], speakers.WITHOUT_LABEL)


class Scored:
    """Scores by split in place of those of a model."""

    scores_of = {
        "threshold": [0.9, 0.8],
        "unknown_threshold": [0.3, 0.5],
        "test": [0.95, 0.7, 0.85, 0.9],
        "unknown_test": [0.2, 0.82],
    }

    def __init__(self, *arguments):
        self.features = lambda split: (np.eye(2), ["a", "b"])

    def scores(self, split):
        return np.array([[score, 0.0] for score in self.scores_of[split]])


def test_unknown_speakers_are_judged_by_a_threshold_of_other_clips(monkeypatch, tmp_path):
    monkeypatch.setattr(speakers, "ScoredTask", Scored)
    found = speakers.measure(tmp_path, sources_of(tmp_path, tmp_path))
    assert found == [
        figures.beside("unseen clips", "accuracy", "1-NN on the frozen encoder", 1.0),
        figures.figure("unknown speakers", "eer", 0.25, 6),  # between 0.85 and 0.82
        figures.figure("unknown speakers", "accuracy", 4 / 6, 6),  # 0.7 is refused, 0.82 accepted
        figures.beside("unknown speakers", "accuracy", "is the threshold", 0.8),
    ]
