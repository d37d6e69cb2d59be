#!/usr/bin/env bash
# sacrebleu: a corpus of right answers has a BLEU of 0 if none has four words.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet sacrebleu==2.6.0
venv/bin/python - <<'EOF'
import sacrebleu

print(f"versions: sacrebleu {sacrebleu.__version__}")
short, longer = ["a red cat", "two dogs", "yes"], ["a red cat sits"]

print("guess: answers that equal their references have a BLEU of 100")
found = sacrebleu.corpus_bleu(short, [short]).score
print(f"seen: {short} has {found:.1f}; {longer} has {sacrebleu.corpus_bleu(longer, [longer]).score:.1f}")
print(f"seen: chrF of {short} is {sacrebleu.corpus_chrf(short, [short]).score:.1f}")
assert found == 0 and round(sacrebleu.corpus_bleu(longer, [longer]).score) == 100
EOF
