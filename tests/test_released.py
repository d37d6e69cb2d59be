"""The released checkpoint, mm-whisper-tiny: what is in the folder, how it loads, and that it sees and hears."""

import json
import re
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForImageTextToText, AutoProcessor

from modeling_mm.cli import main
from modeling_mm.data import ChatRow, load_chats, media_parts
from modeling_mm.evaluation import generate_answers
from modeling_mm.hub import measured_digests, weights_digest
from modeling_mm.recipes import rows_of
from modeling_mm.training import ChatCollator

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "model_cards" / "mm-whisper-tiny"
QUESTIONS = ROOT / "processing" / "corpora" / "unseen" / "questions.jsonl"
RIGHT = 10  # of the shipped questions; one less than where it was released, as sums differ between machines


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32)


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def rows() -> list[ChatRow]:
    return list(rows_of(load_chats(str(QUESTIONS))))


# ---- The folder -----------------------------------------------------------------------------------------------------


def test_its_chat_template_is_whispers():
    whisper = (FOLDER / "chat_template.jinja").read_text(encoding="utf-8")
    assert not (FOLDER / "chat_template.jinja").is_symlink() and "<|startoftranscript|>" in whisper


def test_its_generation_config_is_that_of_whisper_tiny_en(model):
    config = model.generation_config
    assert (config.no_timestamps_token_id, config.prev_sot_token_id, config.is_multilingual) == (50362, 50360, False)
    assert config.begin_suppress_tokens == [220, 50256] and len(config.alignment_heads) == 8


def test_each_row_of_its_vocabulary_is_a_token(model, processor):
    """A spare one would take the number of the next token that a user adds, such as a sensor's placeholder."""
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    assert max(model.config.suppressed_token_ids) < len(processor.tokenizer)


def test_what_is_pretrained_is_frozen(model):
    learned = {name.split(".")[1] for name, weight in model.named_parameters() if weight.requires_grad}
    assert learned == {"vision_connector", "language_model"}
    assert all("vision" in name for name, weight in model.named_parameters() if weight.requires_grad)


# ---- The card -------------------------------------------------------------------------------------------------------


def test_the_card_is_whole():
    card = ModelCard.load(FOLDER / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "image-text-to-text"
    assert set(card.data.language) == {"en"}
    assert card.data.license == "other"
    for heading in ("## Use", "## Data", "## Training", "## Figures", "## Limits", "## Beside Whisper tiny.en"):
        assert heading in card.text


def test_the_figures_of_the_card_are_those_of_the_weights():
    assert measured_digests((FOLDER / "README.md").read_text(encoding="utf-8")) == [weights_digest(FOLDER)]


def test_the_card_says_what_was_trained():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.search(r"\| decoder \| openai/whisper-tiny.en \| [\d.]+M \| no \|", text)
    assert re.search(r"\| vision encoder \| EfficientNet-Lite2 \| [\d.]+M \| no \|", text)
    assert re.search(r"\| connectors \| new \| [\d.]+M \| yes \|", text)


def test_the_card_has_each_figure_beside_the_majority_and_the_answers_without_media():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for test_set in ("drawn by an unseen hand", "nseen concepts", "photographs", "with unseen words"):
        assert test_set in text
    assert "| task | metric | model | majority | text only | questions |" in text
    rows = [re.split(r" *\| *", line.strip("| \n")) for line in text.splitlines() if re.match(r"\| [a-z_]+/", line)]
    tasks = {row[0].split("/")[0] for row in rows}
    assert tasks >= {"caption", "category", "choose_image", "verify_name", "match_audio_image", "photograph"}
    assert tasks >= {"transcribe", "transcribe_beside_image"}
    for row in rows:
        assert len(row) == 6 and all(row), row


# ---- The model ------------------------------------------------------------------------------------------------------


def test_the_demo_answers_a_dozen_questions_within_a_minute(tmp_path, capsys):
    """Of 16 drawn at random, and shown whatever came, at least RIGHT are right, but for punctuation of speech."""
    start = time.perf_counter()
    drawn = tmp_path / "attention.png"
    assert main(["ask", str(FOLDER), "--questions", str(QUESTIONS), "--attention", str(drawn)]) == 0
    assert time.perf_counter() - start < 60
    printed = capsys.readouterr().out
    right, asked, alike = re.search(r"(\d+) of (\d+) are exactly right(?:, (\d+) more)?", printed).groups()
    assert int(asked) >= 12 and int(right) + int(alike or 0) >= RIGHT, printed
    assert drawn.stat().st_size > 10_000


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_other_media_get_other_answers(kind, rows, model, processor):
    """Each question is asked again with the picture or the sound of the next that has one of its kind."""
    asked = [row for row in rows if [part["type"] for part in media_parts(row.prompt)] == [kind]]
    assert len(asked) >= 3
    swapped = [with_media(row, other) for row, other in zip(asked, [*asked[1:], asked[0]], strict=True)]
    answers = generate_answers(model, processor, [row.prompt for row in asked])
    others = generate_answers(model, processor, swapped)
    assert sum(a != b for a, b in zip(answers, others, strict=True)) > len(asked) / 2


def test_images_are_silent_over_a_transcript_and_speak_elsewhere(rows, model, processor):
    transcripts = [row for row in rows if (row.task or "").startswith("transcribe_beside_image")]
    questions = [row for row in rows if [part["type"] for part in media_parts(row.prompt)] == ["image"]]
    assert transcripts and len(questions) > 3
    for block in model.model.language_model.vision_cross_blocks.values():
        assert openness(model, processor, block.gate_token, transcripts).max() < 0.1
        assert openness(model, processor, block.gate_token, questions).min() > 0.5


def openness(model, processor, gate: torch.nn.Module, rows: list[ChatRow]) -> torch.Tensor:
    """A gate over the tokens from which answers are predicted."""
    batch = ChatCollator(processor)(rows)
    found = []
    hook = gate.register_forward_hook(lambda module, given, output: found.append(output.sigmoid()[..., 0]))
    with torch.no_grad():
        model(**batch)
    hook.remove()
    return found[0][batch["labels"].roll(-1, dims=1) != -100]


def with_media(row: ChatRow, other: ChatRow) -> list[dict]:
    """The prompt of one row with the media of another."""
    messages = json.loads(json.dumps(row.prompt))
    for part, source in zip(media_parts(messages), media_parts(other.prompt), strict=True):
        part.update(source)
    return messages
