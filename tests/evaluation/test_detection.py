"""Metrics of boxes: figures that are known by hand, sizes, crowds, and the traps of COCO's evaluators."""

import pytest

from modeling_mm.boxes import ImageObject
from modeling_mm.evaluation import DetectionFigures, detection_figures, iou, referring_accuracy


def box(left: float, top: float, side: float, label: str = "cat", score: float | None = None, **more) -> ImageObject:
    return ImageObject(label, (left, top, left + side, top + side), score, **more)


SMALL, MEDIUM, LARGE = box(0, 0, 20), box(30, 0, 50), box(100, 0, 100, "dog")


@pytest.fixture(scope="module", autouse=True)
def evaluator():
    pytest.importorskip("faster_coco_eval")


def test_perfect_boxes_have_a_precision_of_one_in_every_size():
    """Also the first one: an annotation with the id 0 counts as none."""
    found = detection_figures([[SMALL, MEDIUM, LARGE]], [[SMALL, MEDIUM, LARGE]])
    assert found == DetectionFigures(*([pytest.approx(1.0)] * 5), images=1, objects=3)
    only = detection_figures([[SMALL]], [[SMALL]])
    assert (only.ap, only.small, only.medium, only.large) == (pytest.approx(1.0), pytest.approx(1.0), None, None)
    large = detection_figures([[LARGE]], [[LARGE]])
    assert (large.small, large.large) == (None, pytest.approx(1.0)), "sizes are known, though no area is given"
    thin = box(0, 0, 100, area=500.0)
    assert detection_figures([[thin]], [[thin]]).small == pytest.approx(1.0), "an area that is given counts"


def test_figures_are_those_computed_by_hand():
    """IoU 0.6 counts at 0.5, 0.55 and 0.6; where the likelier of two boxes is wrong, half of them are right."""
    truth = [ImageObject("cat", (50.0, 70.0, 150.0, 170.0))]
    near = ImageObject("cat", (50.0, 70.0, 150.0, 130.5), 0.5)
    found = detection_figures([[near]], [truth])
    assert (found.ap, found.ap50) == (pytest.approx(0.3), pytest.approx(1.0))
    wrong = box(200, 200, 50, score=0.9)
    assert detection_figures([[near, wrong]], [truth]).ap50 == pytest.approx(0.5, abs=1e-3)
    assert detection_figures([[near, box(200, 200, 50, score=0.1)]], [truth]).ap50 == pytest.approx(1.0)
    other = box(50, 70, 100, "dog", 0.9)
    assert detection_figures([[other]], [truth]).ap == 0.0
    assert detection_figures([[other]], [truth], ignore_labels=True).ap == pytest.approx(1.0)
    assert detection_figures([[near, other]], [truth]).ap50 == pytest.approx(1.0), "labels of no truth do not count"


def test_images_are_apart():
    one, two = box(0, 0, 50, score=0.9), box(100, 0, 50, score=0.8)
    assert detection_figures([[one], [two]], [[one], [two]]).ap == pytest.approx(1.0)
    assert detection_figures([[two], [one]], [[one], [two]]).ap == 0.0
    assert detection_figures([[], []], [[one], [two]]).ap == 0.0
    assert detection_figures([[one], []], [[one], [two]]).ap == pytest.approx(0.505, abs=0.01)
    assert detection_figures([[one], [two]], [[one], []]).ap == pytest.approx(1.0, abs=0.01)


def test_crowds_count_neither_way():
    crowd = box(0, 0, 200, is_crowd=True)
    inside = [box(20, 20, 30, score=0.9), box(60, 60, 30, score=0.8)]
    alone = box(300, 0, 50, score=0.5)
    found = detection_figures([[*inside, alone]], [[crowd, alone]])
    assert found.ap == pytest.approx(1.0) and found.objects == 1
    assert detection_figures([[*inside, alone]], [[alone]]).ap < 0.5


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match=r"1 predictions were given for 2 truths"):
        detection_figures([[]], [[SMALL], []])
    for truths in ([[]], [[box(0, 0, 9, is_crowd=True)]]):
        with pytest.raises(ValueError, match=r"The truths have no objects"):
            detection_figures([[]], truths)
    with pytest.raises(ValueError, match=r"Image 1: its prediction has the point .*only boxes have an IoU"):
        detection_figures([[], [ImageObject("cat", (1.0, 2.0))]], [[SMALL], []])


def test_referring_accuracy_counts_the_likeliest_box():
    truth = box(0, 0, 100)
    near, far = box(0, 0, 71, score=0.4), box(0, 0, 70, score=0.6)  # IoU 0.504 and 0.49
    assert (iou(near, truth), iou(far, truth)) == (pytest.approx(0.5041), pytest.approx(0.49))
    assert iou(truth, truth) == 1.0 and iou(truth, box(500, 0, 10)) == 0.0
    assert referring_accuracy([[near], [far], [], [near, far]], [truth] * 4) == 0.25
    assert referring_accuracy([[near, far]], [truth], least_iou=0.4) == 1.0
    assert referring_accuracy([[ImageObject("cat", (1.0, 2.0))]], [truth]) == 0.0
    with pytest.raises(ValueError, match=r"at least one, got 0 answers and 0 truths"):
        referring_accuracy([], [])
