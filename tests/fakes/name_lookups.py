"""
Look-ups by name of transformers, accelerate, PEFT and TRL with what each decides, as one program for two processes.

    python name_lookups.py FOLDER REMOTE

`FOLDER` holds a `model`, a `classifier` and `rows.pt`, a batch with labels. `REMOTE` is 1 where the package is hidden,
so that the code of the folders is used. It prints one JSON object, by the names of `LOOKUPS`.
"""

import contextlib
import inspect
import io
import json
import logging
import os
import sys
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    pipeline,
)

FOLDER, REMOTE = Path(sys.argv[1]), sys.argv[2] == "1"
TRUST = {"trust_remote_code": True} if REMOTE else {}
if not REMOTE:
    import modeling_mm  # noqa: F401
GREEDY = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
LOOKUPS = {}
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)


def lookup(function):
    LOOKUPS[function.__name__] = function
    return function


def load(auto=AutoModelForImageTextToText, name: str = "model"):
    torch.manual_seed(0)
    model = auto.from_pretrained(FOLDER / name, **TRUST).eval()
    assert (type(model).__module__.split(".")[0] == "transformers_modules") == REMOTE
    return model


def batch() -> dict[str, torch.Tensor]:
    return torch.load(FOLDER / "rows.pt", weights_only=True)


def prompt() -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch().items() if name != "labels"}


def real_sum(model) -> float:
    """Return the sum of all logits but those of padding."""
    with torch.no_grad():
        logits = model(**prompt()).logits
    return round(logits[batch()["attention_mask"].bool()].sum().item(), 2)


def rows() -> list[dict[str, torch.Tensor]]:
    whole = batch()
    return [{name: value[i] for name, value in whole.items()} for i in range(len(whole["input_ids"]))]


def trainer(model, **fields) -> Trainer:
    options = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "optim": "sgd"}
    options |= {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "max_steps": 1, "logging_steps": 1}
    arguments = TrainingArguments(str(FOLDER / f"out{int(REMOTE)}"), **{**options, **fields})
    return Trainer(model, arguments, train_dataset=rows(), eval_dataset=rows())


def trained_loss(model, **fields) -> float:
    run = trainer(model, **fields)
    run.train()
    return next(entry["loss"] for entry in run.state.log_history if "loss" in entry)


def logged(function) -> tuple:
    """Return what a function returns, and transformers' errors and warnings meanwhile."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    log = logging.getLogger("transformers")
    log.addHandler(handler)
    try:
        return function(), [line for line in stream.getvalue().splitlines() if "not supported" in line]
    finally:
        log.removeHandler(handler)


# ---- Trainer --------------------------------------------------------------------------------------------------------


@lookup
def label_smoothing():
    """Return True if labels are shifted before they are smoothed."""
    return trained_loss(load(), label_smoothing_factor=0.1)


@lookup
def label_smoothing_of_an_adapted_model():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load(), LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    return trained_loss(model, label_smoothing_factor=0.1)


@lookup
def label_smoothing_of_a_subclass():
    model = load()
    model.__class__ = type("Captioner", (type(model),), {})
    return trained_loss(model, label_smoothing_factor=0.1)


@lookup
def label_smoothing_in_evaluation():
    return trainer(load(), label_smoothing_factor=0.1).evaluate()["eval_loss"]


@lookup
def losses():
    """`num_items_in_batch` is counted by a loss type, which follows from the class's name."""
    options = [{}, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}]
    return [trained_loss(load(), **fields) for fields in options]


@lookup
def introspection():
    names = ["label_names", "can_return_loss", "model_accepts_loss_kwargs", "_loss_shifts_labels"]
    found = {}
    for auto, name in ((AutoModelForImageTextToText, "model"), (AutoModelForSequenceClassification, "classifier")):
        model = load(auto, name)
        run = trainer(model)
        found[name] = {key: getattr(run, key, None) for key in names}
        found[name]["loss_type"] = model.loss_type
        found[name]["decayed"] = sorted(run.get_decay_parameter_names(model))
        found[name]["columns"] = sorted(inspect.signature(model.forward).parameters)
    return found


@lookup
def metrics():
    run = trainer(load())
    output = run.predict(rows())
    shapes = [list(part.shape) for part in output.predictions] if isinstance(output.predictions, tuple) else []
    return [output.metrics["test_loss"], shapes or list(output.predictions.shape)]


# ---- Loading and generation -----------------------------------------------------------------------------------------


@lookup
def auto_classes():
    found = {}
    for auto_name in sorted(json.loads((FOLDER / "model" / "config.json").read_text())["auto_map"]):
        name = "classifier" if auto_name.endswith("Classification") else "model"
        loaded = getattr(transformers, auto_name).from_pretrained(FOLDER / name, **TRUST)
        found[auto_name] = type(loaded).__name__
    for auto_name in ("AutoTokenizer", "AutoImageProcessor", "AutoFeatureExtractor"):
        found[auto_name] = type(getattr(transformers, auto_name).from_pretrained(FOLDER / "model", **TRUST)).__name__
    return found


@lookup
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER / "model", **TRUST)("a cat, <|image|> a dog").input_ids


@lookup
def generation():
    model = load()
    ways = [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}, {"cache_implementation": "static"}]
    tokens = [model.generate(**prompt(), **GREEDY, **way).tolist() for way in ways[:2]]
    one = {name: value[:1] for name, value in prompt().items()}
    tokens += [model.generate(**one, **GREEDY, **way).tolist() for way in ways[2:]]
    return [*tokens, model.generate(**one, **GREEDY, assistant_model=load()).tolist()]


@lookup
def attention():
    """Return True if the attention implementation may be set; transformers reads the source of the class's module."""
    model, found = load(), []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        found.append(model.model.language_model.config._attn_implementation)
        found.append(real_sum(model))
    return found


@lookup
def initialization():
    """Custom code skips modules without parameters when weights are drawn."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(FOLDER / "model", **TRUST)
    model = AutoModelForImageTextToText.from_config(config, **TRUST)
    return {name: round(tensor.double().sum().item(), 4) for name, tensor in model.state_dict().items()}


@lookup
def placement():
    """Lists of class and module names that device maps, quantizers and FSDP follow."""
    model = load()
    names = ["_no_split_modules", "_keep_in_fp32_modules", "_keep_in_fp32_modules_strict", "_tied_weights_keys"]
    found = {name: sorted(getattr(model, name, None) or []) for name in names}
    return found | {"fsdp_plan": model.fsdp_plan, "custom": type(model).is_custom_code()}


@lookup
def saving():
    model = load()
    model.save_pretrained(FOLDER / f"saved{int(REMOTE)}")
    config = json.loads((FOLDER / f"saved{int(REMOTE)}" / "config.json").read_text())
    return [config["architectures"], config["auto_map"]]


# ---- Pipelines and serving ------------------------------------------------------------------------------------------


@lookup
def pipelines():
    text, speech = "a cat and a dog", torch.linspace(-0.5, 0.5, 9000).numpy()
    chat = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    tasks = {
        "any-to-any": (chat, {"generate_kwargs": GREEDY}),
        "automatic-speech-recognition": (speech, GREEDY),
        "feature-extraction": (text, {}),
        "image-text-to-text": (chat, {"generate_kwargs": GREEDY}),
        "text-classification": (text, {}),
        "text-generation": (text, GREEDY),
    }
    found = {}
    for task, (inputs, options) in tasks.items():
        name = "classifier" if task == "text-classification" else "model"
        pipe, messages = logged(lambda task=task, name=name: pipeline(task, str(FOLDER / name), **TRUST))
        found[task] = [type(pipe).__name__, json.dumps(pipe(inputs, **options), default=str)[:500], messages]
    return found


@lookup
def serving():
    """`transformers serve` looks up which class loads a model and what it takes."""
    from transformers.cli.serving.model_manager import ModelManager

    manager = ModelManager(device="cpu", trust_remote_code=REMOTE)
    model = manager._load_model(f"{FOLDER / 'model'}@main")
    processor = AutoProcessor.from_pretrained(FOLDER / "model", **TRUST)
    return [type(model).__name__, str(manager.get_model_modality(model, processor))]


# ---- PEFT and TRL ---------------------------------------------------------------------------------------------------


@lookup
def peft_defaults():
    """Return the modules that PEFT adapts by default; it may be imported after the model is made."""
    loaded, found = [load() for _ in range(3)], {}
    from peft import IA3Config, LNTuningConfig, LoraConfig, get_peft_model

    configs = (LoraConfig(task_type="CAUSAL_LM"), IA3Config(task_type="CAUSAL_LM"), LNTuningConfig())
    for model, config in zip(loaded, configs, strict=True):
        model = get_peft_model(model, config)
        found[type(config).__name__] = sorted(name for name, p in model.named_parameters() if p.requires_grad)
    return found


@lookup
def adapters_reload():
    from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model

    model = get_peft_model(load(), LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True))
    folder = FOLDER / f"adapter{int(REMOTE)}"
    model.save_pretrained(folder)
    loaded = AutoPeftModelForCausalLM.from_pretrained(folder, **TRUST).eval()
    return [type(loaded.base_model.model).__name__, real_sum(loaded)]


@lookup
def trl_loads_by_path():
    from trl.trainer.utils import create_model_from_path

    return type(create_model_from_path(str(FOLDER / "model"), **TRUST)).__name__


def main() -> None:
    chosen, found = sys.argv[3:] or LOOKUPS, {}
    noise = io.StringIO()
    for name in chosen:
        with contextlib.redirect_stdout(noise):
            try:
                found[name] = LOOKUPS[name]()
            except (AttributeError, ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
                found[name] = f"{type(error).__name__}: {error}"  # the other look-ups are asked all the same
    print(json.dumps(found))


main()
