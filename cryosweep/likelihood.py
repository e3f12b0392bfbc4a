"""Log-likelihood of images under poses, with its gradient and Gauss-Newton curvature.

With white noise of variance sigma^2(shell) per Fourier sample, an image I whose model is
`CTF * ph(t) * S(R)` has `log L = -sum_k |I - CTF ph S|^2 / sigma^2` (Scheres 2012, eq. 4, without constants).
Up to terms that no pose changes this is

    log L(R, t) = 2 Re sum conj(Y) ph(t) S(R) - sum W |S(R)|^2,    Y = CTF I / sigma^2,  W = CTF^2 / sigma^2

so images enter only as `Y` and `W`, which may be cropped in real space first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cryosweep.fourier import HalfPlane, shift_phase
from cryosweep.kernels import PAIRS, compiled_grid_products, compiled_quadratic_sums
from cryosweep.projector import Reference, nearest_slices, slices_with_gradient


@dataclass(frozen=True)
class Quadratic:
    """Second-order model of the log-likelihood at b poses, over (rotation x, y, z; shift x, y).

    The rotation is changed on the left, `R <- exp([delta]x) R`, in radians; the shift is in px.

    Attributes:
        value: (b,) log-likelihood.
        gradient: (b, 5).
        curvature: (b, 5, 5) minus the Gauss-Newton Hessian, positive semi-definite.
    """

    value: Tensor
    gradient: Tensor
    curvature: Tensor

    def __getitem__(self, index: Tensor) -> Quadratic:
        return Quadratic(self.value[index], self.gradient[index], self.curvature[index])


def noise_power(power_sum: Tensor, count: Tensor, *, first_shell: int = 1) -> Tensor:
    """Noise variance per shell from summed sample power, safe to divide by.

    Shells below `first_shell` and shells without a sample take the value of the nearest shell that has one.

    Args:
        power_sum: (n_shells,) sum of |image|^2.
        count: (n_shells,) number of samples summed.
        first_shell: the first shell that is trusted.

    Raises:
        ValueError: no shell holds any power (empty or constant images).
    """
    mean = power_sum / count.clamp_min(1)
    good = (count > 0) & (mean > 0)
    good[:first_shell] = False
    if not bool(good.any()):
        raise ValueError("the images hold no signal and no noise: every Fourier shell is zero")
    trusted = good.nonzero().squeeze(-1)
    shells = torch.arange(mean.numel(), device=mean.device)
    nearest = (shells[:, None] - trusted[None, :]).abs().argmin(dim=1)
    return mean[trusted[nearest]]


def log_likelihood_on_grid(
    reference: Reference,
    plane: HalfPlane,
    *,
    images: Tensor,
    weights: Tensor,
    rotations: Tensor,
    base_shifts_px: Tensor,
    grid_shifts_px: Tensor,
) -> Tensor:
    """Log-likelihood of every rotation with every shift of a grid about that rotation's own base shift.

    Slices are read at the nearest points, which is enough to rank starts and many times faster.

    Args:
        reference: map to slice.
        plane: K samples.
        images: (b, K) complex, Y.
        weights: (b, K), W.
        rotations: (b, r, 3, 3).
        base_shifts_px: (b, r, 2).
        grid_shifts_px: (s, 2).

    Returns:
        (b, r, s).
    """
    b, r = rotations.shape[:2]
    model = nearest_slices(reference, rotations.reshape(b * r, 3, 3), plane).reshape(b, r, -1)
    norm = torch.einsum("bk,brk->br", weights, model.real.square() + model.imag.square())
    # Y^* S ph(base), then one real matrix product serves all grid shifts
    cross = images.conj()[:, None] * model * shift_phase(plane, base_shifts_px)
    ramps = shift_phase(plane, -grid_shifts_px)
    real = _flat(cross.reshape(b * r, -1)) @ _flat(ramps).mT
    return 2.0 * real.reshape(b, r, -1) - norm[..., None]


def compiled_log_likelihood_on_grid(
    reference: Reference, plane: HalfPlane, *, images: Tensor, weights: Tensor, rotations: Tensor,
    base_shifts_px: Tensor, grid_shifts_px: Tensor,
) -> Tensor:  # fmt: skip
    """`log_likelihood_on_grid` by the compiled kernel; float32, equal to rounding.

    Arguments as there, but that images and weights hold K' >= K samples and are contiguous.
    """
    b, r = rotations.shape[:2]
    cross, norm = compiled_grid_products()(
        torch.view_as_real(reference.table), plane.k, torch.view_as_real(images), weights,
        rotations.contiguous(), base_shifts_px.contiguous(), reference.side, reference.pad, plane.box_size,
    )  # fmt: skip
    ramps = shift_phase(plane, -grid_shifts_px)
    return 2.0 * (cross.reshape(b * r, -1) @ _flat(ramps).mT).reshape(b, r, -1) - norm[..., None]


def log_likelihood_quadratic(
    reference: Reference,
    plane: HalfPlane,
    *,
    images: Tensor,
    weights: Tensor,
    rotations: Tensor,
    shifts_px: Tensor,
) -> Quadratic:
    """Log-likelihood at b poses with gradient and curvature, in one pass.

    With `r = Y ph* - W S` and J the derivative of the shifted slice seen from its unshifted frame:
    `gradient = 2 Re sum conj(r) J`, `curvature = 2 Re sum W conj(J) J`, `value = Re sum conj(S)(Y ph* + r)`.

    Args:
        reference: map to slice.
        plane: K samples.
        images: (b, K) complex, Y.
        weights: (b, K), W.
        rotations: (b, 3, 3).
        shifts_px: (b, 2).
    """
    b = rotations.shape[0]
    model, gradient = slices_with_gradient(reference, rotations, plane)
    centred = images * shift_phase(plane, shifts_px).conj()
    residual = centred - weights * model
    value = (_flat(model) * _flat(centred + residual)).sum(dim=1)

    # rotation: dS/d delta = g x k with g the gradient in the view frame and k = (kx, ky, 0)
    view = torch.bmm(rotations, gradient)
    kx, ky = plane.k.mT.repeat_interleave(2, dim=1)
    jacobian = view.new_empty(b, 5, view.shape[-1])
    torch.mul(view[:, 2], -ky, out=jacobian[:, 0])
    torch.mul(view[:, 2], kx, out=jacobian[:, 1])
    torch.addcmul(view[:, 0] * ky, view[:, 1], kx, value=-1, out=jacobian[:, 2])
    # shift: -2 pi i k / n times S
    turned = _flat(model * (-2j * math.pi / plane.box_size))
    torch.mul(turned, kx, out=jacobian[:, 3])
    torch.mul(turned, ky, out=jacobian[:, 4])

    slope = 2.0 * torch.bmm(jacobian, _flat(residual)[..., None]).squeeze(-1)
    weighted = jacobian * weights.repeat_interleave(2, dim=1)[:, None]
    return Quadratic(value, slope, 2.0 * torch.bmm(weighted, jacobian.mT))


def compiled_log_likelihood_quadratic(
    reference: Reference, plane: HalfPlane, *, images: Tensor, weights: Tensor, owner: Tensor,
    rotations: Tensor, shifts_px: Tensor,
) -> Quadratic:  # fmt: skip
    """`log_likelihood_quadratic` by the compiled kernel; float32, equal to rounding.

    Args:
        reference: map to slice.
        plane: K samples.
        images: (n, K') complex, Y, contiguous, K' >= K.
        weights: (n, K'), W, contiguous.
        owner: (b,) the image that each pose belongs to.
        rotations: (b, 3, 3).
        shifts_px: (b, 2).
    """
    sums = compiled_quadratic_sums()(
        torch.view_as_real(reference.table), plane.k, torch.view_as_real(images), weights, owner,
        rotations.contiguous(), shifts_px.contiguous(), reference.side, reference.pad, plane.box_size,
    )  # fmt: skip
    rows, columns = torch.tensor(PAIRS, device=sums.device).unbind(1)
    curvature = sums.new_empty(len(sums), 5, 5)
    curvature[:, rows, columns] = sums[:, 6:]
    curvature[:, columns, rows] = sums[:, 6:]
    return Quadratic(sums[:, 0].clone(), sums[:, 1:6].clone(), curvature)


def _flat(samples: Tensor) -> Tensor:
    """(b, 2 K) real and imaginary parts in turn of (b, K) complex samples."""
    return torch.view_as_real(samples).reshape(samples.shape[0], -1)
