#!/usr/bin/env bash
# webdataset 1.0.2: its writer accepts keys that contain a dot, and its reader merges such samples into one, silently.
#
# The reader divides a member's name at the first dot. Two samples with the keys "v1.0" and "v1.1" come back as a
# single sample "v1" with the fields "0.txt" and "1.txt"; nothing is warned of on either side.
#   written: ['v1.0', 'v1.1', 'v2']
#   read:    [('v1', ['0.txt', '1.txt']), ('v2', ['txt'])]
# Exits with 1 if a later run differs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet webdataset==1.0.2 torch numpy
cat > "$folder/check.py" <<'PY'
import sys

import webdataset as wds

print("webdataset", wds.__version__)
path, keys = sys.argv[1], ["v1.0", "v1.1", "v2"]
with wds.TarWriter(path) as tar:
    for key in keys:
        tar.write({"__key__": key, "txt": f"text of {key}"})
read = [
    (sample["__key__"], sorted(name for name in sample if not name.startswith("__")))
    for sample in wds.WebDataset(path, shardshuffle=False)
]
print("written:", keys)
print("read:   ", read)
raise SystemExit(0 if read == [("v1", ["0.txt", "1.txt"]), ("v2", ["txt"])] else 1)
PY
"$folder/venv/bin/python" "$folder/check.py" "$folder/a.tar"
