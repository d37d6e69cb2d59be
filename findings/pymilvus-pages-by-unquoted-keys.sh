#!/usr/bin/env bash
# pymilvus: `query_iterator` fails after a text key with quotes in it.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet pymilvus==3.0.2 milvus-lite==3.2.2
venv/bin/python - 2>/dev/null <<'EOF'
from importlib.metadata import version

from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

print(f"versions: milvus-lite {version('milvus-lite')}, pymilvus {version('pymilvus')}")
client = MilvusClient("rows.db")
schema = client.create_schema(auto_id=False)
schema.add_field("id", DataType.VARCHAR, max_length=64, is_primary=True)
schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)
index = client.prepare_index_params()
index.add_index("vector", index_type="FLAT", metric_type="IP")
client.create_collection("rows", schema=schema, index_params=index)
client.insert("rows", [{"id": f'a "{number}"', "vector": [1.0, 0.0]} for number in range(4)])
pages = client.query_iterator("rows", batch_size=2, filter="", output_fields=["id"])
found = len(pages.next())
try:
    found += len(pages.next())
    error = "no error"
except MilvusException as caught:
    error = caught.message.splitlines()[0]
print("guess: two pages of two rows each")
print(f"seen: {found} rows, then {error}")
assert found == 2 and error != "no error"
EOF
