#!/usr/bin/env bash
# transformers: `save_pretrained` of remote code records the saved class alone in `auto_map`.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0
venv/bin/python - <<'EOF'
import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
print(f"versions: transformers {transformers.__version__}, torch {torch.__version__}")
CODE = """
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


class ToyConfig(PreTrainedConfig):
    model_type = "toy"


class ToyModel(PreTrainedModel):
    config_class = ToyConfig

    def __init__(self, config):
        super().__init__(config)
        self.linear = nn.Linear(2, 2)
        self.post_init()


class ToyForCausalLM(ToyModel):
    pass
"""
with tempfile.TemporaryDirectory() as folder:
    Path(folder, "modeling_toy.py").write_text(CODE)
    sys.path.insert(0, folder)
    from modeling_toy import ToyConfig, ToyForCausalLM, ToyModel

    ToyConfig.register_for_auto_class()
    ToyModel.register_for_auto_class("AutoModel")
    ToyForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    ToyForCausalLM(ToyConfig()).save_pretrained(f"{folder}/saved")
    saved = json.loads(Path(folder, "saved", "config.json").read_text())["auto_map"]

print("guess: auto_map names AutoConfig, AutoModel and AutoModelForCausalLM, as all three are registered")
print(f"seen: auto_map names {', '.join(saved)}")
assert set(saved) == {"AutoConfig", "AutoModelForCausalLM"}
EOF
