#!/usr/bin/env bash
# transformers: raw-wave encoders with an attention mask; for some of them padding changes the real frames.
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

transformers.logging.set_verbosity_error()
print(f"versions: transformers {transformers.__version__}, torch {torch.__version__}")
small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
convolutions = {"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2}
positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}


def difference(kind, **fields):
    """Return how far the outputs of 400 samples move when 400 masked zeros follow."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**small, **convolutions, **positions, **fields)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    wave = torch.randn(1, 400)
    padded = torch.cat([wave, torch.zeros_like(wave)], 1)
    mask = torch.cat([torch.ones_like(wave), torch.zeros_like(wave)], 1).long()
    with torch.no_grad():
        alone = model(wave).last_hidden_state
        together = model(padded, attention_mask=mask).last_hidden_state
    return (alone - together[:, : alone.shape[1]]).abs().max().item()


print("guess: with an attention mask, padding leaves the states of the real samples alone")
for kind, norm, moves in (
    ("Wav2Vec2", "layer", False),
    ("Wav2Vec2", "group", True),
    ("Hubert", "group", True),
    ("Data2VecAudio", None, True),
    ("Wav2Vec2Conformer", "layer", True),
):
    found = difference(kind, **({"feat_extract_norm": norm} if norm else {}))
    print(f"seen: {kind:18} norm {norm!s:6} largest difference {found:.1e}")
    assert (found > 1e-2) if moves else (found < 1e-5), (kind, norm)
EOF
