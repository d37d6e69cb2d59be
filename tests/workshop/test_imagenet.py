"""Names of ImageNet's classes, answers that name them, and the classes that EfficientNet-Lite sees."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.workshop.imagenet import PACKAGE, agrees, class_lemmas, classify
from scripts.workshop.lite import efficientnet_lite
from scripts.workshop.packages import fetch_package
from tests.workshop.tiny_packages import noise_image, write_lite

PACKAGES = Path(__file__).resolve().parents[2] / "outputs/packages"

SHEPHERD = ["German shepherd", "German shepherd dog", "German police dog", "alsatian"]
IBEX = ["ibex", "Capra ibex"]
RETRIEVER = ["golden retriever"]
LEMUR = ["Madagascar cat", "ring-tailed lemur", "Lemur catta"]
LION = ["lion", "king of beasts", "Panthera leo"]
SEA_LION = ["sea lion"]
TABBY = ["tabby", "tabby cat"]
PANDA = ["giant panda", "panda", "panda bear", "coon bear", "Ailuropoda melanoleuca"]
RED_PANDA = ["lesser panda", "red panda", "panda", "bear cat", "cat bear", "Ailurus fulgens"]
LANTERN = ["jack-o'-lantern"]
CAN = ["can opener", "tin opener"]

AGREEING = [
    ("ibex", IBEX),
    ("An ibex.", IBEX),
    ("the Capra ibex", IBEX),
    ("German shepherd", SHEPHERD),
    ("a german shepherd dog.", SHEPHERD),
    ("shepherd", SHEPHERD),
    ("An alsatian on the grass.", SHEPHERD),
    ("This is a German shepherd in a field.", SHEPHERD),
    ("retriever", RETRIEVER),
    ("A Golden Retriever!", RETRIEVER),
    ("ring-tailed lemur", LEMUR),
    ("a lemur", LEMUR),
    ("A lion", LION),
    ("a sea lion", SEA_LION),
    ("tabby", TABBY),
    ("a panda", PANDA),
    ("red panda", RED_PANDA),
    ("a jack-o'-lantern", LANTERN),
    ("opener", CAN),
]
DISAGREEING = [
    ("dog", SHEPHERD),
    ("a dog.", SHEPHERD),
    ("a brown dog", SHEPHERD),
    ("shepherds", SHEPHERD),
    ("a flock with a shepherd", SHEPHERD),
    ("German", SHEPHERD),
    ("golden", RETRIEVER),
    ("a retriever and a cat", RETRIEVER),
    ("cat", TABBY),
    ("a sea lion", LION),
    ("lion", SEA_LION),
    ("dandelion", LION),
    ("red panda", PANDA),
    ("bear", PANDA),
    ("can", CAN),
    ("", IBEX),
    ("The.", IBEX),
]


@pytest.mark.parametrize(("answer", "lemmas"), AGREEING)
def test_answers_that_name_a_class(answer: str, lemmas: list[str]) -> None:
    assert agrees(answer, lemmas)


@pytest.mark.parametrize(("answer", "lemmas"), DISAGREEING)
def test_answers_that_do_not_name_a_class(answer: str, lemmas: list[str]) -> None:
    assert not agrees(answer, lemmas)


# ---- Names ----------------------------------------------------------------------------------------------------------


def write_names(folder: Path, lemmas: str) -> Path:
    info = folder / "timm/data/_info"
    info.mkdir(parents=True)
    (info / "imagenet_synsets.txt").write_text("n2\nn1\n")
    (info / "imagenet_synset_to_lemma.txt").write_text(lemmas)
    return folder


def test_names_are_in_the_order_of_the_classes(tmp_path) -> None:
    folder = write_names(tmp_path, "n1\tfirst\nn2\tsecond, the second\nn3\tno class\n")
    assert class_lemmas(folder) == [["second", "the second"], ["first"]]


def test_a_class_without_names_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="1 classes have no names, such as n1"):
        class_lemmas(write_names(tmp_path, "n2\tsecond\n"))


@pytest.mark.slow
@pytest.mark.skipif(not (PACKAGES / "pypi-timm==1.0.20").is_dir(), reason="needs the packages in outputs/packages")
def test_the_real_names_of_all_classes() -> None:
    lemmas = class_lemmas(fetch_package(PACKAGE, PACKAGES))
    assert len(lemmas) == 1000 and lemmas[0] == ["tench", "Tinca tinca"] and lemmas[235] == SHEPHERD
    assert all(agrees(f"This is a {names[0]}.", names) for names in lemmas)


# ---- Classes --------------------------------------------------------------------------------------------------------


def test_the_class_is_the_one_of_the_head_over_the_mean_of_all_tokens(tmp_path) -> None:
    """As computed by hand: resized to 260 x 260, values from -1 to 1, without the model's image processor."""
    path = tmp_path / "lite2.pth"
    write_lite(path, torch.zeros(1000, 1280), torch.zeros(1000))
    images = [noise_image(f"{number}", 5 + 20 * number).resize((300, 200)) for number in range(3)]
    files = []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        files.append(buffer.getvalue())
    resized = [np.asarray(image.resize((260, 260), Image.Resampling.BICUBIC), dtype=np.float32) for image in images]
    pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2) / 127.5 - 1  # (3, 3, 260, 260)
    with torch.no_grad():
        states = efficientnet_lite(path, "lite2")(pixels).last_hidden_state  # (3, 1280, 9, 9)
    means = states.flatten(2).mean(-1)
    weight = torch.randn(1000, 1280, generator=torch.Generator().manual_seed(3))
    weight = weight * 4 / (means - means.mean(0)).norm(dim=1).mean()
    bias = -weight @ means.mean(0)  # what all images have in common says nothing
    write_lite(path, weight, bias)
    values, indices = (means @ weight.T + bias).softmax(-1).max(-1)
    assert len(set(indices.tolist())) == 3 and 0.1 < values.min() < values.max() < 0.99
    for rows in (2, 16):
        found = classify(files, path, rows=rows)
        assert [index for index, _ in found] == indices.tolist()
        assert [probability for _, probability in found] == pytest.approx(values.tolist(), abs=1e-3)
    assert classify([], path) == []
