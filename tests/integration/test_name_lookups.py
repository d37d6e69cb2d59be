"""
Everything that transformers, accelerate, PEFT and TRL decide by a name, with and without the package installed.

Without it the code comes with the weights (`trust_remote_code=True`). `tests/fakes/name_lookups.py` asks each look-up
in a process of each kind; the answers must be the same, and right. transformers 5.23, accelerate 1.15, PEFT 0.21, TRL 1.16.

| look-up | what it decides | how we stand |
|---|---|---|
| `MODEL_FOR_CAUSAL_LM_MAPPING_NAMES` by the class's name (`Trainer.compute_loss`) | label smoothing shifts the labels | entered by the config, in remote code too; subclasses and FSDP2's own by `__init_subclass__` |
| the same for a compiled model, which is an `OptimizedModule` | the same | right with `MMTrainer`; `Trainer` is wrong for every model |
| `LOSS_MAPPING` by the class's name (`loss_type`) | `num_items_in_batch` counts shifted labels | set by the class, so that no name is guessed from |
| `find_labels`, `can_return_loss`, `**kwargs` by the signature of `forward` | label names; whether a loss is scaled | the signature shows `labels` and the media inputs |
| `MODEL_MAPPING_NAMES` by the class's name (`Trainer.__init__`) | refuses models without a head | no key of ours is a class's name |
| parameter names (`get_decay_parameter_names`) | weight decay | the same names everywhere |
| `MODEL_FOR_*_MAPPING_NAMES` by the class's name (`Pipeline.check_model_type`) | an error that a model is not supported | entered |
| `MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES`, `model_type` (speech pipeline) | `seq2seq` or CTC decoding | entered, and our own pipeline |
| `custom_pipelines`, `PIPELINE_REGISTRY` | the class of a pipeline | in the config of remote code; registered otherwise |
| `MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES` by model type (`transformers serve`) | the class that is loaded | entered by the first config |
| the same tables by the class's name (`transformers serve`) | text alone, images, or all media | entered |
| `getattr(transformers, architectures[0])` (`serve`, TRL, `pipeline`) | the class that is loaded | TRL then reads `auto_map`; `serve` finds the table before |
| `PROCESSOR_MAPPING_NAMES`, `TOKENIZER_MAPPING_NAMES` | processor and tokenizer | `auto_map` of the processor; the tokenizer is named in its file |
| `GenerationMixin` among the names of the bases | whether a class generates | a direct base |
| `donut`, `mamba`, `Gemma4`, `whisper` in names (`generate`) | prompts, caches, assistants | our names hold none of them |
| the source of the class's module (`set_attn_implementation`) | whether attention may be set | no attention class stands beside the model |
| `is_custom_code`, by the name of the module | initialization of modules without parameters | `False` in both |
| `checkpoint_conversion_mapping` by class name and model type | renamed weights | none of our names is in it |
| `_no_split_modules`, `_keep_in_fp32_modules`, by class and module names | device maps, FSDP, quantization | the same names everywhere |
| `base_model_fsdp_plan`, by module names | what FSDP2 shards when it loads | made from our modules; `test_fsdp2.py` |
| `TRANSFORMERS_MODELS_TO_*_MODULES_MAPPING` by model type (PEFT) | modules that are adapted by default | GPT-2's, and cross-attention's own |
| `base_model_class.__module__` (`AutoPeftModel` without a task type) | the import of the base model | PEFT refuses modules outside its list; with a task type it asks the Auto class |
| `isinstance(processing_class, ProcessorMixin)` (TRL's `_is_vlm`) | collators for images | not by name |
| the class's name in a Hub cache (`transformers serve` lists models) | which models are listed | listed once a config of ours has been loaded |
"""  # noqa: E501

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, GPT2Config
from transformers.models.auto import modeling_auto

from modeling_mm import MMConfig, MMForConditionalGeneration, MMForSequenceClassification, MMModel
from modeling_mm.configuration_mm import MODEL_CLASSES, PIPELINES
from tests.fakes.pipeline_parts import audio, build, chat, image
from tests.fakes.quick_python import BARE_PYTHON
from tests.fakes.without_package import run_without_package

pytest.importorskip("peft")
pytest.importorskip("trl")
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests" / "fakes" / "name_lookups.py"
SMOOTHING = 0.1  # the program's
OURS = set(PIPELINES)
CHATS = [chat("hello"), chat(image(), "a cat"), chat(audio(), "a dog and a bird"), chat(image("blue"), audio(seed=1))]
LOOKUPS = re.findall(r"@lookup\ndef (\w+)", PROGRAM.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a model, a classifier and a batch with labels."""
    folder = tmp_path_factory.mktemp("lookups") / "folder"
    for name, cls, fields in (
        ("model", MMForConditionalGeneration, {}),
        ("classifier", MMForSequenceClassification, {"num_labels": 3}),
    ):
        model, processor = build(cls, **fields)
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    options = {"processor_kwargs": {"padding_side": "left"}, "return_tensors": "pt", "return_dict": True}
    batch = dict(processor.apply_chat_template(CHATS, tokenize=True, padding=True, **options))
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    torch.save(batch, folder / "rows.pt")
    return folder


@pytest.fixture(scope="module")
def installed(folder) -> dict:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [BARE_PYTHON, "-W", "ignore", str(PROGRAM), str(folder), "0"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def remote(folder) -> dict:
    program = f"import sys\nsys.argv = ['', {str(folder)!r}, '1']\n" + PROGRAM.read_text(encoding="utf-8")
    return json.loads(run_without_package(program, folder.parent).splitlines()[-1])


@pytest.mark.parametrize("name", LOOKUPS)
def test_a_look_up_answers_the_same_with_and_without_the_package(installed, remote, name):
    assert "Error" not in str(installed[name])[:40]
    assert remote[name] == installed[name]


@pytest.mark.parametrize("name", [name for name in LOOKUPS if name.startswith("label_smoothing")])
def test_smoothed_labels_are_those_of_the_next_token(folder, remote, name):
    batch = torch.load(folder / "rows.pt", weights_only=True)
    labels = batch.pop("labels")[:, 1:]
    with torch.no_grad():
        logits = MMForConditionalGeneration.from_pretrained(folder / "model")(**batch).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=SMOOTHING)
    assert remote[name] == pytest.approx(loss.item(), abs=1e-4)


def test_a_model_is_trained_by_its_own_names(remote):
    model, classifier = remote["introspection"]["model"], remote["introspection"]["classifier"]
    assert model["label_names"] == classifier["label_names"] == ["labels"]
    assert (model["loss_type"], classifier["loss_type"]) == ("ForCausalLM", "ForSequenceClassification")
    assert "model.language_model.h.0.attn.c_attn.weight" in model["decayed"]
    assert not [name for name in model["decayed"] if "ln_" in name or "norm" in name or name.endswith("bias")]
    assert remote["losses"][0] == pytest.approx(remote["losses"][1], abs=1e-5)


def test_no_pipeline_calls_the_model_unsupported(remote):
    assert {task: messages for task, (_, _, messages) in remote["pipelines"].items() if messages} == {}
    assert all(name.startswith("MM") for task, (name, _, _) in remote["pipelines"].items() if task in OURS)


def test_transformers_serve_takes_all_media(remote):
    assert remote["serving"] == ["MMForConditionalGeneration", "Modality.MULTIMODAL"]


def test_peft_adapts_self_attention_and_cross_attention_by_default(remote):
    adapted = {name.split(".lora_")[0] for name in remote["peft_defaults"]["LoraConfig"]}
    assert {name.removeprefix("base_model.model.model.language_model.") for name in adapted} == {
        *(f"h.{i}.attn.c_attn" for i in range(4)),
        *(f"cross_blocks.{i}.cross_attn.{part}" for i in (1, 3) for part in ("q_attn", "c_attn", "c_proj")),
    }
    assert remote["peft_defaults"]["IA3Config"] and remote["peft_defaults"]["LNTuningConfig"]


def test_every_auto_class_of_models_has_our_name():
    MMConfig()  # registers
    for auto_name, class_name in MODEL_CLASSES.items():
        assert getattr(transformers, auto_name)._model_mapping._model_mapping["mm"] == class_name


def test_a_subclass_is_known_as_its_base_is_and_no_model_type_has_its_name():
    class Captioner(MMForConditionalGeneration):
        pass

    class Base(MMModel):
        pass

    known = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    assert "Captioner" in known.values() and "Base" not in known.values()
    assert "Base" in modeling_auto.MODEL_MAPPING_NAMES.values()
    assert not {"Captioner", "Base", "MMModel"} & modeling_auto.MODEL_MAPPING_NAMES.keys(), "Trainer refuses these"
    text = GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9, bos_token_id=0, eos_token_id=0)
    assert Captioner(MMConfig(text_config=text)).loss_type == "ForCausalLM"
    assert AutoModelForCausalLM.from_config(MMConfig(text_config=text)).__class__ is MMForConditionalGeneration
