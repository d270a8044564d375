"""What a term of neighbours at fixed offsets brings shift codes on a pretrained BERT, layer by layer.

    python results/shift_codes/soundings/bert.py MODEL_FOLDER IMDB.tsv TEXTS STEPS FEATURES FORM...

Fits codes to every attention layer of MiniLM-L6-H384 (results/language/minilm names the wheel that it comes in), each
at the layer's own inputs: 128 tokens of reviews that have as many. Prints a line a layer and form, as sound.py does, of
64 further reviews. Forms: those of sound.py, and local=R, a power of two of the query for each of the offsets -R
to R; gate=12, its exponent at the start.
"""

import sys
from pathlib import Path

import torch
import transformers
from sound import sound
from torch import Tensor

from ecoformer import attention_layers, convert
from ecoformer.fit.compare import layer_calls
from ecoformer.model.bert import Ids
from ecoformer.nn.specs import make_spec

TOKENS, HELD_OUT = 128, 64


def offsets(words: dict[str, str]) -> tuple[Tensor, float]:
    """(O, N, N), 1 where a key stands at an offset from -local to local; the exponent of its weight at the start."""
    reach = int(words["local"])
    places = [torch.ones(TOKENS - abs(offset)).diag(offset) for offset in range(-reach, reach + 1)]
    return torch.stack(places), float(words.get("gate", 0))


def reviews(folder: str, table: str, number: int) -> Tensor:
    tokenizer, found = transformers.AutoTokenizer.from_pretrained(folder), []
    for line in Path(table).read_text(encoding="utf-8").splitlines():
        ids = tokenizer(line.split("\t")[-1], truncation=True, max_length=TOKENS)["input_ids"]
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
        sound(name, known[name], x_BND, count, steps, features, forms, inputs="texts", batch=8, offset_ONN=offsets)


if __name__ == "__main__":
    main()
