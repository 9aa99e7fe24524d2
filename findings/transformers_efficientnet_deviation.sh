#!/usr/bin/env bash
# transformers 5.24.0: EfficientNet's image processor divides by image_std twice, so its config does not mean what it says.
#
# Guess: pixels become (x / 255 - image_mean) / image_std, as with every other processor. Seen: with include_top, which is
# on by default, the result is divided by image_std once more. The image_std of the published models is therefore the
# square root of ImageNet's deviation, so that both divisions together are right. A program that takes mean and deviation
# from preprocessor_config.json and normalizes by itself feeds such a model images of half the contrast, without an error.
#   image_std squared: 0.229 0.224 0.225
#   a white pixel by the config:    1.076 1.149 1.252
#   a white pixel by the processor: 2.249 2.429 2.640
#   the same without include_top:   1.076 1.149 1.252
# Exits with 1 if a later run differs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch torchvision pillow transformers==5.24.0
cat > "$folder/check.py" <<'PY'
import json
import sys
from pathlib import Path

import torch
from transformers import EfficientNetImageProcessor

folder = Path(sys.argv[1])
published = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.47853944, 0.4732864, 0.47434163]}
EfficientNetImageProcessor(size={"height": 8, "width": 8}, **published).save_pretrained(folder)
config = json.loads((folder / "preprocessor_config.json").read_text())
white = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)


def pixel(**settings):
    processor = EfficientNetImageProcessor.from_pretrained(folder, **settings)
    return processor(white, return_tensors="pt")["pixel_values"][0, :, 0, 0].tolist()


constants = list(zip(config["image_mean"], config["image_std"]))
found = {
    "image_std squared": [std**2 for _, std in constants],
    "a white pixel by the config": [(1 - mean) / std for mean, std in constants],
    "a white pixel by the processor": pixel(),
    "the same without include_top": pixel(include_top=False),
}
for name, values in found.items():
    print(f"{name}:", *(f"{value:.3f}" for value in values))
twice = [(1 - mean) / std / std for mean, std in constants]
same = [torch.allclose(torch.tensor(found[name]), torch.tensor(other), atol=1e-3) for name, other in (
    ("a white pixel by the processor", twice), ("the same without include_top", found["a white pixel by the config"]),
)]
sys.exit(not all(same))
PY
"$folder/venv/bin/python" "$folder/check.py" "$folder/processor"
