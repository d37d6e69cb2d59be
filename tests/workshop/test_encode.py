"""Encoding by ONNX Runtime: the states that the encoder gives, under the names that training looks for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mm import MMProcessor
from modeling_mm.data import ChatRow
from modeling_mm.training import EncoderCache
from scripts.workshop import encode
from scripts.workshop.lite import efficientnet_lite, lite_processor
from scripts.workshop.quick_encoding import QuickEncoderCache, question_about
from tests.fakes.processor_parts import make_bpe
from tests.fakes.tiny import joined
from tests.workshop.test_lite import random_state

VIEWS = {"image": 2}


@pytest.fixture(scope="module", params=[None, [15, 11]], ids=["last state", "two layers"])
def seeing(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("package") / "weights.pth"
    torch.save(random_state("lite0"), path)
    encoder = efficientnet_lite(path, "lite0")
    for norm in (module for module in encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        torch.nn.init.ones_(norm.weight)  # fresh ones let no image through
    layers = {"vision_feature_layers": request.param}
    return joined(vision=encoder, audio=None, vision_connector="mlp", freeze_vision=True, **layers)


@pytest.fixture
def rows(tmp_path) -> list[ChatRow]:
    paths = [tmp_path / f"{color}.png" for color in ("red", "green", "blue")]
    for number, path in enumerate(paths):
        noise = np.random.default_rng(number).integers(0, 256, (30, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return [question_about(str(path)) for path in paths]


def processor() -> MMProcessor:
    return MMProcessor(lite_processor("lite0"), None, make_bpe())


def states(cache: EncoderCache, rows: list[ChatRow]) -> list[torch.Tensor]:
    return [cache.states(row.messages[0]["content"][0], view)[0] for row in rows for view in range(2)]


def test_training_finds_the_states_that_the_encoder_would_give(seeing, rows, tmp_path):
    quick = QuickEncoderCache(tmp_path / "quick", seeing, processor(), views=VIEWS, batch_size=2)
    quick.fill(rows, progress=False)
    stock = EncoderCache(tmp_path / "stock", seeing, processor(), views=VIEWS)
    stock.fill(rows, progress=False)
    opened = EncoderCache(tmp_path / "quick", seeing, processor(), views=VIEWS)  # as training opens it
    for ours, theirs in zip(states(opened, rows), states(stock, rows), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-3)
    assert float(states(stock, rows)[0].abs().max()) > 0.1
    assert {path.name for path in Path(tmp_path / "quick").iterdir()} == {
        path.name for path in Path(tmp_path / "stock").iterdir()
    }


def test_a_graph_that_gives_other_states_is_refused(seeing, rows, tmp_path, monkeypatch):
    quick = QuickEncoderCache(tmp_path / "quick", seeing, processor(), views=VIEWS)
    true = quick.session.run
    monkeypatch.setattr(quick, "session", type("Session", (), {"run": lambda _, *args: [true(*args)[0] + 0.1]})())
    with pytest.raises(ValueError, match=r"the ONNX graph differs from the encoder by 0\.1"):
        quick.fill(rows, progress=False)


def test_the_images_of_all_splits_are_encoded():
    assert encode.CORPORA == ("images", "photographs")
