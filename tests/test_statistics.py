"""Intervals, tests and verdicts, held against exact answers and against simulated studies."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from cryosweep.resolution import area_sd, crossing, crossing_interval, effective_samples, fsc, fsc_interval
from cryosweep.study.statistics import (
    MOST_REPLICATES,
    Difference,
    Kind,
    Scope,
    holm,
    jackknife_difference,
    jackknife_sd,
    judge,
    paired_difference,
    replicates_needed,
    t_interval,
    told_from_first,
)

Record = Callable[[str, object], None]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260101)


def binomial_error(share: float, draws: int) -> float:
    return math.sqrt(share * (1.0 - share) / draws)


def test_paired_difference_is_that_of_scipy(rng: np.random.Generator) -> None:
    values, centre = rng.normal(0.6, 0.01, 5), rng.normal(0.59, 0.01, 5)
    found = paired_difference(values, centre)
    peer = stats.ttest_rel(values, centre)
    ends = peer.confidence_interval(0.95)
    assert (found.n, found.mean) == (5, pytest.approx(float((values - centre).mean())))
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))
    assert found.p == pytest.approx(peer.pvalue)


def test_one_pair_has_no_spread_and_faulty_pairs_are_refused() -> None:
    one = paired_difference(np.array([0.6]), np.array([0.5]))
    assert one.n == 1
    assert math.isnan(one.low)
    assert one.p == 1.0
    same = paired_difference(np.array([0.6, 0.7]), np.array([0.6, 0.7]))
    assert (same.low, same.high, same.p) == (0.0, 0.0, 1.0)
    apart = paired_difference(np.array([0.75, 1.0]), np.array([0.5, 0.75]))
    assert apart.p == 0.0
    with pytest.raises(ValueError, match="equal length"):
        paired_difference(np.array([0.6]), np.array([0.5, 0.4]))
    with pytest.raises(ValueError, match="must be finite"):
        paired_difference(np.array([0.6, math.nan]), np.array([0.5, 0.4]))


def test_holm_by_hand() -> None:
    # Holm's own procedure: 0.01 * 4, then 0.02 * 3, then 0.03 * 2, then the largest, never falling
    p = np.array([0.03, 0.01, 0.9, 0.02])
    assert holm(p) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm(np.array([0.6, 0.7])) == pytest.approx([1.0, 1.0])
    assert holm(np.stack([p, p[::-1]]))[1] == pytest.approx(holm(p)[::-1])


@pytest.mark.parametrize("replicates", [2, 3, 5])
def test_studies_of_one_setting_raise_few_false_alarms(
    replicates: int, rng: np.random.Generator, record_property: Record
) -> None:
    """A/A: 16 labels of one setting, compared with the first; all differences share the centre's noise.

    The noise of a comparison differs between settings by a factor 10, as measured for pose settings.
    """
    studies, labels = 4000, 16
    spread = np.geomspace(0.001, 0.01, labels)[:, None]
    shared = rng.normal(0.0, 0.007, (studies, 1, replicates))
    scores = 0.6 + shared + spread * rng.standard_normal((studies, labels, replicates))
    p = t_interval(scores[:, 1:] - scores[:, :1])[2]
    alarms = float((holm(p) < 0.05).any(axis=-1).mean())
    record_property(f"false_alarms_{replicates}", alarms)
    assert alarms <= 0.05 + 2.0 * binomial_error(0.05, studies)
    # without the adjustment most studies would announce something
    assert float((p < 0.05).any(axis=-1).mean()) > 0.2


@pytest.mark.parametrize("replicates", [2, 3, 5])
def test_intervals_of_replicates_cover_the_true_difference(
    replicates: int, rng: np.random.Generator, record_property: Record
) -> None:
    draws, true = 4000, 0.02
    low, high, _, _ = t_interval(rng.normal(true, 0.006, (draws, replicates)))
    coverage = float(((low < true) & (true < high)).mean())
    record_property(f"coverage_{replicates}", coverage)
    assert abs(coverage - 0.95) < 3.0 * binomial_error(0.95, draws)


@pytest.mark.parametrize(("sd", "difference"), [(0.006, 0.01), (0.006, 0.02), (0.01, 0.01), (0.2, 0.25)])
def test_replicates_needed_have_their_power(sd: float, difference: float, rng: np.random.Generator) -> None:
    n = replicates_needed(sd, difference)
    draws = 20000

    def power(count: int) -> float:
        return float((t_interval(rng.normal(difference, sd, (draws, count)))[2] < 0.05).mean())

    assert power(n) > 0.8 - 3.0 * binomial_error(0.8, draws)
    assert power(n - 1) < 0.8 + 3.0 * binomial_error(0.8, draws)


def test_replicates_needed_have_their_power_among_other_comparisons(rng: np.random.Generator) -> None:
    """Holm over eight comparisons, one of them a difference: what a test alone would need does not do."""
    comparisons, draws = 8, 4000

    def power(n: int) -> float:
        d = rng.normal(0.0, 0.006, (draws, comparisons, n))
        d[:, 0] += 0.01
        return float((holm(t_interval(d)[2])[:, 0] < 0.05).mean())

    alone = replicates_needed(0.006, 0.01)
    together = replicates_needed(0.006, 0.01, comparisons=comparisons)
    assert together > alone
    assert power(together) > 0.8 - 3.0 * binomial_error(0.8, draws)
    assert power(alone) < 0.6


def test_choosing_by_the_screening_raises_no_more_false_alarms(
    rng: np.random.Generator, record_property: Record
) -> None:
    """24 points of one setting, run once; the first three are run twice more and tested with all three runs.

    The choice lifts the mean of the first run and widens the spread of the three alike.
    """
    studies = 4000
    scores = rng.standard_normal((studies, 24, 3))
    chosen = np.argsort(-scores[:, 1:, 0], axis=-1)[:, :3] + 1
    d = np.take_along_axis(scores, chosen[..., None], axis=1) - scores[:, :1]
    low, high, p, _ = t_interval(d)
    alarms, coverage = float((holm(p) < 0.05).any(axis=-1).mean()), float(((low < 0) & (high > 0)).mean())
    record_property("after_screening", (alarms, coverage, float(d.mean())))
    assert alarms <= 0.05 + 2.0 * binomial_error(0.05, studies)
    assert coverage > 0.95 - 3.0 * binomial_error(0.95, 3 * studies)
    # what it does do: the differences are too high by half the SD of a run
    assert d.mean() == pytest.approx(0.5, abs=0.05)


def test_no_point_is_told_from_the_first_of_its_equals(
    rng: np.random.Generator, record_property: Record
) -> None:
    studies, points, replicates = 300, 8, 5
    wrongly, by_pairs_with_it = 0, 0
    for scores in rng.standard_normal((studies, points, replicates)):
        scores = scores[np.argsort(-scores.mean(axis=-1))]
        told = told_from_first([dict(zip("abcde", map(float, row), strict=True)) for row in scores])
        wrongly += any(told)
        by_pairs_with_it += bool((holm(t_interval(scores[1:] - scores[:1])[2]) < 0.05).any())
    record_property("told_from_the_first_of_its_equals", (wrongly / studies, by_pairs_with_it / studies))
    assert wrongly / studies <= 0.05
    # a family of the pairs with the first alone is not enough, because the first was picked
    assert by_pairs_with_it / studies > 0.06


def test_what_has_too_few_replicates_in_common_is_not_told_from_the_first() -> None:
    first = {"0": 0.9, "1": 0.91, "2": 0.92}
    lower = {"0": 0.1, "1": 0.11001, "2": 0.12}
    told = told_from_first([first, lower, {"0": 0.2}, {"7": 0.3, "8": 0.3}])
    assert told == (False, True, False, False)


def test_replicates_needed_at_the_ends() -> None:
    assert replicates_needed(1.0, 0.001) == MOST_REPLICATES
    assert replicates_needed(1e-6, 1.0) == 2
    with pytest.raises(ValueError, match="must be above 0"):
        replicates_needed(0.0, 0.01)
    with pytest.raises(ValueError, match="must be 1 or more"):
        replicates_needed(0.01, 0.01, comparisons=0)


def test_jackknife_of_a_mean_is_its_standard_error(rng: np.random.Generator) -> None:
    """Of a mean of g equal blocks the jackknife is exact: SD of the block means over sqrt(g)."""
    blocks = rng.normal(0.0, 1.0, (3, 10))
    left_out = (blocks.sum(axis=-1, keepdims=True) - blocks) / 9.0
    assert jackknife_sd(left_out) == pytest.approx(blocks.std(axis=-1, ddof=1) / math.sqrt(10))
    found = jackknife_difference(0.6, 0.5, left_out[0], left_out[1])
    sd = (blocks[0] - blocks[1]).std(ddof=1) / math.sqrt(10)
    assert (found.n, found.mean, found.sd) == (1, pytest.approx(0.1), pytest.approx(sd))
    assert found.high - found.mean == pytest.approx(float(stats.t.ppf(0.975, 9)) * sd)


# ---- one run: the spread of an FSC under a mask ----


def noisy_pairs(mask: torch.Tensor, draws: int, generator: torch.Generator) -> torch.Tensor:
    """(draws, n_shells) FSC of two maps that share a signal whose FSC falls with frequency."""
    size = mask.shape[-1]
    frequency = torch.fft.fftfreq(size) * size
    radius = (
        frequency[:, None, None] ** 2 + frequency[None, :, None] ** 2
        + (torch.fft.rfftfreq(size) * size)[None, None, :] ** 2
    ).sqrt()  # fmt: skip
    amplitude = 3.0 * torch.exp(-((radius / (0.28 * size)) ** 2))
    white = torch.randn(size, size, size, generator=generator)
    signal = torch.fft.irfftn(torch.fft.rfftn(white) * amplitude, s=mask.shape)
    curves = []
    for _ in range(draws):
        noise = torch.randn(2, *mask.shape, generator=generator)
        curves.append(fsc((signal + noise[0]) * mask, (signal + noise[1]) * mask))
    return torch.stack(curves)


def soft_ball(size: int, radius: float, edge: float) -> torch.Tensor:
    axis = torch.arange(size) - size // 2
    distance = (axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2).sqrt()
    return 0.5 + 0.5 * torch.cos(math.pi * ((distance - radius) / edge).clamp(0.0, 1.0))


@pytest.mark.parametrize("radius", [4.0, 6.0, 9.0])
def test_intervals_within_a_run_cover(
    radius: float, generator: torch.Generator, record_property: Record
) -> None:
    """Masks of 2 to 25 % of the box: the area's interval is right, those of single shells are wide."""
    draws, first, last = 250, 3, 13
    mask = soft_ball(32, radius, 4.0)
    curves = noisy_pairs(mask, draws, generator)
    share = float(effective_samples(mask)[10]) / (200.0 * math.pi)
    truth = curves.mean(dim=0)
    areas = curves[:, first : last + 1].mean(dim=1)
    sds = torch.tensor([area_sd(curve, mask, first_shell=first, last_shell=last) for curve in curves])
    ratio = float(sds.mean() / areas.std())
    covered = float(((areas - areas.mean()).abs() < 1.96 * sds).float().mean())
    low, high = fsc_interval(curves, effective_samples(mask))
    shells = float(((low < truth) & (truth < high))[:, first : last + 1].float().mean())
    true_crossing = crossing(truth, 0.143, box_size=32, pixel_size=1.0)
    ends = [crossing_interval(curve, mask, 0.143, pixel_size=1.0) for curve in curves]
    crossings = sum(fine <= true_crossing <= coarse for fine, coarse in ends) / draws
    record_property(f"mask_share_{share:.3f}", (ratio, covered, shells, crossings))
    assert 0.75 < ratio < 1.35
    assert covered > 0.95 - 0.05
    assert shells > 0.95
    assert crossings > 0.95


# ---- words ----


def difference(mean: float, half: float, p: float, n: int = 3) -> Difference:
    return Difference(n, mean, half / 2.5, mean - half, mean + half, p)


def said(
    area: Difference, likelihood: Difference | None = None, scope: Scope = Scope.THESE_PARTICLES
) -> Kind:
    p = 1.0 if likelihood is None else likelihood.p
    verdict = judge("X", "Y", area, area.p, scope=scope, likelihood=likelihood, likelihood_p=p)
    assert verdict.kind.value in verdict.sentence
    return verdict.kind


def test_verdicts() -> None:
    assert said(difference(0.035, 0.005, 0.001)) is Kind.BETTER
    assert said(difference(-0.035, 0.005, 0.001)) is Kind.WORSE
    assert said(difference(0.005, 0.002, 0.001)) is Kind.SMALL
    assert said(difference(0.001, 0.004, 0.4)) is Kind.EQUAL
    assert said(difference(0.02, 0.03, 0.2)) is Kind.OPEN
    assert said(difference(0.05, 0.01, 0.001), difference(-3.0, 1.0, 0.002)) is Kind.DISAGREE
    assert said(difference(0.05, 0.01, 0.001), difference(-3.0, 4.0, 0.3)) is Kind.BETTER
    assert said(difference(0.05, 0.01, 0.001, n=1), scope=Scope.ONE_RUN) is Kind.CANDIDATE
    assert said(paired_difference(np.array([0.6]), np.array([0.5]))) is Kind.CANDIDATE


def test_a_verdict_says_how_much_on_what_and_for_whom() -> None:
    area = Difference(3, 0.035, 0.002, 0.03, 0.04, 0.001)
    resolution = Difference(3, -0.3, 0.1, -0.5, -0.1, 0.01)
    verdict = judge("X", "Y", area, 0.002, scope=Scope.THESE_PARTICLES, resolution=resolution)
    assert verdict.sentence == (
        "X is better than Y: +0.035 [+0.030, +0.040] in FSC area, -0.30 [-0.50, -0.10] Å at 0.143 "
        "(n = 3 paired replicates; these particles; other splits into half sets)."
    )
    wide = Difference(3, 0.02, 0.01, -0.005, 0.045, 0.2)
    sentence = judge("X", "Y", wide, 0.4, scope=Scope.OTHER_PARTICLES).sentence
    assert f"{replicates_needed(0.01, 0.01)} replicates would settle a difference of 0.01" in sentence
    assert "other particles of this kind" in sentence
    among = judge("X", "Y", wide, 0.4, scope=Scope.OTHER_PARTICLES, comparisons=8).sentence
    needed = replicates_needed(0.01, 0.01, comparisons=8)
    assert f"{needed} replicates would settle a difference of 0.01 among 8 comparisons" in among
    # of a small spread the replicates that there are would do
    narrow = Difference(3, 0.008, 0.002, 0.003, 0.013, 0.06)
    enough = judge("X", "Y", narrow, 0.06, scope=Scope.OTHER_PARTICLES).sentence
    assert "so many find a difference of 0.01 four times in five" in enough
    # the test that is adjusted for all comparisons decides, not the one on its own
    adjusted = judge("X", "Y", area, 0.2, scope=Scope.THESE_PARTICLES)
    assert adjusted.kind is Kind.OPEN
    assert "[+0.030, +0.040] in FSC area, p = 0.2 after Holm's correction" in adjusted.sentence
    assert "Holm" not in sentence
    # the p-value is that of the FSC area and stands beside it
    poses = Difference(3, 1.0, 0.5, -0.5, 2.5, 0.1)
    both = judge("X", "Y", area, 0.2, scope=Scope.THESE_PARTICLES, likelihood=poses).sentence
    assert "in FSC area, p = 0.2 after Holm's correction, held-out log-likelihood +1.00" in both
