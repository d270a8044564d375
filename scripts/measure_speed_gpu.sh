#!/usr/bin/env bash
# The same on a GPU, which nobody has run yet: bash scripts/measure_speed_gpu.sh results/speed
# First the kernels against torch on this GPU, then eager, compiled and torch-only variants beside fused and flash
# attention; layer 1 has 3136 tokens at 224 px and 16384 at 512 px. The goals: there EcoFormer's layer at least 2 and
# 10 times faster than flash MSA's, and the whole PVTv2-B0 ahead of stock.
set -eu
out=$1
python=${PYTHON:-python}
all=stock,stock_compiled,msa,msa_compiled,ecoformer,ecoformer_torch,ecoformer_compiled

"$python" -m pytest tests/ops/test_triton.py
for precision in bf16 fp32; do
    for mode in eval train; do
        "$python" scripts/benchmark.py --device cuda --precision $precision --mode $mode --attention $all --batch-size 32 \
            --img-size 224,384,512,768,1024 --rounds 7 --out "$out/gpu_${mode}_$precision.json"
    done
done
"$python" scripts/benchmark.py --device cuda --precision bf16 --layer 1 --img-size 224,512 --rounds 7 \
    --attention msa,ecoformer,ecoformer_torch,ecoformer_compiled --out "$out/gpu_layer_bf16.json"
"$python" scripts/benchmark.py --device cuda --joules --no-peak --attention stock,msa,ecoformer --out "$out/gpu_joules.json"
