# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
`modeling-mm benchmark`: speed side by side with a named peer of transformers, with random weights.

Both run in one process and in turn (A B A B ...), so that the median of the pairwise ratios holds when the speed of
the machine drifts.
"""

import platform
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    GenerationMixin,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    ViTConfig,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers import VisionEncoderDecoderConfig as PeerConfig
from transformers import VisionEncoderDecoderModel as Peer
from transformers.modeling_outputs import BaseModelOutput

from .. import MMConfig, MMForConditionalGeneration, MMForPreTraining, __version__
from ..batching import IGNORED
from ..utils.progress import show_progress
from .arguments import BENCHMARKS

Call = Callable[[], object]
PROMPT_TOKENS = 16
ROWS = 4  # of a training step
IMPORT = "import time, transformers; t = time.perf_counter(); import modeling_mm; print(time.perf_counter() - t)"

# Prints the memory in MB that a call adds at its peak in a fresh process in which all is imported, on Linux. Weights
# are read once, because those that are mapped from a file take no memory before.
PEAK = """
import re, sys, transformers, modeling_mm
transformers.GPT2LMHeadModel, transformers.ViTModel, transformers.VisionEncoderDecoderModel
call, peak = {call}, lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
model = call(sys.argv[1])
total = sum(float(parameter.detach().sum()) for parameter in model.parameters())
print((peak() - before) // 1024)
"""


def run(options: Namespace) -> None:
    """Print the figures of the parts, by default of all."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    is_cuda = options.device.startswith("cuda")
    where = torch.cuda.get_device_name() if is_cuda else platform.processor() or platform.machine()
    print(
        f"modeling_mm {__version__}, transformers {transformers.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {where}, {torch.get_num_threads()} threads; "
        f"{options.tokens} tokens, {options.repeats} runs"
    )
    for part in options.parts or BENCHMARKS:
        RUNS[part](options)


def side_by_side(ours: Call, peer: Call, repeats: int, label: str) -> tuple[float, float, float]:
    """Return the median seconds of ours and of the peer, and the median of the ratios peer / ours of the pairs."""

    def seconds(call: Call) -> float:
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    ours(), peer()  # warm-up
    pairs = [(seconds(ours), seconds(peer)) for _ in show_progress(range(repeats), desc=label, leave=False)]
    ratio = statistics.median(b / a for a, b in pairs)
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratio


def open_gates(model: MMForConditionalGeneration) -> MMForConditionalGeneration:
    """Open the gates, so that closed ones cannot be suspected of a shortcut. Both compute the same."""
    for name, parameter in model.named_parameters():
        if ".gate_" in name:
            torch.nn.init.constant_(parameter, 0.5)
    return model


def benchmark_decoding(options: Namespace, has_image: bool) -> None:
    """Decode greedily, against GPT2LMHeadModel, or with one image a row against VisionEncoderDecoderModel."""
    text, vision = GPT2Config(), ViTConfig() if has_image else ViTConfig(num_hidden_layers=1)
    config = MMConfig.from_text_vision_audio_configs(text, vision)
    size = vision.image_size
    label, target = ("with an image", 1.2) if has_image else ("text only", 0.97)
    length = {"max_new_tokens": options.tokens, "min_new_tokens": options.tokens}
    for dtype in (torch.float32, torch.bfloat16):
        ours = open_gates(MMForConditionalGeneration(config))
        peer: PreTrainedModel = GPT2LMHeadModel(text)
        if has_image:
            peer = Peer(PeerConfig.from_encoder_decoder_configs(vision, text))
            peer.generation_config.decoder_start_token_id = text.bos_token_id
        models = [model.eval().to(options.device, dtype) for model in (ours, peer)]
        for batch in (1, 8):
            ids = torch.randint(0, text.vocab_size, (batch, PROMPT_TOKENS), device=options.device)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if has_image:
                inputs = {"pixel_values": torch.randn(batch, 3, size, size, device=options.device, dtype=dtype)}
            runs = [partial(m.generate, **inputs, **length, do_sample=False, pad_token_id=0) for m in models]
            a, b, ratio = side_by_side(runs[0], runs[1], options.repeats, f"{label} {dtype}")
            tokens, kind = batch * options.tokens, str(dtype).removeprefix("torch.")
            print(
                f"{f'{label}, {kind}, batch {batch}':36s} ours {tokens / a:7.1f} tokens/s   {type(peer).__name__} "
                f"{tokens / b:7.1f} tokens/s   ratio {ratio:.3f} (target at least {target})",
                flush=True,
            )


def benchmark_speech(options: Namespace) -> None:
    """Decode greedily from the states of one window of audio a row, against Whisper of tiny.en's size and weights."""
    sizes = {"d_model": 384, "encoder_layers": 4, "decoder_layers": 4, "vocab_size": 51864}
    heads = {"encoder_attention_heads": 6, "decoder_attention_heads": 6}
    peer = WhisperForConditionalGeneration(
        WhisperConfig(**sizes, **heads, encoder_ffn_dim=1536, decoder_ffn_dim=1536, begin_suppress_tokens=None)
    ).eval()
    ours = MMForConditionalGeneration.from_encoder_decoder(peer).eval()
    start = peer.config.decoder_start_token_id
    length = {"max_new_tokens": options.tokens, "min_new_tokens": options.tokens, "do_sample": False}
    for dtype in (torch.float32, torch.bfloat16):
        for model in (ours, peer):
            model.to(options.device, dtype)
        for batch in (1, 8):
            shape = (batch, peer.config.max_source_positions, peer.config.d_model)
            states = torch.randn(shape, device=options.device, dtype=dtype)
            media = ours.encode_media(audio_states=states[:, None])
            prompt = torch.tensor([[ours.config.audio_token_id, start]] * batch, device=options.device)
            run_ours = partial(ours.generate, prompt, media=media, **length)

            def run_peer(states: torch.Tensor = states, prompt: torch.Tensor = prompt) -> Any:
                encoded = BaseModelOutput(states)  # a new one each time, as `generate` changes it
                ids = prompt[:, 1:]
                return GenerationMixin.generate(peer, encoder_outputs=encoded, decoder_input_ids=ids, **length)

            a, b, ratio = side_by_side(run_ours, run_peer, options.repeats, f"speech {dtype}")
            tokens, kind = batch * options.tokens, str(dtype).removeprefix("torch.")
            print(
                f"{f'speech, {kind}, batch {batch}':36s} ours {tokens / a:7.1f} tokens/s   "
                f"{type(peer).__name__} {tokens / b:7.1f} tokens/s   ratio {ratio:.3f} (target at least 1.3)",
                flush=True,
            )


def benchmark_pretraining(options: Namespace) -> None:
    """Train with all objectives of pre-training, against the next token alone, on the same weights and batch."""
    text, vision = GPT2Config(), ViTConfig()
    for is_frozen in (False, True):
        config = MMConfig.from_text_vision_audio_configs(text, vision, freeze_vision=is_frozen)
        model = MMForPreTraining(config).to(options.device).train()
        generator = MMForConditionalGeneration(config).to(options.device).train()
        generator.model, generator.lm_head = model.model, model.lm_head
        optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
        batch = pretraining_batch(config, options.tokens, vision.image_size, options.device)
        shared = ("input_ids", "pixel_values", "shift_labels", "logits_to_keep")
        of_generator = {name: batch[name] for name in shared}

        def step(which: PreTrainedModel, inputs: dict[str, torch.Tensor], optimizer: Any = optimizer) -> None:
            which(**inputs).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        runs = partial(step, generator, of_generator), partial(step, model, batch)
        label = f"pre-training, vision encoder {'frozen' if is_frozen else 'trained'}"
        a, b, ratio = side_by_side(*runs, options.repeats, label)
        print(
            f"{label}: a step of the next token {a:.2f} s   of all objectives {b:.2f} s   ratio {ratio:.2f} "
            "(target at most 2.2)",
            flush=True,
        )


def pretraining_batch(config: MMConfig, tokens: int, size: int, device: str) -> dict[str, torch.Tensor]:
    """Return rows of an image and a prompt with answers of so many tokens, of which a third are masked."""
    answers = torch.randint(0, config.text_config.vocab_size - 8, (ROWS, tokens), device=device)
    prompt = torch.randint(0, config.text_config.vocab_size - 8, (ROWS, PROMPT_TOKENS), device=device)
    image = torch.full_like(prompt[:, :1], config.placeholder_ids[0])
    ids = torch.cat([image, prompt, answers], dim=1)  # (B, L)
    ignored = torch.full_like(prompt, IGNORED)
    targets = torch.cat([ignored, answers, ignored[:, :1]], dim=1)  # of the next token
    is_masked = (torch.arange(ids.shape[1], device=device) % 3 == 2)[None]
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(ROWS, 3, size, size, device=device),
        "shift_labels": targets,
        "logits_to_keep": targets != IGNORED,
        "masked_targets": ids.masked_fill(~is_masked, IGNORED),
        "text_input_ids": answers,
        "text_attention_mask": torch.ones_like(answers),
    }


def benchmark_import(options: Namespace) -> None:
    """Measure what `import modeling_mm` adds to `import transformers`, each in a fresh process."""
    runs = [float(subprocess.check_output([sys.executable, "-c", IMPORT])) for _ in range(options.repeats)]
    print(f"import modeling_mm adds {statistics.median(runs):.4f} s over import transformers (target under 0.3 s)")


def benchmark_load(options: Namespace) -> None:
    """Load a model of about 300M parameters, against VisionEncoderDecoderModel of about the same size."""
    text = GPT2Config()
    whisper = WhisperConfig(d_model=768, encoder_layers=8)
    ours = MMForConditionalGeneration(MMConfig.from_text_vision_audio_configs(text, ViTConfig(), whisper))
    peer = Peer(PeerConfig.from_encoder_decoder_configs(ViTConfig(num_hidden_layers=18), text))
    sizes = [sum(p.numel() for p in model.parameters()) / 1e6 for model in (ours, peer)]
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(Path(folder, "ours"))
        peer.save_pretrained(Path(folder, "peer"))
        del ours, peer
        load_ours = partial(MMForConditionalGeneration.from_pretrained, Path(folder, "ours"))
        load_peer = partial(Peer.from_pretrained, Path(folder, "peer"))
        a, b, ratio = side_by_side(load_ours, load_peer, options.repeats, "load")
    print(
        f"from_pretrained: ours ({sizes[0]:.0f}M) {a:.2f} s   VisionEncoderDecoder ({sizes[1]:.0f}M) {b:.2f} s   "
        f"ours takes {1 / ratio:.2f} times as long (target at most 1.2)"
    )


def benchmark_conversion(options: Namespace) -> None:
    """Convert a captioner of about 250M parameters, against `from_pretrained` of the original."""
    config = PeerConfig.from_encoder_decoder_configs(ViTConfig(), GPT2Config(add_cross_attention=True))
    config.decoder_start_token_id = config.decoder.bos_token_id
    peer = Peer(config)
    size = sum(p.numel() for p in peer.parameters()) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        del peer
        convert = partial(MMForConditionalGeneration.from_encoder_decoder, folder)
        a, b, ratio = side_by_side(convert, partial(Peer.from_pretrained, folder), options.repeats, "convert")
        calls = (f"modeling_mm.{convert.func.__qualname__}", f"transformers.{Peer.__name__}.from_pretrained")
        memory = compare_peaks(calls, folder) if sys.platform == "linux" else ""
    print(
        f"from_encoder_decoder ({size:.0f}M) {a:.2f} s   from_pretrained of the original {b:.2f} s   ours takes "
        f"{1 / ratio:.2f} times as long (target at most 1.5){memory}"
    )


def compare_peaks(calls: Iterable[str], folder: str) -> str:
    """Return the figures of memory of two calls on a folder, ours and the peer's."""
    ours, peer = (
        int(subprocess.check_output([sys.executable, "-c", PEAK.format(call=call), folder])) for call in calls
    )
    return f", peak memory {ours} and {peer} MB, {ours / max(1, peer):.2f} times as much (target at most 1.3)"


RUNS: dict[str, Callable[[Namespace], None]] = {
    "text": partial(benchmark_decoding, has_image=False),
    "image": partial(benchmark_decoding, has_image=True),
    "speech": benchmark_speech,
    "pretraining": benchmark_pretraining,
    "import": benchmark_import,
    "load": benchmark_load,
    "convert": benchmark_conversion,
}
