"""connectors.py: each kind's shapes and masks, that padding reaches nothing, that everything learns."""

import pytest
import torch

from modeling_mm.configuration_mm import MMConfig
from modeling_mm.connectors import PROJECTORS, Connector, DirectConnector, grid_positions, pool_runs, pool_squares
from modeling_mm.layers import sinusoidal_positions
from tests.fakes.tiny import CONNECTORS, WIDTH, difference, gpt2_config, seeded, vit_config, whisper_config

W = 24  # the encoder's width, as in vit_config
LATENTS = 3


def connector(kind: str = "mlp", modality: str = "vision", **fields) -> Connector:
    """With wide weights: a fresh one is so close to linear that a wrong mask would hardly show."""
    fields = {f"{modality}_connector": kind, "vision_latents": LATENTS, "audio_latents": LATENTS, **fields}
    joint = MMConfig.from_text_vision_audio_configs(gpt2_config(), vit_config(), whisper_config(), **fields)
    module = seeded(lambda: Connector(joint, modality, W))
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.2
    return module


def ragged(lengths=(7, 4, 0, 1), length: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    return torch.randn(len(lengths), length, W), mask


def test_every_kind_of_the_config_is_built():
    assert tuple(PROJECTORS) == CONNECTORS


EXPECTED_LENGTH = {"linear": 7, "mlp": 7, "conv": 4, "gru": 7, "perceiver": LATENTS}


@pytest.mark.parametrize("modality", ["vision", "audio"])
@pytest.mark.parametrize("kind", CONNECTORS)
def test_shapes_and_masks(kind, modality):
    module = connector(kind, modality)
    states, mask = ragged()
    tokens, token_mask = module(states, mask)
    length = EXPECTED_LENGTH[kind]
    assert tokens.shape == (4, length, WIDTH) and token_mask.shape == (4, length)
    assert token_mask.dtype == torch.bool and torch.isfinite(tokens).all()
    counts = {"conv": [4, 2, 0, 1], "perceiver": [LATENTS, LATENTS, 0, LATENTS]}.get(kind, [7, 4, 0, 1])
    assert token_mask.sum(-1).tolist() == counts
    assert tokens[~token_mask].abs().max() == 0
    assert (tokens[token_mask].abs().amax(-1) > 0).all()


@pytest.mark.parametrize("kind", CONNECTORS)
def test_masked_encoder_tokens_change_nothing_at_all(kind):
    module = connector(kind)
    states, mask = ragged()
    other = states.masked_fill(~mask[..., None], 1e4)
    assert difference(module(states, mask)[0], module(other, mask)[0]) == 0


@pytest.mark.parametrize("kind", CONNECTORS)
def test_an_item_is_the_same_with_more_padding_and_in_other_company(kind):
    module = connector(kind)
    states, mask = ragged()
    tokens, token_mask = module(states, mask)
    for item, length in ((0, 7), (1, 4), (3, 1)):
        alone, alone_mask = module(states[item : item + 1, :length], mask[item : item + 1, :length])
        real = int(alone_mask.sum())
        assert real == int(token_mask[item].sum())
        assert difference(tokens[item, :real], alone[0, :real]) < 1e-5


@pytest.mark.parametrize("kind", CONNECTORS)
def test_an_absent_item_is_zeros_and_gives_no_nan_gradient(kind):
    module = connector(kind)
    states, mask = ragged((0, 0))
    states.requires_grad_()
    tokens, token_mask = module(states, mask)
    assert not token_mask.any() and tokens.abs().max() == 0
    tokens.sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in [states, *module.parameters()])


@pytest.mark.parametrize("modality_embedding", [True, False])
@pytest.mark.parametrize("position", ["sinusoidal", "learned", "none"])
@pytest.mark.parametrize("kind", CONNECTORS)
def test_every_parameter_and_every_real_state_gets_a_gradient(kind, position, modality_embedding):
    module = connector(
        kind, media_position_encoding=position, modality_embedding=modality_embedding, max_media_positions=7
    ).train()
    states, mask = ragged()
    states.requires_grad_()
    # Weighted, because a plain sum over what a layer norm has centred has no gradient.
    tokens, _ = module(states, mask)
    (tokens * torch.randn_like(tokens)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert (states.grad[mask].abs().amax(-1) > 0).all()
    assert states.grad[~mask].abs().max() == 0


@pytest.mark.parametrize("kind", CONNECTORS)
def test_all_kinds_depend_on_every_real_token(kind):
    module = connector(kind)
    states, mask = ragged((7,))
    tokens, _ = module(states, mask)
    for i in range(7):
        other = states.clone()
        other[0, i] += torch.randn(W)
        assert difference(module(other, mask)[0], tokens) > 1e-4, i


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_conv_halves_the_length_at_each_layer_rounded_up(layers):
    module = connector("conv", vision_connector_layers=layers)
    for length in (1, 2, 5, 8, 9):
        states, mask = ragged((length,), length)
        expected = length
        for _ in range(layers):
            expected = (expected + 1) // 2
        assert module(states, mask)[0].shape[1] == expected


@pytest.mark.parametrize(("modality", "other"), [("vision", "audio"), ("audio", "vision")])
def test_size_layers_and_latents_are_those_of_the_modality(modality, other):
    fields = {f"{modality}_connector_size": 11, f"{modality}_connector_layers": 2, f"{modality}_latents": 5}
    fields |= {f"{other}_connector_size": 13, f"{other}_connector_layers": 3, f"{other}_latents": 9}
    mlp = connector("mlp", modality, **fields).projector
    assert [tuple(layer.weight.shape) for layer in mlp.hidden] == [(11, W), (11, 11)]
    assert mlp.linear.weight.shape == (WIDTH, 11)
    conv = connector("conv", modality, **fields).projector
    assert [layer.out_channels for layer in conv.convolutions] == [11, 11]
    gru = connector("gru", modality, **fields).projector.gru
    assert (gru.hidden_size, gru.num_layers) == (11, 2)
    perceiver = connector("perceiver", modality, **fields).projector
    assert len(perceiver.layers) == 2 and perceiver.latents.weight.shape == (5, WIDTH)


def test_the_hidden_width_is_the_decoders_by_default():
    assert connector("mlp").projector.linear.weight.shape == (WIDTH, WIDTH)


def test_gru_runs_forward_in_time_only():
    module = connector("gru")
    states, mask = ragged((7,))
    other = states.clone()
    other[0, 4:] += torch.randn(3, W)
    one, two = module(states, mask)[0], module(other, mask)[0]
    assert difference(one[:, :4], two[:, :4]) == 0
    assert difference(one[:, 4:], two[:, 4:]) > 1e-3


def test_perceiver_reads_order():
    """Without position the resampler would give the same for any order of the tokens."""
    module = connector("perceiver")
    states, mask = ragged((7,))
    assert difference(module(states, mask)[0], module(states.flip(1), mask)[0]) > 1e-3


def test_perceiver_reads_in_any_decoder_implementation():
    states, mask = ragged()
    expected = connector("perceiver")(states, mask)[0]
    for implementation in ("eager", "sdpa", "flash_attention_2"):
        module = connector("perceiver")
        module.projector.layers[0].resampler_attn.config._attn_implementation = implementation
        assert difference(module(states, mask)[0], expected) == 0


# ---- Position and modality ------------------------------------------------------------------------------------------


def without_projection(**fields) -> torch.Tensor:
    """What a linear connector adds to a projection of zeros, for 5 tokens."""
    module = connector("linear", **fields)
    torch.nn.init.zeros_(module.projector.linear.weight)
    torch.nn.init.zeros_(module.projector.linear.bias)
    return module, module(torch.randn(1, 5, W), torch.ones(1, 5).bool())[0][0]


def test_sinusoidal_positions_are_added():
    _, added = without_projection(modality_embedding=False)
    assert difference(added, sinusoidal_positions(torch.arange(5), WIDTH)) < 1e-6


def test_rows_and_columns_of_a_grid_are_added_to_images_and_moments_to_audio():
    states = torch.randn(2, 6 * 6, W)
    mask = torch.ones(2, 36, dtype=torch.bool)
    for modality in ("vision", "audio"):
        module = connector(modality=modality, media_position_encoding="sinusoidal_2d")
        bare = connector(modality=modality, media_position_encoding="none")
        added = module(states, mask)[0] - bare(states, mask)[0]
        if modality == "audio":
            expected = sinusoidal_positions(torch.arange(36), WIDTH)
        else:
            halves = sinusoidal_positions(torch.arange(6), WIDTH // 2)
            expected = torch.stack(
                [torch.cat([halves[row], halves[column]]) for row in range(6) for column in range(6)]
            )
        assert difference(added, expected.expand(2, -1, -1)) < 1e-5


def test_the_places_of_a_grid_differ_by_row_and_by_column_alone():
    grid = grid_positions(torch.arange(25), 9).view(5, 5, 9)
    assert grid.flatten(0, 1).unique(dim=0).shape[0] == 25
    assert difference(grid[:, 0, :4], grid[:, 3, :4]) == 0 and difference(grid[0, :, 4:], grid[3, :, 4:]) == 0


def test_tokens_that_are_not_a_square_have_no_rows_and_columns():
    module = connector(media_position_encoding="sinusoidal_2d")
    with pytest.raises(ValueError, match="7 media tokens, which are not a square"):
        module(*ragged())


def test_learned_positions_are_added():
    module, added = without_projection(
        modality_embedding=False, media_position_encoding="learned", max_media_positions=6
    )
    assert module.positions.weight.shape == (6, WIDTH)
    assert difference(added, module.positions.weight[:5]) == 0


def test_no_positions_add_nothing():
    module, added = without_projection(modality_embedding=False, media_position_encoding="none")
    assert module.positions is None and added.abs().max() == 0


def test_the_modality_embedding_is_the_same_vector_for_every_token():
    module, added = without_projection(media_position_encoding="none")
    assert difference(added, module.modality.weight.expand(5, -1)) == 0
    assert module.modality.weight.shape == (1, WIDTH)


def test_more_tokens_than_learned_positions_are_refused_with_the_remedy():
    module = connector("linear", media_position_encoding="learned", max_media_positions=4)
    with pytest.raises(ValueError, match=r"An item has 5 media tokens, but max_media_positions is 4.*sinusoidal"):
        module(torch.randn(1, 5, W), torch.ones(1, 5).bool())


@pytest.mark.parametrize("position", ["sinusoidal", "learned", "none"])
@pytest.mark.parametrize("kind", CONNECTORS)
def test_half_precision_stays_half_precision(kind, position):
    module = connector(kind, media_position_encoding=position).to(torch.bfloat16)
    states, mask = ragged()
    tokens, _ = module(states.to(torch.bfloat16), mask)
    assert tokens.dtype == torch.bfloat16 and torch.isfinite(tokens).all()


@pytest.mark.parametrize("kind", CONNECTORS)
def test_an_item_of_one_token_gives_finite_gradients_in_bfloat16(kind):
    """Memory that was used before stands in it until it is written: here it is full of NaN."""
    module = connector(kind)
    states, mask = ragged()
    for _ in range(20):
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            tokens, _ = module(states[:1, :1], mask[:1, :1])
        used = [torch.full_like(p, torch.nan, dtype=d) for p in module.parameters() for d in (p.dtype, torch.bfloat16)]
        del used
        tokens.sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


# ---- Dropout of features --------------------------------------------------------------------------------------------


def test_a_feature_is_dropped_in_all_tokens_of_an_item_or_in_none():
    """Seen through a projection that passes features on as they are."""
    module = connector("linear", modality_embedding=False, media_position_encoding="none", connector_dropout=0.5)
    module.projector.linear.weight.data = torch.eye(WIDTH, W)
    module.projector.linear.bias.data.zero_()
    states, mask = ragged((5, 5, 5, 5), 5)
    whole, _ = module.eval()(states, mask)
    tokens, _ = module.train()(states, mask)
    factor = (tokens / whole).round(decimals=3)  # (4, 5, WIDTH)
    shown = factor[:, :, : min(W, WIDTH)]
    assert set(shown.flatten().abs().tolist()) == {0.0, 2.0}
    assert torch.equal(shown, shown[:, :1].expand_as(shown))
    assert not torch.equal(shown[0], shown[1])


# ---- Numbers of items -----------------------------------------------------------------------------------------------


NUMBERS = torch.tensor([[0, 0, 1, 1, -1], [0, 2, -1, -1, -1]])  # of the items of two rows of five media tokens


def test_the_vector_of_its_items_number_is_added_to_each_token_and_nothing_to_masked_ones():
    module = connector(max_media_items=3)
    assert module.items.weight.shape == (3, WIDTH)
    states = torch.randn(2, 5, WIDTH).masked_fill((NUMBERS < 0)[..., None], 0.0)
    numbered = module.number(states, NUMBERS)
    zero = torch.zeros(1, WIDTH)
    assert torch.equal(numbered, states + torch.cat([module.items.weight, zero])[NUMBERS])
    assert numbered[NUMBERS < 0].abs().max() == 0
    assert (numbered - states)[NUMBERS >= 0].abs().amax(-1).min() > 0.1


def test_without_numbers_the_states_stay_as_they_are():
    states = torch.randn(2, 5, WIDTH)
    module = connector()
    assert module.items is None and module.number(states, NUMBERS) is states
    module.check_items(1000)


def test_more_items_than_vectors_are_refused_with_the_remedy():
    module = connector(max_media_items=3)
    module.check_items(3)
    with pytest.raises(ValueError, match=r"A row has 4 items of a modality, but max_media_items is 3\. Raise it"):
        module.check_items(4)


@pytest.mark.parametrize("width", [W, WIDTH])
def test_a_direct_connector_tells_no_item_from_another(width):
    module, states = DirectConnector(width, WIDTH), torch.randn(2, 5, WIDTH)
    assert module.number(states, NUMBERS) is states
    module.check_items(1000)


def test_numbers_keep_half_precision():
    module = connector(max_media_items=3)
    states = torch.randn(2, 5, WIDTH, dtype=torch.bfloat16)
    assert module.number(states, NUMBERS).dtype == torch.bfloat16


# ---- Pooling --------------------------------------------------------------------------------------------------------


def test_squares_of_an_image_are_averaged_row_by_row():
    states = torch.arange(32.0).view(2, 16, 1)
    pooled, mask = pool_squares(states, torch.ones(2, 16, dtype=torch.bool), 2)
    first = torch.tensor([2.5, 4.5, 10.5, 12.5])  # of rows 0 1 2 3, 4 5 6 7, 8 9 10 11, 12 13 14 15
    assert torch.equal(pooled[..., 0], torch.stack([first, first + 16]))
    assert mask.shape == (2, 4) and mask.all()


def test_runs_of_audio_are_averaged_without_their_padding():
    states = torch.arange(5.0).view(1, 5, 1)
    mask = torch.tensor([[True, True, True, False, False]])
    pooled, kept = pool_runs(states, mask, 2)
    assert pooled[0, :, 0].tolist() == [0.5, 2.0, 0.0] and kept.tolist() == [[True, True, False]]


@pytest.mark.parametrize("length, side", [(17, 2), (9, 2), (8, 2)])
def test_tokens_that_make_no_squares_are_refused(length, side):
    module = connector("linear", vision_pooling=side)
    with pytest.raises(ValueError, match=rf"vision_pooling is {side}, but the encoder gives {length} tokens"):
        module(torch.randn(1, length, W), torch.ones(1, length, dtype=torch.bool))


@pytest.mark.parametrize("kind", CONNECTORS)
def test_a_connector_with_pooling_is_that_without_it_on_averaged_tokens(kind):
    states, mask = torch.randn(2, 16, W), torch.ones(2, 16, dtype=torch.bool)
    tokens, token_mask = connector(kind, vision_pooling=4)(states, mask)
    expected, expected_mask = connector(kind)(states.mean(1, keepdim=True), mask[:, :1])
    assert difference(tokens, expected) < 1e-5 and torch.equal(token_mask, expected_mask)


def test_an_absent_image_stays_absent_when_its_tokens_are_averaged():
    states, mask = torch.randn(1, 4, W), torch.zeros(1, 4, dtype=torch.bool)
    tokens, token_mask = connector("mlp", vision_pooling=2)(states, mask)
    assert not token_mask.any() and tokens.abs().max() == 0
