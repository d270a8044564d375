"""Hugging Face's BERT in small, and what it reads. Modules that import it are skipped without transformers."""

import copy

import pytest
import torch
from kind_cases import SPECS

from ecoformer import convert, fit_hashes
from ecoformer.fit.hashes import has_hashes
from ecoformer.model.bert import Ids

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install ecoformer[text]")

TOKENS = 25  # that of SPECS
KINDS = [spec for spec in SPECS if spec.name != "linear_sra"]


def tiny(family="Bert", head="ForSequenceClassification", **options):
    torch.manual_seed(0)
    settings = {
        "vocab_size": 60,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.3,  # attention that is far from uniform
        **options,
    }
    config = getattr(transformers, f"{family}Config")(**settings)
    return getattr(transformers, f"{family}{head}")(config).eval()


def padded_ids(padding=0):
    ids = torch.randint(4, 60, (6, TOKENS), generator=torch.Generator().manual_seed(1))
    ids[1, 9:] = padding
    ids[4, 17:] = padding
    return ids


def logits(model, ids, padding=0, **masks):
    with torch.no_grad():
        return model(input_ids=ids, **(masks or {"attention_mask": (ids != padding).long()})).logits


def converted(spec, model=None):
    model = copy.deepcopy(model or tiny())
    report = convert(model, spec)
    if has_hashes(model):
        fit_hashes(Ids(model), padded_ids(), seed=0)
    return model, report
