"""pretraining.py: four objectives on one batch, each equal to what it is by hand; the head among the others."""

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForPreTraining, Trainer, TrainingArguments

from modeling_mm import (
    MODALITIES,
    MMForConditionalGeneration,
    MMForPreTraining,
    MMForRetrieval,
    MMForSequenceClassification,
    MMModel,
)
from modeling_mm.configuration_mm import OBJECTIVES
from modeling_mm.pretraining_batch import draw_partners
from tests.fakes.tiny import (
    AUDIO,
    END,
    IMAGE,
    WIDTH_OF_INIT,
    difference,
    inputs,
    joined,
    opened,
    pad_text,
    seeded,
)

SIZE = 8
ROWS = [[1, IMAGE, 5, 6, 7], [2, IMAGE, 8, 9], [3, AUDIO, 10, 11, 12], [4, AUDIO, 13], [5, IMAGE, AUDIO, 14, 15]]
ANSWERS = [[5, 6, 7], [8, 9], [10, 11, 12], [13], [14, 15]]
MASKED = [[4], [2, 3], [3], [2], [3, 4]]  # places of masked tokens
HEADS = (MMModel, MMForConditionalGeneration, MMForSequenceClassification, MMForRetrieval, MMForPreTraining)


def pretrainer(*on: str, **fields) -> MMForPreTraining:
    """A model whose media matter, with these objectives on, or all."""
    weights = {f"{name}_weight": float(name in on) for name in OBJECTIVES} if on else {}
    return opened(cls=MMForPreTraining, **{"projection_dim": SIZE, **weights, **fields})


def batch(rows=ROWS, answers=ANSWERS, masked=MASKED, hidden=(), side: str = "right") -> dict[str, torch.Tensor]:
    """Return the inputs as the collator makes them; `hidden` are pairs of a row and the name of a modality."""
    found = inputs(rows, side=side)
    real = found["attention_mask"].bool()
    found["labels"], found["masked_targets"] = (torch.full_like(found["input_ids"], -100) for _ in range(2))
    for row, (ids, answer, places) in enumerate(zip(rows, answers, masked, strict=True)):
        where = real[row].nonzero()[:, 0]
        found["labels"][row, where[len(ids) - len(answer) :]] = torch.tensor(answer)
        found["masked_targets"][row, where[places]] = torch.tensor(ids)[places]
    found |= {f"text_{name}": value for name, value in pad_text(answers).items()}
    found["hidden_modalities"] = torch.zeros(len(rows), len(MODALITIES), dtype=torch.bool)
    for row, name in hidden:
        found["hidden_modalities"][row, list(MODALITIES).index(name)] = True
    return found


def for_model(found: dict) -> dict:
    """The inputs that every head takes."""
    others = ("labels", "masked_targets", "hidden_modalities", "text_input_ids", "text_attention_mask")
    return {name: value for name, value in found.items() if name not in others}


def named(found: dict, *rows: int) -> dict:
    return {name: value[list(rows)] for name, value in found.items()}


# ---- Each objective by hand -----------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_loss_of_the_next_token_is_that_of_the_head_that_generates(tmp_path):
    model, found = pretrainer(), batch()
    model.save_pretrained(tmp_path)
    output = model(**found)
    generator = MMForConditionalGeneration.from_pretrained(tmp_path)
    expected = generator(**for_model(found), labels=found["labels"])
    assert output.losses["causal_lm"].item() == pytest.approx(expected.loss.item(), abs=1e-5)
    assert difference(output.logits, expected.logits) < 1e-5
    targets = F.pad(found["labels"], (0, 1), value=-100)[:, 1:]
    others = {name: value for name, value in found.items() if name != "labels"}
    kept = model(**others, shift_labels=targets, logits_to_keep=targets != -100)  # as MMTrainer does
    assert kept.logits.shape == ((targets != -100).sum(), expected.logits.shape[-1])
    assert kept.losses["causal_lm"].item() == pytest.approx(expected.loss.item(), abs=1e-5)


def masked_losses(model, found: dict) -> list[torch.Tensor]:
    """The loss of each masked token, read both ways from the state before it."""
    losses = []
    for row, targets in enumerate(found["masked_targets"]):
        one = {name: value[row : row + 1] for name, value in for_model(found).items()}
        embeds = model.get_input_embeddings()(one.pop("input_ids"))
        embeds = torch.where((targets != -100)[None, :, None], model.mask_embedding, embeds)
        states = model.model(inputs_embeds=embeds, **one, is_causal=False).last_hidden_state[0]
        for place in (targets != -100).nonzero()[:, 0]:
            losses.append(F.cross_entropy(model.lm_head(states[place - 1]), targets[place]))
    return losses


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("numbered", [None, 2])
def test_masked_tokens_are_predicted_from_all_of_their_row(side, numbered):
    model, found = pretrainer(max_media_items=numbered), batch(side=side)
    output = model(**found)
    losses = masked_losses(model, found)
    assert len(losses) == len(output.masked_logits) == sum(map(len, MASKED))
    assert output.losses["masked_lm"].item() == pytest.approx(torch.stack(losses).mean().item(), abs=1e-5)
    # Neither the masked tokens themselves nor the labels are seen.
    other = {**found, "input_ids": found["input_ids"].where(found["masked_targets"] == -100, 20)}
    assert difference(model(**other).masked_logits, output.masked_logits) == 0


@torch.no_grad()
def test_a_hidden_modality_is_not_seen_by_the_masked_text_alone():
    model = pretrainer()
    whole, hidden = (model(**batch(hidden=pairs)) for pairs in ([], [(1, "image"), (4, "audio")]))
    pairs = zip(whole.masked_logits, hidden.masked_logits, strict=True)
    assert [difference(*pair) > 1e-4 for pair in pairs] == [
        row in (1, 4) for row, places in enumerate(MASKED) for _ in places
    ]
    assert whole.losses["causal_lm"] == hidden.losses["causal_lm"]
    assert whole.losses["contrastive"] == hidden.losses["contrastive"]
    # A row with nothing left reads its words alone, whatever its media are.
    found = batch(hidden=[(1, "image")])
    other = {**found, "pixel_values": found["pixel_values"].index_fill(0, torch.tensor([1]), 0.5)}
    assert difference(model(**other).masked_logits[1:3], model(**found).masked_logits[1:3]) == 0


@torch.no_grad()
@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_the_contrastive_loss_is_that_of_the_head_for_retrieval(tmp_path, kind):
    model, found = pretrainer(retrieval_loss=kind), batch()
    model.save_pretrained(tmp_path)
    retriever = MMForRetrieval.from_pretrained(tmp_path)
    media = {name: value for name, value in for_model(found).items() if "input_ids" not in name}
    sides = {**media, "input_ids": found["text_input_ids"], "attention_mask": found["text_attention_mask"]}
    expected = retriever(**sides, return_loss=True)
    output = model(**found)
    assert output.losses["contrastive"].item() == pytest.approx(expected.loss.item(), abs=1e-5)
    for name in ("text_embeds", *(f"{modality}_embeds" for modality in MODALITIES)):
        assert difference(output[name], expected[name]) < 1e-5
    # Without targets and without a text with placeholders there are embeddings alone.
    alone = model(**media, **{name: value for name, value in found.items() if name.startswith("text_")})
    assert alone.loss is None and alone.logits is None
    assert difference(alone.image_embeds, expected.image_embeds) < 1e-5


# ---- Matching -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_matching_is_learned_from_own_media_and_from_the_most_similar_of_another_text():
    model, found = pretrainer(), batch()
    output = model(**found)
    # Rows 0 and 1 have an image, rows 2 and 3 audio; row 4 has both, as no other row.
    rows, partners = [0, 1, 2, 3], [1, 0, 3, 2]
    expected = []
    for texts, others in ((rows, rows), (rows, partners)):
        for text, other in zip(texts, others, strict=True):
            expected.append(masked_match(model, found, text, other))
    assert difference(output.matching_logits, torch.stack(expected)) < 1e-5
    labels = torch.tensor([1.0] * 4 + [0.0] * 4)
    loss = F.binary_cross_entropy_with_logits(torch.stack(expected), labels)
    assert output.losses["matching"].item() == pytest.approx(loss.item(), abs=1e-5)


def masked_match(model, found: dict, text: int, media: int) -> torch.Tensor:
    """The logit of a text, masked as in training, with the media of a row."""
    one = {name: value[text : text + 1] for name, value in for_model(found).items()}
    one |= {name: found[name][media : media + 1] for name in one if name not in ("input_ids", "attention_mask")}
    embeds = model.get_input_embeddings()(one.pop("input_ids"))
    is_masked = (found["masked_targets"][text] != -100)[None, :, None]
    embeds = torch.where(is_masked, model.mask_embedding, embeds)
    states = model.model(inputs_embeds=embeds, **one, is_causal=False).last_hidden_state[0]
    return model.matching_head(states[one["attention_mask"].sum() - 1])[0]


@torch.no_grad()
def test_the_most_similar_media_of_the_batch_are_taken():
    rows = [[1, IMAGE, 5 + i] for i in range(5)]
    model = pretrainer()
    found = batch(rows, [[5 + i] for i in range(5)], [[2]] * 5)
    output = model(**found)
    similarity = output.text_embeds @ output.image_embeds.T
    partners = similarity.fill_diagonal_(-9.0).argmax(-1).tolist()
    expected = [masked_match(model, found, row, other) for row, other in enumerate(partners)]
    assert difference(output.matching_logits[5:], torch.stack(expected)) < 1e-5
    assert partners != [(row + 1) % 5 for row in range(5)]
    # Rows with the same words may well have matching media.
    same = batch(rows, [[5], [5], [6], [6], [6]], [[2]] * 5)
    assert len(model(**same).matching_logits) == 10
    assert len(model(**batch(rows[:2], [[5], [5]], [[2]] * 2)).matching_logits) == 0
    # Neither is an image a mismatch of a text that it belongs to in another row.
    image = {"pixel_values": found["pixel_values"][:1].expand(5, -1, -1, -1, -1)}
    assert len(model(**{**found, **image}).matching_logits) == 0


def test_partners_are_drawn_by_their_similarity():
    similarity = torch.tensor([[9.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]).repeat_interleave(4000, 0)
    allowed = torch.tensor([[False, True, True], [True, False, False], [False] * 3]).repeat_interleave(4000, 0)
    rows, partners = seeded(lambda: _Pair(draw_partners(similarity, allowed, is_hardest=False))).found
    assert rows.tolist() == list(range(8000))
    share = (partners[:4000] == 2).float().mean().item()
    assert share == pytest.approx(torch.tensor([0.0, 2.0]).softmax(-1)[1].item(), abs=0.02)
    assert partners[4000:].unique().tolist() == [0]
    assert draw_partners(similarity[:1], allowed[:1], is_hardest=True)[1].tolist() == [2]


class _Pair(torch.nn.Module):
    def __init__(self, found):
        super().__init__()
        self.found = found


@torch.no_grad()
def test_a_row_that_sees_no_media_is_not_matched():
    model = pretrainer()
    output = model(**batch(hidden=[(1, "image")]))
    assert len(output.matching_logits) == 6  # rows 0, 2 and 3; row 1 still lends its image to row 0
    assert model.match(**for_model(batch())).shape == (5,)


@torch.no_grad()
def test_a_match_is_judged_in_the_bidirectional_mode():
    model, found = pretrainer(), for_model(batch())
    last = found["attention_mask"].sum(-1) - 1
    logits = []
    for is_causal in (False, True):
        states = model.model(**found, is_causal=is_causal).last_hidden_state
        logits.append(model.matching_head(states[torch.arange(len(last)), last])[:, 0])
    assert difference(model.match(**found), logits[0]) == 0 and difference(*logits) > 1e-2


# ---- Weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_alone_has_its_loss_and_the_sum_is_weighted(name):
    found = batch()
    # Without `contrastive` nothing is similar: with one candidate a row, the same pairs are drawn.
    every = pretrainer(causal_lm_weight=2, masked_lm_weight=0.5, matching_weight=3.0, contrastive_weight=0.25)(**found)
    assert tuple(every.losses) == OBJECTIVES
    weighted = [weight * every.losses[each] for each, weight in zip(OBJECTIVES, (2, 0.5, 3.0, 0.25), strict=True)]
    assert every.loss.item() == pytest.approx(sum(weighted).item(), abs=1e-5)
    model = pretrainer(name)
    alone = model(**found)
    assert set(alone.losses) == {name} and alone.loss.item() == alone.losses[name].item()
    if name == "matching":  # then nothing is masked
        bare = {**found, "masked_targets": None}
        assert difference(model(**bare).matching_logits, alone.matching_logits) == 0
    else:
        assert alone.loss.item() == pytest.approx(every.losses[name].item(), abs=1e-5)
    alone.loss.backward()
    learned = {n for n, p in model.named_parameters() if p.grad is not None and not n.startswith("model.")}
    assert (
        learned
        == {
            "causal_lm": set(),
            "masked_lm": {"mask_embedding"},
            "matching": {"matching_head.weight", "matching_head.bias"},
            "contrastive": {"embedding_projection.weight", "logit_scale"},
        }[name]
    )


def test_encoders_run_once_whatever_is_on():
    model, calls = pretrainer().train(), []
    for modality in MODALITIES.values():
        tower = getattr(model.model, modality.tower_attribute)
        tower.register_forward_hook(lambda module, *_: calls.append(type(module).__name__))
    model(**batch()).loss.backward()
    assert sorted(calls) == ["ViTModel", "WhisperEncoder"]
    idle = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not {name for name in idle if ".pooler." not in name}


def test_checkpointed_gradients_equal_plain_ones():
    found = []
    for checkpointing in (False, True):
        model = pretrainer().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model(**batch()).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert max(difference(grad, found[1][name]) for name, grad in found[0].items()) < 1e-5


def test_all_objectives_are_learned_together():
    """Six images and words; in one batch the word is masked, in the other a token that is always the same."""
    rows, answers = [[1, IMAGE, 2, 10 + i, 3] for i in range(6)], [[10 + i, 3] for i in range(6)]
    words, others = batch(rows, answers, [[3]] * 6), batch(rows, answers, [[4]] * 6)
    model = pretrainer(audio=None).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for step in range(80):
            model(**(words, others)[step % 2]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        losses = {**model(**words).losses, "matching": model(**others).losses["matching"]}
        # Matching has 0.69 by chance, and is measured against the most similar image.
        above = {name: loss.item() for name, loss in losses.items() if loss > (0.5 if name == "matching" else 0.3)}
        assert above == {}
        blind = model(**{**words, "hidden_modalities": torch.ones(6, 2, dtype=torch.bool)}).losses
    assert blind["masked_lm"] > 1.0  # the word is read from the image alone


# ---- Bad input ------------------------------------------------------------------------------------------------------

TEXT_ALONE = ([[1, 5, 6], [2, 8, 9]], [[5, 6], [8, 9]], [[2], [1]])
BAD = {
    "one row": (lambda: named(batch(), 0), "compare the rows of a batch, but the batch has 1 row.*drop_last"),
    "no media": (lambda: batch(*TEXT_ALONE), "has 2 texts, but no media.*set matching_weight and contrastive_weight"),
    "a label out of range": (lambda: wrong("labels", 97), "Row 1: labels holds 97, but .* from 0 to 96, or -100"),
    "a negative label": (lambda: wrong("labels", -3), "Row 1: labels holds -3"),
    "a masked target out of range": (lambda: wrong("masked_targets", 500), "Row 1: masked_targets holds 500"),
    "no labels": (lambda: without("labels"), r"causal_lm_weight is 1.0, but labels is missing.*set the weight to 0"),
    "no masked targets": (lambda: without("masked_targets"), "masked_lm_weight is 1.0, but masked_targets is missing"),
    "no texts": (lambda: without("text_input_ids"), "contrastive_weight is 1.0, but text_input_ids is missing"),
    "media of another row": (lambda: moved_image(), "Row 1: 1 image placeholder"),
}


def wrong(name: str, value: int) -> dict:
    found = batch()
    found[name][1, -1] = value
    return found


def without(name: str) -> dict:
    return {key: value for key, value in batch().items() if key != name}


def moved_image() -> dict:
    found = batch()
    return {**found, "image_mask": found["image_mask"].flip(0)}


@pytest.mark.parametrize("name", BAD)
def test_a_batch_that_cannot_be_learned_from_is_refused(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        pretrainer()(**make())


def test_texts_alone_are_fine_without_what_compares():
    losses = pretrainer("causal_lm", "masked_lm")(**batch(*TEXT_ALONE)).losses
    assert set(losses) == {"causal_lm", "masked_lm"}
    assert pretrainer("causal_lm", "masked_lm")(**named(batch(), 0)).loss.isfinite()


def test_contrastive_learning_alone_needs_two_rows():
    with pytest.raises(ValueError, match="InfoNCE needs at least 2 rows"):
        pretrainer("contrastive")(**named(batch(), 0))
    assert pretrainer("contrastive", retrieval_loss="sigmoid")(**named(batch(), 0)).loss.isfinite()


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match="unexpected arguments: output_attentions"):
        pretrainer()(**batch(), output_attentions=True)


# ---- Among the other heads ------------------------------------------------------------------------------------------

OWN = {
    MMModel: set(),
    MMForConditionalGeneration: set(),  # its head is tied
    MMForSequenceClassification: {"score.weight"},
    MMForRetrieval: {"embedding_projection.weight", "logit_scale"},
    MMForPreTraining: {
        *("embedding_projection.weight", "logit_scale"),
        *("mask_embedding", "matching_head.weight", "matching_head.bias"),
    },
}


@pytest.mark.parametrize("saved", HEADS)
def test_any_head_loads_from_any_others_folder_with_nothing_missing_but_its_own(tmp_path, saved):
    model = joined(cls=saved, projection_dim=SIZE)
    model.save_pretrained(tmp_path)
    for cls in HEADS:
        loaded, report = cls.from_pretrained(tmp_path, output_loading_info=True)
        assert set(report["missing_keys"]) == OWN[cls] - OWN[saved], cls.__name__
        assert set(report["unexpected_keys"]) <= OWN[saved] - OWN[cls], cls.__name__
        for name, tensor in model.base_model.state_dict().items():
            assert torch.equal(loaded.base_model.state_dict()[name], tensor), name
        cls.from_pretrained(tmp_path)  # and needs no options


def test_untied_heads_are_shared_by_the_two_that_write(tmp_path):
    joined(cls=MMForPreTraining, tie_word_embeddings=False).save_pretrained(tmp_path)
    loaded, report = MMForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] == set() or report["missing_keys"] == []
    assert END in loaded.generation_config.eos_token_id


def test_a_folder_comes_back_by_its_auto_class(tmp_path):
    model, found = pretrainer(), batch()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert type(loaded) is MMForPreTraining
    assert difference(loaded(**found).loss, model(**found).loss) == 0
    assert {path.name for path in tmp_path.glob("*.py")} >= {"pretraining.py", "pretraining_batch.py", "retrieval.py"}
    assert type(AutoModel.from_pretrained(tmp_path)) is MMModel
    generator = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(generator) is MMForConditionalGeneration and END in generator.generation_config.eos_token_id


def test_the_mask_is_drawn_as_the_table_of_words_is(tmp_path):
    joined(cls=MMForConditionalGeneration).save_pretrained(tmp_path)
    loaded = MMForPreTraining.from_pretrained(tmp_path)
    for model in (loaded, seeded(lambda: MMForPreTraining(loaded.config))):
        assert model.mask_embedding.std().item() == pytest.approx(WIDTH_OF_INIT, rel=0.5)


class Batches(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, row: int) -> int:
        return row % 5


def test_the_stock_trainer_trains_and_accumulates_without_sums(tmp_path):
    options = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    options |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 6}
    options |= {"remove_unused_columns": False, "learning_rate": 3e-3, "per_device_eval_batch_size": 5}
    arguments = TrainingArguments(str(tmp_path), dataloader_drop_last=True, **options)
    trainer = Trainer(pretrainer(), arguments, lambda rows: named(batch(), *rows), Batches(), Batches())
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    first = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert first < 2 * before  # the mean of the accumulated batches, not their sum
