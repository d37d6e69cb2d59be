"""matching.py: chats become texts beside their media, and a trainer measures how they find each other."""

import pytest
import torch

from modeling_mm import MMForRetrieval
from modeling_mm.data import ChatDataset, to_row
from modeling_mm.training import (
    CachedRetrievalCollator,
    ImageAugmentation,
    MMTrainer,
    MMTrainingArguments,
    ModalityDropout,
    RetrievalCollator,
)
from modeling_mm.training.augmentation import Augmentation
from tests.fakes import media_rows
from tests.fakes.pipeline_parts import COLORS, build, noise
from tests.fakes.processor_parts import RATE, picture
from tests.fakes.tiny import difference, gpt2, joined, vit, whisper
from tests.fakes.tiny_chats import processor as chat_processor

WORDS = ("a cat", "a dog and a bird", "hello there")


def chats(*parts: list) -> list:
    """One chat for each list of media parts, answered in turn by `WORDS`."""
    question = {"type": "text", "text": "What is it?"}
    rows = []
    for number, media in enumerate(parts):
        answer = [{"type": "text", "text": WORDS[number % 3]}]
        messages = [{"role": "user", "content": [*media, question]}, {"role": "assistant", "content": answer}]
        rows.append(to_row({"messages": messages}))
    return rows


def seen(color: str) -> dict:
    return {"type": "image", "image": picture(color)}


def heard(seed: int) -> dict:
    return {"type": "audio", "audio": (noise(seed=seed), RATE)}


@pytest.fixture(scope="module")
def parts():
    return build(MMForRetrieval, projection_dim=8)


def test_a_batch_holds_the_answers_and_the_media_without_placeholders(parts):
    model, processor = parts
    batch = RetrievalCollator(processor)(chats([seen("red")], [seen("blue"), heard(1)], [heard(2)]))
    assert batch.pop("return_loss") is True
    texts = processor.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert tuple(texts) == WORDS
    assert batch["image_mask"].flatten().tolist() == [True, True, False]
    assert batch["feature_attention_mask"].any(-1).flatten().tolist() == [False, True, True]
    with torch.no_grad():
        output = model(**batch)
        assert [bool(row.any()) for row in output.image_embeds] == [True, True, False]
        alone = model.embed(**processor(text="", images=[picture("blue")], return_tensors="pt"))
        assert difference(output.image_embeds[1:2], alone) < 1e-5
        alone = model.embed(**processor(text=WORDS[2], return_tensors="pt"))
        assert difference(output.text_embeds[2:], alone) < 1e-5


def test_a_trainer_learns_and_measures_every_pair(parts, tmp_path):
    processor = parts[1]
    model = build(MMForRetrieval, projection_dim=8)[0]
    model.set_gradient_cache(2)
    rows = ChatDataset(chats(*[[seen(color), heard(seed)] for seed, color in enumerate(COLORS)]))
    options = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "max_steps": 40}
    options |= {"per_device_train_batch_size": 3, "per_device_eval_batch_size": 3, "learning_rate": 3e-3}
    options |= {"eval_strategy": "steps", "eval_steps": 40, "metric_for_best_model": "text_to_image_recall_at_1"}
    arguments = MMTrainingArguments(str(tmp_path), **options)
    trainer = MMTrainer(model, arguments, RetrievalCollator(processor), rows, rows, processor)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"] / 2
    sides = ("text", "image", "audio")
    pairs = [f"{one}_to_{other}" for one in sides for other in sides if one != other]
    assert all(after[f"eval_{pair}_{name}"] > 0 for pair in pairs for name in ("recall_at_5", "median_rank", "map"))
    assert after["eval_text_to_image_recall_at_1"] == 1.0


# ---- From an encoder cache ------------------------------------------------------------------------------------------

NAMES = [("a.png", "short.wav"), ("b.png", "c.png"), ("long.wav",), ()]


@pytest.fixture
def retriever():
    """A model whose frozen encoders are those of `media_rows.frozen_model`, so that its cache is theirs."""
    parts = chat_processor()
    text = gpt2(vocab_size=len(parts.tokenizer), n_positions=128)
    towers = {"vision": vit(image_size=8, patch_size=4), "audio": whisper(max_source_positions=50)}
    model = joined(text, **towers, tokenizer=parts, cls=MMForRetrieval, projection_dim=8).eval()
    for kind in ("vision_tower", "audio_tower"):
        theirs = getattr(media_rows.frozen_model().model, kind)
        getattr(model.model, kind).load_state_dict(theirs.state_dict())
    return model


def rows_of(folder, names=NAMES) -> list:
    return [media_rows.row(folder, *each, answer=WORDS[number % 3]) for number, each in enumerate(names)]


def test_a_cached_batch_embeds_as_one_of_raw_media(retriever, tmp_path):
    media = media_rows.write_media(tmp_path)
    cache = media_rows.filled(media, "a.png", "b.png", "c.png", "short.wav", "long.wav")
    raw = RetrievalCollator(chat_processor())(rows_of(media))
    cached = CachedRetrievalCollator(chat_processor(), cache)(rows_of(media))
    assert cached["return_loss"] is True and "pixel_values" not in cached and "input_features" not in cached
    for name in ("input_ids", "attention_mask", "image_mask"):
        assert torch.equal(cached[name], raw[name]), name
    with torch.no_grad():
        ours, theirs = retriever(**cached), retriever(**raw)
    for name in ("text_embeds", "image_embeds", "audio_embeds"):
        assert difference(ours[name], theirs[name]) < 1e-3, name
    assert difference(ours.image_embeds[0], ours.image_embeds[1]) > 1e-2  # media matter in what is compared
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), abs=1e-3)


def test_equal_media_of_a_cache_are_not_each_others_alternatives(retriever, tmp_path):
    """Two captions of one image fit it both, also where a longer row beside them pads its states."""
    media = media_rows.write_media(tmp_path)
    cache = media_rows.filled(media, "a.png", "b.png", "short.wav", "long.wav")
    rows = rows_of(media, [("a.png",), ("a.png",), ("b.png", "a.png"), ("short.wav",), ("short.wav", "long.wav")])
    batch = CachedRetrievalCollator(chat_processor(), cache).embedding_batch(rows)
    sides = retriever.split_sides({}, {name: value for name, value in batch.items() if name[:5] in ("visio", "image")})
    numbers = retriever.fingerprint(sides["image"]).tolist()
    assert numbers[0] == numbers[1] and len({*numbers[:3]}) == 2
    alone = CachedRetrievalCollator(chat_processor(), cache).embedding_batch(rows[3:4])
    audio = {name: value for name, value in batch.items() if name.startswith("audio")}
    alone = {name: value for name, value in alone.items() if name.startswith("audio")}
    one, other = (retriever.fingerprint(retriever.split_sides({}, given)["audio"]) for given in (audio, alone))
    assert one[3] == other[0] != one[4]


def test_views_and_dropout_are_for_training_alone(tmp_path):
    media = media_rows.write_media(tmp_path)
    changed = {"augmentation": Augmentation(image=ImageAugmentation(color=0.9)), "views": {"image": 4}}
    cache = media_rows.filled(media, "a.png", "b.png", "short.wav", **changed)
    collate = CachedRetrievalCollator(chat_processor(), cache, modality_dropout=ModalityDropout(image=1.0))
    rows = rows_of(media, [("a.png", "short.wav"), ("short.wav", "b.png")])
    assert "vision_states" not in collate(rows) and "vision_states" in collate.for_evaluation()(rows)
    collate.modality_dropout = None
    shown = collate.for_evaluation()(rows)["vision_states"]
    epochs = [media_rows.row(media, "a.png", id="one", epoch=number) for number in range(8)]
    seen = {tuple(collate([row])["vision_states"].flatten().tolist()) for row in epochs}
    assert 1 < len(seen) <= 4 and isinstance(collate.for_evaluation(), CachedRetrievalCollator)
    assert torch.equal(collate.for_evaluation()([epochs[0]])["vision_states"][0], shown[0])


def test_a_file_that_the_cache_lacks_is_named(tmp_path):
    media = media_rows.write_media(tmp_path)
    collate = CachedRetrievalCollator(chat_processor(), media_rows.filled(media, "a.png"))
    with pytest.raises(KeyError, match=r"b\.png is not in the encoder cache. `fill` it"):
        collate(rows_of(media, [("a.png",), ("b.png",)]))
