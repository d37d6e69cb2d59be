# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""A folder with the graphs of a whole greedy generation, and the program that runs them without torch."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation import SuppressTokensAtBeginLogitsProcessor, SuppressTokensLogitsProcessor

from ..generation import SuppressPlaceholders
from ..modalities import MODALITIES
from ..modeling_mm import MMForConditionalGeneration
from ..suppression import SuppressByIds
from ..utils.files import write_text
from .exporting import DecoderStep, MediaEncoder, PromptReader, Tensors
from .runtime import MEDIA, PROMPT, SETTINGS_FILE, STEP

WEIGHTS = "weights.bin"  # of all graphs
LEAST_SHARED = 1024  # bytes of a weight that is kept outside its graph
PAGE = 4096  # bytes: where a weight starts, so that it can be mapped into memory
RUNTIME = Path(__file__).with_name("runtime.py")
# Names of what goes in and out of the graphs, before the media of a step, whose number depends on the model.
TEXT = ("input_ids", "attention_mask")
TOKENS = ("states", "mask", "position", "modality")


@torch.no_grad()
def export_onnx(
    model: MMForConditionalGeneration,
    processor: Any | None,
    folder: Path,
    inputs: Mapping[str, torch.Tensor],
    int8: bool = False,
) -> None:
    """
    Write ONNX graphs of the media's encoders, of the prompt and of a step, with what a program needs beside them.

    Args:
        model: in float32
        processor: whose tokenizer is written, if there is one
        folder: exists; files of the same names are replaced
        inputs: of one row, as the processor gives them. Answers can be generated for any text with media of the same
            kinds, numbers and shapes.
        int8: with products of 8 bits. Weights have seven, as processors without VNNI add pairs of products in 16 bits.

    Raises:
        ValueError: for inputs without media or of several rows, a model that is not in float32, and generation
            settings that are not greedy search.
    """
    check_exportable(model, inputs)
    kinds = [name for name, modality in MODALITIES.items() if {*inputs} & {*modality.inputs}]
    encoder = MediaEncoder(model, *kinds)
    items = tuple(inputs[name] for name in encoder.names)
    sizes = model.encode_media(**dict(zip(encoder.names, items, strict=True))).sizes
    prompt, step = PromptReader(model, sizes), DecoderStep(model, kinds)
    read = (*(inputs[name] for name in TEXT), *encoder(*items))
    decoded = step_arguments(read[1], prompt(*read))
    media = [f"media_{number}" for number in range(len(decoded) - 4)]
    caches = ["keys", "values"]
    write_graph(encoder, items, None, folder / MEDIA, encoder.names, TOKENS)
    write_graph(prompt, read, prompt.SHAPES, folder / PROMPT, [*TEXT, *TOKENS], ["logits", *caches, *media])
    longer = ["logits", "new_keys", "new_values"]
    write_graph(step, decoded, step.SHAPES, folder / STEP, [*TEXT, *caches, *media], longer)
    if int8:
        for name in (MEDIA, PROMPT, STEP):
            quantize_graph(folder / name)
    share_weights([folder / name for name in (MEDIA, PROMPT, STEP)], folder / WEIGHTS)
    shapes = {name: list(inputs[name].shape) for name in encoder.names}
    settings = {"media": shapes, "positions": positions_of(model), **greedy_rules(model)}
    write_text(folder / SETTINGS_FILE, json.dumps(settings, indent=1))
    if processor is not None:
        processor.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    shutil.copyfile(RUNTIME, folder / RUNTIME.name)


def check_exportable(model: MMForConditionalGeneration, inputs: Mapping[str, torch.Tensor]) -> None:
    """Raise a `ValueError` for what [`export_onnx`] does not take."""
    if model.dtype != torch.float32:
        raise ValueError(f"The model is in {model.dtype}; load it with dtype=torch.float32 to export it.")
    if len(inputs["input_ids"]) != 1:
        raise ValueError(f"Graphs are made from one row, got {len(inputs['input_ids'])}.")
    known = {name for modality in MODALITIES.values() for name in modality.inputs}
    if not known & {*inputs}:
        expected = ", ".join(sorted(known))
        raise ValueError(f"The prompt has no media: expected some of {expected}, got {', '.join(inputs)}.")


def positions_of(model: MMForConditionalGeneration) -> int:
    """Return how many tokens the model has positions for; others than learned ones never end."""
    is_limited = model.config.text_position_encoding == "learned"
    return int(model.config.text_config.n_positions) if is_limited else 2**31 - 1


def greedy_rules(model: MMForConditionalGeneration) -> dict[str, Any]:
    """
    Return the tokens that end an answer, those that are never written, and those that are not the first.

    Raises:
        ValueError: for generation settings that change scores in another way.
    """
    config = GenerationConfig(**{**model.generation_config.to_dict(), "do_sample": False, "num_beams": 1})
    processors = model._get_logits_processor(config, input_ids_seq_length=1)
    rules: dict[str, list[int]] = {"never": [], "never_first": []}
    for processor in processors:
        rule = processor.rule if isinstance(processor, SuppressByIds) else processor
        if isinstance(rule, SuppressPlaceholders):
            rules["never"] += rule.token_ids.tolist()
        elif isinstance(rule, SuppressTokensLogitsProcessor):
            rules["never"] += rule.suppress_tokens.tolist()
        elif isinstance(rule, SuppressTokensAtBeginLogitsProcessor):
            rules["never_first"] += rule.begin_suppress_tokens.tolist()
        else:
            raise ValueError(
                f"The generation settings have {type(rule).__name__}, which the exported program does not know. "
                "Remove it from model.generation_config."
            )
    ends = model.generation_config.eos_token_id
    return {**rules, "ends": ends if isinstance(ends, list) else [] if ends is None else [ends]}


def step_arguments(mask: torch.Tensor, read: Tensors) -> Tensors:
    """Return the arguments of a step behind a prompt, of two rows: one alone would be the only number it takes."""
    logits, *state = read
    token = logits.argmax(-1, keepdim=True)  # (1, 1)
    longer = torch.cat([mask, torch.ones_like(token)], dim=1)
    # Caches are (N, B, H, L, d), the others (B, ...).
    return tuple(torch.cat([each, each], dim=0 if each.ndim == 2 else 1) for each in (token, longer, *state))


def write_graph(
    module: torch.nn.Module, arguments: Tensors, shapes: Any, path: Path, inputs: list[str], outputs: Any
) -> None:
    """Write the ONNX graph of a module; weights are in a file beside it, named as the graph with `.data` behind."""
    graph = torch.export.export(module, arguments, dynamic_shapes=shapes)
    torch.onnx.export(
        graph,
        f=path,
        dynamo=True,
        verbose=False,
        external_data=True,
        input_names=list(inputs),
        output_names=list(outputs),
        custom_translation_table={torch.ops.aten.searchsorted.Tensor: search_sorted},
    )


def search_sorted(
    sorted_sequence: Any,
    values: Any,
    out_int32: bool = False,
    right: bool = False,
    side: Any = None,
    sorter: Any = None,
) -> Any:
    """Count the members (B, L) of a sorted row before each value (B, S), for torch's exporter, which cannot."""
    import onnxscript  # an extra

    ops: Any = onnxscript.opset18

    members = ops.Unsqueeze(sorted_sequence, ops.Constant(value_ints=[-2]))  # (B, 1, L)
    wanted = ops.Unsqueeze(values, ops.Constant(value_ints=[-1]))  # (B, S, 1)
    is_before = ops.LessOrEqual(members, wanted) if right else ops.Less(members, wanted)
    return ops.ReduceSum(ops.Cast(is_before, to=7), ops.Constant(value_ints=[-1]), keepdims=0)


def quantize_graph(path: Path) -> None:
    """Replace a graph by one with products of 8 bits."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    give_constants(model.graph)
    data = path.with_name(f"{path.name}.data")
    data.unlink(missing_ok=True)
    quantize_dynamic(model, path, weight_type=QuantType.QInt8, reduce_range=True, per_channel=True)


def give_constants(graph: Any) -> None:
    """Store transposed copies where products read the weights of another, as a head does those of an embedding."""
    from onnx import numpy_helper

    weights = {weight.name: weight for weight in graph.initializer}
    for node in list(graph.node):
        if node.op_type == "Transpose" and node.input[0] in weights:
            values = numpy_helper.to_array(weights[node.input[0]])
            order = next((list(each.ints) for each in node.attribute if each.name == "perm"), None)
            graph.initializer.append(numpy_helper.from_array(values.transpose(order), node.output[0]))
            graph.node.remove(node)


def share_weights(paths: Sequence[Path], weights: Path) -> None:
    """Move the weights of graphs into one file beside them, in which equal ones, such as the decoder's, stand once."""
    import onnx
    from onnx.external_data_helper import set_external_data

    places: dict[bytes, tuple[int, int]] = {}
    with weights.open("wb") as file:
        for path in paths:
            model = onnx.load(path)
            for tensor in model.graph.initializer:
                values = tensor.raw_data
                if len(values) < LEAST_SHARED:
                    continue
                digest = hashlib.sha256(values).digest()
                if digest not in places:
                    file.write(bytes(-file.tell() % PAGE))
                    places[digest] = (file.tell(), len(values))
                    file.write(values)
                set_external_data(tensor, weights.name, *places[digest])
                tensor.ClearField("raw_data")
            onnx.save(model, path)
            path.with_name(f"{path.name}.data").unlink(missing_ok=True)
