"""CTF against its formula written out, RELION's wavelength and an independent program."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from cryosweep.ctf import Optics, contrast_transfer, electron_wavelength


def optics(dtype=torch.float64, **values: float) -> Optics:
    given = {
        "defocus_u": 15000.0, "defocus_v": 14000.0, "astigmatism_angle": 25.0, "voltage": 300.0,
        "spherical_aberration": 2.7, "amplitude_contrast": 0.1, "phase_shift": 0.0, "b_factor": 0.0,
        "scale": 1.0,
    } | values  # fmt: skip
    return Optics(**{name: torch.tensor([value], dtype=dtype) for name, value in given.items()})


def frequencies(n: int = 64, pixel_size: float = 1.4) -> torch.Tensor:
    axis = torch.fft.fftfreq(n, pixel_size, dtype=torch.float64)
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).reshape(-1, 2)


def test_wavelength_is_relions():
    assert float(electron_wavelength(torch.tensor(300.0, dtype=torch.float64))) == pytest.approx(
        0.0196876153, abs=1e-10
    )


def test_values_written_out_by_hand():
    where = torch.tensor([[0.05, 0.02], [0.0, 0.1], [-0.08, 0.03]], dtype=torch.float64)
    wavelength = 12.2643247 / math.sqrt(300e3 * (1 + 300e3 * 0.978466e-6))
    for (x, y), value in zip(where.tolist(), contrast_transfer(optics(), where)[0].tolist(), strict=True):
        k2 = x * x + y * y
        dz = 14500 + 500 * math.cos(2 * (math.atan2(y, x) - math.radians(25)))
        phase = math.pi * wavelength * dz * k2 - math.pi / 2 * 2.7e7 * wavelength**3 * k2**2 + math.asin(0.1)
        assert value == pytest.approx(math.sin(phase), abs=1e-12)


def test_amplitude_contrast_at_the_origin_is_positive():
    assert float(contrast_transfer(optics(), torch.zeros(1, 2, dtype=torch.float64))) == pytest.approx(0.1)


def test_phase_shift_of_ninety_degrees_turns_sine_into_cosine():
    where = frequencies(16)
    plain = contrast_transfer(optics(amplitude_contrast=0.0), where)
    plate = contrast_transfer(optics(amplitude_contrast=0.0, phase_shift=90.0), where)
    assert_close(plain**2 + plate**2, torch.ones_like(plain))


def test_b_factor_damps_and_scale_multiplies():
    where = frequencies(16)
    expected = 0.9 * contrast_transfer(optics(), where) * torch.exp(-50.0 / 4 * where.square().sum(-1))
    assert_close(contrast_transfer(optics(b_factor=50.0, scale=0.9), where), expected)


def test_even_aberrations_add_to_the_phase():
    """Defocus and astigmatism are such polynomials: R(2, 0) = 2 r^2 - 1 and Z(2, 2) = r^2 cos 2 phi."""
    where = frequencies(16)
    plain = optics(defocus_u=14500.0, defocus_v=14500.0)
    wavelength = float(electron_wavelength(plain.voltage))
    change = -math.pi * wavelength * 300.0 / 2  # 300 Å of defocus, as coefficient of R(2, 0)
    coefficients = torch.tensor([[change, 0.0, change, 0.0]], dtype=torch.float64)
    moved = contrast_transfer(optics(defocus_u=14800.0, defocus_v=14800.0), where)
    assert_close(contrast_transfer(replace(plain, even_zernike=coefficients), where), moved)
    # the last of order 2
    astigmatic = contrast_transfer(optics(defocus_u=14600.0, defocus_v=14400.0, astigmatism_angle=0.0), where)
    coefficients = torch.tensor([[0.0, 0.0, 0.0, -math.pi * wavelength * 100.0]], dtype=torch.float64)
    assert_close(contrast_transfer(replace(plain, even_zernike=coefficients), where), astigmatic)


def test_float32_agrees_with_float64():
    where = frequencies()
    single = contrast_transfer(optics(torch.float32), where.float())
    # worst seen 4e-5 at 2.8 Å and 1.5 um; a dropped term would show as 1e-2 or more
    assert float((single.double() - contrast_transfer(optics(), where)).abs().max()) < 2e-4


def test_agrees_with_torch_ctf():
    calculate = pytest.importorskip("torch_ctf").calculate_ctf_2d
    other = calculate(
        defocus=1.45, astigmatism=0.05, astigmatism_angle=25.0, voltage=300.0, spherical_aberration=2.7,
        amplitude_contrast=0.1, phase_shift=0.0, pixel_size=1.4, image_shape=(64, 64), rfft=False,
        fftshift=False,
    )  # fmt: skip
    ours = contrast_transfer(optics(), frequencies()).reshape(64, 64)
    # the two differ by 1.3e-3 because its electron wavelength is 6e-6 longer than RELION's
    assert float((ours - other).abs().max()) < 2e-3
