#!/usr/bin/env bash
# torch: with one seed and one shape, noise and dropout of a channels-last tensor are other numbers at every place.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.3.5
venv/bin/python - <<'EOF'
import torch

print(f"versions: torch {torch.__version__}")
plain = torch.ones(2, 3, 4, 4)
last = plain.to(memory_format=torch.channels_last)
assert torch.equal(plain, last)


def sampled(call, tensor):
    torch.manual_seed(0)
    return call(tensor)


calls = {
    "randn_like": torch.randn_like,
    "rand_like": torch.rand_like,
    "dropout": lambda x: torch.nn.functional.dropout(x, 0.5),
}
print("guess: equal tensors of one shape draw equal numbers from one seed")
for name, call in calls.items():
    one, other = sampled(call, plain), sampled(call, last)
    print(f"seen: {name}: {(one != other).float().mean():.0%} of the numbers differ")
    assert not torch.equal(one, other)
print(f"seen: randn of the shape: {torch.equal(sampled(torch.randn_like, plain), sampled(lambda x: torch.randn(x.shape), last))}")
EOF
