#!/bin/bash
# Run the same command on every node: FIRST=first-node NODES=2 GPUS=4 ./torchrun.sh; docs/clusters.md has the details.
set -euo pipefail
export OMP_NUM_THREADS=1

torchrun --nnodes "$NODES" --nproc_per_node "$GPUS" --max-restarts 3 --shutdown-timeout 120 \
    --rdzv_backend c10d --rdzv_endpoint "$FIRST:29400" --rdzv_id f30k_clip \
    -m itr fit --config f30k_clip.yaml \
    --data.root /shared/shards/f30k \
    --trainer.default_root_dir /shared/runs/f30k_clip \
    --trainer.num_nodes "$NODES" \
    --trainer.devices "$GPUS" \
    --trainer.precision bf16-mixed
