#!/usr/bin/env bash
# transformers 5.24.0: a pytorch_model.bin that holds its weights under "state_dict" gives a model of random weights.
#
# Guess: the weights are found, or loading fails. Seen: with an explicit dtype, `from_pretrained` returns a model in
# which not one tensor is that of the file; only a table on stderr lists them as MISSING. Without a dtype it raises
# AttributeError: 'collections.OrderedDict' object has no attribute 'is_floating_point'.
#   plain file: weights loaded: True
#   under state_dict, dtype given: weights loaded: False, raised: nothing
#   under state_dict, no dtype: raised: AttributeError
# Exits with 1 if a later run differs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch transformers==5.24.0
cat > "$folder/check.py" <<'PY'
import sys

import torch
from transformers import BertConfig, BertModel

folder = sys.argv[1]
torch.manual_seed(0)
config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
trained = BertModel(config)
weights = trained.state_dict()
config.save_pretrained(folder)


def loaded(content, **options):
    torch.save(content, f"{folder}/pytorch_model.bin")
    try:
        found = BertModel.from_pretrained(folder, **options).state_dict()
    except Exception as error:
        return type(error).__name__
    return all(torch.equal(found[name], weights[name]) for name in weights)


plain = loaded(weights, dtype=torch.float32)
nested = loaded({"state_dict": weights}, dtype=torch.float32)
untyped = loaded({"state_dict": weights})
print(f"plain file: weights loaded: {plain}")
print(f"under state_dict, dtype given: weights loaded: {nested}, raised: nothing")
print(f"under state_dict, no dtype: raised: {untyped}")
raise SystemExit(0 if (plain, nested, untyped) == (True, False, "AttributeError") else 1)
PY
mkdir "$folder/bert"
"$folder/venv/bin/python" "$folder/check.py" "$folder/bert" 2> "$folder/stderr"
grep -q MISSING "$folder/stderr"
