"""TRL's `SFTTrainer` trains on a data set of `messages` and `images`, with and without PEFT."""

import pytest
import torch
import transformers
from packaging.version import Version

from modeling_mm import MMForConditionalGeneration
from modeling_mm.evaluation import generate_answers
from modeling_mm.training import MODULES_TO_SAVE, TARGET_MODULES, ChatCollator
from tests.fakes.processor_parts import picture
from tests.fakes.tiny_chats import chat, chat_model, losses, moved, processor, weights

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:DeprecationWarning")

# Answers of different lengths; one row without a picture, one with two.
ROWS = [
    ("What do you see?", "red", ["red"]),
    ("What do you see?", "a green square", ["green"]),
    ("What do you see?", "a cat and a bird", ["blue", "white"]),
    ("hello", "hello there, you are brief", []),
]
# TRL asks for it with pictures: its mask of answers needs offsets that older processors did not give.
ANSWERS_ONLY = Version(transformers.__version__) >= Version("5.18.0.dev0")


def table():
    """As such data sets come from the Hub."""
    message = {"role": datasets.Value("string"), "content": datasets.Value("string")}
    features = datasets.Features({"messages": datasets.List(message), "images": datasets.List(datasets.Image())})
    rows = [
        {
            "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            "images": [picture(color) for color in colors],
        }
        for question, answer, colors in ROWS
    ]
    return datasets.Dataset.from_list(rows, features=features)


def sft_trainer(model, folder, peft_config=None, **fields):
    options = {
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "assistant_only_loss": ANSWERS_ONLY,
        **fields,
    }
    arguments = trl.SFTConfig(str(folder), **options)
    return trl.SFTTrainer(
        model, arguments, train_dataset=table(), processing_class=processor(), peft_config=peft_config
    )


def own_batch():
    """The same chats by our own collator, which knows each picture's place."""
    samples = []
    for question, answer, colors in ROWS:
        sample = chat(question, answer)
        pictures = [{"type": "image", "image": picture(color)} for color in colors]
        sample["messages"][0]["content"] = [*pictures, *sample["messages"][0]["content"]]
        samples.append(sample)
    return ChatCollator(processor())(samples)


def test_the_batches_are_those_of_our_own_collator(tmp_path):
    run = sft_trainer(chat_model(), tmp_path)
    found, expected = run.data_collator([run.train_dataset[i] for i in range(4)]), own_batch()
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        if name != "labels" or ANSWERS_ONLY:
            assert torch.equal(found[name], tensor), name


@pytest.mark.skipif(not ANSWERS_ONLY, reason="TRL learns whole chats with pictures before transformers 5.18")
def test_the_loss_is_ours(tmp_path):
    run = sft_trainer(chat_model(), tmp_path)
    run.train()
    with torch.no_grad():
        expected = chat_model()(**own_batch()).loss.item()
    assert losses(run)[0] == pytest.approx(expected, abs=1e-4)


def test_it_learns_what_the_pictures_show(tmp_path):
    model = chat_model()
    before = weights(model)
    run = sft_trainer(model, tmp_path, max_steps=40, gradient_checkpointing=True)
    run.train()
    assert losses(run)[-1] < 0.1 * losses(run)[0]
    changed = moved(model, before)
    assert any("vision_tower" in name for name in changed) and any("cross_blocks" in name for name in changed)
    prompts = [chat("What do you see?", "", color=color)["messages"][:1] for color in ("red", "green")]
    assert generate_answers(model.eval(), processor(), prompts, max_new_tokens=8) == ["red", "a green square"]


def test_with_peft_only_adapters_connectors_and_gates_learn(tmp_path):
    peft = pytest.importorskip("peft")
    model = chat_model()
    config = peft.LoraConfig(r=4, target_modules=TARGET_MODULES, modules_to_save=MODULES_TO_SAVE, fan_in_fan_out=True)
    run = sft_trainer(model, tmp_path, peft_config=config, max_steps=8)
    before = weights(run.model)
    run.train()
    assert losses(run)[-1] < losses(run)[0]
    changed = moved(run.model, before)
    seen = {name for name, p in run.model.named_parameters() if p.requires_grad and "audio_connector" not in name}
    assert changed == seen, "none of these chats has a sound"
    assert all(".lora_" in name or ".modules_to_save." in name for name in changed)


# ---- Preferences and rewards ----------------------------------------------------------------------------------------


def preferences(counts, **columns):
    """Prompts with so many images each."""
    message = {"role": datasets.Value("string"), "content": datasets.Value("string")}
    question = [{"role": "user", "content": "What do you see?"}]
    features = datasets.Features(
        {"images": datasets.List(datasets.Image()), **{name: datasets.List(message) for name in ("prompt", *columns)}}
    )
    rows = [{"images": [picture("red")] * count, "prompt": question, **columns} for count in counts]
    return datasets.Dataset.from_list(rows, features=features)


def options_of(config_class, folder, **fields):
    options = {"use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True, "save_strategy": "no"}
    return config_class(str(folder), max_steps=1, learning_rate=1e-2, logging_steps=1, **options, **fields)


@pytest.mark.parametrize("counts", [(1, 1), (1, 2)], ids=["equal", "unequal"])
def test_dpo_sees_the_images(counts, tmp_path):
    columns = {
        "chosen": [{"role": "assistant", "content": "red"}],
        "rejected": [{"role": "assistant", "content": "a"}],
    }
    chat_model().save_pretrained(tmp_path)  # TRL loads the reference from there
    model = MMForConditionalGeneration.from_pretrained(tmp_path)
    before, data = weights(model), preferences(counts, **columns)
    arguments = options_of(trl.DPOConfig, tmp_path / "run", per_device_train_batch_size=2, max_length=None)
    run = trl.DPOTrainer(model, args=arguments, train_dataset=data, processing_class=processor())
    batch = next(iter(run.get_train_dataloader()))
    assert batch["image_mask"].sum().item() == 2 * sum(counts)
    assert run.train().training_loss == pytest.approx(0.6931, abs=1e-3), "a model is as good as itself"
    assert any("cross_blocks" in name for name in moved(model, before))


@pytest.mark.parametrize("counts", [(1, 1), (1, 2), (2, 0, 0), (3, 1)], ids=str)
def test_grpo_takes_unequal_numbers_of_images(counts, tmp_path):
    """TRL hands on `pixel_values` alone, without the mask of their padding."""
    model = chat_model()
    before = weights(model)
    arguments = options_of(
        trl.GRPOConfig,
        tmp_path,
        per_device_train_batch_size=2 * len(counts),
        num_generations=2,
        max_completion_length=4,
    )
    run = trl.GRPOTrainer(
        model,
        reward_funcs=lambda completions, **_: [float(number) for number in range(len(completions))],
        args=arguments,
        train_dataset=preferences(counts),
        processing_class=processor(),
    )
    run.train()
    assert any("cross_blocks" in name for name in moved(model, before))
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_with_a_peft_config_that_names_no_modules(tmp_path):
    peft = pytest.importorskip("peft")
    run = sft_trainer(chat_model(), tmp_path, peft_config=peft.LoraConfig(task_type="CAUSAL_LM"), max_steps=8)
    run.train()
    assert losses(run)[-1] < losses(run)[0]
