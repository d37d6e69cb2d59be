"""retrieval.py: embeddings of texts, media and mixed rows; similarities; the loss; the head among the others."""

import math
from itertools import combinations

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForZeroShotImageClassification, Trainer, TrainingArguments

from modeling_mm import (
    MMForConditionalGeneration,
    MMForRetrieval,
    MMForSequenceClassification,
    MMModel,
)
from modeling_mm.outputs import MMRetrievalOutput
from tests.fakes.tiny import (
    AUDIO,
    IMAGE,
    WIDTH,
    difference,
    gpt2,
    image,
    inputs,
    joined,
    opened,
    pad_audio,
    pad_images,
    pad_text,
    sound,
)

TEXTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
IMAGES = [[image(0)], [image(1)], [image(2), image(3)]]
AUDIOS = [[sound(0)], [sound(1), sound(3)], [sound(2)]]
SIZE = 8


def retriever(**fields) -> MMForRetrieval:
    return opened(cls=MMForRetrieval, **{"projection_dim": SIZE, **fields})


def batch(texts=TEXTS, images=IMAGES, audio=AUDIOS) -> dict[str, torch.Tensor]:
    """Sides of the same rows; the texts hold no placeholders."""
    found = pad_text(texts) if texts else {}
    return found | (pad_images(images) if images else {}) | (pad_audio(audio) if audio else {})


def row_of(whole: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    return {name: value[row : row + 1] for name, value in whole.items()}


# ---- Embeddings -----------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_mixed_row_has_one_embedding_of_unit_length_whatever_stands_beside_it(side):
    model, rows = retriever(), [[5, IMAGE, 6], [7, AUDIO, 8, IMAGE, 9], [10, 11]]
    embeds = model.embed(**inputs(rows, side=side))
    assert embeds.shape == (3, SIZE) and difference(embeds.norm(dim=-1), torch.ones(3)) < 1e-6
    images = [[image(0)], [image(10)], []]
    audio = [[], [sound(10)], []]
    for row in range(3):
        alone = model.embed(**inputs([rows[row]], [images[row]], [audio[row]]))
        assert difference(alone[0], embeds[row]) < 1e-5
    assert difference(model.embed(**inputs([[5, IMAGE, 6]], [[image(9)]]))[0], embeds[0]) > 1e-3


@torch.no_grad()
def test_an_embedding_is_the_projected_state_of_the_last_real_token():
    model, texts = retriever(), pad_text(TEXTS)
    states = model.model(**texts).last_hidden_state
    last = torch.stack([states[row, len(text) - 1] for row, text in enumerate(TEXTS)])
    assert difference(model.embed(**texts), F.normalize(model.embedding_projection(last), dim=-1)) < 1e-6
    unmasked = model.embed(input_ids=texts["input_ids"])  # padding is known by its id
    assert difference(unmasked, model.embed(**texts)) < 1e-6


@torch.no_grad()
def test_media_alone_are_embedded_as_their_placeholders():
    model = retriever()
    images, audio = pad_images(IMAGES), pad_audio(AUDIOS)
    for found, rows in (
        (model.get_image_features(**images), [[IMAGE], [IMAGE], [IMAGE, IMAGE]]),
        (model.get_audio_features(**audio), [[AUDIO], [AUDIO, AUDIO], [AUDIO]]),
    ):
        given = images if rows[0] == [IMAGE] else audio
        assert difference(found.pooler_output, model.embed(**pad_text(rows), **given)) < 1e-5
    assert difference(model.get_text_features(**pad_text(TEXTS)).pooler_output, model.embed(**pad_text(TEXTS))) == 0
    assert isinstance(model.get_text_features(**pad_text(TEXTS), return_dict=False), tuple)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_hidden_placeholders_alone_are_followed_by_the_prompt(side):
    """As media without a text are; beside rows with texts, which do not change."""
    model = retriever(placeholders="hidden", prompt_token_ids=[7, 9])
    rows, heard = [[AUDIO], [5, AUDIO, 6], [8], [AUDIO, AUDIO]], [[sound(0)], [sound(1)], [], [sound(2), sound(3)]]
    given = inputs(rows, [[]] * 4, heard, side=side)
    given["attention_mask"] *= given["input_ids"] != AUDIO
    found = model.embed(**given)
    alone = model.get_audio_features(**pad_audio([heard[0], heard[3]])).pooler_output
    assert difference(found[[0, 3]], alone) < 1e-5
    texts = {name: value[1:3] for name, value in given.items()}
    assert difference(found[1:3], model.embed(**texts)) < 1e-5
    assert difference(model(**given).text_embeds, found) < 1e-5
    silent = retriever(placeholders="hidden")
    with pytest.raises(ValueError, match="Row 0 has nothing in it"):
        silent.embed(**given)


@torch.no_grad()
def test_the_size_is_the_decoders_by_default():
    assert retriever(projection_dim=None).embed(**pad_text(TEXTS)).shape == (3, WIDTH)


# ---- Similarities ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_output_has_the_fields_of_clip_and_of_clap():
    model = retriever()
    output = model(**batch())
    assert isinstance(output, MMRetrievalOutput) and output.loss is None
    text, seen, heard = output.text_embeds, output.image_embeds, output.audio_embeds
    assert difference(text, model.embed(**pad_text(TEXTS))) < 1e-5
    scale = 1 / 0.07
    assert difference(output.logits_per_image, scale * seen @ text.T) < 1e-4
    assert difference(output.logits_per_audio, scale * heard @ text.T) < 1e-4
    assert difference(output.logits_per_text, output.logits_per_image.T) == 0
    of_audio = model(**batch(images=None))
    assert of_audio.image_embeds is None and of_audio.logits_per_image is None
    assert difference(of_audio.logits_per_text, of_audio.logits_per_audio.T) == 0


@torch.no_grad()
def test_any_number_of_images_meets_any_number_of_texts():
    output = retriever()(**pad_text(TEXTS), **pad_images(IMAGES[:2]))
    assert output.logits_per_image.shape == (2, 3) and output.logits_per_text.shape == (3, 2)


@torch.no_grad()
def test_media_with_placeholders_belong_to_the_text():
    model, rows = retriever(), [[5, IMAGE, 6], [7, IMAGE], [8, IMAGE, 9, 10]]
    mixed = inputs(rows, [[image(5)], [image(6)], [image(7)]])
    output = model(**mixed, **pad_audio(AUDIOS), return_loss=True)
    assert output.image_embeds is None and output.logits_per_audio.shape == (3, 3)
    assert difference(output.text_embeds, model.embed(**mixed)) < 1e-5
    logits, targets = output.logits_per_audio, torch.arange(3)
    expected = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-5)


# ---- Loss -----------------------------------------------------------------------------------------------------------


def sides_of(output: MMRetrievalOutput) -> list[torch.Tensor]:
    return [output.text_embeds, output.image_embeds, output.audio_embeds]


@pytest.mark.parametrize("missing", ["nothing", "audio of a row", "text of a row"])
def test_info_nce_is_the_mean_over_every_pair_of_sides_in_both_directions(missing):
    rows = {"texts": TEXTS, "audio": AUDIOS}
    rows |= {"audio": [AUDIOS[0], [], AUDIOS[2]]} if missing == "audio of a row" else {}
    rows |= {"texts": [[], *TEXTS[1:]]} if missing == "text of a row" else {}
    there = [[True] * 3 for _ in range(3)]
    if missing != "nothing":
        there[2 if missing == "audio of a row" else 0][1 if missing == "audio of a row" else 0] = False
    output = retriever()(**batch(**rows), return_loss=True)
    sides, losses = sides_of(output), []
    for one, other in combinations(range(3), 2):
        kept = torch.tensor(there[one]) & torch.tensor(there[other])
        logits = sides[one][kept] @ sides[other][kept].T / 0.07
        targets = torch.arange(len(logits))
        losses.append((F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2)
    assert output.loss.item() == pytest.approx(torch.stack(losses).mean().item(), abs=1e-5)
    for side, flags in zip(sides, there, strict=True):
        assert [bool(row.any()) for row in side] == flags  # zeros for a row that lacks the side


def test_the_sigmoid_loss_judges_each_pair_by_itself():
    model = retriever(retrieval_loss="sigmoid")
    assert model.logit_bias.item() == -10.0 and model.logit_scale.item() == pytest.approx(math.log(10))
    output = model(**batch(audio=None), return_loss=True)
    logits = 10 * output.text_embeds @ output.image_embeds.T - 10
    expected = F.binary_cross_entropy_with_logits(logits, torch.eye(3), reduction="sum") / 3
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert difference(output.logits_per_text, logits) < 1e-5
    assert model(**row_of(batch(audio=None), 0), return_loss=True).loss.isfinite()


def test_the_temperature_starts_where_the_config_says_learns_and_has_an_end():
    model = retriever(initial_temperature=0.5)
    assert model.scale.item() == pytest.approx(2.0)
    model(**batch(), return_loss=True).loss.backward()
    assert model.logit_scale.grad.abs() > 0 and model.embedding_projection.weight.grad.abs().max() > 0
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    assert model.scale.item() == pytest.approx(100.0)


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
@pytest.mark.parametrize("rows", [1, 2])
def test_cached_gradients_equal_those_of_the_whole_batch(rows, kind):
    model = retriever(retrieval_loss=kind).train()
    given = batch(audio=[AUDIOS[0], [], AUDIOS[2]])
    calls, embed = [], model.embed
    model.embed = lambda **inputs: calls.append(len(next(iter(inputs.values())))) or embed(**inputs)
    found = {}
    for cached in (None, rows):
        calls.clear()
        model.zero_grad()
        model.set_gradient_cache(cached)
        loss = model(**given, return_loss=True).loss
        loss.backward()
        found[cached] = [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    assert len(found[None]) > 100
    assert max(difference(*pair) for pair in zip(found[None], found[rows], strict=True)) < 1e-5
    assert max(calls) == rows and sum(calls) == 2 * (3 + 3 + 2)  # each chunk is encoded twice


def test_cached_gradients_keep_the_activations_of_no_chunk():
    """Bytes that autograd keeps between the passes, with 8 rows of text."""
    model, texts = retriever(vision=None, audio=None).train(), pad_text([[5, 6, 7, 8, 9, 10]] * 8)
    kept = {}
    for cached in (None, 1):
        total = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += 0 if isinstance(tensor, torch.nn.Parameter) else tensor.numel() * tensor.element_size()
            return tensor

        model.set_gradient_cache(cached)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.embed_side(texts, [True] * 8).sum()
        kept[cached] = total
    assert kept[1] < kept[None] / 20


@torch.no_grad()
@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_rows_with_the_same_text_or_media_are_not_each_others_alternatives(kind):
    """Rows 0 and 2 have the same text, rows 1 and 3 the same image; row 4 has the text of 0, and lacks an image."""
    texts = [[5, 6], [8, 9, 10], [5, 6], [11], [5, 6]]
    images = [[image(0)], [image(1)], [image(2)], [image(1)], []]
    audio = [[sound(row)] for row in range(5)]
    is_same = {name: torch.eye(5, dtype=torch.bool) for name in ("text", "image", "audio")}
    for name, alike in (("text", [0, 2, 4]), ("image", [1, 3])):
        is_same[name][torch.tensor(alike)[:, None], torch.tensor(alike)] = True
    output = retriever(retrieval_loss=kind)(**batch(texts, images, audio), return_loss=True)
    sides, losses = dict(zip(is_same, sides_of(output), strict=True)), []
    for one, other in combinations(sides, 2):
        kept = range(4 if "image" in (one, other) else 5)
        logits = sides[one] @ sides[other].T * (1 / 0.07 if kind == "infonce" else 10)
        match = is_same[one] | is_same[other]
        if kind == "sigmoid":
            found = F.binary_cross_entropy_with_logits(logits - 10, match.float(), reduction="none")
            losses.append(found[: len(kept), : len(kept)].sum() / len(kept))
            continue
        total = 0.0
        for row in kept:
            others = [row, *(number for number in kept if not match[row, number])]  # it and its alternatives
            for scores in (logits[row, others], logits[others, row]):
                total += F.cross_entropy(scores[None], torch.tensor([0])) / 2
        losses.append(total / len(kept))
    assert output.loss.item() == pytest.approx(torch.stack(losses).mean().item(), abs=1e-5)


@torch.no_grad()
def test_texts_with_media_are_the_same_if_both_are():
    model, seen = retriever(), [[image(0)], [image(0)], [image(1)], [image(0)]]
    mixed = inputs([[5, IMAGE], [5, IMAGE], [5, IMAGE], [IMAGE, 5]], seen)
    found = model.fingerprint(mixed).tolist()
    assert found[0] == found[1] and len(set(found)) == 3
    assert model.fingerprint({"inputs_embeds": torch.zeros(2, 3, WIDTH)}).unique().numel() == 1


# ---- Fewer dimensions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_the_loss_is_the_weighted_mean_over_sizes(kind):
    def loss_of(model: MMForRetrieval, size: int | None) -> torch.Tensor:
        text, seen = (model.embed(size, **side) for side in (pad_text(TEXTS), pad_images(IMAGES)))
        logits, targets = text @ seen.T * model.scale, torch.arange(3)
        if kind == "sigmoid":
            return F.binary_cross_entropy_with_logits(logits - 10, torch.eye(3), reduction="sum") / 3
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2

    for weights in (None, [2.0, 0.5]):
        model = retriever(retrieval_loss=kind, matryoshka_dims=[2, 5], matryoshka_weights=weights)
        whole, short, longer = (loss_of(model, size) for size in (None, 2, 5))
        first, second = weights or (1.0, 1.0)
        expected = (whole + first * short + second * longer) / (1 + first + second)
        loss = model(**batch(audio=None), return_loss=True).loss
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
        assert abs(loss.item() - whole.item()) > 1e-3
        found, wanted = (torch.autograd.grad(each, model.embedding_projection.weight)[0] for each in (loss, expected))
        assert difference(found, wanted) < 1e-5


@torch.no_grad()
def test_truncated_embeddings_are_the_first_dimensions_at_unit_length():
    model, texts = retriever(), pad_text(TEXTS)
    whole, short = model.embed(**texts), model.embed(truncate_dim=3, **texts)
    assert difference(short, F.normalize(whole[:, :3], dim=-1)) < 1e-6
    assert difference(model.embed(truncate_dim=SIZE, **texts), whole) < 1e-6
    for size in (0, SIZE + 1):
        with pytest.raises(ValueError, match=f"truncate_dim must be from 1 to {SIZE}, .*, got {size}"):
            model.embed(truncate_dim=size, **texts)


def test_truncated_embeddings_retrieve_if_they_were_trained():
    """Six images with texts; the first two of eight dimensions are all that is compared."""
    pairs = collate(range(6))
    right = {}
    for dims in (None, [2]):
        torch.manual_seed(0)
        model = retriever(audio=None, matryoshka_dims=dims, matryoshka_weights=dims and [4.0])
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        for _ in range(40):
            model(**pairs).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            texts = model.embed(2, **{name: pairs[name] for name in ("input_ids", "attention_mask")})
            images = model.embed(2, **{name: pairs[name] for name in ("pixel_values", "image_mask")})
        right[str(dims)] = (texts @ images.T).argmax(-1).eq(torch.arange(6)).sum().item()
    assert right["[2]"] == 6 > right["None"], right


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"matryoshka_dims": [4, 2]}, r"ascending, distinct numbers of dimensions from 1 to 7, .*got \[4, 2\]"),
        ({"matryoshka_dims": [0, 2]}, r"from 1 to 7"),
        ({"matryoshka_dims": [SIZE]}, r"fewer than an embedding has, got \[8\]"),
        ({"matryoshka_dims": [WIDTH], "projection_dim": None}, f"from 1 to {WIDTH - 1}"),
        ({"matryoshka_weights": [1.0]}, "for each of the 0 matryoshka_dims"),
        ({"matryoshka_dims": [2], "matryoshka_weights": [0.0]}, r"a finite number above 0 .*got \[0.0\]"),
    ],
)
def test_sizes_that_have_no_meaning_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        retriever(**fields)


# ---- Bad input ------------------------------------------------------------------------------------------------------

BAD = {
    "one row": (row_of(batch(), 0), "InfoNCE needs at least 2 rows.*drop_last"),
    "one row with two sides": (
        batch([TEXTS[0], TEXTS[1], []], [IMAGES[0], [], IMAGES[2]], None),
        "InfoNCE needs at least 2 rows",
    ),
    "one side": (batch(images=None, audio=None), "compares two of text, image, audio; the batch has rows: 3 of text"),
    "an empty row": (batch([TEXTS[0], [], TEXTS[2]], [IMAGES[0], [], IMAGES[2]], None), "Row 1 has nothing in it"),
    "other numbers of rows": (
        pad_text(TEXTS) | pad_images(IMAGES[:2]),
        "needs sides of as many rows.*text 3, image 2",
    ),
    "nothing": ({}, "nothing to embed"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_batch_that_cannot_be_learned_from_is_refused(name):
    given, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        retriever()(**given, return_loss=True)


def test_an_empty_row_has_no_embedding():
    model = retriever()
    with pytest.raises(ValueError, match="Row 1 has nothing in it"):
        model.embed(**pad_text([[5, 6], [], [7]]))
    with pytest.raises(ValueError, match="Row 0 has nothing in it"):
        model.embed(input_ids=torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(ValueError, match="Row 1 has neither text nor media"):
        model.embed(**pad_images([[image(0)], []]))
    with pytest.raises(ValueError, match="Row 1 has nothing in it"):
        model(**pad_text([[5, 6], [], [7]]), **pad_images(IMAGES[:2]))
    with pytest.raises(ValueError, match="at least 1 row, got 0"):
        model.set_gradient_cache(0)


# ---- Among the other heads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
@pytest.mark.parametrize("cls", [MMModel, MMForConditionalGeneration, MMForSequenceClassification])
def test_every_head_loads_from_every_others_folder(tmp_path, cls, kind):
    joined(cls=cls).save_pretrained(tmp_path / "theirs")
    loaded, report = AutoModelForZeroShotImageClassification.from_pretrained(
        tmp_path / "theirs", retrieval_loss=kind, output_loading_info=True
    )
    own = {"embedding_projection.weight", "logit_scale"} | ({"logit_bias"} if kind == "sigmoid" else set())
    assert type(loaded) is MMForRetrieval and set(report["missing_keys"]) == own
    assert set(report["unexpected_keys"]) <= {"score.weight"}
    assert loaded.logit_scale.item() == pytest.approx(-math.log(0.1 if kind == "sigmoid" else 0.07))
    assert loaded.embedding_projection.weight.std() > 0.1
    loaded.save_pretrained(tmp_path / "ours")
    _, report = cls.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert set(report["missing_keys"]) <= {"score.weight"} and set(report["unexpected_keys"]) <= own


def test_a_folder_gives_the_same_embeddings_by_every_auto_class(tmp_path):
    model = retriever(initial_temperature=0.2)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} >= {"retrieval.py", "contrastive.py", "pipelines.py"}
    expected = model(**batch())
    for auto in (AutoModel, AutoModelForZeroShotImageClassification):  # AutoModel as of a CLIP's folder
        loaded = auto.from_pretrained(tmp_path)
        assert type(loaded) is MMForRetrieval
        assert difference(loaded(**batch()).logits_per_image, expected.logits_per_image) == 0
    assert type(MMModel.from_pretrained(tmp_path)) is MMModel


def test_a_model_is_joined_with_a_new_head():
    model = MMForRetrieval.from_text_vision_audio_pretrained(gpt2(), projection_dim=5)
    assert model.embed(**pad_text(TEXTS)).shape == (3, 5)


class Pairs(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, row: int) -> int:
        return row


def collate(rows: list[int]) -> dict:
    texts, images = [[5 + row, 6 + row] for row in rows], [[image(row)] for row in rows]
    return pad_text(texts) | pad_images(images) | {"return_loss": True}


def test_the_stock_trainer_learns_to_match_and_accumulates_without_sums(tmp_path):
    options = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    options |= {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "max_steps": 12}
    options |= {"remove_unused_columns": False, "learning_rate": 3e-3, "per_device_eval_batch_size": 3}
    arguments = TrainingArguments(str(tmp_path), **options)
    trainer = Trainer(retriever(audio=None), arguments, collate, Pairs(), Pairs())
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before / 2
    first = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert first < 2 * before  # the mean of the accumulated batches, not their sum
