#!/usr/bin/env bash
# peft 0.21.2: each forward pass of an adapted nn.MultiheadAttention replaces its weights by other Parameter objects.
#
# Adapters are folded into the weights before the pass, and the weights are restored after it as new parameters. So a
# parameter that an optimizer or a dictionary by parameter took before the first pass is no longer part of the model. An
# adapted nn.Linear keeps its parameters.
#   attention: ['base_layer.in_proj_weight', 'base_layer.out_proj.base_layer.weight'] replaced
#   linear:    [] replaced
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


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.layer(x, x, x, need_weights=False)[0]


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(x)


def changes(model):
    """Names of parameters that a pass replaces."""
    LoraModel(model, {"default": LoraConfig(r=2, target_modules=["layer"])}, "default")
    before = dict(model.layer.named_parameters())
    model(torch.ones(1, 3, 8))
    after = dict(model.layer.named_parameters())
    return sorted(name for name in before if before[name] is not after[name])


print("peft", peft.__version__, "torch", torch.__version__)
attention, linear = changes(Attention()), changes(Linear())
print("attention:", attention, "replaced")
print("linear:   ", linear, "replaced")
replaced = ["base_layer.in_proj_weight", "base_layer.out_proj.base_layer.weight"]
raise SystemExit(0 if attention == replaced and linear == [] else 1)
PY
"$folder/venv/bin/python" "$folder/check.py"
