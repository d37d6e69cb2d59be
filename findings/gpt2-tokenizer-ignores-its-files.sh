#!/usr/bin/env bash
# transformers: GPT2TokenizerFast takes `vocab_file` and `merges_file`, and reads neither.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet transformers==5.23.0
venv/bin/python - <<'EOF'
import json
import tempfile

import transformers

transformers.logging.set_verbosity_error()
print(f"versions: transformers {transformers.__version__}")
with tempfile.TemporaryDirectory() as folder:
    vocab, merges = f"{folder}/vocab.json", f"{folder}/merges.txt"
    with open(vocab, "w") as file:
        json.dump({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}, file)
    with open(merges, "w") as file:
        file.write("#version: 0.2\na b\n")
    by_file = transformers.GPT2TokenizerFast(vocab_file=vocab, merges_file=merges)
    by_name = transformers.GPT2TokenizerFast(vocab=vocab, merges=merges)

print("guess: vocab_file and merges_file give a tokenizer of 4 tokens, as in transformers 4")
print(f"seen: a tokenizer of {len(by_file)} token, which reads 'ab' as {by_file('ab').input_ids}")
print(f"seen: vocab and merges give {len(by_name)} tokens, and 'ab' is {by_name('ab').input_ids}")
assert len(by_file) == 1 and by_file("ab").input_ids == []
assert len(by_name) == 4 and by_name("ab").input_ids == [2]
EOF
