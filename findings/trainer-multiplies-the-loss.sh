#!/usr/bin/env bash
# transformers: VisionEncoderDecoderModel's loss and gradients grow with the accumulation steps.
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


def first_step(accumulation):
    """Train one step on the same 4 rows; return the loss and the norm of the gradient that Trainer reports."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision = transformers.ViTConfig(image_size=8, patch_size=4, **small)
    sizes = {"vocab_size": 12, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    no_dropout = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
    text = transformers.GPT2Config(bos_token_id=1, eos_token_id=2, pad_token_id=2, **sizes, **no_dropout)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    config.decoder_start_token_id, config.pad_token_id = 1, 2
    model = transformers.VisionEncoderDecoderModel(config)
    rows = [{"pixel_values": torch.rand(3, 8, 8), "labels": torch.randint(3, 12, (4,))} for _ in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=4 // accumulation,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            logging_steps=1,
            learning_rate=0.0,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=rows)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        return trainer.state.log_history[0]["loss"], float(trainer.state.log_history[0]["grad_norm"])


print("guess: 4 rows at once and 4 accumulated rows give one loss and one gradient")
(loss, norm), (accumulated_loss, accumulated_norm) = first_step(1), first_step(4)
print(f"seen: loss {loss:.3f} at once, {accumulated_loss:.3f} accumulated; gradient {norm:.3f} and {accumulated_norm:.3f}")
assert abs(accumulated_loss / loss - 4) < 0.01 and abs(accumulated_norm / norm - 4) < 0.01
EOF
