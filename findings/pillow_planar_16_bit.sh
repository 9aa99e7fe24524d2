#!/usr/bin/env bash
# Pillow 13.0.0: a 16-bit color TIFF whose channels are stored one after another (PlanarConfiguration 2) without
# compression is read as other colors, without an error.
#
# Guess: each channel keeps its upper 8 of 16 bits, as in a TIFF with the channels of each pixel together, or in the same
# TIFF with compression. Seen: each byte becomes a pixel, so a channel shows the left half of its rows, each value twice.
# The red channel of a ramp from 0 to 255 in 256 pixels, at a quarter, the half and three quarters of its width:
#   expected:     64 128 192
#   compressed:   64 128 192
#   uncompressed: 32 64 96
# Exits with 1 if a later run differs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet pillow==13.0.0 tifffile numpy
cat > "$folder/check.py" <<'PY'
import io

import numpy as np
import tifffile
from PIL import Image

ramp = np.tile(257 * np.arange(256, dtype=np.uint16), (3, 8, 1))
found = []
for compression in ("zlib", None):
    file = io.BytesIO()
    tifffile.imwrite(file, ramp, photometric="rgb", planarconfig="separate", compression=compression)
    row = np.asarray(Image.open(file))[0, :, 0]
    found.append([int(row[at]) for at in (64, 128, 192)])
print("expected:    ", 64, 128, 192)
print("compressed:  ", *found[0])
print("uncompressed:", *found[1])
raise SystemExit(0 if found == [[64, 128, 192], [32, 64, 96]] else 1)
PY
"$folder/venv/bin/python" "$folder/check.py"
