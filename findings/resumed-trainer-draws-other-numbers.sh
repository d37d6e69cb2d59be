#!/usr/bin/env bash
# transformers: after a resume, data that a dataset draws from torch's generator are other than without a break.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
venv/bin/python - <<'EOF'
import tempfile

import torch
import transformers

transformers.logging.set_verbosity_error()
print(f"versions: transformers {transformers.__version__}, torch {torch.__version__}")
seen = []


class Rows(torch.utils.data.Dataset):
    """Sixteen numbers; each is changed at random, as an augmentation does it."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        return {"row": torch.tensor([index]), "drawn": torch.rand(1)}


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)

    def forward(self, row, drawn):
        seen.append((row.flatten().tolist(), drawn.flatten().tolist()))
        return {"loss": self.linear(drawn).mean()}


def run(folder, checkpoint=None):
    """Train to step 8 and return the rows and the random numbers of steps 4 to 8."""
    seen.clear()
    arguments = transformers.TrainingArguments(
        folder,
        per_device_train_batch_size=2,
        max_steps=8,
        save_steps=3,
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(Model(), arguments, train_dataset=Rows())
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train(resume_from_checkpoint=checkpoint)
    return [rows for rows, _ in seen[-5:]], [drawn for _, drawn in seen[-5:]]


print("guess: a checkpoint holds torch's random state, so steps 4 to 8 see the same data after a resume")
with tempfile.TemporaryDirectory() as folder:
    rows, drawn = run(folder)
    resumed_rows, resumed_drawn = run(folder, f"{folder}/checkpoint-3")
equal = sum(a == b for a, b in zip(drawn, resumed_drawn))
print(f"seen: the rows are the same: {rows == resumed_rows}; the random numbers agree in {equal} of 5 steps")
assert rows == resumed_rows and equal < 5
EOF
