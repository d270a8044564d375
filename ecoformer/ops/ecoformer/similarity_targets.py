"""Which tokens should get similar codes: the strongest and the weakest keys of every token, as a sparse matrix.

Source: Liu et al., "EcoFormer: Energy-Saving Attention with Linear Complexity", NeurIPS 2022, section 4.2.
Shapes: N tokens, C head channels; P = H * B (head, sample) pairs, G a group of them, k = 2 * top_k.
"""

import warnings

import torch
from torch import Tensor

SIMILARITIES_PER_CHUNK = 1 << 20  # 4 MiB of float32: a block that the last-level cache holds


def distinguishes(top: Tensor, bottom: Tensor) -> Tensor:
    """Whether a row of similarities (..., top_k) tells tokens apart: its top_k-th largest exceeds its top_k-th
    smallest by more than rounding. Zero tokens and identical tokens do not.
    """
    size = torch.maximum(top.abs().amax(dim=-1), bottom.abs().amax(dim=-1)).clamp_min(1)
    return top.amin(dim=-1) > bottom.amax(dim=-1) + 16 * torch.finfo(top.dtype).eps * size


def nearest_and_farthest(x_PNC: Tensor, top_k: int, mask_PN: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The tokens with the top_k largest and the top_k smallest dot products with every token, found in chunks.

    Returns the token indices (P, N, 2 * top_k), the most similar in the first half, and (P, N) True where they
    mean something (see `distinguishes`). Tokens of which `mask_PN` is False are nobody's keys, and have none.
    """
    pairs, num_tokens, _ = x_PNC.shape
    key_PCN = x_PNC.transpose(1, 2)
    index_PNk = torch.empty(pairs, num_tokens, 2 * top_k, dtype=torch.int64, device=x_PNC.device)
    informative_PN = torch.empty(pairs, num_tokens, dtype=torch.bool, device=x_PNC.device)
    rows = max(1, min(num_tokens, SIMILARITIES_PER_CHUNK // (num_tokens * pairs)))
    for start in range(0, num_tokens, rows):
        chunk = slice(start, start + rows)
        similarity = torch.bmm(x_PNC[:, chunk], key_PCN)
        low = high = similarity
        if mask_PN is not None:
            out_P1N = ~mask_PN.unsqueeze(1)
            high, low = similarity.masked_fill(out_P1N, -torch.inf), similarity.masked_fill(out_P1N, torch.inf)
        top = high.topk(top_k, dim=2, sorted=False)
        bottom = low.topk(top_k, dim=2, largest=False, sorted=False)
        index_PNk[:, chunk, :top_k] = top.indices
        index_PNk[:, chunk, top_k:] = bottom.indices
        informative_PN[:, chunk] = distinguishes(top.values, bottom.values)
    return index_PNk, informative_PN if mask_PN is None else informative_PN & mask_PN


def symmetric_targets(x_PNC: Tensor, top_k: int, scale: float, mask_PN: Tensor | None = None) -> Tensor:
    """scale * (S0 + S0^T) over all P * N tokens as one block-diagonal CSR matrix with 32-bit indices.

    S0 holds +1 for the nearest and -1 for the farthest keys of a token, in its row. Pairs are worked off in groups, so
    that sorting the entries stays in cache and takes little memory.
    """
    pairs, num_tokens, _ = x_PNC.shape
    device, dtype = x_PNC.device, x_PNC.dtype
    group = max(1, SIMILARITIES_PER_CHUNK // num_tokens**2)
    counts, columns, values = [], [], []
    for start in range(0, pairs, group):
        x_GNC = x_PNC[start : start + group]
        size = x_GNC.shape[0] * num_tokens
        mask_GN = None if mask_PN is None else mask_PN[start : start + group]
        index_GNk, informative_GN = nearest_and_farthest(x_GNC, top_k, mask_GN)
        index_GNk += torch.arange(0, size, num_tokens, device=device)[:, None, None]
        row = torch.arange(size, device=device).repeat_interleave(2 * top_k)
        column = index_GNk.flatten()
        value = informative_GN.to(dtype)[..., None] * scale * torch.ones(2 * top_k, dtype=dtype, device=device)
        value[..., top_k:] *= -1
        block = torch.sparse_coo_tensor(
            torch.stack([torch.cat([row, column]), torch.cat([column, row])]),
            value.flatten().repeat(2),
            (size, size),
            check_invariants=False,
        ).coalesce()  # a mutual neighbour becomes one entry of twice the value
        counts.append(torch.bincount(block.indices()[0], minlength=size))
        columns.append((block.indices()[1] + start * num_tokens).int())
        values.append(block.values())
    row_start = torch.zeros(pairs * num_tokens + 1, dtype=torch.int32, device=device)
    row_start[1:] = torch.cat(counts).cumsum(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            row_start,
            torch.cat(columns),
            torch.cat(values),
            (pairs * num_tokens, pairs * num_tokens),
            check_invariants=False,
        )
