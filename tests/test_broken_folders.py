"""Broken folders of a model: each kind ends in one line that names the file, and none loads silently."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_mm import MMForConditionalGeneration, MMProcessor
from modeling_mm.cli import main
from tests.fakes.processor_parts import picture
from tests.fakes.tiny_chats import chat_model, processor

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER, TOKENIZER_CONFIG, PROCESSOR = "tokenizer.json", "tokenizer_config.json", "processor_config.json"
BLOCK = "model.language_model.h.1.mlp.c_fc.weight"
KINDS = {}


def kind(name, *files):
    """Register a way to break a folder, and the files of which the message names one."""

    def register(function):
        KINDS[name] = (function, files)
        return function

    return register


# ---- Every file -----------------------------------------------------------------------------------------------------


def content_of(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def removed(name):
    return lambda folder: (folder / name).unlink()


def cut(name):
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: (folder / name).stat().st_size // 2]
    )


def as_folder(name):
    def change(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def as_loop(name):
    def change(folder):
        (folder / name).unlink()
        (folder / name).symlink_to(name)

    return change


def as_dangling(name):
    def change(folder):
        (folder / name).unlink()
        (folder / name).symlink_to("nowhere")

    return change


ALL = (CONFIG, WEIGHTS, TOKENIZER, TOKENIZER_CONFIG, PROCESSOR)
for each in ALL:
    kind(f"{each} removed", each)(removed(each))
    kind(f"{each} empty", each)(content_of(each, b""))
    kind(f"{each} cut", each)(cut(each))
    kind(f"{each} is a folder", each)(as_folder(each))
    kind(f"{each} is a loop of links", each)(as_loop(each))
    kind(f"{each} is a dangling link", each)(as_dangling(each))
    kind(f"{each} is other bytes", each)(content_of(each, b"\x80\x04\x95\xff\xfe\x00" * 9))
for each in (CONFIG, TOKENIZER, TOKENIZER_CONFIG, PROCESSOR):
    kind(f"{each} is a list", each)(content_of(each, b"[1, 2]"))
    kind(f"{each} is null", each)(content_of(each, b"null"))
kind("generation_config.json cut", "generation_config.json")(cut("generation_config.json"))
kind("generation_config.json is a list", "generation_config.json")(content_of("generation_config.json", b"[]"))
kind("chat_template.jinja is no template", "chat_template.jinja")(content_of("chat_template.jinja", b"{% for x in %}"))


# ---- The config -----------------------------------------------------------------------------------------------------


def with_config(**fields):
    def change(folder, name=CONFIG):
        values = json.loads((folder / name).read_text())
        for path, value in fields.items():
            *parents, last = path.split("__")
            inner = values
            for parent in parents:
                inner = inner[parent]
            if value is None:
                inner.pop(last, None)
            else:
                inner[last] = value
        (folder / name).write_text(json.dumps(values))

    return change


CHANGES = {
    "no model_type": {"model_type": None},
    "another model_type": {"model_type": "gpt2"},
    "an unknown model_type": {"model_type": "nothing"},
    "a number as model_type": {"model_type": 3},
    "a list as text_config": {"text_config": [1]},
    "a word as text_config": {"text_config": "gpt2"},
    "no text_config": {"text_config": None},
    "an unknown encoder": {"vision_config__model_type": "nothing"},
    "no model_type of an encoder": {"vision_config__model_type": None},
    "a negative width": {"text_config__n_embd": -8},
    "a word as width": {"text_config__n_embd": "wide"},
    "another width": {"text_config__n_embd": 64},
    "heads that do not divide": {"text_config__n_head": 5},
    "no heads": {"text_config__n_head": 0},
    "more layers": {"text_config__n_layer": 6},
    "a larger vocabulary": {"text_config__vocab_size": 500},
    "a smaller vocabulary": {"text_config__vocab_size": 20},
    "an unknown activation": {"text_config__activation_function": "nothing"},
    "an unknown connector": {"vision_connector": "nothing"},
    "a cross-attention layer that is not there": {"cross_attention_layers": [99]},
    "words as cross-attention layers": {"cross_attention_layers": ["a"]},
    "a placeholder outside the vocabulary": {"image_token_id": 10**6},
    "another size of image": {"vision_config__image_size": 64},
    "another architecture": {"architectures": ["GPT2LMHeadModel"]},
    "an architecture without a head": {"architectures": ["MMModel"]},
    "a word as architectures": {"architectures": "MMForConditionalGeneration!"},
    "a number as architectures": {"architectures": 7},
    "an unknown dtype": {"dtype": "float99"},
}
for label, fields in CHANGES.items():
    kind(f"config with {label}", CONFIG, WEIGHTS, "is a model of type", *(key.split("__")[-1] for key in fields))(
        with_config(**fields)
    )


# ---- The weights ----------------------------------------------------------------------------------------------------


def tensors(folder):
    """Return copies, as the file that is mapped into memory will be written."""
    return {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}


def with_weights(change):
    def apply(folder):
        state = tensors(folder)
        change(state)
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})

    return apply


def sharded(folder):
    (folder / WEIGHTS).unlink()
    chat_model().save_pretrained(folder, max_shard_size="20KB")
    return json.loads((folder / INDEX).read_text())


@kind("a pickle in place of safetensors", WEIGHTS)
def pickled(folder):
    torch.save(tensors(folder), folder / WEIGHTS)


@kind("a pickle beside no safetensors", WEIGHTS)
def pickle_alone(folder):
    torch.save(tensors(folder), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


@kind("a header of safetensors that is too long", WEIGHTS)
def long_header(folder):
    (folder / WEIGHTS).write_bytes((2**62).to_bytes(8, "little") + (folder / WEIGHTS).read_bytes()[8:])


@kind("a flipped header of safetensors", WEIGHTS)
def flipped_header(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[20] ^= 0x7F
    (folder / WEIGHTS).write_bytes(data)


@kind("bytes behind safetensors", WEIGHTS)
def longer(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"more")


kind("a missing tensor", BLOCK)(with_weights(lambda state: state.pop(BLOCK)))
kind("no tensor", "weights are missing")(with_weights(lambda state: state.clear()))
kind("NaN in a tensor", BLOCK)(with_weights(lambda state: state[BLOCK].view(-1)[:1].fill_(math.nan)))
kind("infinity in a tensor", BLOCK)(with_weights(lambda state: state[BLOCK].view(-1)[:1].fill_(math.inf)))
kind("another shape of a tensor", WEIGHTS)(with_weights(lambda state: state.update({BLOCK: torch.zeros(3, 3)})))


@kind("a missing shard", "model-00002")
def missing_shard(folder):
    sharded(folder)
    min(folder.glob("model-00002-*")).unlink()


@kind("a cut shard", "model-00002")
def cut_shard(folder):
    sharded(folder)
    cut(min(folder.glob("model-00002-*")).name)(folder)


@kind("an index that is cut", INDEX)
def cut_index(folder):
    sharded(folder)
    cut(INDEX)(folder)


@kind("an index without weight_map", INDEX)
def bare_index(folder):
    sharded(folder)
    (folder / INDEX).write_text('{"metadata": {}}')


@kind("an index without metadata", INDEX)
def index_without_metadata(folder):
    index = sharded(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": index["weight_map"]}))


@kind("an index with an empty weight_map", INDEX)
def empty_index(folder):
    sharded(folder)
    (folder / INDEX).write_text('{"metadata": {}, "weight_map": {}}')


@kind("an index with numbers as files", INDEX)
def numbers_in_index(folder):
    index = sharded(folder)
    (folder / INDEX).write_text(json.dumps({**index, "weight_map": dict.fromkeys(index["weight_map"], 3)}))


@kind("an index that leaves the folder", INDEX)
def index_outside(folder):
    index = sharded(folder)
    (folder / INDEX).write_text(
        json.dumps({**index, "weight_map": dict.fromkeys(index["weight_map"], "../x.safetensors")})
    )


# ---- The processor --------------------------------------------------------------------------------------------------

PROCESSORS = {
    "no image processor": {"image_processor": None},
    "no feature extractor": {"feature_extractor": None},
    "an unknown image processor": {"image_processor__image_processor_type": "Nothing"},
    "an unknown feature extractor": {"feature_extractor__feature_extractor_type": "Nothing"},
    "a list as image processor": {"image_processor": [1]},
    "a word as size": {"image_processor__size": "large"},
}
for label, fields in PROCESSORS.items():
    kind(f"processor with {label}", PROCESSOR, "processor", "image", "extractor")(
        lambda folder, fields=fields: with_config(**fields)(folder, PROCESSOR)
    )


@kind("a tokenizer of another vocabulary", TOKENIZER, "token")
def other_tokens(folder):
    text = (folder / TOKENIZER).read_text().replace("<|image|>", "<|imagine|>")
    (folder / TOKENIZER).write_text(text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken") / "whole"
    chat_model().save_pretrained(folder)
    processor().save_pretrained(folder)
    picture("red").save(folder.parent / "red.png")
    return folder


def ask(folder: Path) -> int:
    return main(
        [
            "ask",
            str(folder),
            "--device",
            "cpu",
            "--max-new-tokens",
            "1",
            "--image",
            str(folder.parent / "red.png"),
            "hello",
        ]
    )


def test_the_folder_is_whole_before_it_is_broken(whole, capsys):
    assert ask(whole) == 0 and capsys.readouterr().err == ""
    assert len(KINDS) >= 68


@pytest.mark.parametrize("name", KINDS)
def test_a_broken_folder_ends_in_one_line_that_names_the_file(name, whole, capsys):
    breaks, files = KINDS[name]
    folder = whole.parent / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    breaks(folder)
    capsys.readouterr()
    code = ask(folder)
    printed = capsys.readouterr().err.strip()
    assert code in (1, 2), "loaded silently"
    assert printed.startswith("modeling-mm ask: ") and "\n" not in printed, printed
    assert any(file in printed for file in files), printed


# Files that a processor may lack, and what transformers reads, or nobody, before an answer is written.
UNTOLD = ("tokenizer_config.json removed", "chat_template", "processor_config.json is", "a tokenizer of another")
STRUCTURAL = [name for name in KINDS if "with" not in name.split()[:2] and not name.startswith(UNTOLD)]


@pytest.mark.parametrize("name", STRUCTURAL[::2])
def test_loading_in_python_names_the_file_too(name, whole):
    breaks, files = KINDS[name]
    folder = whole.parent / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    breaks(folder)
    with pytest.raises((ValueError, OSError, RuntimeError)) as caught:
        MMForConditionalGeneration.from_pretrained(folder)
        MMProcessor.from_pretrained(folder)
    assert any(file in str(caught.value) for file in files), caught.value


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
@pytest.mark.parametrize("name", ALL)
def test_a_file_that_must_not_be_read(name, whole, tmp_path, capsys):
    folder = shutil.copytree(whole, tmp_path / "copy")
    (folder / name).chmod(0)
    shutil.copy(whole.parent / "red.png", tmp_path)
    assert ask(folder) in (1, 2) and name in capsys.readouterr().err
