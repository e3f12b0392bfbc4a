"""Screen once, then replicate: which points of a finished sweep are run again, and as which overrides.

The rule is that of `docs/statistics.md`: the centre, the leaders by rank sum, and the points that a claim
will name.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from cryosweep.study.comparison import HELD_OUT, SCORE, Comparison, Run, paired_means, point_label, show


class By(Enum):
    """What differs between replicates: the overrides that make them, and what they speak for."""

    split = "other splits of the same particles into half sets: what is found holds for these particles"
    simulation = "other simulated particles: what is found holds for particles of this kind"

    def overrides(self, seeds: Sequence[int]) -> tuple[str, ...]:
        """That make one replicate of a point a seed."""
        values = ",".join(map(str, seeds))
        if self is By.simulation:
            return (f"data.simulation_seed={values}",)
        return (f"seed={values}", "data.resplit=true")

    @property
    def keys(self) -> tuple[str, ...]:
        """Whose overrides of the screening are replaced."""
        if self is By.simulation:
            return ("data.simulation_seed",)
        return ("seed", "data.resplit", "data.half_set_seed")


@dataclass(frozen=True)
class Candidate:
    """A point of the screening: its name, and its scores (held-out likelihood None where it is not known)."""

    name: str
    area: float
    held_out: float | None


def choose(
    candidates: Sequence[Candidate], centre: str, *, leaders: int = 3, also: Sequence[str] = ()
) -> dict[str, str]:
    """The points to replicate, with the reason in words; the centre comes first.

    Chosen are the centre, the first `leaders` others, the first by FSC area alone and the first by held-out
    likelihood alone, which a report names beside the leader, and those in `also`. Each point is there once.

    Args:
        candidates: all points, first by rank sum first.
        centre: name of one of them.
        leaders: how many of the first.
        also: names of further points.

    Raises:
        ValueError: there is no other point than the centre.
    """
    others = [each for each in candidates if each.name != centre]
    if not others:
        raise ValueError(f"the sweep has one point, {centre}; there is nothing to compare it with")
    reasons = {centre: "the centre"}
    for place, each in enumerate(others[:leaders], start=1):
        reasons[each.name] = f"number {place} of the others by rank sum"
    reasons.setdefault(max(candidates, key=lambda each: each.area).name, "first by FSC area alone")
    poses = {each.name: each.held_out for each in candidates if each.held_out is not None}
    if len(poses) == len(candidates):
        reasons.setdefault(max(poses, key=lambda name: poses[name]), "first by held-out likelihood alone")
    for name in also:
        reasons.setdefault(name, "asked for")
    return reasons


def candidates_of(comparison: Comparison) -> tuple[dict[str, Run], tuple[Candidate, ...]]:
    """One run of each point of a comparison, and the points as candidates, in the order of the table."""
    points: dict[str, list[Run]] = {}
    for run in comparison.runs:
        points.setdefault(point_label(run, comparison.choices), []).append(run)
    replication = comparison.replication
    area = paired_means(points, replication.keys, replication.centre, SCORE)
    held_out: Mapping[str, float] = {}
    if all(HELD_OUT in run.summary for run in comparison.runs):
        held_out = paired_means(points, replication.keys, replication.centre, HELD_OUT)
    named = tuple(Candidate(name, area[name], held_out.get(name)) for name in points)
    return {name: group[0] for name, group in points.items()}, named


def find_point(runs: Mapping[str, Run], wanted: Mapping[str, str]) -> str:
    """The name of the one point with these values.

    Raises:
        ValueError: none has them, or several.
    """
    matching = [
        name
        for name, run in runs.items()
        if all(show(run.swept.get(key)) == value for key, value in wanted.items())
    ]
    if len(matching) == 1:
        return matching[0]
    told = ",".join(f"{key}={value}" for key, value in wanted.items())
    found = "several points have that; name more of its keys" if matching else "no point has that"
    raise ValueError(f"{told}: {found} (points: {'; '.join(matching or runs)})")


def replicate_overrides(runs: Sequence[Run], seeds: Sequence[int], by: By) -> list[str]:
    """The overrides of a sweep that runs the points of these runs again with other seeds.

    What all of them set alike stays an override; what differs makes a list of points.

    Raises:
        ValueError: a run does not record its command, or has no simulation to repeat.
    """
    told = [_overrides(run, by) for run in runs]
    alike = {key: value for key, value in told[0].items() if all(each.get(key) == value for each in told)}
    listed = [{key: value for key, value in each.items() if key not in alike} for each in told]
    points = ",".join(
        "{" + ",".join(f"{key}:{_quoted(value)}" for key, value in each.items()) + "}" for each in listed
    )
    return [
        *(f"{key}={value}" for key, value in alike.items()),
        *by.overrides(seeds),
        # what an experiment file sweeps is in the points already
        "hydra.sweeper.params=null",
        "hydra.sweeper.only_if=null",
        f"hydra.sweeper.points=[{points if any(listed) else ''}]",
    ]


def _overrides(run: Run, by: By) -> dict[str, str]:
    words = shlex.split(run.command)[2:]
    if not run.command:
        raise ValueError(f"{run.folder}: the run does not record its command; run its sweep again")
    if by is By.simulation and "simulation_seed" not in run.config().get("data", {}):
        raise ValueError(f"{run.folder}: its particles are not simulated; take --by split")
    pairs = [word.partition("=") for word in words]
    return {key: value for key, _, value in pairs if key not in by.keys}


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
