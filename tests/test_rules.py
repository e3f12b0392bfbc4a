"""Every rule where it speaks and where it is silent, on numbers worked out by hand."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from cryosweep import rules
from cryosweep.mask import spherical_mask
from cryosweep.resolution import effective_samples, five_curves
from cryosweep.rules import Finding

ROOT = Path(__file__).parents[1]
SHELLS = np.arange(61)


def falling(shell: float, steepness: float = 6.0) -> np.ndarray:
    """(61,) a curve that falls to 0.143 at a shell."""
    return 1.0 / (1.0 + 6.0 * (SHELLS / shell) ** steepness)


def spoke(found: Finding | None, code: str, level: str, *words: str) -> None:
    assert found is not None
    assert (found.code, found.level) == (code, level)
    for word in words:
        assert word in str(found)


# ---- masks ----


def test_r1_asks_for_five_times_the_resolution() -> None:
    at = {"resolution": 3.55, "pixel_size": 1.4}  # the case study: 13 px
    assert rules.soft_padding(13 * 1.4, **at) is None
    assert rules.soft_padding(12 * 1.4, **at) is None  # one pixel of slack
    spoke(rules.soft_padding(11 * 1.4, **at), "R1", "warning", "15.4 Å (11.0 px)", "18.2 Å (13 px)")


def test_r1_calls_a_hard_edge_through_density_an_error() -> None:
    at = {"resolution": 6.0, "pixel_size": 2.0}
    spoke(rules.soft_padding(0.0, **at), "R1", "warning", "hard edge")
    spoke(rules.soft_padding(0.0, **at, cut_density=0.4), "R1", "error", "40% of its root mean square")
    spoke(rules.soft_padding(0.0, **at, cut_density=0.25), "R1", "warning", "hard edge")
    spoke(rules.soft_padding(20.0, **at, cut_density=0.4), "R1", "warning", "20.0 Å (10.0 px) and cuts")
    assert rules.soft_padding(30.0, **at, cut_density=0.4) is None


def test_r1_grants_a_measured_edge_what_its_measurement_may_lack() -> None:
    at = {"resolution": 6.0, "pixel_size": 2.0, "measured": True}
    assert rules.soft_padding(25.0, **at) is None
    spoke(rules.soft_padding(24.9, **at), "R1", "warning", "as steep as a soft padding of 24.9 Å (12.4 px)")


def test_r2_suggests_room_to_tighten() -> None:
    at = {"resolution": 3.55, "pixel_size": 1.4}
    assert rules.padding_to_start_with(17 * 1.4, **at) is None  # what the case study took
    spoke(rules.padding_to_start_with(13 * 1.4, **at), "R2", "info", "24 Å")
    assert rules.padding_to_start_with(5 * 1.4, **at) is None  # R1 speaks there


@pytest.mark.parametrize(("radius", "speaks"), [(0.0, True), (2.0, False), (7.0, False), (28.0, True)])
def test_r3_knows_the_usual_dilations(radius: float, speaks: bool) -> None:
    found = rules.dilation(radius)
    assert (found is not None) is speaks
    if found is not None:
        spoke(found, "R3", "info", f"{radius:.1f} Å")


def test_r4_wants_no_dilation_of_what_is_subtracted() -> None:
    assert rules.subtraction_dilation(0.0) is None
    spoke(rules.subtraction_dilation(7.0), "R4", "warning", "7.0 Å")


def test_r5_values_lie_between_zero_and_one() -> None:
    assert rules.mask_values(0.0, 1.0) is None
    spoke(rules.mask_values(-0.1, 1.0), "R5", "error", "from -0.1 to 1")
    spoke(rules.mask_values(0.0, 2.0), "R5", "error", "divide it by its maximum")
    spoke(rules.mask_values(0.0, 0.0), "R5", "error", "zero everywhere")


def test_r5_mask_and_map_share_a_grid() -> None:
    own = {"box": 64, "pixel_size": 1.4, "origin": (0.0, 0.0, 0.0)}
    same = {"map_box": 64, "map_pixel_size": 1.4, "map_origin": (0.0, 0.5, 0.0)}
    assert rules.mask_grid(**own, **same) is None
    spoke(rules.mask_grid(**own, **{**same, "map_box": 66}), "R5", "error", "66 px")
    spoke(rules.mask_grid(**own, **{**same, "map_pixel_size": 1.41}), "R5", "error", "1.41 Å")
    spoke(rules.mask_grid(**own, **{**same, "map_origin": (3.0, 0.0, 0.0)}), "R5", "error", "3.0 Å apart")


def test_r5_the_mask_ends_within_its_box() -> None:
    assert rules.mask_inside_box(0.0) is None
    spoke(rules.mask_inside_box(0.45), "R5", "warning", "value 0.45 there")


def test_r6_wants_a_base_that_is_smooth_at_the_resolution() -> None:
    assert rules.base_smoothness(2.0, resolution=4.0) is None  # the case study leaves 0.7 %
    # a Gaussian of 2 Å leaves exp(-2 pi^2 4 / 144) = 58 % at 12 Å
    spoke(rules.base_smoothness(2.0, resolution=12.0), "R6", "warning", "58%")
    spoke(rules.base_smoothness(0.0, resolution=4.0), "R6", "warning", "100%")


def test_r6_wants_a_base_with_little_detail() -> None:
    assert rules.base_detail(0.15, resolution=6.0) is None
    # half the amplitude at 18 Å: exp(-2 pi^2 3.37^2 / 18^2) = 0.5
    spoke(rules.base_detail(0.2, resolution=6.0), "R6", "warning", "20%", "18.0 Å", "Gaussian of 3.4 Å")


def test_check_mask_names_what_is_wrong_and_what_to_do() -> None:
    good = spherical_mask(48, outer_px=20.0, inner_px=5.0)

    def check(mask: torch.Tensor, padding: float) -> tuple[Finding, ...]:
        return rules.check_mask(mask, pixel_size=2.0, resolution=6.0, soft_padding_width=padding)

    assert check(good, 40.0) == ()
    (start,) = check(good, 30.0)
    spoke(start, "R2", "info")
    (slack,) = check(good, 28.0)  # one pixel less still passes R1
    spoke(slack, "R2", "info")
    (padding,) = check(good, 27.9)
    spoke(padding, "R1", "warning", "27.9 Å (13.9 px)", "30.0 Å (15 px)", "widen the soft padding")
    (hard,) = check((good > 0.5).float(), 40.0)
    spoke(hard, "R1", "warning", "hard edge")
    (touching,) = check(spherical_mask(48, outer_px=30.0, inner_px=15.0), 40.0)
    spoke(touching, "R5", "warning", "reaches the box boundary (value 0.45 there)")
    (empty,) = check(torch.zeros(8, 8, 8), 30.0)
    spoke(empty, "R5", "error", "zero everywhere")
    (scaled,) = check(2 * good, 40.0)
    spoke(scaled, "R5", "error", "values from 0 to 2")


# ---- curves ----


def test_r7_a_corrected_curve_that_follows_is_fine() -> None:
    tight = falling(40)
    assert rules.tight_and_corrected(tight, tight - 0.05, randomised_from=10) is None
    # four shells apart are the boundary of the random phases
    dip = tight.copy()
    dip[12:16] -= 0.4
    assert rules.tight_and_corrected(tight, dip, randomised_from=10) is None


def test_r7_a_gap_that_closes_is_a_warning_and_one_that_stays_an_error() -> None:
    tight = falling(40)
    closing = tight.copy()
    closing[12:22] -= 0.3
    found = rules.tight_and_corrected(tight, closing, randomised_from=10)
    spoke(found, "R7", "warning", "0.30 below", "10 shells", "meets it again")
    spoke(rules.tight_and_corrected(tight, falling(20), randomised_from=10), "R7", "error", "apart")


def test_r7_finds_the_hard_mask_through_density_and_not_the_soft_one() -> None:
    """Halves that share a signal of 15 Å and nothing beyond, under a ball that cuts it."""
    size, pixel = 64, 2.0
    generator = torch.Generator().manual_seed(4)
    axis = torch.fft.fftfreq(size, pixel)
    squared = axis[:, None, None] ** 2 + axis[:, None] ** 2 + torch.fft.rfftfreq(size, pixel) ** 2
    spectrum = torch.fft.rfftn(torch.randn(size, size, size, generator=generator))
    signal = torch.fft.irfftn(spectrum * (squared < 1 / 15.0**2), s=(size,) * 3)
    signal = signal / signal.std()
    halves = [signal + 0.5 * torch.randn(size, size, size, generator=generator) for _ in range(2)]
    found: list[Finding | None] = []
    for inner, outer in ((10.0, 10.0), (6.0, 31.0)):
        mask = spherical_mask(size, outer_px=outer, inner_px=inner)
        curves = five_curves(*halves, mask, pixel_size=pixel, generator=generator)
        tight, corrected = curves.tight.numpy(), curves.corrected.numpy()
        samples, first = effective_samples(mask).numpy(), curves.randomised_from
        found += [
            rules.tight_and_corrected(tight, corrected, randomised_from=first),
            rules.mask_leak(curves.randomised.numpy(), samples, randomised_from=first),
        ]
    spoke(found[0], "R7", "error")
    spoke(found[1], "R9", "warning")
    assert found[2:] == [None, None]


def test_r7_a_corrected_curve_below_the_unmasked_one() -> None:
    """Of a region that agrees less than the whole it is a warning, of a mask that invents an error."""
    none = falling(30)
    judge = rules.corrected_and_unmasked
    assert judge(falling(40), falling(38), none, randomised_from=5) is None
    blurred = none - 0.2
    spoke(judge(blurred, blurred, none, randomised_from=5), "R7", "warning", "so does the tight one")
    spoke(judge(falling(45), blurred, none, randomised_from=5), "R7", "error", "the tight one does not")


def test_r8_a_tail_by_chance_is_silent_and_one_that_is_shared_is_not(generator: torch.Generator) -> None:
    samples = 5.0 * SHELLS.clip(1) ** 2
    noise = torch.randn(61, generator=generator).numpy() / np.sqrt(2 * samples)
    curve = falling(30, 12.0)
    assert rules.fsc_tail(curve + noise, samples) is None
    spoke(rules.fsc_tail(curve + 0.05, samples), "R8", "warning", "duplicate")
    rising = curve + 0.3 * (SHELLS > 50)
    spoke(rules.fsc_tail(rising, samples), "R8", "error", "rises again")
    spoke(rules.fsc_tail(falling(59, 2.0), samples), "R8", "warning", "before Nyquist")


def test_r9_weighs_the_leak_against_the_samples() -> None:
    leak = np.full(61, 0.10)
    spoke(rules.mask_leak(leak, np.full(61, 1e4), randomised_from=10), "R9", "warning", "at most 0.05")
    # with 10 samples a shell three SD of the mean over 12 shells are 0.19
    assert rules.mask_leak(leak, np.full(61, 10.0), randomised_from=10) is None
    assert rules.mask_leak(np.full(61, 0.03), np.full(61, 1e4), randomised_from=10) is None
    assert rules.mask_leak(leak, np.full(61, 1e4), randomised_from=57) is None  # too few shells to tell


def test_r22_calls_a_poor_unmasked_fsc_normal() -> None:
    spoke(rules.unmasked_is_worse(12.0, 4.0), "R22", "info", "12.0 Å only", "Nothing")
    assert rules.unmasked_is_worse(4.4, 4.0) is None


def test_r25_a_resolution_at_nyquist_is_a_limit() -> None:
    assert rules.nyquist_reached(8.0, nyquist=7.0) is None
    spoke(rules.nyquist_reached(7.1, nyquist=7.0), "R25", "warning", "not a measurement")


def test_r25_nothing_finer_than_the_pixels_is_asked_for() -> None:
    assert rules.band_beyond_nyquist(7.0, nyquist=7.0, key="refinement.max_resolution") is None
    found = rules.band_beyond_nyquist(6.0, nyquist=7.0, key="refinement.max_resolution")
    spoke(found, "R25", "error", "refinement.max_resolution=6")


# ---- search ----


def test_r10_counts_who_stands_at_the_limit(generator: torch.Generator) -> None:
    inside = (torch.rand(2000, generator=generator).numpy()) * 12.0
    assert rules.at_limit(inside, 20.0, what="rotation", unit="°") is None
    some = np.concatenate([inside, np.full(60, 19.9)])
    spoke(rules.at_limit(some, 20.0, what="rotation", unit="°"), "R10", "warning", "2.9%", "20°")
    # ten of 2010 are few, but nobody stands just before them
    few = np.concatenate([inside, np.full(10, 20.0)])
    spoke(rules.at_limit(few, 20.0, what="shift", unit=" Å"), "R10", "warning", "as many as", "20 Å")
    assert rules.at_limit(np.zeros(5), 0.0, what="shift", unit=" Å") is None


def test_r11_an_extent_leaves_room_for_its_prior() -> None:
    assert rules.extent_in_sigma(20.0, None, what="rotation") is None
    assert rules.extent_in_sigma(21.0, 7.0, what="rotation") is None
    spoke(rules.extent_in_sigma(10.0, 7.0, what="rotation"), "R11", "warning", "1.4 SD")


def test_r11_a_search_that_follows_has_priors() -> None:
    assert rules.recentring_without_prior(False, rotation=None, shift=None) is None
    assert rules.recentring_without_prior(True, rotation=7.0, shift=3.0) is None
    spoke(rules.recentring_without_prior(True, rotation=7.0, shift=None), "R11", "warning", "search=prior")


def test_r12_small_domains_need_priors() -> None:
    assert rules.protein_mass(121_000.0) == pytest.approx(100.0)
    assert rules.small_domain(200.0, has_prior=False) is None
    assert rules.small_domain(100.0, has_prior=True) is None
    spoke(rules.small_domain(100.0, has_prior=False), "R12", "warning", "100 kDa", "search=prior")
    spoke(rules.small_domain(45.0, has_prior=True), "R12", "warning", "exploratory")


def test_r13_compares_the_accuracy_with_the_step_needed() -> None:
    at = {"resolution": 4.0, "diameter": 150.0}  # needs 3.1°
    assert rules.angular_accuracy(3.0, **at) is None
    spoke(rules.angular_accuracy(9.0, **at), "R13", "warning", "9.0° at best", "3.1°", "about 12 Å")


def test_r14_wants_poses_that_are_known() -> None:
    assert rules.pose_certainty(np.array([0.05, 0.4]), step=6.0) is None
    spoke(rules.pose_certainty(np.array([0.01, 0.03]), step=6.0), "R14", "warning", "0.02", "3.0°")


def test_r17_half_sets_are_of_one_size() -> None:
    assert rules.half_balance(505, 495) is None
    spoke(rules.half_balance(520, 480), "R17", "warning", "4.0% apart")


def test_r21_the_fulcrum_lies_in_the_box() -> None:
    assert rules.fulcrum_in_box((10.0, -20.0, 50.0), box_length=112.0) is None
    spoke(rules.fulcrum_in_box((10.0, -20.0, 57.0), box_length=112.0), "R21", "error", "57.0", "56.0 Å")


def test_r21_the_lever_of_a_hinge_at_the_rim() -> None:
    """A rim 40 Å away swings by 2 x 40 sin 10° = 14 Å when the domain turns by 20°."""
    at = {"radius": 40.0, "rotation_extent": 20.0}
    found = rules.fulcrum_lever(0.0, **at, shift_extent=10.0)
    spoke(found, "R21", "info", "14 Å, beyond the shift extent of 10 Å")
    assert rules.fulcrum_lever(0.0, **at, shift_extent=14.0) is None
    assert rules.fulcrum_lever(15.0, **at, shift_extent=3.0) is None  # put somewhere on purpose


@pytest.mark.parametrize(
    ("share", "audited", "speaks"),
    [(0.0, 20, False), (0.05, 20, False), (0.10, 20, True), (0.04, 1000, True)],
)
def test_r27_misses_count_beyond_chance(share: float, audited: int, speaks: bool) -> None:
    found = rules.missed_poses(share, audited)
    assert (found is not None) is speaks
    if found is not None:
        spoke(found, "R27", "warning", "search.audit")


# ---- directions, comparison, subtraction ----


def test_r15_an_order_of_magnitude_in_precision() -> None:
    assert rules.precision_spread(np.array([0.2, 1.0, 1.9])) is None
    spoke(rules.precision_spread(np.array([0.1, 1.0, 1.9])), "R15", "warning", "19 times")
    assert rules.precision_ratio(np.array([0.0, 1.0])) == math.inf


def test_r16_reads_cfar_and_scf_together() -> None:
    assert rules.orientation(0.6, 0.9) is None
    spoke(rules.orientation(0.3, 0.9), "R16", "warning", "cFAR is 0.30", "The views are even")
    spoke(rules.orientation(0.3, None), "R16", "warning", "cFAR is 0.30; ", "Look at the views too")
    spoke(rules.orientation(0.3, 0.5), "R16", "warning", "Views are missing")
    spoke(rules.orientation(0.8, 0.5), "R16", "warning", "SCF* is 0.50", "The map still looks even")


def test_r18_a_difference_within_the_bar_is_none() -> None:
    assert rules.within_chance(0.05, 0.02) is None
    spoke(rules.within_chance(-0.01, 0.02), "R18", "info", "no difference")


def test_r19_windows_are_equal() -> None:
    assert rules.subtraction_window((0.85, 0.99), (0.85, 0.99)) is None
    spoke(rules.subtraction_window((0.8, 0.99), (0.85, 0.99)), "R19", "error", "0.8 to 0.99")


def test_r20_halves_are_subtracted_from_themselves() -> None:
    assert rules.subtraction_halves([0, 1, 1], [0, 1, 1]) is None
    spoke(rules.subtraction_halves([0, 0, 1], [0, 1, 1]), "R20", "error", "1 images")


def test_r23_little_of_what_is_subtracted_is_left() -> None:
    assert rules.subtraction_shadow(100.0, 8.0) is None
    spoke(rules.subtraction_shadow(100.0, 25.0), "R23", "warning", "25%")
    assert rules.subtraction_shadow(0.0, 0.0) is None


def test_r24_scale_belongs_to_the_whole_particle() -> None:
    assert rules.scale_of_a_domain(False, masked_share=0.1) is None
    assert rules.scale_of_a_domain(True, masked_share=0.9) is None
    spoke(rules.scale_of_a_domain(True, masked_share=0.1), "R24", "warning", "10%")


def test_r26_neighbours_in_the_mask() -> None:
    assert rules.neighbours_share(0.16) is None
    spoke(rules.neighbours_share(0.25, mask="the scoring mask"), "R26", "warning", "25%", "the scoring mask")
    spoke(rules.neighbours_share(0.45), "R26", "error", "no resolution is to be quoted")
    assert rules.rim_share(0.06) is None
    spoke(rules.rim_share(0.21), "R26", "warning", "soft edge")


# ---- findings ----


def test_r28_wants_a_b_factor_clearly_below_zero() -> None:
    assert rules.b_factor(-90.0, 45.0) is None
    spoke(rules.b_factor(-89.0, 45.0), "R28", "warning", "-89 ± 45 Å^2")
    spoke(rules.no_b_factor("1 shells lie there"), "R28", "info", "1 shells lie there")


def test_r29_wants_a_window_whose_noise_stays_below_the_threshold() -> None:
    at = {"window": 60.0, "resolution": 8.5}
    assert rules.local_window(0.5, 0.16, **at) is None
    spoke(rules.local_window(0.143, 0.07, **at), "R29", "warning", "0.07 at 8.5 Å", "0.143", "60 Å")


def test_r30_wants_a_contact_at_one_end_of_the_domain() -> None:
    assert rules.contact_along(0.46) is None
    spoke(rules.contact_along(0.62), "R30", "warning", "0.62", "fulcrum=marker")


def test_findings_are_ordered_by_level_then_code() -> None:
    made = [Finding(code, level, "s", "t", "o", "c") for code, level in
            (("R22", "info"), ("R10", "warning"), ("R9", "warning"), ("R16", "error"))]  # fmt: skip
    assert [found.code for found in rules.present([None, *made])] == ["R16", "R9", "R10", "R22"]
    assert str(made[0]) == "R22 info: s; t (o). c."


def test_the_page_has_a_row_for_every_rule_with_its_tests() -> None:
    """Codes of the page are those of the module; each row names a test of this file for its code."""
    code = (ROOT / "cryosweep" / "rules.py").read_text(encoding="utf-8")
    known = set(re.findall(r'"(R\d+)"', code))
    page = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if re.match(r"\| R\d+ ", line)]
    assert {line.split("|")[1].strip() for line in rows} == known
    for line in rows:
        number = line.split("|")[1].strip().lower()
        assert re.search(rf"test_rules\.py::test_({number}_|check_mask)", line), line
