#!/usr/bin/env bash
# Pillow 13.0.0: a lossless 16-bit color JPEG 2000 is black where it is white.
#
# Guess: each channel keeps its upper 8 of 16 bits. Seen: values are rounded to 8 bits without a limit, so those from
# 65,408 on become 256, which is stored as 0. OpenCV reads the same file exactly. A green channel of 65,535, 65,278 and
# 32,639, divided by 257:
#   expected: 255 254 127
#   Pillow:   0 255 127
# Exits with 1 if a later run differs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet pillow==13.0.0 opencv-python-headless==5.0.0.93 numpy
cat > "$folder/check.py" <<'PY'
import io

import cv2
import numpy as np
from PIL import Image

values = np.zeros((64, 96, 3), np.uint16)
values[:, :32, 1], values[:, 32:64, 1], values[:, 64:, 1] = 65535, 65278, 32639
file = cv2.imencode(".jp2", values, [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])[1]
assert (cv2.imdecode(file, cv2.IMREAD_UNCHANGED) == values).all()
pixels = np.asarray(Image.open(io.BytesIO(file.tobytes())))
found = [int(pixels[32, at, 1]) for at in (16, 48, 80)]
print("expected:", *(int(values[32, at, 1]) // 257 for at in (16, 48, 80)))
print("Pillow:  ", *found)
raise SystemExit(0 if found == [0, 255, 127] else 1)
PY
"$folder/venv/bin/python" "$folder/check.py"
