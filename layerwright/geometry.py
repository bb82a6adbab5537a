"""Say how alike sets of vectors are: by cosine, and by debiased linear centred kernel alignment."""

import torch
import torch.nn.functional as F
from torch import Tensor

FEWEST = 4  # vectors that debiased CKA needs: the unbiased estimator of HSIC divides by N - 3


def cosines(states: Tensor) -> Tensor:
    """Return the mean cosine of the same vectors in two sets, float64 [S, S], for S sets of N vectors [S, N, D]."""
    unit = F.normalize(states.double(), dim=-1)
    return torch.einsum("snd,tnd->st", unit, unit) / states.shape[1]


def debiased_cka(states: Tensor) -> Tensor:
    """Return the linear CKA of any two of S sets of N vectors [S, N, D], float64 [S, S]; NaN for fewer than FEWEST vectors.

    CKA (Kornblith et al. 2019, equation 2) with the unbiased estimator of HSIC (Song et al. 2012, section 3.1), without which
    few vectors of many dimensions look alike whatever they are.  That estimator is the inner product of Gram matrices with
    their diagonals left out, centred as Szekely and Rizzo (2014) do, so CKA is the cosine of such matrices.
    """
    sets, count = states.shape[:2]
    if count < FEWEST:
        return torch.full((sets, sets), torch.nan, dtype=torch.float64)
    flat = F.normalize(torch.stack([_centred(one.double()).flatten() for one in states]), dim=-1)
    return flat @ flat.T


def uniformity(states: Tensor, real: Tensor) -> Tensor:
    """Return the mean cosine of any two tokens of a row [B], for states [B, L, D]; NaN for a single token.

    real: which tokens count, bool [B, L].
    """
    unit = F.normalize(states.double(), dim=-1) * real[..., None]
    count = real.sum(1)
    # The square of the sum holds each pair twice, and each token with itself once.
    return (unit.sum(1).square().sum(-1) - count) / (count * (count - 1))


def _centred(vectors: Tensor) -> Tensor:
    """Return the Gram matrix of vectors [N, D] with a diagonal of zeros, its rows and columns adding up to zero."""
    centred = vectors - vectors.mean(0)  # which changes nothing but the rounding
    count = len(vectors)
    gram = (centred @ centred.T).fill_diagonal_(0)
    sums = gram.sum(0)
    gram = gram - (sums[:, None] + sums) / (count - 2) + sums.sum() / ((count - 1) * (count - 2))
    return gram.fill_diagonal_(0)
