"""
Faults of media that transformers' own tests let pass, each put into the model: a named test of ours must then fail.

`KILLERS` names ordinary tests, of the common ones and of the invariants, that notice each. The stock suites alone do
not, not even with cross-attention opened.
"""

from collections.abc import Callable

import pytest
import torch

from modeling_mm import connectors, decoder, media_cache
from tests import test_connectors
from tests.invariants import test_02_no_leak, test_03_alone_or_together, test_04_cache_equals_no_cache
from tests.transformers_common import test_common_models

# ---- The mutants ----------------------------------------------------------------------------------------------------


def swap_rows(patch: pytest.MonkeyPatch) -> None:
    """Each row reads the media of another one."""
    forward = decoder.GatedCrossAttentionBlock.forward

    def mutant(self, hidden_states, media_states, *args, **kwargs):
        media_states = None if media_states is None else media_states.flip(0)
        return forward(self, hidden_states, media_states, *args, **kwargs)

    patch.setattr(decoder.GatedCrossAttentionBlock, "forward", mutant)


def lose_media_after_the_first_step(patch: pytest.MonkeyPatch) -> None:
    """Cached steps run without cross-attention."""
    inputs_of = decoder.MMDecoder.cross_attention_inputs

    def mutant(self, prefix, hidden_states, media_mask, *args, **kwargs):
        return {} if media_mask is None else inputs_of(self, prefix, hidden_states, media_mask, *args, **kwargs)

    patch.setattr(decoder.MMDecoder, "cross_attention_inputs", mutant)


def drop_the_modality_embedding(patch: pytest.MonkeyPatch) -> None:
    """Media tokens do not say what they are of."""
    forward = connectors.Connector.forward

    def mutant(self, *args):
        kept, self.modality = self.modality, None
        try:
            return forward(self, *args)
        finally:
            self.modality = kept

    patch.setattr(connectors.Connector, "forward", mutant)


def ignore_the_mask(patch: pytest.MonkeyPatch) -> None:
    """Every token sees every media token, padding and what comes later among them."""
    mask_of = decoder.cross_attention_mask
    for module in (decoder, media_cache):
        patch.setattr(module, "cross_attention_mask", lambda visible, **how: mask_of(torch.ones_like(visible), **how))


MUTANTS = (swap_rows, lose_media_after_the_first_step, drop_the_modality_embedding, ignore_the_mask)

# ---- The tests that notice them -------------------------------------------------------------------------------------


def common(name: str) -> Callable[[], None]:
    """One of the common tests, which raises what it finds."""
    return lambda: test_common_models.MMImageAudioTest(name).debug()


ALONE = test_03_alone_or_together.test_each_row_is_the_same_alone_and_in_a_mixed_batch
KILLERS = {
    swap_rows: {
        "common": common("test_media_of_one_row_move_that_row_alone"),
        "invariant 3": lambda: ALONE("left", "sdpa"),
    },
    lose_media_after_the_first_step: {
        "common": common("test_media_move_what_is_generated_at_every_step"),
        "invariant 4": lambda: test_04_cache_equals_no_cache.test_cached_logits_with_every_connector("mlp", True),
    },
    drop_the_modality_embedding: {
        "common": common("test_the_embedding_of_each_modality_moves_every_output"),
        "connectors": lambda: test_connectors.test_every_parameter_and_every_real_state_gets_a_gradient(
            "mlp", "sinusoidal", True
        ),
    },
    ignore_the_mask: {
        "common": common("test_no_token_sees_media_that_come_after_it"),
        "invariant 2": lambda: test_02_no_leak.test_no_leak_through_any_connector("mlp"),
    },
}
CASES = [pytest.param(mutant, name, id=f"{mutant.__name__}-{name}") for mutant in MUTANTS for name in KILLERS[mutant]]


@pytest.mark.parametrize("mutant, name", CASES)
def test_a_mutant_is_noticed(mutant, name, monkeypatch):
    test = KILLERS[mutant][name]
    test()
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        test()
