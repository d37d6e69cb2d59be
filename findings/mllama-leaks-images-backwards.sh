#!/usr/bin/env bash
# transformers: in Mllama, text before an image depends on that image.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0
venv/bin/python - <<'EOF'
import torch
import transformers
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

transformers.logging.set_verbosity_error()
print(f"versions: transformers {transformers.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
IMAGE = 49
text = MllamaTextConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=2,
    cross_attention_layers=[1],
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
vision = MllamaVisionConfig(
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_global_layers=1,
    attention_heads=2,
    image_size=28,
    patch_size=14,
    max_num_tiles=1,
    supported_aspect_ratios=[[1, 1]],
    intermediate_layers_indices=[0],
    vision_output_dim=32,
)
config = transformers.MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
model = transformers.MllamaForConditionalGeneration(config).eval()
for name, parameter in model.named_parameters():
    if "gate" in name:  # they start closed, at zero
        torch.nn.init.ones_(parameter)
input_ids = torch.tensor([[1, 5, 6, IMAGE, 7, 8]])
cross_attention_mask = torch.zeros(1, 6, 1, 1, dtype=torch.long)  # batch, tokens, images, tiles
cross_attention_mask[:, 3:] = 1  # as the processor makes it: from the image's token on


def logits():
    """Return the logits of the same text with another random image."""
    with torch.no_grad():
        return model(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            pixel_values=torch.randn(1, 1, 1, 3, 28, 28),
            aspect_ratio_ids=torch.ones(1, 1, dtype=torch.long),
            aspect_ratio_mask=torch.ones(1, 1, 1, dtype=torch.long),
            cross_attention_mask=cross_attention_mask,
        ).logits


print("guess: the three tokens before the image's token have the same logits for every image")
moved = (logits() - logits()).abs().amax(-1)[0]
print("seen: largest change of each token's logits", [round(value, 4) for value in moved.tolist()])
assert (moved[:3] > 1e-4).all()
EOF
