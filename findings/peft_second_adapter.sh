#!/usr/bin/env bash
# peft 0.21.2: adapters that are added to another layer of a model with adapters leave that layer's own weights trainable.
#
# LoraModel freezes all weights of a plain model but those of the adapters. In a model that has adapters already, it
# gives every existing parameter its earlier requires_grad again, also those of the layer that it adapts now. So the
# second layer is trained in full beside its adapters; nothing is warned of.
#   after the first:  ['a.lora_A.default.weight', 'a.lora_B.default.weight']
#   after the second: ['a.lora_A.default.weight', 'a.lora_B.default.weight', 'b.base_layer.bias',
#                      'b.base_layer.weight', 'b.lora_A.default.weight', 'b.lora_B.default.weight']
# Exits with 1 if a later run differs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet peft==0.21.2 torch==2.9.1 numpy
cat > "$folder/check.py" <<'PY'
import peft
import torch
from peft import LoraConfig, LoraModel
from torch import nn


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)


def trained(model):
    return sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)


def adapt(model, layer):
    LoraModel(model, {"default": LoraConfig(r=2, target_modules=[layer])}, "default")
    del model.peft_config


print("peft", peft.__version__, "torch", torch.__version__)
model = Pair()
adapt(model, "a")
first = trained(model)
model.b.requires_grad_(True)  # b is to be trained, by adapters of its own
adapt(model, "b")
second = trained(model)
print("after the first: ", first)
print("after the second:", second)
adapters = [f"{layer}.lora_{side}.default.weight" for layer in "ab" for side in "AB"]
weights = ["b.base_layer.bias", "b.base_layer.weight"]
raise SystemExit(0 if first == adapters[:2] and second == sorted(adapters + weights) else 1)
PY
"$folder/venv/bin/python" "$folder/check.py"
