"""Per-particle scale: one factor on the projection that each image is compared with.

Images differ in contrast, for ice and dose are uneven. At the current pose, with P the projection under its
CTF, X the image and sigma^2 the noise variance of a shell, the likelihood is largest at

    s = sum Re(conj(P) X) / sigma^2  /  sum |P|^2 / sigma^2

with the Cramér-Rao variance `1 / (2 sum |P|^2 / sigma^2)`. RELION estimates the same ratio for each group of
images, mostly a micrograph, with mean 1 over all images (`rlnGroupScaleCorrection`), CryoSPARC one for each
particle (`alignments3D/alpha`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cryosweep.fourier import HalfPlane, shift_phase
from cryosweep.projector import Reference, slices

# No scale beyond five times the median, none below a fifth of it: a guard against images of something else.
WIDEST = 5.0


def scale_terms(
    reference: Reference, plane: HalfPlane, *, images: Tensor, weights: Tensor, rotations: Tensor,
    shifts_px: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Numerator and denominator (b,) of the scale that explains each image best.

    Args:
        reference: map to slice.
        plane: K samples.
        images: (b, K) complex, Y = CTF I / sigma^2.
        weights: (b, K), W = CTF^2 / sigma^2.
        rotations: (b, 3, 3).
        shifts_px: (b, 2).
    """
    model = slices(reference, rotations, plane)
    cross = (images * shift_phase(plane, shifts_px).conj() * model.conj()).real
    energy = weights * (model.real.square() + model.imag.square())
    return cross.double().sum(dim=1), energy.double().sum(dim=1)


def particle_scale(cross: Tensor, energy: Tensor, half_sets: Tensor) -> Tensor:
    """(n,) scale of each particle, with mean 1 in each half-set.

    What a weak image says about its own scale is mostly noise, so each estimate is drawn to the common one as
    the spread of all of them demands: by `t^2 / (t^2 + v)`, v its Cramér-Rao variance and t^2 the variance of
    the true scales by the method of moments (DerSimonian & Laird 1986, Control Clin Trials 7, 177). Scales
    that do not differ come out as 1. Then the range is cut to a fifth and five times the median.

    Args:
        cross: (n,) numerators of `scale_terms`, at a scale of 1.
        energy: (n,) denominators.
        half_sets: (n,) 0 or 1.
    """
    scale = torch.ones_like(cross)
    for half in half_sets.unique():
        rows = (half_sets == half).nonzero().squeeze(-1)
        total = energy[rows].sum()
        # energies are those of a filtered reference: the common factor takes its grey scale out
        common = cross[rows].sum() / total.clamp_min(torch.finfo(total.dtype).tiny)
        if len(rows) < 2 or not bool(common > 0):
            continue
        weight = 2.0 * energy[rows] * common.square()
        relative = cross[rows] / (energy[rows] * common).clamp_min(torch.finfo(total.dtype).tiny)
        surplus = (weight * (relative - 1.0).square()).sum() - (len(rows) - 1)
        spread = surplus / (weight.sum() - weight.square().sum() / weight.sum())
        believed = spread.clamp_min(0.0) * weight
        shrunk = 1.0 + believed / (1.0 + believed) * (relative - 1.0)
        middle = shrunk.median().clamp_min(1e-3)
        kept = shrunk.clamp(middle / WIDEST, middle * WIDEST)
        scale[rows] = kept / kept.mean()
    return scale
