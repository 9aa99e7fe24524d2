#!/usr/bin/env bash
# torch 2.9.1 on Linux (glibc): a convolutional network in inference on a CPU gets its memory anew in each layer.
#
# glibc returns each freed block of 32 MB or more to the system, and a batch of 64 images has activations of 100 MB in
# the first layers. Each layer then waits for pages of zeros. With EfficientNet-Lite0 on a virtual machine that was half of
# the time (128 images in batches of 64: 10.2 s, then 4.3 s). A process whose glibc keeps what it frees has no such page faults.
#   default:                386,000 page faults in a batch of 64 images
#   glibc told to keep 1 GB:      0
# Exits with 1 if a later run differs (more than 100,000; less than 10,000).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.9.1 numpy
cat > "$folder/check.py" <<'PY'
import resource

import torch
from torch import nn

torch.set_num_threads(1)
channels = [3, 32, 32, 64, 64, 96]
layers = [[nn.Conv2d(a, b, 3, stride=2 if i % 2 == 0 else 1, padding=1), nn.BatchNorm2d(b), nn.ReLU6()]
          for i, (a, b) in enumerate(zip(channels, channels[1:]))]
model = nn.Sequential(*(layer for block in layers for layer in block)).eval()
images = torch.zeros(64, 3, 224, 224)
with torch.inference_mode():
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        model(images)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
PY
python=$folder/venv/bin/python
"$python" -c "import torch; print('torch', torch.__version__)"
default=$("$python" "$folder/check.py")
kept=$(MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=1073741824 "$python" "$folder/check.py")
echo "page faults: $default by default, $kept if glibc keeps 1 GB"
[ "$default" -gt 100000 ] && [ "$kept" -lt 10000 ]
