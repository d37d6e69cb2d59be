#!/usr/bin/env bash
# torch.onnx: an output with an input's name, as of a cache that goes in and out, gives a file that nothing loads.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.3.5 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.23.2
venv/bin/python -W ignore - <<'EOF'
import onnx
import onnxruntime
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

print(f"versions: torch {torch.__version__}, onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}")


class Step(torch.nn.Module):
    def forward(self, token, cache):
        return 2 * token, torch.cat([cache, token], dim=1)


arguments = torch.ones(1, 1), torch.ones(1, 3)
names = {"input_names": ["token", "cache"], "output_names": ["logits", "cache"]}
print("guess: both exporters refuse an output with the name of an input, or rename one of them")
for file, is_new in (("old.onnx", False), ("new.onnx", True)):
    torch.onnx.export(Step(), arguments, f=file, dynamo=is_new, verbose=False, **names)
    graph = onnx.load(file).graph
    print(f"seen: {file}: {[each.name for each in graph.input]} -> {[each.name for each in graph.output]}")
onnxruntime.InferenceSession("old.onnx")
print("seen: old.onnx loads")
message = ""
try:
    onnxruntime.InferenceSession("new.onnx")
except Fail as error:
    message = str(error)
print(f"seen: new.onnx, which was written without a warning: {message}")
assert "Duplicate definition of name (cache)" in message
EOF
