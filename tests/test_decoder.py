"""decoder.py: GPT-2's blocks, and the gated cross-attention blocks between them."""

import inspect

import pytest
import torch
from torch import nn
from transformers import DynamicCache, GPT2Model, StaticCache
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

import modeling_mm.decoder
from modeling_mm.configuration_mm import MMConfig
from modeling_mm.decoder import DecoderBlock, GatedCrossAttentionBlock, MMDecoder
from modeling_mm.layers import sinusoidal_positions
from tests.fakes.tiny import POSITIONS, WIDTH, difference, gpt2_config, open_gates, vit_config

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])


def config(text: dict | None = None, **fields) -> MMConfig:
    fields = {"cross_attention_layers": [1, 3], "cross_attention_feed_forward": True, **fields}
    return MMConfig.from_text_vision_audio_configs(gpt2_config(**(text or {})), vit_config(), **fields)


def decoder(text: dict | None = None, opened: bool = True, attn_implementation: str = "sdpa", **fields) -> MMDecoder:
    joint = config(text, **fields)
    joint.text_config._attn_implementation = attn_implementation
    torch.manual_seed(3)
    module = MMDecoder(joint).eval()
    if opened:
        # The helper knows cross-attention blocks by where they are in a whole model.
        holder = nn.Module()
        holder.language_model = module
        open_gates(holder)
    return module


def media(tokens: int = 5, at: tuple[int, int] = (1, 3)) -> dict[str, torch.Tensor]:
    """The same number of media tokens in both rows; the placeholder of row i is at index `at[i]`."""
    return {
        "media_states": torch.randn(2, tokens, WIDTH),
        "media_mask": torch.ones(2, tokens).bool(),
        "media_index": torch.tensor(at)[:, None].expand(2, tokens),
    }


# ---- Blocks ---------------------------------------------------------------------------------------------------------


def test_a_decoder_block_equals_gpt2s_with_its_weights():
    text = gpt2_config(n_inner=40)
    text._attn_implementation = "sdpa"
    theirs, ours = GPT2Block(text, layer_idx=1).eval(), DecoderBlock(text, 1).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, WIDTH)
    expected = theirs(x)
    assert difference(ours(x), expected[0] if isinstance(expected, tuple) else expected) < 1e-5


def block_and_inputs(**fields):
    block = decoder(**fields).cross_blocks["1"]
    return block, torch.randn(2, 4, WIDTH), torch.randn(2, 5, WIDTH)


@pytest.mark.parametrize("feed_forward", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_a_cross_block_is_the_formula_of_its_docstring(gated, feed_forward):
    block, x, states = block_and_inputs(cross_attention_gated=gated, cross_attention_feed_forward=feed_forward)
    attended, _ = block.cross_attn(block.norm_attn(x), media=block.cross_attn.keys_and_values(states))
    gate = torch.tensor(0.7).tanh() if gated else 1.0
    expected = x + gate * attended
    if feed_forward:
        expected = expected + gate * block.mlp(block.norm_mlp(expected))
    got = block(x, states, None, None)
    assert difference(got, expected) < 1e-6
    assert difference(got, x) > 0.1


def test_a_query_gate_multiplies_what_is_read_by_the_sigmoid_of_the_token():
    block, x, states = block_and_inputs(cross_attention_query_gate=True, cross_attention_feed_forward=False)
    normed = block.norm_attn(x)
    attended, _ = block.cross_attn(normed, media=block.cross_attn.keys_and_values(states))
    gates = block.gate_query(normed).sigmoid()
    assert gates.max() - gates.min() > 0.3
    assert difference(block(x, states, None, None), x + attended * gates) < 1e-6


def test_a_token_gate_multiplies_all_that_a_block_adds_by_one_number_a_token():
    block, x, states = block_and_inputs(cross_attention_token_gate=True, cross_attention_feed_forward=True)
    normed = block.norm_attn(x)
    attended, _ = block.cross_attn(normed, media=block.cross_attn.keys_and_values(states))
    gates = block.gate_token(normed).sigmoid()
    assert gates.shape == (2, 4, 1) and gates.max() - gates.min() > 0.1
    read = x + gates * attended
    expected = read + gates * block.mlp(block.norm_mlp(read))
    assert difference(block(x, states, None, None), expected) < 1e-6
    block.gate_token.bias.data.fill_(-100.0)
    assert difference(block(x, states, None, None), x) == 0.0


def sinking_block():
    return block_and_inputs(cross_attention_sink=True, cross_attention_feed_forward=False)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("masked", [True, False])
def test_a_sink_is_one_more_key_without_a_value(implementation, masked):
    block, x, states = sinking_block()
    visible = torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(1)) > 0.3 if masked else None
    attention = block.cross_attn
    (queries,) = attention.split_heads(attention.q_attn(block.norm_attn(x)), 1)  # (B, H, L, d)
    keys, values = attention.keys_and_values(states)
    sink = attention.sink.weight.view(1, attention.config.n_head, 1, -1)
    assert sink.abs().max() > 0.05
    scores = queries @ torch.cat([keys, sink.expand(2, -1, -1, -1)], dim=2).transpose(-1, -2) * attention.scaling
    if visible is not None:
        scores[..., :5] = scores[..., :5].masked_fill(~visible, float("-inf"))
    read = scores.softmax(-1)[..., :5] @ values
    expected = x + attention.c_proj(read.transpose(1, 2).flatten(-2))
    mask = visible
    if visible is not None and implementation == "eager":
        mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    assert difference(block(x, states, mask, None, implementation=implementation), expected) < 1e-5


def test_a_token_can_read_nothing_by_a_sink():
    block, x, states = sinking_block()
    attention = block.cross_attn
    with torch.no_grad():
        attention.q_attn.weight.zero_()
        attention.q_attn.bias.fill_(1.0)
        attention.sink.weight.fill_(1e4)
    assert difference(block(x, states, None, None), x + attention.c_proj.bias) < 1e-6


def test_a_fresh_sink_is_one_more_in_the_denominator():
    block, x, states = block_and_inputs(opened=False, cross_attention_sink=True, cross_attention_feed_forward=False)
    assert block.cross_attn.sink.weight.tolist() == [0.0] * WIDTH
    with torch.no_grad():
        block.cross_attn.q_attn.weight.zero_()  # all keys are equal: the sink takes one share of six
        block.cross_attn.c_proj.weight.copy_(torch.eye(WIDTH))
        _, values = block.cross_attn.keys_and_values(states)
        mean = values.transpose(1, 2).flatten(-2).sum(1, keepdim=True) / 6  # (B, 1, D)
        assert difference(block(x, states, None, None), x + mean) < 1e-5


@pytest.mark.parametrize("feed_forward", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_a_fresh_cross_block_adds_exactly_nothing(gated, feed_forward):
    block, x, states = block_and_inputs(
        opened=False, cross_attention_gated=gated, cross_attention_feed_forward=feed_forward
    )
    assert difference(block(x, states, None, None), x) == 0


@pytest.mark.parametrize("gated", [True, False])
def test_a_fresh_cross_block_can_learn(gated):
    """What holds it shut gets a gradient: the gates, or the zero projections."""
    block, x, states = block_and_inputs(opened=False, cross_attention_gated=gated)
    block(x, states, None, None).square().sum().backward()
    shut = (
        [block.gate_attn.weight, block.gate_mlp.weight]
        if gated
        else [block.cross_attn.c_proj.weight, block.mlp.c_proj.weight]
    )
    assert all(parameter.grad.abs().max() > 1e-3 for parameter in shut)


def test_the_fields_choose_the_parameters_of_a_cross_block():
    names = {
        (gated, fed): {
            name.split(".")[0]
            for name, _ in GatedCrossAttentionBlock(
                config(cross_attention_gated=gated, cross_attention_feed_forward=fed), 1
            ).named_parameters()
        }
        for gated in (True, False)
        for fed in (True, False)
    }
    assert names == {
        (True, True): {"norm_attn", "cross_attn", "gate_attn", "norm_mlp", "mlp", "gate_mlp"},
        (True, False): {"norm_attn", "cross_attn", "gate_attn"},
        (False, True): {"norm_attn", "cross_attn", "norm_mlp", "mlp"},
        (False, False): {"norm_attn", "cross_attn"},
    }
    block = GatedCrossAttentionBlock(config(cross_attention_query_gate=True, cross_attention_sink=True), 1)
    shapes = {name: tuple(parameter.shape) for name, parameter in block.named_parameters()}
    new = {"gate_query.weight": (WIDTH, WIDTH), "gate_query.bias": (WIDTH,), "cross_attn.sink.weight": (WIDTH,)}
    assert new.items() <= shapes.items()


def test_both_branches_add_exactly_zero_to_a_token_that_sees_no_media():
    block, x, states = block_and_inputs()
    has_media = torch.tensor([[False, True, True, False], [True, False, True, True]])[..., None]
    got = block(x, states, None, has_media)
    moved = (got != x).any(-1)
    assert moved.tolist() == has_media[..., 0].tolist()
    assert difference(got[has_media[..., 0]], block(x, states, None, None)[has_media[..., 0]]) == 0


# ---- The decoder ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_without_media_the_decoder_equals_gpt2_model(attn_implementation):
    text = gpt2_config()
    text._attn_implementation = attn_implementation
    theirs = GPT2Model(text).eval()
    ours = MMDecoder(MMConfig(text_config=text)).eval()
    ours.load_state_dict(theirs.state_dict())
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = theirs(IDS, attention_mask=mask, position_ids=positions, output_hidden_states=True)
    got = ours(IDS, attention_mask=mask, output_hidden_states=True)
    real = mask.bool()
    assert difference(got.last_hidden_state[real], expected.last_hidden_state[real]) < 1e-5
    assert len(got.hidden_states) == len(expected.hidden_states) == 5
    for one, other in zip(got.hidden_states, expected.hidden_states, strict=True):
        assert difference(one[real], other[real]) < 1e-5


def test_parameter_names_are_gpt2s_and_those_of_the_cross_blocks():
    ours, theirs = set(decoder().state_dict()), set(GPT2Model(gpt2_config()).state_dict())
    assert theirs <= ours
    assert {name.split(".")[0] for name in ours - theirs} == {"cross_blocks"}
    assert {name.split(".")[1] for name in ours - theirs} == {"1", "3"}


def test_without_encoders_there_are_no_cross_blocks():
    joint = MMConfig(text_config=gpt2_config())
    assert len(MMDecoder(joint).cross_blocks) == 0


def test_cross_blocks_stand_right_before_the_blocks_they_are_named_after():
    order = []
    model = decoder(cross_attention_layers=[0, 2])
    for i, block in enumerate(model.h):
        block.register_forward_pre_hook(lambda *_, i=i: order.append(f"block {i}"))
    for name, block in model.cross_blocks.items():
        block.register_forward_pre_hook(lambda *_, name=name: order.append(f"cross {name}"))
    model(IDS, **media())
    assert order == ["cross 0", "block 0", "block 1", "cross 2", "block 2", "block 3"]
    order.clear()
    model(IDS)
    assert order == ["block 0", "block 1", "block 2", "block 3"]


def test_tokens_before_a_placeholder_do_not_move_and_later_ones_do():
    model = decoder()
    with torch.no_grad():
        plain = model(IDS).last_hidden_state
        seeing = model(IDS, **media(at=(1, 3))).last_hidden_state
    moved = (seeing != plain).any(-1)
    assert moved.tolist() == [[False] + [True] * 5, [False] * 3 + [True] * 3]


def test_masked_media_tokens_do_not_count():
    model, shown = decoder(), media()
    shown["media_mask"][:, 3:] = False
    other = {**shown, "media_states": shown["media_states"].clone()}
    other["media_states"][:, 3:] = 99.0
    with torch.no_grad():
        assert difference(model(IDS, **shown).last_hidden_state, model(IDS, **other).last_hidden_state) == 0


@pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])
def test_step_by_step_equals_at_once(cache_class):
    """Media whose placeholders are at 1 and 3 come with the first four tokens."""
    model, shown = decoder(), media()
    kwargs = {"max_cache_len": 8} if cache_class is StaticCache else {}
    cache = cache_class(config=model.config, **kwargs)
    with torch.no_grad():
        expected = model(IDS, **shown).last_hidden_state
        steps = [model(IDS[:, :4], past_key_values=cache, use_cache=True, **shown).last_hidden_state]
        steps += [
            model(IDS[:, i : i + 1], past_key_values=cache, use_cache=True).last_hidden_state for i in range(4, 6)
        ]
    assert difference(torch.cat(steps, dim=1), expected) < 1e-5


HIDDEN_ROWS = {
    "nothing": [[1, 1, 1, 1], [1, 1, 1, 1]],
    "the first": [[0, 1, 1, 1], [0, 1, 1, 1]],
    "the first two": [[0, 0, 1, 1], [0, 0, 1, 1]],
    "unlike": [[0, 1, 1, 1], [1, 1, 1, 1]],
    "within": [[1, 0, 1, 1], [1, 0, 1, 1]],
}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("hidden", HIDDEN_ROWS)
@torch.no_grad()
def test_steps_behind_what_is_hidden_in_front_need_no_mask_and_equal_all_at_once(hidden, implementation, monkeypatch):
    model, made = decoder(attn_implementation=implementation), []
    mask = torch.cat([torch.tensor(HIDDEN_ROWS[hidden]), torch.ones(2, 2, dtype=torch.long)], dim=1)
    shown = media(at=(0, 0))
    expected = model(IDS, mask, **shown, use_cache=False).last_hidden_state[:, 4:]
    cache, create = DynamicCache(), modeling_mm.decoder.create_causal_mask
    model(IDS[:, :4], mask[:, :4], past_key_values=cache, **shown, use_cache=True)
    monkeypatch.setattr(modeling_mm.decoder, "create_causal_mask", lambda **kwargs: made.append(1) or create(**kwargs))
    for step in (4, 5):
        got = model(IDS[:, step : step + 1], mask[:, : step + 1], past_key_values=cache, use_cache=True)
        assert difference(got.last_hidden_state[:, 0], expected[:, step - 4]) < 1e-5
    assert len(made) == (2 if hidden in ("unlike", "within") else 0)


def test_media_that_come_later_join_those_in_the_cache():
    model = decoder()
    first, second = media(at=(0, 1)), media(tokens=3, at=(3, 5))
    together = {name: torch.cat([first[name], second[name]], dim=1) for name in first}
    cache = DynamicCache(config=model.config)
    second_step = {**second, "media_index": second["media_index"] - 2}  # counted within its own step
    with torch.no_grad():
        expected = model(IDS, **together).last_hidden_state
        one = model(IDS[:, :2], past_key_values=cache, use_cache=True, **first).last_hidden_state
        two = model(IDS[:, 2:], past_key_values=cache, use_cache=True, **second_step).last_hidden_state
    assert difference(torch.cat([one, two], dim=1), expected) < 1e-5


def test_a_cropped_cache_forgets_media_behind_the_cut():
    model, shown = decoder(), media(at=(1, 3))
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        model(IDS[:, :5], past_key_values=cache, use_cache=True, **shown)
        cache.crop(-3)  # two tokens are left
        got = model(IDS[:, 2:], past_key_values=cache, use_cache=True).last_hidden_state
        shown["media_mask"][1] = False  # row 1 was shown its media at index 3, which is cut off
        expected = model(IDS, **shown).last_hidden_state[:, 2:]
    assert difference(got, expected) < 1e-5


def test_eager_equals_sdpa_and_returns_both_kinds_of_attention():
    shown, mask = media(), torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    with torch.no_grad():
        eager = decoder(attn_implementation="eager")(IDS, attention_mask=mask, output_attentions=True, **shown)
        sdpa = decoder()(IDS, attention_mask=mask, **shown)
    real = mask.bool()
    assert difference(eager.last_hidden_state[real], sdpa.last_hidden_state[real]) < 1e-5
    assert [tuple(w.shape) for w in eager.attentions] == [(2, 4, 6, 6)] * 4
    assert [tuple(w.shape) for w in eager.cross_attentions] == [(2, 4, 6, 5)] * 2


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_changes_no_gradient(use_reentrant):
    shown, gradients = media(), []
    shown["media_states"].requires_grad_()
    for checkpointing in (False, True):
        model = decoder().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        shown["media_states"].grad = None
        model(IDS, **shown).last_hidden_state.square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()] + [shown["media_states"].grad.clone()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert difference(plain, checkpointed) < 1e-5 * max(1.0, plain.abs().max().item())


# ---- Positions ------------------------------------------------------------------------------------------------------


def test_sinusoidal_text_positions_replace_the_table_and_have_no_limit():
    model = decoder(text_position_encoding="sinusoidal")
    assert model.wpe is None and "wpe.weight" not in model.state_dict()
    ids = torch.randint(0, 90, (1, POSITIONS + 5))
    captured = []
    model.drop.register_forward_hook(lambda module, args, output: captured.append(output))
    with torch.no_grad():
        model(ids)
    expected = model.wte(ids) + sinusoidal_positions(torch.arange(POSITIONS + 5), WIDTH)
    assert difference(captured[0], expected) < 1e-6


def test_learned_text_positions_refuse_a_text_that_is_too_long():
    model, ids = decoder(), torch.randint(0, 90, (2, POSITIONS + 3))
    with pytest.raises(ValueError, match=rf"Row 0: {POSITIONS + 3} text tokens, but the decoder has {POSITIONS}"):
        model(ids)
    # Padding takes no positions: what is left of these rows fits.
    mask = torch.ones_like(ids)
    mask[:, :3] = 0
    assert model(ids, attention_mask=mask).last_hidden_state.shape == (2, POSITIONS + 3, WIDTH)
    with pytest.raises(ValueError, match="Row 1:"):
        mask[1, 2] = 1
        model(ids, attention_mask=mask)


def test_decoding_past_the_positions_is_refused_too():
    model = decoder()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.randint(0, 90, (1, POSITIONS)), past_key_values=cache, use_cache=True)
        with pytest.raises(ValueError, match=f"Row 0: {POSITIONS + 1} text tokens"):
            model(torch.tensor([[1]]), past_key_values=cache, use_cache=True)


# ---- The interface --------------------------------------------------------------------------------------------------


def test_exactly_one_of_ids_and_embeddings_is_taken():
    model = decoder()
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(IDS, inputs_embeds=model.wte(IDS))
    assert difference(model(IDS).last_hidden_state, model(inputs_embeds=model.wte(IDS)).last_hidden_state) == 0


def test_a_cache_comes_back_only_when_asked_for():
    model = decoder()
    assert model(IDS, use_cache=False).past_key_values is None
    assert model(IDS, use_cache=True).past_key_values.get_seq_length() == 6


@pytest.mark.parametrize(
    ("implementation", "used"),
    [("flash_attention_2", "sdpa"), ("kernels-community/flash-attn", "sdpa"), ("sdpa", "sdpa"), ("eager", "eager")],
)
def test_flash_attention_leaves_cross_attention_to_sdpa(implementation, used):
    model = decoder()
    model.config._attn_implementation_internal = implementation  # of which no kernel is here
    shown = media()
    given = model.cross_attention_inputs(
        "", torch.randn(2, 6, WIDTH), shown["media_mask"], shown["media_index"], None, 0, False, None
    )
    assert given["implementation"] == used
    assert (given["attention_mask"].dtype == torch.bool) == (used == "sdpa")


def test_media_is_a_positional_argument_of_the_cross_block():
    """Re-entrant checkpointing carries gradients through positional arguments alone."""
    assert list(inspect.signature(GatedCrossAttentionBlock.forward).parameters)[:3] == [
        "self",
        "hidden_states",
        "media_states",
    ]
