"""Text of tokens that come one at a time."""

import pytest
import torch

from modeling_mm.utils import IncrementalDecoder
from tests.fakes.processor_parts import make_bpe


def decoded(tokens) -> list[str]:
    decoder = IncrementalDecoder(make_bpe())
    return [*(decoder.add(token) for token in tokens), decoder.finish()]


@pytest.mark.parametrize("text", ["a cat, a dog", "naïve 東京 🎺", ""])
def test_pieces_join_to_the_text_and_never_split_a_character(text):
    pieces = decoded(make_bpe()(text).input_ids)
    assert "".join(pieces) == text and "\ufffd" not in "".join(pieces) and pieces[-1] == ""


def test_a_last_character_that_lacks_bytes_is_not_lost():
    tokenizer = make_bpe()
    cut = tokenizer("🎺").input_ids[:-1]
    assert decoded(cut) == [*[""] * len(cut), tokenizer.decode(cut)] and tokenizer.decode(cut)


def test_bytes_in_any_order_and_special_tokens():
    """As a model that samples may generate them."""
    tokenizer = make_bpe()
    tokens = torch.randint(len(tokenizer), (300,), generator=torch.Generator().manual_seed(0)).tolist()
    tokens += [tokenizer.all_special_ids[0], *tokenizer("a cat").input_ids]
    pieces = decoded(tokens)
    assert (
        "".join(pieces) == tokenizer.decode(tokens, skip_special_tokens=True) and len(list(filter(None, pieces))) > 50
    )
