"""Rows that are decoded together by models whose modalities have separate cross-attention layers."""

import pytest
import torch

from modeling_mm import MMMediaOutput
from modeling_mm.serving.running_batch import RunningBatch
from tests.fakes.tiny import AUDIO, IMAGE, difference, inputs, joined, open_gates
from tests.test_cross_attention import LAYOUTS, media_of


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_modality_keeps_to_its_columns(name):
    """Rows of unlike media join one another and leave; each next token is the one that a row gets alone."""
    model = open_gates(joined(**LAYOUTS[name]))
    rows = [[5, IMAGE, 6, AUDIO, 7, 8], [IMAGE, 12, IMAGE, 13], [AUDIO, 14, 15], [9, 10, 11]]

    class Waiting:
        """A row of the batch as far as it needs one: its prompt, its media, and the tokens of its answer."""

        def __init__(self, number):
            batch = inputs([rows[number]], seed=10 * number)
            self.prompt, self.given = batch["input_ids"], media_of(batch)
            self.streamer, self.tokens = self, [20 + number]

        def media(self) -> MMMediaOutput | None:
            return model.encode_media(**self.given) if self.given else None

        def code_range(self) -> None:
            """It writes text."""

        def next_logits(self) -> torch.Tensor:
            """Without a cache and without other rows."""
            text = torch.cat([self.prompt, torch.tensor([self.tokens])], dim=1)
            return model(text, **self.given).logits[0, -1]

    def check(given):
        for row, found in zip(given, running.step(), strict=True):
            assert difference(found, row.next_logits()) < 1e-4
            row.tokens.append(30)

    waiting, running = [Waiting(number) for number in range(4)], RunningBatch(model)
    with torch.no_grad():
        running.prefill(waiting[:2])
        check(waiting[:2])
        running.prefill(waiting[2:])
        check(waiting)
        running.keep(waiting[2:])  # no row has an image any more
        check(waiting[2:])
