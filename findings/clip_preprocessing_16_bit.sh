#!/usr/bin/env bash
# open_clip_torch 3.3.0 and transformers 5.24.0 with Pillow 13.0.0: the preprocessing of CLIP shows a 16-bit grey PNG
# as white wherever it is brighter than 255 of 65,535.
#
# Guess: 16 bits are scaled to 8. Seen: both convert to RGB by Pillow, which clips at 255, and say nothing. A horizontal
# ramp from black to white, as pixel values from 0 to 1 at a quarter, the half and three quarters of its width:
#   expected:    0.25 0.50 0.75
#   open_clip:   1.00 1.00 1.00
#   transformers: 1.00 1.00 1.00
# Exits with 1 if a later run differs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet open_clip_torch==3.3.0 transformers==5.24.0 pillow==13.0.0 numpy
cat > "$folder/check.py" <<'PY'
import io

import numpy as np
import open_clip
from PIL import Image
from transformers import CLIPImageProcessor

SIZE, PLACES = 224, (56, 112, 168)
ramp = np.tile(np.linspace(0, 65535, SIZE).astype(np.uint16), (SIZE, 1))
file = io.BytesIO()
Image.fromarray(ramp).save(file, "PNG")
image = Image.open(file)
plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
ours = open_clip.image_transform(SIZE, is_train=False, **plain)(image)
processor = CLIPImageProcessor(image_mean=[0.0] * 3, image_std=[1.0] * 3)
theirs = processor(image, return_tensors="pt")["pixel_values"][0]
found = [[round(float(pixels[0, SIZE // 2, at]), 2) for at in PLACES] for pixels in (ours, theirs)]
print("expected:    ", *(round(at / SIZE, 2) for at in PLACES))
print("open_clip:   ", *found[0])
print("transformers:", *found[1])
raise SystemExit(0 if found == [[1.0, 1.0, 1.0]] * 2 else 1)
PY
"$folder/venv/bin/python" "$folder/check.py"
