#!/usr/bin/env bash
# Two processes train on Imagenette under torchrun; rank 1 is killed in the middle and the run goes on by itself.
# A second run is left alone. Both must end with the same weights. From the root of the repository:
#   PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=1 bash results/reliability/killed_rank.sh ROOT OUT
# ROOT holds train/ and val/ with Imagenette's ten class folders, OUT gets runs and logs.
set -euo pipefail
root=$1 out=$2
mkdir -p "$out"

launch() {
    exec torchrun --standalone --nproc-per-node 2 --max-restarts 2 train.py name=imagenette_killed_rank \
        model=pvt_v2_b0 '+model.kwargs={depths:[1,1,1,1],embed_dims:[16,32,40,64]}' \
        attention=ecoformer attention.num_bits=8 attention.num_anchors=12 attention.clamp=true attention.fit_steps=10 \
        data=folder data.root="$root" data.img_size=128 data.num_workers=1 \
        data.max_train_samples=640 data.max_val_samples=200 augment.scale=[0.5,1.0] \
        optim.lr=1e-3 schedule.warmup_epochs=0 train.epochs=3 train.batch_size=16 train.ema_decay=0.9 \
        train.log_every=1 checkpoint.every_steps=6 checkpoint.keep_top_k=2 \
        callbacks.hash_update.num_images=8 callbacks.hash_update.every_steps=15 \
        device=cpu output_dir="$out/$1" >"$out/$1.log" 2>&1
}

echo "undisturbed: $(date -u +%T)"
[ -e "$out/undisturbed/summary.json" ] || (launch undisturbed)

echo "killed: $(date -u +%T)"
launch killed &
agent=$! # torchrun, whose children are the ranks
# 20 steps an epoch: step 33 is the 13th of the second epoch, the latest checkpoint is from step 30.
until grep -q '"event": "train", .*"step": 33,' "$out/killed/metrics.jsonl" 2>/dev/null; do sleep 0.1; done
for process in $(cat "/proc/$agent/task/$agent/children"); do
    if grep -qz '^RANK=1$' "/proc/$process/environ"; then rank1=$process; fi
done
tail -1 "$out/killed/metrics.jsonl"
kill -9 "$rank1" && echo "kill -9 $rank1 (rank 1) at $(date -u +%T)"
wait $agent
echo "finished: $(date -u +%T)"

python - "$out" <<'PYTHON'
import json, sys, torch
from pathlib import Path
one, two = (Path(sys.argv[1]) / name for name in ("undisturbed", "killed"))
first, second = (torch.load(path / "last.pt", weights_only=True) for path in (one, two))
for part in ("model", "ema"):
    same = [torch.equal(value, second[part][key]) for key, value in first[part].items()]
    print(f"{part}: {sum(same)} of {len(same)} tensors equal")
clock = {"time", "seconds", "images_per_second", "train_images_per_second"}
records = [
    [{k: v for k, v in json.loads(line).items() if k not in clock} for line in (path / "metrics.jsonl").open()]
    for path in (one, two)
]
print(f"metrics: {len(records[0])} and {len(records[1])} records, equal but for the clock: {records[0] == records[1]}")
PYTHON
