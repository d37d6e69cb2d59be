"""`modeling-mm convert`: folders of tiny encoder-decoders, what is checked, and what is left behind."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from modeling_mm import MMForConditionalGeneration, MMProcessor
from modeling_mm.cli import convert, main
from modeling_mm.cli.checks import CONVERTIBLE
from modeling_mm.conversion import SOURCES
from modeling_mm.utils import replace_folder
from tests.fakes.encoder_decoders import captioner, transcriber
from tests.fakes.processor_parts import make_bpe, make_vit, picture
from tests.fakes.tiny import vit_config
from tests.fakes.whisper_parts import whisper


def save(model, processors, folder: Path) -> Path:
    model.save_pretrained(folder)
    for processor in processors:
        processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A captioner with its tokenizer and image processor."""
    tokenizer = make_bpe()
    end = tokenizer.eos_token_id
    tokens = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": end}
    model = captioner(vit_config(image_size=8, patch_size=4), vocab_size=len(tokenizer), **tokens)
    return save(model, (tokenizer, make_vit()), tmp_path_factory.mktemp("source") / "captioner")


def test_a_captioner_becomes_a_folder_that_answers(source, tmp_path, capsys):
    assert main(["convert", str(source), str(tmp_path / "new" / "ours")]) == 0
    said = capsys.readouterr()
    assert all(name in said.out for name in ("logits of given text", "greedy answers", "5 beams"))
    assert "Equal. Saved:" in said.out
    assert "other" not in said.out
    assert os.listdir(tmp_path / "new") == ["ours"]
    model = MMForConditionalGeneration.from_pretrained(tmp_path / "new" / "ours")
    processor = MMProcessor.from_pretrained(tmp_path / "new" / "ours")
    chat = [{"role": "user", "content": [{"type": "image", "image": picture()}]}]
    inputs = processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    assert torch.equal(
        model.generate(**inputs, max_new_tokens=4),
        model.generate(pixel_values=inputs["pixel_values"], max_new_tokens=4),
    )


def test_a_whisper_is_converted(tmp_path, capsys):
    model, processor = whisper(is_multilingual=True)
    save(model, (processor,), tmp_path / "whisper")
    assert main(["convert", str(tmp_path / "whisper"), str(tmp_path / "ours")]) == 0
    assert "Equal. Saved:" in capsys.readouterr().out


def test_what_differs_is_not_saved(source, tmp_path, monkeypatch, capsys):
    load = convert.load_original

    def load_another(*arguments):
        original = load(*arguments)
        with torch.no_grad():
            original.decoder.transformer.ln_f.bias[3] += 1.0
        return original

    monkeypatch.setattr(convert, "load_original", load_another)
    assert main(["convert", str(source), str(tmp_path / "ours")]) == 1
    assert "differ; nothing was saved" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_folder_is_replaced_only_if_asked_for_and_of_a_joint_model(source, tmp_path, capsys):
    target = tmp_path / "ours"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    assert main(["convert", str(source), str(target)]) == 2
    assert "is not empty. Choose a new folder, or replace its model with --overwrite." in capsys.readouterr().err
    assert main(["convert", str(source), str(target), "--overwrite"]) == 2
    assert "holds no model" in capsys.readouterr().err
    assert (target / "notes.txt").read_text() == "mine"
    shutil.rmtree(target)
    assert main(["convert", str(source), str(target)]) == 0
    (target / "old.txt").write_text("of the former one")
    assert main(["convert", str(source), str(target), "--overwrite"]) == 0
    assert not (target / "old.txt").exists()
    assert os.listdir(tmp_path) == ["ours"]


def test_the_types_that_are_known_before_torch_are_those_of_the_conversion():
    assert tuple(SOURCES) == CONVERTIBLE


def test_a_speech_encoder_decoder_is_compared(tmp_path):
    original = transcriber()
    ours = MMForConditionalGeneration.from_encoder_decoder(original)
    assert all(check.holds for check in convert.compare(original, ours))
    with torch.no_grad():
        original.enc_to_dec_proj.bias += 0.5
    assert not any(check.holds for check in convert.compare(original, ours))


def test_a_folder_that_cannot_be_put_in_its_place_leaves_the_former_one(tmp_path, monkeypatch):
    former, new = tmp_path / "target", tmp_path / "new"
    for folder, text in ((former, "old"), (new, "new")):
        folder.mkdir()
        (folder / "file").write_text(text)
    rename = Path.rename

    def fails(self, target):
        if self == new:
            raise OSError("disk")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="disk"):
        replace_folder(new, former)
    assert (former / "file").read_text() == "old" and sorted(path.name for path in tmp_path.iterdir()) == [
        "new",
        "target",
    ]
    monkeypatch.undo()
    replace_folder(new, former)
    assert (former / "file").read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["target"]
