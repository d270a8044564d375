#!/usr/bin/env bash
# Two processes train on Imagenette in a job of submitit's local executor, by the code that hydra/launcher=slurm uses.
# In one job rank 1 is killed; later the job is told to save, as SLURM does before its time is over, and is queued again.
# A second job is left alone. Both must end with the same weights. From the root of the repository:
#   PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=1 bash results/launch/submitit.sh ROOT OUT
# ROOT holds train/ and val/ with Imagenette's ten class folders, OUT gets runs and logs.
set -euo pipefail
root=$1 out=$2
mkdir -p "$out"

launch() {
    python train.py hydra/launcher=local launch.nproc_per_node=2 launch.max_restarts=2 name=imagenette_submitit \
        model=pvt_v2_b0 '+model.kwargs={depths:[1,1,1,1],embed_dims:[16,32,40,64]}' \
        attention=ecoformer attention.num_bits=8 attention.num_anchors=12 attention.clamp=true attention.fit_steps=10 \
        data=folder data.root="$root" data.img_size=128 data.num_workers=1 \
        data.max_train_samples=640 data.max_val_samples=200 augment.scale=[0.5,1.0] \
        optim.lr=1e-3 schedule.warmup_epochs=0 train.epochs=3 train.batch_size=16 train.ema_decay=0.9 \
        train.log_every=1 checkpoint.every_steps=6 callbacks.hash_update.num_images=8 \
        callbacks.hash_update.every_steps=15 device=cpu output_dir="$out/$1"
}
until_step() {
    until grep -q "\"event\": \"train\", .*\"step\": $1," "$out/disturbed/metrics.jsonl" 2>/dev/null; do kill -0 "$launched" || exit 1; sleep 0.1; done
}
agent() { grep -o 'torchrun [^"]*' "$out/disturbed/launch.json" | head -1 | cut -d' ' -f4; }

echo "undisturbed: $(date -u +%T)"
launch undisturbed

echo "disturbed: $(date -u +%T)"
launch disturbed &
launched=$!
until_step 33
for process in $(pgrep -P "$(agent)"); do
    if grep -qz '^RANK=1$' "/proc/$process/environ"; then rank1=$process; fi
done
kill -9 "$rank1" && echo "kill -9 $rank1 (rank 1) after step 33 at $(date -u +%T)"
until_step 45
job=$(ps -o ppid= -p "$(agent)" | tr -d ' ')
kill -USR2 "$job" && echo "SIGUSR2 to the job after step 45 at $(date -u +%T)"
wait %1
echo "finished: $(date -u +%T)"
cat "$out"/disturbed/.submitit/*/*_log.* | grep -E "started again|stopped by|Requeued" || true

python - "$out" <<'PYTHON'
import json, sys, torch
from pathlib import Path
one, two = (Path(sys.argv[1]) / name for name in ("undisturbed", "disturbed"))
first, second = (torch.load(path / "last.pt", weights_only=True) for path in (one, two))
for part in ("model", "ema"):
    same = [torch.equal(value, second[part][key]) for key, value in first[part].items()]
    print(f"{part}: {sum(same)} of {len(same)} tensors equal")
summary = json.loads((two / "summary.json").read_text())
print(f"top-1 {summary['top1']} % after {summary['epochs']} epochs")
PYTHON
