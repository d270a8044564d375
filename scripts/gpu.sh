#!/usr/bin/env bash
# What to run when a GPU is at hand for an hour: bash scripts/gpu.sh OUT STEP [CIFAR10.tar.gz [IMAGES]]
#
#   tests       the CUDA tests, Triton against torch                     about 2 minutes
#   kernels     EcoFormer's Triton kernels alone, beside flash attention about 1 minute
#   benchmark   whole models and layers, eager and as CUDA graphs        about 6 minutes
#   high        512 to 2048 px                                           about 4 minutes
#   joules      of whole models by NVML, float32                         about 2 minutes
#   fits        hash fits                                                about 1 minute
#   loader      against timm's (needs IMAGES, a folder of train/CLASS)   about 4 minutes
#   rates       learning rates on a development split (needs the archive of train/CLASS and test/CLASS)
#   study       the long CIFAR-10 study (needs the archive)              both stop after 9 minutes; the same line goes on
#   all         each of them in turn
#
# No network. What is in OUT already is not measured again. GPU_TINY=1 is the same in small, for a machine without a GPU.
set -euo pipefail
out=$1 step=$2 archive=${3:-} images=${4:-}
python=${PYTHON:-python}
here=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1
mkdir -p "$out"

device=cuda batch=32 rounds=7 precision=bf16 sizes=512,1024,2048 graph=_graph seconds=540 jobs=12 tiny=()
if [ "${GPU_TINY:-0}" = 1 ]; then
    device=cpu batch=1 rounds=1 sizes=96 graph= seconds=120 jobs=1
    tiny=(train.epochs=0 data.max_train_samples=32 data.max_val_samples=16 callbacks.hash_update.num_images=4
        callbacks.hash_update.held_out_images=0 train.batch_size=8)
fi

measure() { # NAME then options of `ecoformer benchmark`
    local file=$out/$1.json
    shift
    [ -s "$file" ] || "$python" -m ecoformer benchmark --device $device --precision $precision --rounds $rounds \
        --batch-size $batch --no-peak --out "$file" "$@"
}

study() {
    [ -n "$archive" ] || { echo "error: step $1 needs the CIFAR-10 archive as third argument" >&2; exit 2; }
    local data=$out/data
    [ -d "$data/train" ] || { mkdir -p "$data" && tar -xzf "$archive" -C "$data"; }
    shift
    timeout --signal INT $seconds "$python" -m ecoformer study --data "$data" --jobs $jobs "$@" threads=1 \
        data.num_workers=0 "${tiny[@]}" || [ $? -eq 124 ] || [ $? -eq 130 ]
}

case $step in
tests)
    "$python" -m pytest -q -p no:cacheprovider "$here/tests/ops/test_triton.py" | tee "$out/tests.txt"
    [ "${GPU_TINY:-0}" = 1 ] || "$python" -m pytest -q -m gpu -p no:cacheprovider "$here/tests" | tee -a "$out/tests.txt"
    ;;
kernels)
    if [ "${GPU_TINY:-0}" != 1 ] && [ ! -s "$out/kernels.json" ]; then
        "$python" "$here/results/gpu/kernels.py" >"$out/kernels.part" && mv "$out/kernels.part" "$out/kernels.json"
    fi
    ;;
benchmark)
    whole=stock,stock$graph,msa,msa$graph,ecoformer,ecoformer$graph,distilled,distilled$graph
    [ -n "$graph" ] || whole=stock,ecoformer
    size=${GPU_TINY:+96}
    measure whole_eval --attention $whole --img-size "${size:-224}"
    measure whole_train --attention "${whole//_graph/_compiled}" --mode train --img-size "${size:-224}"
    measure layer_eval --attention "msa$graph,ecoformer$graph,distilled$graph" --layer 1 --img-size "${size:-224,512}"
    ;;
high)
    batch=4
    measure high_b0 --attention "stock$graph,msa$graph,ecoformer$graph,distilled$graph" --img-size $sizes
    ;;
joules)
    precision=fp32
    measure joules --joules --attention stock,msa,ecoformer,distilled --img-size "$([ "$device" = cpu ] && echo 96 || echo 224)"
    ;;
loader)
    [ -n "$images" ] || { echo "error: step loader needs a folder of train/CLASS as fourth argument" >&2; exit 2; }
    [ -s "$out/loader.json" ] || "$python" -m ecoformer benchmark-data --root "$images" --workers 8 --against timm \
        --out "$out/loader.json"
    ;;
fits)
    shape="--shape 32,1,3136,32"
    [ "${GPU_TINY:-0}" = 1 ] && shape="--shape 2,1,64,8 --num-anchors 4 --steps 2"
    # shellcheck disable=SC2086
    [ -s "$out/fit.json" ] || "$python" -m ecoformer benchmark-hash $shape --format json >"$out/fit.json"
    ;;
rates) study rates --table cifar10_long_lr --out "$out/rates" ${GPU_TINY:+--only vit/msa-lr_2e_4/seed0} ;;
study) study study --table cifar10_long --out "$out/study" ${GPU_TINY:+--only vit/uniform-converted/seed0} ;;
all)
    for each in tests kernels benchmark high joules fits ${images:+loader} rates study; do
        bash "$0" "$out" "$each" "$archive" "$images"
    done
    ;;
*)
    echo "error: no step $step: one of tests, kernels, benchmark, high, joules, fits, loader, rates, study, all" >&2
    exit 2
    ;;
esac
