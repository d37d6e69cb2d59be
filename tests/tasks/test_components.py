"""Components that tasks join: written once for the same texts, with a tokenizer of training alone."""

import pytest
from transformers import AutoTokenizer

from modeling_mm import MMProcessor
from scripts.tasks import components
from scripts.tasks.examples import Sources, example
from scripts.workshop.from_scratch import small_audio_encoder, small_vision_encoder


def rows(*answers: str) -> list[dict]:
    return [example("task", answer, answer, [("image", "a.png")], f"What {answer}?", answer) for answer in answers]


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Packages whose weights are those of tiny encoders; `made` lists what was loaded."""
    made = []
    (tmp_path / "package").mkdir()
    for name in ("a.pth", "model.bin"):
        (tmp_path / "package" / name).write_bytes(b"")
    monkeypatch.setattr(Sources, "fetch", lambda self, name: tmp_path / "package")
    for name, make in (("efficientnet_lite", small_vision_encoder), ("whisper_tiny_encoder", small_audio_encoder)):
        monkeypatch.setattr(components, name, lambda *given, make=make: made.append(make) or make())
    found = Sources(tmp_path / "corpora", tmp_path / "packages", tmp_path / "task")
    found.folder.mkdir()
    return found, made


SHAPE = {"vocabulary": 300, "width": 8, "layers": 1, "heads": 1}


def test_components_are_written_once_for_the_same_texts(sources):
    found, made = sources
    splits = {"train": rows("a judge", "a cook"), "test": rows("zzzzzz")}
    folder = components.write_components(found, splits, **SHAPE)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["audio", "processor", "text", "vision"]
    processor = MMProcessor.from_pretrained(folder / "processor")
    assert processor.image_processor.size == {"height": 260, "width": 260}
    assert processor.feature_extractor.chunk_length == 3
    words = AutoTokenizer.from_pretrained(folder / "processor").get_vocab()
    assert "judge" in {word.strip("Ġ") for word in words} and "zz" not in words  # of training alone
    components.write_components(found, {**splits, "test": rows("other")}, **SHAPE)
    assert made == [small_vision_encoder, small_audio_encoder]
    components.write_components(found, {"train": rows("a judge", "a pilot")}, **SHAPE)
    components.write_components(found, {"train": rows("a judge", "a pilot")}, hears=False, **SHAPE)
    assert made == [small_vision_encoder, small_audio_encoder] * 2 + [small_vision_encoder]
    assert MMProcessor.from_pretrained(folder / "processor").feature_extractor is None
    components.write_components(found, splits, placeholders="hidden", **SHAPE)
    assert MMProcessor.from_pretrained(folder / "processor").placeholders == "hidden"


def test_texts_are_questions_and_answers_each_once():
    assert components.texts_of(rows("a", "b", "a")) == ["What a?", "a", "What b?", "b"]
