#!/usr/bin/env bash
# onnxruntime and openvino: 64-bit integers that the one gives are refused by the other, though their types are equal.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1
venv/bin/python - <<'EOF'
import numpy
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper

print(f"versions: onnxruntime {onnxruntime.__version__}, openvino {openvino.__version__}, numpy {numpy.__version__}")


def write(kind, path):
    """Write a graph that doubles two numbers of a type."""
    value = {name: helper.make_tensor_value_info(name, kind, [2]) for name in ("given", "doubled")}
    node = helper.make_node("Add", ["given", "given"], ["doubled"])
    graph = helper.make_graph([node], "double", [value["given"]], [value["doubled"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.save(model, path)


def answer(compiled, array):
    """Return what OpenVINO gives for an array, or the first line of its error."""
    try:
        return compiled([array])[0].tolist()
    except RuntimeError as error:
        return str(error).strip().splitlines()[-1]


print("guess: an array of type int64 from one runtime is an input of type int64 of the other, as one of float32 is")
seen = {}
for name, kind, type_ in (("float32", TensorProto.FLOAT, numpy.float32), ("int64", TensorProto.INT64, numpy.int64)):
    write(kind, f"{name}.onnx")
    (first,) = onnxruntime.InferenceSession(f"{name}.onnx").run(None, {"given": numpy.array([1, 2], type_)})
    compiled = openvino.Core().compile_model(f"{name}.onnx", "CPU")
    assert first.dtype == type_ and first.tolist() == [2, 4]
    seen[name] = answer(compiled, first), answer(compiled, first.view(type_))
    print(
        f"seen: {name}: onnxruntime's array equals numpy's in type ({first.dtype == numpy.dtype(type_)}), its type code "
        f"is {first.dtype.char!r}, numpy's {numpy.dtype(type_).char!r}; openvino: {seen[name][0]}; of a view: {seen[name][1]}"
    )
assert seen["float32"] == ([4.0, 8.0], [4.0, 8.0])
assert "Unsupported data type: int64" in seen["int64"][0] and seen["int64"][1] == [4, 8]
EOF
