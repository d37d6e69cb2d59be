"""Label smoothing: labels are those of the next token, whatever wraps the model and whatever its class is called."""

import pytest
import torch

from modeling_mm import MMForConditionalGeneration
from modeling_mm.training import ChatCollator
from tests.fakes.tiny_chats import CHATS, chat_model, losses, mm_trainer, processor

SMOOTHING = 0.1


class Captioner(MMForConditionalGeneration):
    pass


def expected(model) -> float:
    """Computed by torch's own smoothing over all learned tokens."""
    batch = ChatCollator(processor())(CHATS)
    labels = batch.pop("labels")[:, 1:]
    with torch.no_grad():
        logits = model.eval()(**batch).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=SMOOTHING).item()


@pytest.mark.parametrize(
    "way", [{}, {"torch_compile": True, "torch_compile_backend": "eager"}, {"gradient_accumulation_steps": 2}], ids=str
)
def test_the_loss_is_that_of_the_next_tokens(way, tmp_path):
    size = {"per_device_train_batch_size": 4} if "gradient_accumulation_steps" in way else {}
    run = mm_trainer(chat_model(), tmp_path, label_smoothing_factor=SMOOTHING, **way, **size)
    run.train()
    assert losses(run)[0] == pytest.approx(expected(chat_model()), abs=1e-4)


def test_the_loss_of_a_subclass_is_the_same(tmp_path):
    model = chat_model()
    model.__class__ = Captioner
    run = mm_trainer(model, tmp_path, label_smoothing_factor=SMOOTHING)
    run.train()
    assert losses(run)[0] == pytest.approx(expected(chat_model()), abs=1e-4)
