"""matching.py: chats become texts beside their media, and a trainer measures how they find each other."""

import pytest
import torch

from modeling_mm import MMForRetrieval
from modeling_mm.data import ChatDataset, to_row
from modeling_mm.training import MMTrainer, MMTrainingArguments, RetrievalCollator
from tests.fakes.pipeline_parts import COLORS, build, noise
from tests.fakes.processor_parts import RATE, picture
from tests.fakes.tiny import difference

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
