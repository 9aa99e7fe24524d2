#!/usr/bin/env bash
# open_clip_torch 3.3.0: whether weights need QuickGELU is in the record of the tag, or in the config of the model.
#
# Guess: the record that `get_pretrained_cfg` returns for a tag says how its weights are used, as it does for mean, std
# and activation of `openai`. Seen: for one tag the record lacks `quick_gelu`, and only the config of the model has it,
# so a program that builds a model from the record of a downloaded file uses the wrong activation:
#   roberta-ViT-B-32 laion2b_s12b_b32k: config True, record None
#   ViT-B-32 openai: config None, record True
# Exits with 1 if a later run differs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet open_clip_torch==3.3.0
cat > "$folder/check.py" <<'PY'
import open_clip


def flags(model, tag):
    config, record = open_clip.get_model_config(model), open_clip.get_pretrained_cfg(model, tag)
    return config.get("quick_gelu"), record.get("quick_gelu")


only_in_config = [
    (model, tag)
    for model in open_clip.list_models()
    for tag in open_clip.list_pretrained_tags_by_model(model)
    if flags(model, tag)[0] and not flags(model, tag)[1]
]
for model, tag in [*only_in_config, ("ViT-B-32", "openai")]:
    config, record = flags(model, tag)
    print(f"{model} {tag}: config {config}, record {record}")
expected = [("roberta-ViT-B-32", "laion2b_s12b_b32k")]
raise SystemExit(0 if only_in_config == expected and flags("ViT-B-32", "openai") == (None, True) else 1)
PY
"$folder/venv/bin/python" "$folder/check.py"
