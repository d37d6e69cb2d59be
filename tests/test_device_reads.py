"""device_reads.py: a forward that gets the same tensors again does not wait for the device."""

import pytest
import torch
import transformers
from packaging.version import Version
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from modeling_mm import MMForSequenceClassification
from modeling_mm.device_reads import read_once
from modeling_mm.masks import hide_placeholders
from tests.fakes.tiny import AUDIO, IMAGE, inputs, labels, opened

ROWS = [[5, IMAGE, 6, AUDIO, 7], [8, 9, 10], [IMAGE, 11, IMAGE, 12]]
aten = torch.ops.aten
READS = (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten._unique2.default)


class WithoutReads(TorchDispatchMode):
    """Refuse what makes Python wait for a device: values, sizes that depend on values, copies to the CPU."""

    def __enter__(self):
        self.saved = {name: getattr(torch.Tensor, name) for name in ("tolist", "numpy", "cpu", "item")}
        for name in self.saved:
            setattr(torch.Tensor, name, lambda *_, name=name: self.refuse(name))
        return super().__enter__()

    def __exit__(self, *error):
        for name, method in self.saved.items():
            setattr(torch.Tensor, name, method)
        return super().__exit__(*error)

    def refuse(self, what):
        raise AssertionError(f"{what} reads from the device")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        indices = args[1] if function in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default) else ()
        if function in READS or any(index is not None and index.dtype == torch.bool for index in indices):
            self.refuse(function)
        return function(*args, **(kwargs or {}))


# Raw-wave encoders are not among them: transformers' own code selects their frames by a mask.
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["lm", "classifier", "all real", "text", "encoded", "embeds"])
def test_a_batch_is_read_once(kind, training):
    if training and kind not in ("text", "encoded") and Version(transformers.__version__) < Version("5.23.0.dev0"):
        pytest.skip("Whisper reads the draw of its layer drop from the device before transformers 5.23")
    model = opened(**({"cls": MMForSequenceClassification} if kind == "classifier" else {})).train(training)
    rows = {"all real": [[5, IMAGE, AUDIO], [IMAGE, AUDIO, 6]], "text": [[5, 6, 7], [8]]}.get(kind, ROWS)
    batch = inputs(rows)
    batch["labels"] = torch.tensor([0, 1, 0]) if kind == "classifier" else labels(batch)
    if kind == "encoded":
        media = {
            name: batch.pop(name) for name in list(batch) if name not in ("input_ids", "attention_mask", "labels")
        }
        batch["media"] = model.encode_media(**media)
    if kind == "embeds":
        batch["inputs_embeds"] = model.get_input_embeddings()(batch.pop("input_ids")).detach()
    with pytest.raises(AssertionError, match="reads from the device"), WithoutReads():
        model(**batch)
    expected = model(**batch)
    with WithoutReads():
        again = model(**batch)
    assert torch.equal(again.logits, expected.logits)


@pytest.mark.parametrize("placeholders", ["text", "hidden"])
def test_decoding_reads_nothing(placeholders):
    model = opened(placeholders=placeholders)
    batch, cache = inputs(ROWS), DynamicCache()
    if placeholders == "hidden":
        found = [batch["input_ids"] == token_id for token_id in model.config.placeholder_ids]
        batch["attention_mask"] = hide_placeholders(batch["attention_mask"], found)
    with torch.no_grad():
        tokens = model(**batch, past_key_values=cache).logits[:, -1:].argmax(-1)
        with WithoutReads():
            for _ in range(2):
                tokens = model(input_ids=tokens, past_key_values=cache).logits.argmax(-1)


def test_a_tensor_that_changes_is_read_again():
    one, other, again = torch.tensor([1, 2]), torch.tensor([3]), torch.tensor([3])
    assert read_once("values", one + other, one, other) == [4, 5]
    with WithoutReads():
        assert read_once("values", one + other, one, other) == [4, 5]
        with pytest.raises(AssertionError, match="tolist"):
            read_once("values", one + again, one, again)
    other.add_(1)
    assert read_once("values", one + other, one, other) == [5, 6]
    assert read_once("others", one, one) == [1, 2]
    with torch.inference_mode():
        volatile = torch.tensor([1])
        assert [read_once("values", volatile, volatile), read_once("values", volatile.add_(1), volatile)] == [[1], [2]]


def test_answers_are_freed_with_their_tensor():
    from modeling_mm.device_reads import _ANSWERS

    before = len(_ANSWERS)
    tensor = torch.tensor([1])
    read_once("values", tensor, tensor)
    assert len(_ANSWERS) == before + 1
    del tensor
    assert len(_ANSWERS) == before
