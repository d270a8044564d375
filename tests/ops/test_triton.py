"""The Triton kernels equal the naive forms, outputs and gradients, under Triton's interpreter (a process of its own:
Triton reads the setting when it is imported)."""

import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
SHAPES = [
    (1, 1, 7, 5, 3, 4),
    (2, 3, 65, 32, 25, 16),
    (1, 2, 290, 13, 7, 33),
    (2, 2, 3, 20, 2, 1),
]
CASES = [(shape, numerator, "float32") for shape in SHAPES for numerator in ("own_token", "kernel")]
SMALL = (1, 2, 65, 32, 25, 16)
CASES += [(SMALL, "own_token", "bfloat16"), (SHAPES[2], "kernel", "bfloat16"), (SMALL, "kernel", "float16")]
MANY_TOKENS = ((1, 1, 2100, 5, 3, 4), "kernel", "float32")  # three blocks a program


def check(shape, numerator, dtype):
    from ecoformer.ops.ecoformer import kernel_hash_attention
    from ecoformer.ops.ecoformer.codes import normalize, straight_through_sign
    from ecoformer.ops.ecoformer.naive import hash_attention_reference, pre_codes_reference

    B, H, N, C, M, K = shape
    torch.manual_seed(sum(shape))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens = torch.randn(B, N, 2, H, C, device=device).to(getattr(torch, dtype))
    tokens[0, 1, 0] = 0
    anchors = normalize(tokens[0, :M, 0].float().transpose(0, 1))
    # Pre-codes on both sides of 1, where the straight-through gradient stops.
    A, mean = 2 * torch.randn(H, K, M, device=device), torch.rand(H, M, device=device)

    def reference(qk, v, *state):
        codes = straight_through_sign(pre_codes_reference(normalize(qk), *state))
        return hash_attention_reference(codes, codes, v, numerator)

    results = []
    for function, exact in ((lambda *args: kernel_hash_attention(*args, numerator), False), (reference, True)):
        leaf = (tokens.double() if exact else tokens).clone().requires_grad_()
        state = [x.double() if exact else x for x in (anchors, A, mean)]
        qk, v = (leaf[:, :, i].transpose(1, 2) for i in (0, 1))
        out = function(qk, v, *state)
        assert exact or out.dtype == tokens.dtype
        (out.float() * torch.linspace(-1, 2, out.numel(), device=device).view(out.shape)).sum().backward()
        results.append((out.detach(), leaf.grad))
    rounding = 4 * torch.finfo(tokens.dtype).eps
    for mine, expected in zip(*results, strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(mine.double(), expected, rtol=max(1e-4, rounding), atol=scale * max(1e-5, rounding))


def a_wrong_kernel_is_refused():
    from ecoformer.ops.ecoformer import triton_form as mine
    from ecoformer.ops.ecoformer.eager import attend

    kind = torch.device("cpu"), torch.float32, 32, 16, 25, attend
    with torch.inference_mode():  # a model that only evaluates
        assert mine.can_run(*kind)
    mine.can_run.cache_clear()
    right = mine._Attend.apply
    mine._Attend.apply = lambda qk, v, anchors, *rest: right(qk, v, 2 * anchors, *rest)
    try:
        mine.can_run(*kind)
    except RuntimeError as error:
        assert "set ECOFORMER_TRITON=0" in str(error) and "output differs by" in str(error), error
    else:
        raise AssertionError("other anchors were not noticed")
    finally:
        mine._Attend.apply = right
    mine.can_run.cache_clear()

    def too_large(*args):
        raise mine.OutOfResources(300_000, 232_448, "shared memory")

    mine._Attend.apply = too_large
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            assert not mine.can_run(*kind)
        assert "goes through torch" in str(told[0].message)
    finally:
        mine._Attend.apply = right


def under_the_interpreter():
    from triton.runtime.interpreter import InterpretedFunction

    from ecoformer.ops.ecoformer import triton_form as mine
    from ecoformer.ops.ecoformer.eager import attend

    # Triton patches its language anew at each call of a function, in a kernel that has done so: half of the time.
    first_call, known = InterpretedFunction.__call__, set()

    def call(function, *args, **options):
        if function.fn in known:
            return function.rewrite()(*args, **options)
        known.add(function.fn)
        return first_call(function, *args, **options)

    InterpretedFunction.__call__ = call
    a_wrong_kernel_is_refused()
    assert mine.can_run(torch.device("cpu"), torch.bfloat16, 13, 33, 7, attend)
    mine.can_run = lambda *kind: True  # it costs more than a case, and as much for every other kind
    for case in CASES:
        check(*case)
        print(*case)
    mine.MOST_PARTS = 2
    check((1, 1, 300, 5, 3, 4), "kernel", "float32")  # three blocks in the first program, two in the second
    assert "ecoformer.ops.ecoformer.triton_backward" in sys.modules


def test_under_the_interpreter():
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nimport test_triton as t\n"
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "ECOFORMER_TRITON": ""}
    line = [sys.executable, "-c", code + "t.under_the_interpreter(); print('all')"]
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout.endswith("all\n"), done.stdout + done.stderr


def on_triton():
    """Whether single and double precision are, as the environment says when the module is imported."""
    from ecoformer.ops import ecoformer as kernels

    importlib.reload(kernels)
    print(*(kernels._on_triton(torch.ones(1, 1, 2, 3, dtype=dtype)) for dtype in (torch.float32, torch.float64)))


@pytest.mark.parametrize("setting", ["0", ""])
def test_the_environment_turns_them_off(setting, fresh):
    done = fresh(on_triton, TRITON_INTERPRET="1", ECOFORMER_TRITON=setting)
    assert done.wait() == 0, done.stderr
    assert done.stdout.split() == ["False" if setting == "0" else "True", "False"]


@pytest.mark.gpu
@pytest.mark.parametrize(
    "case", [*CASES, MANY_TOKENS], ids=lambda c: "B{}-H{}-N{}-C{}-M{}-K{}-{}-{}".format(*c[0], *c[1:])
)
def test_on_a_gpu(case):
    check(*case)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unit_sums", "codes_and_context", "output"])
def test_forward_kernels_compile_for_an_h100(name):
    from ecoformer.ops.ecoformer import triton_forward as triton_kernels

    compile_for_an_h100(getattr(triton_kernels, name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["context_backward", "codes_backward", "norm_backward"])
def test_backward_kernels_compile_for_an_h100(name):
    from ecoformer.ops.ecoformer import triton_backward as triton_kernels_backward

    compile_for_an_h100(getattr(triton_kernels_backward, name))


def compile_for_an_h100(kernel):
    """To machine code, which needs no GPU: the interpreter takes more than the compiler does."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {"TOKENS": 64, "CHANNELS": 32, "BITS": 16, "ANCHORS": 32, "OWN_TOKEN": True, "PACKED": True}
    tokens = {"qk", "v", "out", "grad", "grad_v", "grad_qk"}
    sizes = {"batch", "tokens", "channels", "bits", "num_anchors", "parts", "blocks"}

    def kind(name):
        if name in constants:
            return "constexpr"
        if name in sizes or "stride" in name:
            return "i32"
        return {"code": "*i32"}.get(name, "*bf16" if name in tokens else "*fp32")

    signature = {name: kind(name) for name in kernel.arg_names}
    values = {(i,): constants[name] for i, name in enumerate(kernel.arg_names) if name in constants}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert compiled.asm["cubin"] and compiled.metadata.shared <= 232_448  # bytes that its blocks may have
