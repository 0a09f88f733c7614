"""Superposition of structures by least squares (Kabsch, Acta Cryst. A 32, 922, 1976)."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Frames: TypeAlias = NDArray[np.float64]


@torch.no_grad()
def align(mobile: Tensor, fixed: Tensor, weights: Tensor) -> Tensor:
    """Move and turn structures onto others, by weighted least squares and without reflection.

    No gradient flows through the fit.

    Parameters
    ----------
    mobile, fixed
        ``(..., a, 3)``, with leading axes that broadcast.
    weights
        ``(..., a)``, zero for atoms to leave out.

    Returns
    -------
    Tensor
        ``(..., a, 3)``, the moved structures.
    """
    share = (weights / weights.sum(-1, keepdim=True))[..., None]
    mobile_centre = (share * mobile).sum(-2, keepdim=True)
    fixed_centre = (share * fixed).sum(-2, keepdim=True)
    offset = mobile - mobile_centre
    covariance = torch.matmul((share * offset).transpose(-1, -2), fixed - fixed_centre)
    # Double precision, because singular values of flat or small molecules lie close together.
    u, _, vh = torch.linalg.svd(covariance.double())
    sign = torch.sign(torch.linalg.det(torch.matmul(u, vh)))
    u = torch.cat([u[..., :2], u[..., 2:] * sign[..., None, None]], dim=-1)
    return torch.matmul(offset, torch.matmul(u, vh).to(mobile)) + fixed_centre


def superpose(frames: Frames, onto: Frames) -> Frames:
    """Move and turn frames onto a structure by least squares, without reflection.

    Parameters
    ----------
    frames
        ``(f, a, 3)``.
    onto
        ``(a, 3)`` for all frames, or ``(f, a, 3)`` for one each.
    """
    weights = torch.ones(frames.shape[1], dtype=torch.float64)
    mobile = torch.from_numpy(np.array(frames, dtype=np.float64))
    fixed = torch.from_numpy(np.array(onto, dtype=np.float64))
    return np.asarray(align(mobile, fixed, weights))
