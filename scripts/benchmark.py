#!/usr/bin/env python
"""
python scripts/benchmark.py                     # every figure of the README
python scripts/benchmark.py text --tokens 32    # one of: text, image, import, load

Measures this package side by side with a named peer of transformers, in one process and in turn (A B A B ...), so that
a ratio holds when the machine's speed drifts; prints the median of the pairwise ratios. Weights are random.
"""

import argparse
import gc
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from tqdm import tqdm
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    WhisperConfig,
)

import modeling_mm
from modeling_mm import MMConfig, MMForConditionalGeneration

PROMPT_TOKENS = 16
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def side_by_side(ours: Callable, peer: Callable, repeats: int, label: str) -> tuple[float, float, float]:
    """Median seconds of ours and of the peer, and the median of the ratios peer / ours of neighbouring runs."""
    ours(), peer()  # warm-up
    pairs = [(seconds(ours), seconds(peer)) for _ in tqdm(range(repeats), desc=label, leave=False)]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(b / a for a, b in pairs),
    )


def greedy(model, tokens: int, **inputs) -> Callable[[], torch.Tensor]:
    """Greedy decoding of exactly `tokens` tokens."""
    return lambda: model.generate(
        **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0, num_beams=1
    )


def open_gates(model: MMForConditionalGeneration) -> MMForConditionalGeneration:
    """A closed gate multiplies by zero; open ones compute the same and cannot be suspected of a short cut."""
    for name, parameter in model.named_parameters():
        if ".gate_" in name:
            torch.nn.init.constant_(parameter, 0.5)
    return model.eval()


def benchmark_text(args) -> None:
    """Text only: greedy decoding against GPT2LMHeadModel of the same size."""
    text, device = GPT2Config(), args.device
    config = MMConfig.from_text_vision_audio_configs(text, ViTConfig(num_hidden_layers=1))
    for name, dtype in DTYPES.items():
        ours = open_gates(MMForConditionalGeneration(config)).to(device, dtype)
        peer = GPT2LMHeadModel(text).eval().to(device, dtype)
        for batch in (1, 8):
            ids = torch.randint(0, 50000, (batch, PROMPT_TOKENS), device=device)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            a, b, ratio = side_by_side(
                greedy(ours, args.tokens, **inputs), greedy(peer, args.tokens, **inputs), args.repeats, f"text {name}"
            )
            report(f"text only, {name}, batch {batch}", batch * args.tokens, a, b, "GPT2LMHeadModel", ratio, 0.97)


def benchmark_image(args) -> None:
    """One image a row: greedy decoding against VisionEncoderDecoderModel, ViT-B/16 224 and GPT-2 124M."""
    text, vision, device = GPT2Config(), ViTConfig(), args.device
    peer_config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    config = MMConfig.from_text_vision_audio_configs(text, vision)
    for name, dtype in DTYPES.items():
        ours = open_gates(MMForConditionalGeneration(config)).to(device, dtype)
        peer = VisionEncoderDecoderModel(peer_config).eval().to(device, dtype)
        peer.generation_config.decoder_start_token_id = text.bos_token_id
        for batch in (1, 8):
            inputs = {"pixel_values": torch.randn(batch, 3, 224, 224, device=device, dtype=dtype)}
            a, b, ratio = side_by_side(
                greedy(ours, args.tokens, **inputs), greedy(peer, args.tokens, **inputs), args.repeats, f"image {name}"
            )
            report(
                f"with an image, {name}, batch {batch}", batch * args.tokens, a, b, "VisionEncoderDecoder", ratio, 1.2
            )


def report(what: str, tokens: int, ours: float, peer: float, peer_name: str, ratio: float, target: float) -> None:
    print(
        f"{what:36s} ours {tokens / ours:7.1f} tokens/s   {peer_name} {tokens / peer:7.1f} tokens/s   "
        f"ratio {ratio:.3f} (target at least {target})",
        flush=True,
    )


def benchmark_import(args) -> None:
    """What `import modeling_mm` adds to `import transformers`, each in a fresh process."""
    code = "import time, transformers; t = time.perf_counter(); import modeling_mm; print(time.perf_counter() - t)"
    runs = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(args.repeats)]
    print(f"import modeling_mm adds {statistics.median(runs):.4f} s over import transformers (target under 0.3 s)")


def benchmark_load(args) -> None:
    """`from_pretrained` of a model of about 300M parameters against VisionEncoderDecoderModel of about the same."""
    text, vision = GPT2Config(), ViTConfig()
    ours_config = MMConfig.from_text_vision_audio_configs(text, vision, WhisperConfig(d_model=768, encoder_layers=8))
    peer_vision = ViTConfig(num_hidden_layers=18)
    peer_config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(peer_vision, text)
    with tempfile.TemporaryDirectory() as folder:
        sizes = []
        for model_class, config, name in (
            (MMForConditionalGeneration, ours_config, "ours"),
            (VisionEncoderDecoderModel, peer_config, "peer"),
        ):
            model = model_class(config)
            sizes.append(sum(p.numel() for p in model.parameters()) / 1e6)
            model.save_pretrained(Path(folder, name))
            del model
            gc.collect()
        a, b, ratio = side_by_side(
            lambda: MMForConditionalGeneration.from_pretrained(Path(folder, "ours")),
            lambda: VisionEncoderDecoderModel.from_pretrained(Path(folder, "peer")),
            args.repeats,
            "load",
        )
    print(
        f"from_pretrained: ours ({sizes[0]:.0f}M) {a:.2f} s   VisionEncoderDecoder ({sizes[1]:.0f}M) {b:.2f} s   "
        f"ours takes {1 / ratio:.2f} times as long (target at most 1.2)"
    )


BENCHMARKS = {"text": benchmark_text, "image": benchmark_image, "import": benchmark_import, "load": benchmark_load}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", choices=[*BENCHMARKS, []], help="which figures; all by default")
    parser.add_argument("--tokens", type=int, default=32, help="tokens generated a row")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    where = (
        torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.processor() or platform.machine()
    )
    print(
        f"modeling_mm {modeling_mm.__version__}, transformers {transformers.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {where}, {torch.get_num_threads()} threads; "
        f"{args.tokens} tokens, {args.repeats} runs"
    )
    for name in args.which or BENCHMARKS:
        BENCHMARKS[name](args)


if __name__ == "__main__":
    main()
