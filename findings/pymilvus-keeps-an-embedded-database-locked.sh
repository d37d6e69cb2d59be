#!/usr/bin/env bash
# pymilvus: a closed client of an embedded database keeps its lock until the process ends.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet pymilvus==3.0.2 milvus-lite==3.2.2
venv/bin/python - <<'EOF'
import subprocess
import sys
from importlib.metadata import version

from pymilvus import MilvusClient

print(f"versions: milvus-lite {version('milvus-lite')}, pymilvus {version('pymilvus')}")
OPEN = "from pymilvus import MilvusClient; MilvusClient('rows.db')"


def opens_elsewhere():
    return subprocess.run([sys.executable, "-c", OPEN], capture_output=True).returncode == 0


MilvusClient("rows.db").close()
after_close = opens_elsewhere()
from milvus_lite.server_manager import server_manager_instance  # noqa: E402

server_manager_instance.release_server("rows.db")
after_release = opens_elsewhere()
print("guess: after `close` another process can open the database")
print(f"seen: after `close` it can: {after_close}; after milvus-lite's `release_server`: {after_release}")
assert (after_close, after_release) == (False, True)
EOF
