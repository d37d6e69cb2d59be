#!/usr/bin/env bash
# transformers: a checkpoint's weights that are saved under other names do not come back when Trainer resumes.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
venv/bin/python - <<'EOF'
import accelerate
import torch
import transformers
from safetensors.torch import load_file
from transformers import (
    BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments, ViTConfig,
    ViTForImageClassification,
)

transformers.logging.set_verbosity_error()
print(f"versions: transformers {transformers.__version__}, accelerate {accelerate.__version__}")
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
STEPS = 4


def vit():
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=2, **SIZES))


def bert():
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(vocab_size=10, num_labels=2, **SIZES))


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


class First(TrainerCallback):
    """Keeps the weights before the first step."""

    def on_step_begin(self, *args, model, **kwargs):
        self.weights = getattr(self, "weights", None) or weights_of(model)


def trained(make, rows, folder, steps, checkpoint=None):
    """Train, or resume from a checkpoint; return the weights before the first step and after the last."""
    arguments = TrainingArguments(
        folder, max_steps=steps, save_steps=STEPS, lr_scheduler_type="constant", learning_rate=1e-2, weight_decay=0.1,
        report_to=[], disable_tqdm=True, use_cpu=True, logging_strategy="no",
    )
    first = First()
    trainer = Trainer(make(), arguments, train_dataset=rows, callbacks=[first])
    trainer.train(resume_from_checkpoint=checkpoint)
    return first.weights, weights_of(trainer.model)


print("guess: a run that is resumed from its checkpoint has the weights that were saved there")
noise = torch.Generator().manual_seed(0)
images = [{"pixel_values": torch.rand(3, 8, 8, generator=noise), "labels": number % 2} for number in range(32)]
texts = [{"input_ids": torch.arange(number % 5, number % 5 + 4), "labels": number % 2} for number in range(32)]
seen = {}
for name, make, rows in (("BERT", bert, texts), ("ViT", vit, images)):
    start, end = trained(make, rows, name, STEPS)
    resumed, _ = trained(make, rows, name, STEPS + 1, f"{name}/checkpoint-{STEPS}")
    moved = [each for each in end if not torch.equal(start[each], end[each])]
    back = [each for each in moved if torch.equal(resumed[each], end[each])]
    untrained = [each for each in moved if torch.equal(resumed[each], start[each])]
    other_names = {*end} - {*load_file(f"{name}/checkpoint-{STEPS}/model.safetensors")}
    seen[name] = len(moved), len(back), len(untrained)
    print(
        f"seen: {name}: {len(moved)} weights were trained; resumed, {len(back)} of them are as trained and "
        f"{len(untrained)} as before training; {len(other_names)} are in the file under other names"
    )
    assert {*untrained} == {*other_names} & {*moved}
assert seen["BERT"][0] == seen["BERT"][1] > 10 and seen["BERT"][2] == 0
assert seen["ViT"][2] > seen["ViT"][1] > 0
EOF
