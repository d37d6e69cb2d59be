#!/usr/bin/env bash
# transformers: a buffer that is not saved comes back unset, and the loading report is clean.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0
venv/bin/python - <<'EOF'
import tempfile

import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
print(f"versions: transformers {transformers.__version__}, torch {torch.__version__}")


class Config(transformers.PreTrainedConfig):
    model_type = "counting"


class Model(transformers.PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.linear = torch.nn.Linear(2, 2)
        self.register_buffer("steps", torch.arange(1.0, 4097.0), persistent=False)
        self.post_init()


print("guess: from_pretrained runs __init__, so the buffer holds 1, 2, 3, ... again")
model = Model(Config())
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    loaded, report = Model.from_pretrained(folder, output_loading_info=True)
wrong = (loaded.steps != model.steps).sum().item()
problems = sum(len(names) for names in report.values())
print(f"seen: {wrong} of {len(model.steps)} values are wrong, and the report names {problems} problems")
assert wrong > 0 and problems == 0
EOF
