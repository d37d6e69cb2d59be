"""modeling_mm.py: what the classes return, and their heads against GPT-2's with the same weights."""

import copy
import inspect
import os
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import DynamicCache, GPT2ForSequenceClassification

import modeling_mm
from modeling_mm import MMConfig, MMForConditionalGeneration, MMForSequenceClassification, MMModel
from modeling_mm.configuration_mm import SPECIAL_TOKEN_FIELDS
from modeling_mm.modeling_mm import last_real_token
from modeling_mm.outputs import MMCausalLMOutput, MMMediaOutput, MMModelOutput, MMSequenceClassifierOutput
from tests.fakes.tiny import (
    ASSISTANT,
    AUDIO,
    IMAGE,
    PAD,
    POSITIONS,
    USER,
    VOCABULARY,
    WIDTH,
    difference,
    gpt2,
    gpt2_config,
    image,
    inputs,
    joined,
    labels,
    open_gates,
    opened,
    pad_images,
    pad_text,
    seeded,
)

ROWS = [[5, IMAGE, 6, 7, AUDIO, 8], [9, 10, 11], [12, IMAGE, IMAGE, 13]]
NUM_VOCABULARY = VOCABULARY + 7


@pytest.fixture(scope="module")
def model():
    return opened()


@pytest.fixture(scope="module")
def eager():
    return opened(attn_implementation="eager")


# ---- Outputs --------------------------------------------------------------------------------------------------------


def test_base_model_output(model):
    with torch.no_grad():
        out = model.model(**inputs(ROWS))
    assert isinstance(out, MMModelOutput) and list(out) == ["last_hidden_state", "past_key_values"]
    assert out.last_hidden_state.shape == (3, 6, WIDTH)
    assert out.past_key_values.get_seq_length() == 6


def test_causal_lm_output(model):
    batch = inputs(ROWS)
    with torch.no_grad():
        out = model(**batch, labels=labels(batch))
    assert isinstance(out, MMCausalLMOutput) and list(out) == ["loss", "logits", "past_key_values"]
    assert out.logits.shape == (3, 6, NUM_VOCABULARY) and out.loss.shape == ()
    assert list(model(**batch, use_cache=False)) == ["logits"]


def test_logits_are_the_head_on_the_base_models_states(model):
    batch = inputs(ROWS)
    with torch.no_grad():
        states = model.model(**batch).last_hidden_state
        assert difference(model(**batch).logits, model.lm_head(states)) == 0


def test_the_loss_is_the_next_tokens_cross_entropy(model):
    batch = inputs(ROWS)
    targets = labels(batch)
    with torch.no_grad():
        out = model(**batch, labels=targets)
    expected = F.cross_entropy(out.logits[:, :-1].reshape(-1, NUM_VOCABULARY), targets[:, 1:].reshape(-1))
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    items = int((targets[:, 1:] != -100).sum())
    scaled = model(**batch, labels=targets, num_items_in_batch=2 * items).loss
    assert scaled.item() == pytest.approx(expected.item() / 2, rel=1e-6)


def test_shift_labels_alone_give_the_same_loss(model):
    batch = inputs(ROWS)
    targets = labels(batch)
    shifted = F.pad(targets, (0, 1), value=-100)[:, 1:]
    assert model(**batch, shift_labels=shifted).loss.item() == model(**batch, labels=targets).loss.item()


@pytest.mark.parametrize("kind", ["base", "lm", "classifier"])
def test_return_dict_false_gives_the_same_as_a_tuple(kind):
    cls = {"base": MMModel, "lm": MMForConditionalGeneration, "classifier": MMForSequenceClassification}[kind]
    model = opened(cls=cls)
    batch = inputs(ROWS)
    extra = {} if kind == "base" else {"labels": labels(batch) if kind == "lm" else torch.tensor([0, 1, 0])}
    with torch.no_grad():
        as_dict = model(**batch, **extra, use_cache=False)
        as_tuple = model(**batch, **extra, use_cache=False, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == len(as_dict)
    for one, other in zip(as_tuple, as_dict.to_tuple(), strict=True):
        assert torch.equal(one, other)


def test_attentions_are_one_a_block_and_cross_attentions_one_a_cross_block(eager):
    with torch.no_grad():
        out = eager(**inputs(ROWS), output_attentions=True)
    media_tokens = 2 * 5 + 20
    assert [tuple(a.shape) for a in out.attentions] == [(3, 4, 6, 6)] * 4
    assert [tuple(a.shape) for a in out.cross_attentions] == [(3, 4, 6, media_tokens)] * 2
    first = out.cross_attentions[0][0]  # row 0: its image is seen from token 1, its sound from token 4
    assert first[:, 1:4, 10:].abs().max() == 0 and first[:, 4:, 10:].abs().max() > 0
    assert difference(first[:, 1:].sum(-1), torch.ones(4, 5)) < 1e-5


def test_attentions_in_every_step_of_generation(eager):
    out = eager.generate(
        **inputs([[5, IMAGE, 6]]), max_new_tokens=3, do_sample=False, eos_token_id=None,
        output_attentions=True, return_dict_in_generate=True,
    )  # fmt: skip
    assert [a[0].shape[-2:] for a in out.attentions] == [(3, 3), (1, 4), (1, 5)]


def test_hidden_states_are_the_embedding_and_each_blocks_output(model):
    batch = inputs(ROWS)
    with torch.no_grad():
        out = model(**batch, output_hidden_states=True)
        decoder = model.model.language_model
        positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        embedded = decoder.wte(batch["input_ids"]) + decoder.wpe(positions)
    assert len(out.hidden_states) == 5
    assert difference(out.hidden_states[0], embedded) < 1e-6
    assert difference(model.lm_head(out.hidden_states[-1]), out.logits) < 1e-5


@pytest.mark.parametrize("keep", [1, 3])
def test_logits_to_keep_counts_from_the_end(model, keep):
    batch = inputs(ROWS)
    with torch.no_grad():
        assert difference(model(**batch, logits_to_keep=keep).logits, model(**batch).logits[:, -keep:]) < 1e-6


def test_logits_to_keep_may_name_indices(model):
    batch, kept = inputs(ROWS), torch.tensor([0, 4])
    with torch.no_grad():
        assert difference(model(**batch, logits_to_keep=kept).logits, model(**batch).logits[:, kept]) < 1e-6


def test_logits_to_keep_may_be_a_mask_and_the_loss_is_that_of_all(model):
    batch = inputs(ROWS)
    targets = batch["input_ids"].roll(-1, 1)
    targets[:, -1], targets[0, 0] = -100, -100
    kept = targets != -100
    with torch.no_grad():
        some = model(**batch, shift_labels=targets, logits_to_keep=kept)
        whole = model(**batch, shift_labels=targets)
    assert difference(some.logits, whole.logits[kept]) < 1e-6
    assert difference(some.loss, whole.loss) < 1e-6


@pytest.mark.parametrize(
    "rows",
    [
        [[5, 6, 7]],
        [[5, IMAGE, 6], [7, 8, IMAGE]],
        [[5, AUDIO, 6]],
        [[5, IMAGE, 6, AUDIO]],
        [[5, IMAGE, 6], [7, IMAGE]],  # the second row is padded
        [[USER, IMAGE, 5, ASSISTANT]],
    ],
    ids=["text", "image", "audio", "both", "padding", "roles"],
)
def test_embeddings_give_what_ids_give(model, rows):
    batch = inputs(rows)
    with torch.no_grad():
        expected = model(**batch).logits
        embeds = model.get_input_embeddings()(batch.pop("input_ids"))
        assert difference(model(inputs_embeds=embeds, **batch).logits, expected) < 1e-6


def test_position_ids_may_be_given(model):
    batch = inputs(ROWS)
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        assert difference(model(**batch, position_ids=positions).logits, model(**batch).logits) == 0
        assert difference(model(**batch, position_ids=positions + 1).logits, model(**batch).logits) > 1e-3


def test_an_empty_cache_on_the_first_step_does_not_skip_the_media(model):
    batch = inputs(ROWS)
    with torch.no_grad():
        cached = model(**batch, past_key_values=DynamicCache(config=model.config.text_config)).logits
        assert difference(cached, model(**batch).logits) == 0


def test_encoded_media_give_what_raw_media_give(model):
    batch = inputs(ROWS)
    text = {name: batch.pop(name) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        media = model.encode_media(**batch)
        assert isinstance(media, MMMediaOutput)
        assert difference(model(**text, media=media).logits, model(**text, **batch).logits) == 0


# ---- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "images", "message"),
    [
        ([[5, IMAGE], [6, IMAGE]], [[image(0)], []], r"Row 1: 1 image placeholder token\(s\) \(id 90\).*for 0 image"),
        ([[5, IMAGE], [6, 7]], [[image(0)], [image(1)]], r"Row 1: 0 image placeholder.*for 1 image"),
        ([[IMAGE, IMAGE]], [[image(0)]], r"Row 0: 2 image placeholder.*for 1 image"),
        ([[5, AUDIO, IMAGE]], [[image(0)]], r"Row 0: 1 audio placeholder.*for 0 audio"),
        ([[5, IMAGE]], None, r"Row 0: 1 image placeholder.*for 0 image"),
    ],
)
def test_placeholders_that_do_not_match_the_media_are_refused(model, rows, images, message):
    batch = pad_text(rows) | (pad_images(images) if images else {})
    with pytest.raises(ValueError, match=message):
        model(**batch)


def test_media_for_another_number_of_rows_are_refused(model):
    with pytest.raises(ValueError, match=r"text has 2 rows, the media have 1"):
        model(**pad_text([[IMAGE], [IMAGE]]), **pad_images([[image(0)]]))


def test_a_placeholder_outside_the_vocabulary_is_refused_at_construction():
    config = joined().config
    config.image_token_id = 1000
    with pytest.raises(ValueError, match=rf"image_token_id is 1000, but the vocabulary has {NUM_VOCABULARY} tokens"):
        MMForConditionalGeneration(config)


@pytest.mark.parametrize("field", SPECIAL_TOKEN_FIELDS)
@pytest.mark.parametrize("cls", [MMModel, MMForConditionalGeneration, MMForSequenceClassification])
def test_a_special_token_outside_the_vocabulary_is_refused_at_construction(cls, field):
    config = copy.deepcopy(joined().config)
    setattr(config, field, NUM_VOCABULARY)
    with pytest.raises(ValueError, match=rf"{field} is {NUM_VOCABULARY}, but the vocabulary has {NUM_VOCABULARY} "):
        cls(config)
    setattr(config, field, NUM_VOCABULARY - 1)  # the last one is within
    cls(config)


@pytest.mark.parametrize("use_cache", [None, False], ids=["default", "no cache"])
@pytest.mark.parametrize("wrong", [POSITIONS, POSITIONS + 100, -1])
def test_position_ids_outside_the_table_are_refused_with_the_row(model, wrong, use_cache):
    """On CUDA an index outside the table would break the whole process."""
    positions = torch.tensor([[0, 1, 2], [0, 1, wrong]])
    with pytest.raises(ValueError, match="Row 1"):
        model(torch.tensor([[5, 6, 7], [8, 9, 10]]), position_ids=positions, use_cache=use_cache)


def test_the_last_position_of_the_table_is_no_error(model):
    positions = torch.tensor([[0, 1, POSITIONS - 1]])
    assert torch.isfinite(model(torch.tensor([[5, 6, 7]]), position_ids=positions).logits).all()


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("use_cache", [None, False], ids=["default", "no cache"])
def test_positions_that_jump_in_a_row_with_media_are_refused(model, use_cache, train):
    """Tokens behind a jump might belong to another sample, which must not see these media."""
    batch = inputs([[5, 6, 7, 8, 9, 10], [5, IMAGE, 6, 7, AUDIO, 8]])
    del batch["attention_mask"]
    positions = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, 5, 6, 7]])
    model.train(train)
    try:
        with pytest.raises(ValueError, match=r"Row 1: position_ids neither count on nor start again"):
            model(**batch, position_ids=positions, use_cache=use_cache)
    finally:
        model.eval()


@pytest.mark.parametrize("packed", [[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 0, 0], [0, 0, 1, 2, 3, 4]], ids=str)
def test_packed_samples_with_media_see_their_own_alone(model, packed):
    ids = [5, IMAGE, 6, 7, AUDIO, 8]
    batch = inputs([ids])
    del batch["attention_mask"]
    starts = [number for number, position in enumerate(packed) if position == 0]
    with torch.no_grad():
        got = model(**batch, position_ids=torch.tensor([packed])).logits
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            own = {"input_ids": batch["input_ids"][:, start:end]}
            own |= {"pixel_values": batch["pixel_values"]} if IMAGE in ids[start:end] else {}
            own |= {"input_features": batch["input_features"]} if AUDIO in ids[start:end] else {}
            assert difference(got[:, start:end], model(**own).logits) < 1e-5


def test_packed_samples_of_text_are_as_each_by_itself(model):
    ids, positions = torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([[0, 1, 2, 0, 1]])
    with torch.no_grad():
        packed = model(ids, position_ids=positions, use_cache=False).logits
        assert difference(packed[:, :3], model(ids[:, :3]).logits) < 1e-5
        assert difference(packed[:, 3:], model(ids[:, 3:]).logits) < 1e-5


@pytest.mark.parametrize("items", [None, 0, torch.tensor(0)], ids=["none", "int", "tensor"])
def test_a_batch_without_targets_has_a_zero_loss_and_zero_gradients(items):
    model = opened()
    batch = inputs(ROWS)
    loss = model(**batch, labels=torch.full_like(batch["input_ids"], -100), num_items_in_batch=items).loss
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.parameters())


# ---- Classification -------------------------------------------------------------------------------------------------


def classifiers(**fields) -> tuple[MMForSequenceClassification, GPT2ForSequenceClassification]:
    text = gpt2_config(vocab_size=NUM_VOCABULARY, pad_token_id=PAD, **fields)
    theirs = seeded(lambda: GPT2ForSequenceClassification(text))
    ours = seeded(lambda: MMForSequenceClassification(MMConfig(text_config=text, **fields)))
    state = {f"model.language_model.{k}": v for k, v in theirs.transformer.state_dict().items()}
    ours.load_state_dict({**state, "score.weight": theirs.score.weight})
    return ours, theirs


TEXT = [[5, 6, 7, 8, 9], [10, 11], [12]]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("masked", [True, False])
def test_pooled_where_gpt2s_classifier_pools(side, masked):
    ours, theirs = classifiers(num_labels=3)
    batch = pad_text(TEXT, side)
    if not masked:
        del batch["attention_mask"]
    positions = None
    if masked:  # GPT-2's classifier counts padding on the left, ours does not
        positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        got, expected = ours(**batch).logits, theirs(**batch, position_ids=positions).logits
    assert got.shape == (3, 3) and difference(got, expected) < 1e-5


@pytest.mark.parametrize("side", ["right", "left"])
def test_pooled_by_padding_ids_as_gpt2s_classifier_also_under_a_mask_of_ones(side):
    """Tokenizers without padding in their mask, and padding ids within a text, are told by the id alone."""
    ours, theirs = classifiers(num_labels=3)
    batch = pad_text([*TEXT, [13, PAD, 14]], side)
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    with torch.no_grad():
        got, expected = ours(**batch).logits, theirs(**batch).logits
        at_the_end = ours.score(ours.model(**batch).last_hidden_state[:, -1])
    assert difference(got, expected) < 1e-5
    if side == "right":
        assert (got - at_the_end).abs().amax(-1).gt(1e-3).tolist() == [False, True, True, True]


@pytest.mark.parametrize("items", [None, 0], ids=["none", "int"])
def test_a_classifier_without_labels_in_its_batch_has_a_zero_loss(items):
    ours, _ = classifiers(num_labels=3)
    loss = ours(**pad_text(TEXT), labels=torch.full((3,), -100), num_items_in_batch=items).loss
    loss.backward()
    assert loss.item() == 0.0 and ours.score.weight.grad.abs().max() == 0


def test_a_class_that_the_model_does_not_have_is_refused():
    ours, _ = classifiers(num_labels=3)
    with pytest.raises(
        ValueError, match=r"Row 1: the label is 3, but the model has 3 classes, from 0 to 2.*num_labels"
    ):
        ours(**pad_text(TEXT), labels=torch.tensor([0, 3, 1]))
    many, _ = classifiers(num_labels=3, problem_type="regression")
    assert many(**pad_text(TEXT), labels=torch.full((3, 3), 7.0)).loss.isfinite()  # a value like any other


@pytest.mark.parametrize(
    ("problem", "num_labels", "targets"),
    [
        ("single_label_classification", 3, torch.tensor([0, 2, 1])),
        ("multi_label_classification", 3, torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0]])),
        ("regression", 1, torch.tensor([0.5, -1.0, 2.0])),
        ("regression", 3, torch.randn(3, 3, generator=torch.Generator().manual_seed(0))),
    ],
    ids=["single label", "multi label", "regression", "regression of 3"],
)
@pytest.mark.parametrize("configured", [True, False])
def test_losses_and_gradients_equal_gpt2s(problem, num_labels, targets, configured):
    if not configured and (problem, num_labels) == ("regression", 3):
        pytest.skip("floats for several labels are told to be multi label, as transformers does")
    ours, theirs = classifiers(num_labels=num_labels, **({"problem_type": problem} if configured else {}))
    batch = pad_text(TEXT)
    one, other = ours(**batch, labels=targets), theirs(**batch, labels=targets)
    assert isinstance(one, MMSequenceClassifierOutput)
    assert one.loss.item() == pytest.approx(other.loss.item(), rel=1e-5)
    one.loss.backward()
    other.loss.backward()
    assert difference(ours.score.weight.grad, theirs.score.weight.grad) < 1e-5
    assert difference(
        ours.model.language_model.h[0].attn.c_attn.weight.grad, theirs.transformer.h[0].attn.c_attn.weight.grad
    ) < 1e-5  # fmt: skip
    assert ours.config.problem_type == problem


def test_any_modality_may_be_absent_in_a_row():
    model = opened(cls=MMForSequenceClassification, num_labels=3)
    batch = inputs(ROWS)
    with torch.no_grad():
        together = model(**batch).logits
        for i, row in enumerate(ROWS):
            alone = inputs(
                [row],
                images=[list(batch["pixel_values"][i][batch["image_mask"][i]])],
                audio=[list(batch["input_features"][i][: row.count(AUDIO)])],
            )
            assert difference(together[i : i + 1], model(**alone).logits) < 1e-5
        other = {**batch, "pixel_values": batch["pixel_values"] + 1}
        moved = (model(**other).logits - together).abs().amax(-1) > 1e-4
    assert moved.tolist() == [True, False, True]


def test_last_real_token():
    states, mask = torch.zeros(3, 4, 1), torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]])
    ids = torch.tensor([[5, 6, PAD, PAD], [PAD, PAD, 5, 6], [5, PAD, 5, 6]])
    assert last_real_token(ids, mask, None, states).tolist() == [1, 3, 3]
    assert last_real_token(ids, None, PAD, states).tolist() == [1, 3, 3]
    assert last_real_token(ids, None, None, states).tolist() == [3, 3, 3]
    assert last_real_token(None, None, PAD, states).tolist() == [3, 3, 3]
    longer = torch.cat([torch.ones(3, 2), mask], dim=1)  # a cached step: the mask covers the past too
    assert last_real_token(ids, longer, None, states).tolist() == [1, 3, 3]


# ---- The rest -------------------------------------------------------------------------------------------------------


def test_train_leaves_a_frozen_encoder_in_evaluation():
    model = MMForConditionalGeneration(joined(freeze_vision=True).config).train()
    assert model.training and model.model.language_model.training and model.model.audio_tower.training
    assert not model.model.vision_tower.training
    assert not model.eval().model.audio_tower.training


@pytest.mark.parametrize("cls", [MMModel, MMForConditionalGeneration, MMForSequenceClassification])
def test_embeddings_can_be_read_and_replaced(cls):
    model = joined(cls=cls)
    new = torch.nn.Embedding(200, WIDTH)
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new
    assert getattr(model, "model", model).language_model.wte is new


def test_vocabulary_can_be_resized_and_trained(model):
    model = opened()
    model.resize_token_embeddings(NUM_VOCABULARY + 3)
    assert model.config.text_config.vocab_size == NUM_VOCABULARY + 3
    assert model.lm_head.weight is model.get_input_embeddings().weight
    batch = inputs([[5, IMAGE, NUM_VOCABULARY + 2]])
    out = model(**batch, labels=labels(batch))
    assert out.logits.shape[-1] == NUM_VOCABULARY + 3
    out.loss.backward()
    assert model.get_input_embeddings().weight.grad[NUM_VOCABULARY + 2].abs().max() > 0


def test_a_fresh_model_is_gpt2_with_and_without_media():
    text = gpt2()
    model = joined(text=text)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert difference(model(ids).logits[..., :VOCABULARY], text(ids).logits) < 1e-5
        grown = gpt2()
        grown.resize_token_embeddings(NUM_VOCABULARY, mean_resizing=False)
        grown.transformer.wte.weight.copy_(model.get_input_embeddings().weight)
        batch = inputs([[5, IMAGE, 6, AUDIO]])
        assert difference(model(**batch).logits, grown(batch["input_ids"]).logits) < 1e-5
        assert difference(open_gates(model)(**batch).logits, grown(batch["input_ids"]).logits) > 1e-2


# ---- The road from the call to the encoders -------------------------------------------------------------------------

PACKAGE = str(Path(modeling_mm.__file__).parent)
COMPREHENSIONS = {"<listcomp>", "<setcomp>", "<dictcomp>"}  # functions up to Python 3.11 only


def is_ours(frame) -> bool:
    return frame.f_code.co_filename.startswith(PACKAGE) and frame.f_code.co_name not in COMPREHENSIONS


def test_the_road_to_an_encoder_is_short():
    """
    At most 3 functions of ours above an encoder (8 once), and at most 50 different ones in a forward (65 once).

    Ten of the 50 came with cross-attention that modalities may have apart, and with encoders that differ in how they
    take padding.
    """
    model = joined(text=gpt2(n_layer=2), cross_attention_layers=[0, 1])
    batch = inputs([[5, IMAGE, 6, AUDIO, 7], [AUDIO, 8, 9, IMAGE, 10]])
    base = model.model
    encoders = {inspect.unwrap(type(tower).forward).__code__ for tower in (base.vision_tower, base.audio_tower)}
    above, functions = [], set()

    def profile(frame, event, _):
        if event == "call" and is_ours(frame):
            functions.add(frame.f_code)
        if event == "call" and frame.f_code in encoders:
            above.append([])
            while frame := frame.f_back:
                above[-1] += [frame.f_code.co_name] if is_ours(frame) else []

    sys.setprofile(profile)
    try:
        model(**batch)
    finally:
        sys.setprofile(None)
    assert above == [["_encode", "forward", "forward"]] * 2
    assert len(functions) <= 50, sorted(code.co_name for code in functions)


# ---- Saving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002, 0o077])
@pytest.mark.parametrize("size", ["50GB", "20KB"])
def test_saved_weights_are_readable_as_the_files_beside_them(tmp_path, umask, size):
    """safetensors makes files that only their owner reads; a server of another user could not load them."""
    before = os.umask(umask)
    try:
        for _ in range(2):  # also over an earlier checkpoint
            joined().save_pretrained(tmp_path / "model", max_shard_size=size)
    finally:
        os.umask(before)
    weights = list((tmp_path / "model").glob("*.safetensors"))
    assert (len(weights) > 1) == (size == "20KB")
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o666 & ~umask}


def test_the_mode_of_other_files_stays(tmp_path):
    (tmp_path / "model.secret.safetensors").touch(0o640)
    joined().save_pretrained(tmp_path)
    assert (tmp_path / "model.secret.safetensors").stat().st_mode & 0o777 == 0o640
