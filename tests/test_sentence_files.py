"""sentence_files.py: the files of sentence-transformers, written for the head that embeds alone; what it keeps."""

import json

import pytest

from modeling_mm import MMForConditionalGeneration, MMForRetrieval
from modeling_mm.sentence_files import TEMPLATE, write_sentence_files
from tests.fakes.processor_parts import make, picture
from tests.fakes.tiny import joined

FILES = {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"}


def module_of(folder) -> dict:
    return json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))


def test_the_head_that_embeds_writes_them_and_no_other_does(tmp_path):
    for cls in (MMForRetrieval, MMForConditionalGeneration):
        joined(cls=cls).save_pretrained(tmp_path / cls.__name__)
    for cls, written in ((MMForRetrieval, FILES), (MMForConditionalGeneration, set())):
        assert FILES & {path.name for path in (tmp_path / cls.__name__).iterdir()} == written


def test_the_module_takes_what_the_model_has(tmp_path):
    for fields, kinds in (
        ({}, {"text", "image", "audio", "video", "message"}),
        ({"vision": None}, {"text", "audio", "message"}),
        ({"vision": None, "audio": None}, {"text", "message"}),
    ):
        model = joined(cls=MMForRetrieval, **fields)
        write_sentence_files(model.config, tmp_path)
        found = module_of(tmp_path)
        assert set(found["modality_config"]) == kinds
        assert found["max_seq_length"] == model.config.text_config.n_positions
    model.config.text_position_encoding = "sinusoidal"  # without a greatest length
    write_sentence_files(model.config, tmp_path)
    assert "max_seq_length" not in module_of(tmp_path)


def test_modules_and_prompts_that_are_there_are_kept(tmp_path):
    for name in FILES:
        (tmp_path / name).write_text('{"theirs": 1}', encoding="utf-8")
    write_sentence_files(joined(cls=MMForRetrieval).config, tmp_path)
    kept = {name for name in FILES if "theirs" in (tmp_path / name).read_text(encoding="utf-8")}
    assert kept == FILES - {"sentence_bert_config.json"}


@pytest.mark.parametrize("content", ["a cat", [{"type": "text", "text": "a cat"}]])
def test_the_template_writes_contents_one_after_another(content):
    processor, seen = make(), {"type": "image", "image": picture()}
    messages = [{"role": "system", "content": "hello "}, {"role": "user", "content": content}]
    messages.append({"role": "user", "content": [{"type": "text", "text": " {x}\n"}, seen]})
    assert processor.apply_chat_template(messages, chat_template=TEMPLATE) == "hello a cat {x}\n<|image|>"
