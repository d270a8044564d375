#!/usr/bin/env bash
# Everything in results/speed, on an otherwise idle machine: bash scripts/measure_speed.sh results/speed
# Each step takes one to two minutes on two cores, and is skipped if its file is newer than this script.
set -eu
out=$1
python=${PYTHON:-python}
threads=${THREADS:-2}

step() {  # step NAME [OPTIONS of benchmark.py]
    local name=$1
    shift
    if [ "$out/$name.json" -nt "$0" ]; then return; fi
    "$python" scripts/benchmark.py --threads "$threads" --out "$out/$name.json" "$@"
}

profile() {  # profile NAME [OPTIONS of benchmark.py]
    local name=$1
    shift
    if [ "$out/$name.txt" -nt "$0" ]; then return; fi
    "$python" scripts/benchmark.py --threads "$threads" --rounds 1 --no-peak --profile 15 "$@" 2> "$out/$name.part"
    grep -v '^[A-Z]*:[0-9]*-' "$out/$name.part" > "$out/$name.txt"  # the profiler's own messages
    rm "$out/$name.part"
}

step b0_eval --attention stock,msa,ecoformer --rounds 7
step b0_train --mode train --attention stock,ecoformer --rounds 5
step loop --loop --attention stock --batch-size 16 --rounds 5
step twins_eval --model twins_svt_small --attention stock,ecoformer --rounds 5
step b0_eval_unfused --attention stock,msa_unfused,ecoformer --rounds 3
(
    export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296
    step b0_eval_kept --attention stock,msa,ecoformer --rounds 7 --no-peak
    step b0_train_kept --mode train --attention stock,ecoformer --rounds 3 --no-peak
)
step growth --attention stock,ecoformer --batch-size 2 --img-size 224,384,512,768,1024 --rounds 3
profile profile --attention stock,msa,ecoformer
profile profile_layer_1 --attention stock,msa,ecoformer --layer 1
step growth_msa --attention msa --batch-size 2 --img-size 224,384,512,768 --rounds 1
step growth_msa_1024 --attention msa --batch-size 2 --img-size 1024 --rounds 1 --no-peak
"$python" scripts/plot_speed.py "$out/growth.json" "$out/growth_msa.json" "$out/growth_msa_1024.json" --out "$out/growth.png"
