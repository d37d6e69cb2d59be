"""Paths from media tokens back to encoder tokens, exact for each connector."""

import pytest
import torch

from modeling_mm.explain.paths import ConnectorRecord, connector_paths, convolved, record_connectors, rollout
from tests.fakes.tiny import AUDIO, IMAGE, inputs, opened, vit


def paths_of(model, batch, name):
    with record_connectors(model.model) as records:
        model.encode_media(**{key: batch[key] for key in batch if key not in ("input_ids", "attention_mask")})
    connector = getattr(model.model, {"image": "vision_connector", "audio": "audio_connector"}[name])
    return connector_paths(connector, records[name]), records[name]


def test_token_wise_connectors_keep_places() -> None:
    paths, _ = paths_of(opened(), inputs([[5, IMAGE]]), "image")
    assert torch.equal(paths, torch.eye(5)[None])  # a class token and 2 x 2 patches


def test_pooling_averages_squares_of_patches_and_runs_of_moments() -> None:
    record = ConnectorRecord(torch.ones(1, 16, dtype=torch.bool))
    model = opened(vision_pooling=2, audio_pooling=2)
    paths = connector_paths(model.model.vision_connector, record)
    assert paths.shape == (1, 4, 16)
    assert paths[0, 1].view(4, 4).tolist() == [[0, 0, 0.25, 0.25], [0, 0, 0.25, 0.25], [0] * 4, [0] * 4]
    mask = torch.tensor([[True] * 3 + [False]])
    paths = connector_paths(model.model.audio_connector, ConnectorRecord(mask))
    assert paths.tolist() == [[[0.5, 0.5, 0, 0], [0, 0, 1, 0]]]  # the padding takes no part


def test_tags_are_spread_over_all_that_is_real() -> None:
    record = ConnectorRecord(torch.tensor([[True] * 4 + [False]]))
    model = opened(vision_tags=5, vision_tag_length=3, vision_tag_choices=2)
    paths = connector_paths(model.model.vision_connector, record)
    assert paths.shape == (1, 5 + 6, 5)
    assert torch.equal(paths[0, 5:], torch.tensor([0.25] * 4 + [0.0]).expand(6, -1))


def test_a_convolution_reads_three_neighbors() -> None:
    paths = convolved(torch.eye(5)[None])
    assert paths.tolist() == [[[1, 1, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 1]]]
    shares = connector_paths(
        opened(audio_connector="conv").model.audio_connector, ConnectorRecord(torch.ones(1, 5) > 0)
    )
    torch.testing.assert_close(shares, paths / paths.sum(-1, keepdim=True))


def test_a_convolution_has_the_places_that_its_output_depends_on() -> None:
    """By gradients: what a media token does not depend on has no share, all else has."""
    model = opened(audio_connector="conv", audio_connector_layers=2)
    states = torch.randn(1, 9, 16, requires_grad=True)
    mask = torch.ones(1, 9, dtype=torch.bool)
    tokens, _ = model.model.audio_connector(states, mask)
    paths = connector_paths(model.model.audio_connector, ConnectorRecord(mask))
    for number in range(tokens.shape[1]):
        (grad,) = torch.autograd.grad(tokens[0, number].sum(), states, retain_graph=True)
        assert torch.equal(grad[0].abs().sum(-1) > 0, paths[0, number] > 0)


def test_the_latents_of_a_perceiver_are_followed_through_its_layers() -> None:
    first = torch.tensor([[[0.5, 0.25, 0.25, 0.0], [0.0, 0.5, 0.0, 0.5]]])  # 2 latents; 2 encoder tokens, 2 latents
    second = torch.tensor([[[0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]]])
    read = first[..., :2] / 2
    expected = (read + second[..., :2] + second[..., 2:] @ read) / 2
    torch.testing.assert_close(rollout([first, second]), expected)


def test_weights_of_a_perceiver_are_those_it_used() -> None:
    model = opened(audio_connector="perceiver", audio_connector_layers=2)
    batch = inputs([[5, AUDIO]])
    batch["feature_attention_mask"][..., 20:] = 0
    paths, record = paths_of(model, batch, "audio")
    assert [weights.shape for weights in record.rollouts] == [(1, 3, 23)] * 2
    torch.testing.assert_close(record.rollouts[1].sum(-1), torch.ones(1, 3))
    assert not paths[..., 10:].any()  # padding
    torch.testing.assert_close(paths.sum(-1), torch.ones(1, 3))
    # With the recorded weights, sdpa's output is that of eager attention.
    layer = model.model.audio_connector.projector.layers[0].resampler_attn
    seen = {}

    def keep(module, given, kwargs, output):
        seen.update(given=given, kwargs=kwargs, output=output[0])

    layer.register_forward_hook(keep, with_kwargs=True)
    model.encode_media(**{key: batch[key] for key in ("input_features", "feature_attention_mask")})
    visible = seen["given"][1]
    added = torch.zeros_like(visible, dtype=torch.float32).masked_fill(~visible, torch.finfo(torch.float32).min)
    output, weights = layer.forward(seen["given"][0], added, media=seen["kwargs"]["media"], implementation="eager")
    torch.testing.assert_close(output, seen["output"])
    torch.testing.assert_close(weights.mean(1), record.rollouts[0])


def test_hooks_are_removed() -> None:
    model = opened(vision=vit(image_size=16), vision_connector="perceiver")
    for fails in (False, True):
        try:
            with record_connectors(model.model):
                assert model.model.vision_connector._forward_pre_hooks
                if fails:
                    raise KeyError
        except KeyError:
            pass
        assert not model.model.vision_connector._forward_pre_hooks
        assert not model.model.vision_connector.projector.layers[0].resampler_attn._forward_hooks


def test_direct_connectors_keep_places() -> None:
    model = opened(vision_connector="direct")
    mask = torch.tensor([[True, True, False]])
    assert connector_paths(model.model.vision_connector, ConnectorRecord(mask)).tolist() == [
        [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    ]


@pytest.mark.parametrize("kind", ["mlp", "conv", "perceiver"])
def test_shares_of_a_media_token_sum_to_one(kind: str) -> None:
    paths, _ = paths_of(opened(vision_connector=kind, vision_connector_layers=2), inputs([[5, IMAGE, IMAGE]]), "image")
    torch.testing.assert_close(paths.sum(-1), torch.ones(paths.shape[:2]))
