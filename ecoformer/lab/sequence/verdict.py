"""The claims of Greenformers (Cahyawijaya, 2021) held against what this study counted and measured."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ecoformer.kinds.linformer import LinformerSpec
from ecoformer.lab.sequence.crossover import crossovers, describe
from ecoformer.lab.sequence.encoder import GREENFORMERS_RANK, Kind, Shape
from ecoformer.lab.sequence.study import BASELINE, METRICS, Study

LIMIT = 512  # tokens: up to here LRT, from here Linformer
SAVING = 0.3
# Of BERT-base outside the encoder, which low rank leaves alone: token, position and segment embeddings, pooler, norm.
BERT_REST_PARAMS = (30522 + 512 + 2) * 768 + 768 * 768 + 768 + 2 * 768


@dataclass(frozen=True)
class Verdict:
    """A claim, whether the figures agree with it ("agrees", "partly", "disagrees", "open"), the figures, and why."""

    claim: str
    outcome: str
    figures: str
    reason: str


def verdicts(study: Study) -> list[Verdict]:
    """One for every claim, for the low-rank and Linformer rows that the study has."""
    kinds = [Kind.parse(label) for label in study.kinds]
    low_ranks = [kind for kind in kinds if kind.name == "low_rank"]
    linformers = [kind for kind in kinds if kind.name == "linformer"]
    found = [make(study, kind) for kind in low_ranks for make in (_short, _smaller, _thirty_percent)]
    found += [_linformer_pays(study, kind) for kind in linformers]
    return found + [_linformer_wins(study, other, kind) for kind in low_ranks for other in linformers]


def _short(study: Study, kind: Kind) -> Verdict:
    """Time and memory are what was measured; energy stands in for time where nothing was."""
    saved, lines = [], []
    for metric, shares in _saved(study, kind):
        saved += [share for n, share in shares.items() if n <= LIMIT]
        if shares:
            lines.append(f"{METRICS[metric]}: {_percents(shares)}")
    return Verdict(
        f"{kind.label} saves time and memory for sequences up to about {LIMIT} tokens",
        _outcome(share > 0 for share in saved),
        f"saved against {BASELINE}: {'; '.join(lines)}",
        "It thins the Linear layers, whose share of the work falls as the tokens grow; nothing ends at "
        f"{LIMIT} tokens, the saving fades.",
    )


def _saved(study: Study, kind: Kind) -> Iterator[tuple[str, dict[int, float]]]:
    """Per metric, by number of tokens, the share that a kind saves against softmax attention."""
    for metric in study.metrics():
        own, base = study.series(kind.label, metric), study.series(BASELINE, metric)
        yield metric, {n: 1 - own[n] / base[n] for n in sorted(own.keys() & base.keys())}


def _smaller(study: Study, kind: Kind) -> Verdict:
    claim = f"{kind.label} is the smaller model"
    rows = {row["kind"]: row for row in study.rows if row["refused"] is None}
    if not {kind.label, BASELINE} <= rows.keys():
        return Verdict(claim, "open", f"the study has no {kind.label} beside {BASELINE}", "")
    own, base = rows[kind.label]["params"], rows[BASELINE]["params"]
    figures = f"{own / 1e6:.1f} M parameters against {base / 1e6:.1f} M, {_percent(1 - own / base)} fewer"
    reason = f"Rank {_rank(kind)} instead of {study.shape.width} in every Linear layer."
    if study.shape.name == "bert_base":
        whole = 1 - (own + BERT_REST_PARAMS) / (base + BERT_REST_PARAMS)
        reason += f" With BERT-base's embeddings and pooler, which stay as they are, {_percent(whole)} fewer."
    return Verdict(claim, _outcome([own < base]), figures, reason)


def _thirty_percent(study: Study, kind: Kind) -> Verdict:
    held, lines = [], []
    for metric, shares in _saved(study, kind):
        if metric.endswith("_mib") or not shares:
            continue
        held += [share > SAVING for share in shares.values()]
        kept = [n for n, share in shares.items() if share > SAVING]
        where = f", more than {SAVING:.0%} at {', '.join(map(str, kept))} tokens" if kept else ""
        lines.append(f"{METRICS[metric]}: {_percents(shares)}{where}")
    dense, low = _linear_macs(study.shape), _low_rank_macs(study.shape, _rank(kind))
    limit = ((dense - low) / SAVING - dense) / (2 * study.shape.width)
    reason = (
        f"A token costs {dense:,} multiply-adds in a block's Linear layers, {low:,} at rank {_rank(kind)}, and 2 N D "
        f"in attention, which low rank leaves alone: arithmetic alone saves more than {SAVING:.0%} "
        + (f"up to {limit:,.0f} tokens." if limit >= 1 else "at no length.")
    )
    return Verdict(
        f"{kind.label} cuts BERT-base's cost by more than {SAVING:.0%}", _outcome(held), "; ".join(lines), reason
    )


def _linformer_pays(study: Study, kind: Kind) -> Verdict:
    held, lines = _compare(study, kind, BASELINE)
    return Verdict(
        f"{kind.label} costs less than {BASELINE} from about {LIMIT} tokens up",
        _outcome(held),
        f"{kind.label} costs less: {'; '.join(lines)}",
        f"It spends 4 k D = 4 x {_projected(kind)} x D multiply-adds a token where attention spends 2 N D: equal at "
        f"{2 * _projected(kind)} tokens, whatever the width. It saves little memory: torch's fused attention, "
        "which softmax attention runs here, never holds the N x N weights.",
    )


def _linformer_wins(study: Study, kind: Kind, low_rank: Kind) -> Verdict:
    held, lines = _compare(study, kind, low_rank.label)
    shape, rank, projected = study.shape, _rank(low_rank), _projected(kind)
    saved = _linear_macs(shape) - _low_rank_macs(shape, rank)
    equal = saved / (2 * shape.width) + 2 * projected
    low, others = (f"saves {saved:,}", "") if saved >= 0 else (f"adds {-saved:,}", " saves")
    given = f"with D = {shape.width}, rank {rank} and k = {projected}"
    return Verdict(
        f"{kind.label} costs less than {low_rank.label} from about {LIMIT} tokens up",
        _outcome(held),
        f"{kind.label} costs less: {'; '.join(lines)}",
        f"Low rank {low} multiply-adds a token at any length, Linformer{others} 2 N D - 4 k D: arithmetic alone is "
        + (f"equal at {equal:,.0f} tokens {given}" if equal >= 1 else f"for Linformer at any length {given}")
        + (f"; it would be {LIMIT} in a narrower model or at a higher rank." if equal > LIMIT else "."),
    )


def _compare(study: Study, kind: Kind, other: str) -> tuple[list[bool], list[str]]:
    """Per metric, whether `kind` becomes the cheaper one within a factor of two of LIMIT and stays so; and in words."""
    held, lines = [], []
    for metric in study.metrics():
        own, against = study.series(kind.label, metric), study.series(other, metric)
        shared = own.keys() & against.keys()
        if len(shared) < 2:
            continue
        points = crossovers(own, against)
        wins = own[max(shared)] < against[max(shared)]
        held.append(wins and len(points) == 1 and LIMIT / 2 <= points[0] <= 2 * LIMIT)
        lines.append(f"{METRICS[metric]}: {describe(own, against)}")
    return held, lines


def _linear_macs(shape: Shape) -> int:
    """Multiply-adds of a token in the Linear layers of a block."""
    return 4 * shape.width**2 + 2 * shape.width * shape.mlp


def _low_rank_macs(shape: Shape, rank: int) -> int:
    """The same with each of them (qkv fused) at one rank."""
    return rank * (4 * shape.width + 2 * shape.width + 2 * (shape.width + shape.mlp))


def _rank(kind: Kind) -> int:
    return GREENFORMERS_RANK if kind.number is None else kind.number


def _projected(kind: Kind) -> int:
    return LinformerSpec().proj_dim if kind.number is None else kind.number


def _outcome(held: Iterable[bool]) -> str:
    found = list(held)
    if not found:
        return "open"
    return "agrees" if all(found) else "partly" if any(found) else "disagrees"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _percents(shares: dict[int, float]) -> str:
    """ "62 % at 64, 60 % at 512, 40 % at 8192": the ends and the claims' limit."""
    chosen = [n for n in shares if n in (min(shares), LIMIT, max(shares))]
    return ", ".join(f"{_percent(shares[n])} at {n}" for n in chosen)
