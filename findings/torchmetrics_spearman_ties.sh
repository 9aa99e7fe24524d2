#!/usr/bin/env bash
# torchmetrics 1.9.0: spearman_corrcoef changes its sign when a value appears more than about 65,536 times.
#
# Ranks of equal values are averaged. The function adds the ranks of a group of equal values in int32; the sum of the
# ranks 1..n exceeds 2^31 - 1 from n = 65,536 on, and wraps around without a warning, in float64 too.
# Seen on 60,000 and 70,000 pairs, of which 99 in 100 judgements are 1 and the others 0:
#   pairs=60000 torchmetrics=+0.0921 scipy=+0.0921
#   pairs=70000 torchmetrics=-0.0876 scipy=+0.0876
# Exits with 1 if a later run differs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch torchmetrics==1.9.0 scipy numpy
cat > "$folder/check.py" <<'PY'
import numpy as np
import torch
import torchmetrics
from scipy.stats import spearmanr
from torchmetrics.functional import spearman_corrcoef

print("torchmetrics", torchmetrics.__version__)
agrees = []
for pairs in (60_000, 70_000):
    rng = np.random.default_rng(0)
    judgement = 1 - (rng.random(pairs) < 0.01).astype(float)
    similarity = judgement + rng.normal(size=pairs)
    found = spearman_corrcoef(torch.from_numpy(similarity), torch.from_numpy(judgement)).item()
    wanted = float(spearmanr(similarity, judgement)[0])
    agrees.append(abs(found - wanted) < 1e-5)
    print(f"pairs={pairs} torchmetrics={found:+.4f} scipy={wanted:+.4f}")
    opposite = abs(found + wanted) < 1e-5
raise SystemExit(0 if agrees == [True, False] and opposite else 1)
PY
"$folder/venv/bin/python" "$folder/check.py"
