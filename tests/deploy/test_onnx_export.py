"""Exported folders: the program without torch answers as the model does, and says what it does not take."""

import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from modeling_mm.cli import main
from modeling_mm.deploy import export_onnx, onnx_export
from modeling_mm.deploy.runtime import Generator, Graph
from scripts.workshop.from_scratch import small_model, small_processor
from tests.fakes.processor_parts import make_bpe
from tests.fakes.tiny import AUDIO, IMAGE, gpt2, inputs, joined, open_gates, vit, whisper

NEW = 6
pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnxruntime", "onnxscript")),
    reason="needs the extra onnx",
)


HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
NO_OPENVINO = "openvino is an extra beside onnx, which people may have without it; the locks have both"
engines = pytest.mark.parametrize(
    "engine",
    [
        "onnxruntime",
        pytest.param("openvino", marks=pytest.mark.skipif(not HAS_OPENVINO, reason=NO_OPENVINO)),
    ],
)


class Processor:
    """A tokenizer is all that an export needs of a processor."""

    tokenizer = make_bpe()


GRAPHS = ("media.onnx", "prompt.onnx", "step.onnx")


def tiny(**fields):
    """A model whose modalities have their own cross-attention layers, as the released one has."""
    parts = {"text": gpt2(n_layer=2), "vision": vit(num_hidden_layers=1), "audio": whisper(encoder_layers=1)}
    own = {"vision_cross_attention_layers": [1], "cross_attention_layers": [0, 1]}
    return open_gates(joined(**{**parts, **own, **fields}))


def greedy(model, batch, tokens=NEW):
    ids = model.generate(**batch, do_sample=False, max_new_tokens=tokens)
    return ids[0, batch["input_ids"].shape[1] :].tolist()


def arrays(batch):
    return {name: tensor.numpy() for name, tensor in batch.items()}


@pytest.fixture(scope="module")
def model():
    model = tiny()
    batch = inputs([[5, IMAGE, 6, AUDIO, 7]])
    first, second = greedy(model, batch)[:2]
    # Without the first answer's first token as the first, and never with its second.
    model.generation_config.begin_suppress_tokens = [first]
    model.generation_config.suppress_tokens = [second]
    return model


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    export_onnx(model, Processor(), folder, inputs([[5, IMAGE, 6, AUDIO, 7]]))
    return folder


@pytest.mark.parametrize("text", [[5, IMAGE, 6, AUDIO, 7], [IMAGE, AUDIO, 8], [AUDIO, 9, 10, 11, 12, IMAGE, 4, 3]])
def test_other_prompts_and_media_get_the_model_s_tokens(model, exported, text):
    generator = Generator(exported, threads=1)
    batch = inputs([text], seed=len(text))
    expected = greedy(model, batch)
    assert generator.generate(NEW, **arrays(batch)) == expected
    changed = {**batch, "pixel_values": -batch["pixel_values"], "input_features": 2 - batch["input_features"]}
    media = generator.media(*(changed[name].numpy() for name in generator.settings["media"]))
    read = generator.prompt(changed["input_ids"].numpy(), changed["attention_mask"].numpy(), *media)
    with torch.no_grad():
        logits = model(**changed).logits[:, -1]
    assert np.abs(read[0] - logits.numpy()).max() < 1e-4  # media count
    assert np.abs(read[0] - model(**batch).logits[:, -1].detach().numpy()).max() > 1e-3


def test_suppressed_tokens_are_those_of_the_settings(model, exported):
    settings = json.loads((exported / "export.json").read_text())
    assert set(model.generation_config.suppress_tokens) | {IMAGE, AUDIO} <= {*settings["never"]}
    assert settings["never_first"] == model.generation_config.begin_suppress_tokens
    batch = inputs([[5, IMAGE, 6, AUDIO, 7]])
    answer = Generator(exported, threads=1).generate(NEW, **arrays(batch))
    assert answer[0] not in settings["never_first"] and not {*answer} & {*settings["never"]}


def test_an_answer_ends_with_its_end_or_with_the_positions(model, exported):
    batch = inputs([[5, IMAGE, 6, AUDIO, 7]])
    generator = Generator(exported, threads=1)
    whole = generator.generate(**arrays(batch))
    # The last token of an answer takes no position.
    assert len(whole) == model.config.text_config.n_positions - batch["input_ids"].shape[1] + 1
    assert whole == greedy(model, batch, tokens=500)
    generator.settings["ends"] = [whole[2]]
    end = whole.index(whole[2])
    assert generator.generate(**arrays(batch)) == whole[: end + 1]


@engines
def test_the_program_runs_without_torch_and_without_the_package(model, exported, tmp_path, engine):
    batch = inputs([[5, IMAGE, 6, AUDIO, 7]])
    np.savez(tmp_path / "inputs.npz", **arrays(batch))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpy, runtime\n"
        f"ids = runtime.Generator(sys.argv[1], 1, {engine!r}).generate({NEW}, **numpy.load(sys.argv[2]))\n"
        f"others = {{'onnxruntime', 'openvino'}} - {{ {engine!r} }}\n"
        "assert not {'torch', 'transformers', 'modeling_mm', *others} & {*sys.modules}\n"
        "print(ids)"
    )
    command = [sys.executable, "-c", code, str(exported), str(tmp_path / "inputs.npz")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert json.loads(done.stdout) == greedy(model, batch)
    assert len((exported / "runtime.py").read_text().splitlines()) < 145


@pytest.mark.skipif(not HAS_OPENVINO, reason=NO_OPENVINO)
def test_openvino_answers_prompts_in_8_bits_from_integers_of_onnx_runtime(model, exported, tmp_path):
    """In another process: a test process that ran OpenVINO beside torch ended once without a word."""
    for name in ("prompt.onnx", "weights.bin"):
        shutil.copy(exported / name, tmp_path)
    onnx_export.quantize_graph(tmp_path / "prompt.onnx")
    batch = inputs([[IMAGE, AUDIO, 8]])
    generator = Generator(exported, 1)
    media = generator.media(*(batch[name].numpy() for name in generator.settings["media"]))
    read = (batch["input_ids"].numpy(), batch["attention_mask"].numpy(), *media)
    np.savez(tmp_path / "read.npz", *read, logits=Graph(tmp_path / "prompt.onnx", 1)(*read)[0])
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpy, pathlib, runtime\n"
        "folder = pathlib.Path(sys.argv[2]); given = numpy.load(folder / 'read.npz')\n"
        "read = [given[name] for name in given.files if name != 'logits']\n"
        "read[0] = read[0].astype(numpy.longlong)\n"
        "graph = runtime.OpenVINOGraph(folder / 'prompt.onnx', 1)\n"
        "print(float(abs(graph(*read)[0] - given['logits']).max() / abs(given['logits']).max()))"
    )
    command = [sys.executable, "-c", code, str(exported), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.05, "equal but for the rounding of activations"


def test_another_engine_is_refused(exported):
    with pytest.raises(ValueError, match=r"There is no engine 'tensorrt'\. Expected one of onnxruntime, openvino\."):
        Generator(exported, engine="tensorrt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": None}, "Expected the inputs .*pixel_values.*, got"),
        ({"other": np.zeros(1)}, "got .*other"),
        ({"image_mask": np.ones((1, 2), bool)}, r"image_mask has shape \[1, 2\]; the graphs are for \[1, 1\]"),
        ({"input_ids": np.ones((2, 5), np.int64)}, r"one row, with its attention_mask, got \(2, 5\)"),
        ({"input_ids": np.ones((1, 500), np.int64), "attention_mask": np.ones((1, 500), np.int64)}, "has 500 tokens"),
    ],
)
def test_other_inputs_are_refused(exported, change, message):
    given = {**arrays(inputs([[5, IMAGE, 6, AUDIO, 7]])), **change}
    with pytest.raises(ValueError, match=message):
        Generator(exported, 1).generate(NEW, **{name: value for name, value in given.items() if value is not None})


def test_what_cannot_be_exported_is_said(tmp_path):
    model, batch = tiny(), inputs([[5, IMAGE, 6]])
    with pytest.raises(ValueError, match="made from one row, got 2"):
        export_onnx(model, Processor(), tmp_path, inputs([[5, IMAGE], [IMAGE, 6]]))
    with pytest.raises(ValueError, match="The prompt has no media"):
        export_onnx(model, Processor(), tmp_path, inputs([[5, 6]]))
    model.generation_config.repetition_penalty = 1.5
    with pytest.raises(ValueError, match="have RepetitionPenaltyLogitsProcessor, which the exported program"):
        onnx_export.greedy_rules(model)
    with pytest.raises(ValueError, match=r"in torch.bfloat16; load it with dtype=torch.float32"):
        export_onnx(model.bfloat16(), Processor(), tmp_path, batch)
    assert not [*tmp_path.iterdir()]


def test_the_graphs_share_their_weights(model, exported):
    import onnx

    assert {path.name for path in exported.iterdir() if path.suffix in (".bin", ".data")} == {"weights.bin"}
    graphs = {name: onnx.load(exported / name, load_external_data=False).graph for name in GRAPHS}
    places = {
        name: {
            tuple(sorted((entry.key, entry.value) for entry in tensor.external_data))
            for tensor in graph.initializer
            if tensor.external_data
        }
        for name, graph in graphs.items()
    }
    assert len(places["prompt.onnx"] & places["step.onnx"]) > 10 and not places["media.onnx"] & places["step.onnx"]
    assert all(not tensor.raw_data or len(tensor.raw_data) < 1024 for g in graphs.values() for tensor in g.initializer)
    embedding = model.get_input_embeddings().weight.detach().numpy().tobytes()
    assert (exported / "weights.bin").read_bytes().count(embedding) == 1


def test_products_of_8_bits_are_near_and_the_head_has_its_own_weight(model, exported, tmp_path):
    import onnx

    for name in ("prompt.onnx", "weights.bin"):
        shutil.copy(exported / name, tmp_path)
    onnx_export.quantize_graph(tmp_path / "prompt.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "prompt.onnx").graph.node]
    assert kinds.count("MatMulInteger") >= 2 * 4 + 1  # each linear layer of both blocks, and the head
    batch = inputs([[5, IMAGE, 6, AUDIO, 7]])
    generator = Generator(exported, 1)
    media = generator.media(*(batch[name].numpy() for name in generator.settings["media"]))
    read = (batch["input_ids"].numpy(), batch["attention_mask"].numpy(), *media)
    exact, rounded = generator.prompt(*read)[0], Graph(tmp_path / "prompt.onnx", 1)(*read)[0]
    assert 0 < np.abs(rounded - exact).max() < 0.1 * np.abs(exact).max()


def test_the_command_writes_graphs_that_answer_as_the_model_does(tmp_path, capsys):
    processor = small_processor(["What is this?", "a cat"])
    model = small_model(processor)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    given = ["--image", "processing/corpora/sample/images/cat.png", "What is this?", "--max-new-tokens", "4"]
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "graphs"), *given]) == 0
    assert "The same tokens. Saved: " in capsys.readouterr().out
    assert {*GRAPHS, "weights.bin", "runtime.py", "tokenizer.json"} <= {
        each.name for each in (tmp_path / "graphs").iterdir()
    }


def test_the_command_says_what_it_needs(tmp_path, capsys):
    assert main(["export", "model_cards/mm-whisper-tiny", str(tmp_path / "new")]) == 2
    assert "Give --image or --audio with a file" in capsys.readouterr().err
    assert main(["export", "model_cards/mm-whisper-tiny", str(tmp_path / "new"), "--image", "nothing.png"]) == 2
    assert "there is no file nothing.png" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    image = ["--image", "processing/corpora/sample/images/cat.png"]
    assert main(["export", "model_cards/mm-whisper-tiny", str(tmp_path / "full"), *image]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["export", "model_cards/mm-whisper-tiny", str(tmp_path / "full"), *image, "--overwrite"]) == 2
    assert "holds no exported graphs" in capsys.readouterr().err
