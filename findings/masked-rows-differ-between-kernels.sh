#!/usr/bin/env bash
# transformers: cross-attention of a row whose keys are all masked depends on the attention kernel.
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


def attended(kernel):
    """Return what GPT-2's cross-attention makes of five masked states, without the output bias."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 12, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = transformers.GPT2Config(
        add_cross_attention=True, attn_implementation=kernel, bos_token_id=0, eos_token_id=0, **sizes
    )
    model = transformers.GPT2Model(config).eval()
    attention = model.h[0].crossattention
    torch.nn.init.normal_(attention.c_proj.bias)
    outputs = []
    attention.register_forward_hook(lambda module, inputs, output: outputs.append(output[0]))
    media, mask = torch.randn(1, 5, 16), torch.zeros(1, 5)
    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 2]]), encoder_hidden_states=media, encoder_attention_mask=mask)
        values = attention.c_attn(media).chunk(2, -1)[1]
        mean = attention.c_proj(values.mean(1, keepdim=True))
    bias = attention.c_proj.bias
    return (outputs[0] - bias).abs().max().item(), (outputs[0] - mean).abs().max().item()


print("guess: the kernels agree, and the states behind the mask do not count")
to_bias, _ = attended("sdpa")
print(f"seen: sdpa adds the output bias alone, difference {to_bias:.1e}")
assert to_bias == 0
to_bias, to_mean = attended("eager")
print(f"seen: eager adds the mean of the masked values, difference {to_mean:.1e}, and {to_bias:.1e} from the bias")
assert to_mean < 1e-6 < 1e-4 < to_bias
EOF
