"""What a term of neighbours at fixed offsets brings shift codes on a pretrained BERT, layer by layer.

    python results/shift_codes/soundings/bert.py MODEL_FOLDER IMDB.tsv TEXTS STEPS FEATURES FORM...

Fits codes to every attention layer of MiniLM-L6-H384 (results/language/minilm names the wheel that it comes in), each
at the layer's own inputs: 128 tokens of reviews that have as many. Prints a line a layer and form, as sound.py does, of
64 further reviews. Forms: those of sound.py, and local=R, a power of two of the query for each of the offsets -R
to R; gate=12, its exponent at the start.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from sound import error, local, start
from torch import Tensor

from ecoformer import attention_layers, convert
from ecoformer.fit.compare import layer_calls
from ecoformer.fit.output_fit import fit_to_output
from ecoformer.fit.target import SoftmaxTarget
from ecoformer.model.bert import Ids
from ecoformer.nn.heads import split_heads
from ecoformer.nn.specs import make_spec
from ecoformer.ops.codes.distilled import Standardiser

TOKENS, HELD_OUT = 128, 64


def offsets(reach: int) -> Tensor:
    """(O, N, N), 1 where a key stands at an offset from -reach to reach; no neighbours beyond the ends."""
    return torch.stack([torch.ones(TOKENS - abs(offset)).diag(offset) for offset in range(-reach, reach + 1)])


def reviews(folder: str, table: str, number: int) -> Tensor:
    tokenizer, found = transformers.AutoTokenizer.from_pretrained(folder), []
    for line in Path(table).read_text(encoding="utf-8").splitlines():
        ids = tokenizer(line.rstrip("\n").split("\t")[-1], truncation=True, max_length=TOKENS)["input_ids"]
        found += [ids] if len(ids) == TOKENS else []
        if len(found) == number:
            return torch.tensor(found)
    raise SystemExit(f"{table} has {len(found)} reviews of {TOKENS} tokens, {number} are needed")


def main() -> None:
    folder, table, texts, steps, features, *forms = sys.argv[1:]
    torch.set_num_threads(1)
    count = int(texts)
    bert = transformers.AutoModel.from_pretrained(folder, attention_probs_dropout_prob=0.0)
    convert(bert, make_spec("msa"))  # the same function
    model = Ids(bert).eval()
    known = {layer.name: layer.module for layer in attention_layers(model)}
    with torch.no_grad():
        calls = layer_calls(model, known, reviews(folder, table, count + HELD_OUT))
    for name, (x_BND, _) in calls.items():
        layer = known[name]
        with torch.no_grad():
            softmax = SoftmaxTarget.of(layer, name, x_BND)
            v_BHNC, target = softmax.v_BHNC, split_heads(softmax.output(), softmax.v_BHNC.shape[1])
        standard = Standardiser.of(x_BND)
        x_BND = standard(x_BND)
        uniform = error(v_BHNC[count:].mean(2, keepdim=True), target[count:])
        for form in forms:
            words = dict(([*word.split("="), ""])[:2] for word in form.split("+"))
            codes = start(x_BND[:count], standard, layer, int(features), words)
            codes = replace(codes, values=None)
            if "local" in words:
                codes = local(codes, offsets(int(words["local"])), float(words.get("gate", 0)), x_BND.shape[-1])
            fit = fit_to_output(
                codes,
                [x_BND[:count], v_BHNC[:count]],
                target[:count],
                torch.Generator().manual_seed(0),
                lr=float(words.get("lr", 0.01)),
                steps=int(words.get("steps", steps)),
                batch_size=int(words.get("batch", 8)),
            )
            with torch.no_grad():
                found = error(fit.hashing.attend(x_BND[count:], v_BHNC[count:]), target[count:])
            row = {"layer": name, "features": int(features), "form": form, "texts": count, "squared_error": found}
            print(json.dumps(row | {"of_uniform": (found / uniform) ** 0.5}), flush=True)


if __name__ == "__main__":
    main()
