"""Numbers of items in rows that a server puts together."""

from modeling_mm.serving.engine import encode_items
from modeling_mm.serving.row import MediaRow, items_of
from tests.fakes.tiny import difference, opened
from tests.test_media_items import NUMBERED, ROW, TOLERANCE, hidden, last_logits, split


def test_items_that_a_server_encodes_one_by_one_are_numbered_in_their_row():
    """They are shared between rows, in which they stand at other places."""
    model, batch = opened(**NUMBERED), hidden([ROW])
    text, media = split(batch)
    row = MediaRow(items_of(media))
    for item in row.items:
        encode_items(model, [item])
    assert difference(last_logits(model, **text, media=row.media()), last_logits(model, **batch)) < TOLERANCE
