"""Which points a sweep consists of: a grid, points listed one by one, and axes that only some points have.

Everything is written and read in Hydra's own grammar of overrides; `docs/sweeps.md` shows how.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from itertools import product
from typing import Any, cast

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException

# Keys of `hydra.sweeper` that say which points there are.
PARAMS, POINTS, ONLY_IF = "params", "points", "only_if"


class AxisFault(ValueError):
    """What is wrong with the axes of a sweep, in one line."""


@dataclass(frozen=True)
class Axes:
    """What is swept, as written.

    Attributes:
        lines: overrides of the task in Hydra's grammar; of one key the last one counts.
        points: listed points, key to value; each is crossed with the grid of `lines`.
        only_if: key, or pattern of keys, to the values that other keys must have where it is there.
    """

    lines: tuple[str, ...]
    points: tuple[Mapping[str, object], ...] = ()
    only_if: Mapping[str, Mapping[str, tuple[object, ...]]] | None = None


@dataclass(frozen=True)
class Expansion:
    """What a sweep consists of.

    Attributes:
        swept: number of values of each swept key, in the order given.
        points: the overrides of each job, one value each; a key that a condition takes away is not in them.
        words: the axes in one line.
        repeats: how many points were named more than once.
    """

    swept: dict[str, int]
    points: tuple[tuple[str, ...], ...]
    words: str = "nothing swept"
    repeats: int = 0

    def __str__(self) -> str:
        return self.words


def read_axes(sweeper: Mapping[str, object], overrides: Sequence[str]) -> Axes:
    """The axes that the configuration of a sweeper and the overrides of the task name.

    Args:
        sweeper: `hydra.sweeper` as plain values.
        overrides: of the task, as typed. They replace what `params` says of the same key.

    Raises:
        AxisFault: `points` or `only_if` is not written as it must be.
    """
    params = cast("Mapping[str, object]", sweeper.get(PARAMS) or {})
    lines = (*(f"{key}={value}" for key, value in params.items()), *overrides)
    return Axes(lines, _read_points(sweeper.get(POINTS)), _read_conditions(sweeper.get(ONLY_IF)))


def lists_points(sweeper: Mapping[str, object]) -> bool:
    """Whether this sweeper runs exactly the points of `expand`: that of cryosweep, and Hydra's basic one."""
    return str(sweeper.get("_target_")).endswith((".PointSweeper", ".BasicSweeper"))


def _read_points(given: object) -> tuple[Mapping[str, object], ...]:
    points: list[Any] = list(given) if isinstance(given, list | tuple) else [given] if given else []
    for point in points:
        if not isinstance(point, dict) or not point:
            raise AxisFault(
                f"hydra.sweeper.{POINTS}: {point!r} is no point; write {{mask.dilation_radius: 7, "
                "mask.soft_padding_width: 16}, ... for each"
            )
    return tuple(points)


def _read_conditions(given: object) -> dict[str, dict[str, tuple[object, ...]]]:
    found: dict[str, dict[str, tuple[object, ...]]] = {}
    wrong = AxisFault(
        f"hydra.sweeper.{ONLY_IF}: {given!r} is no condition; write "
        "{subtraction.dilation_radius: {subtraction: domain}}, or a list of values in place of one"
    )
    if given and not isinstance(given, dict):
        raise wrong
    for key, condition in cast("dict[str, Any]", given or {}).items():
        if not isinstance(condition, dict) or not condition:
            raise wrong
        rows = cast("dict[str, Any]", condition)
        found[key] = {
            name: tuple(values) if isinstance(values, list) else (values,) for name, values in rows.items()
        }
    return found


def override_parser() -> OverridesParser:
    """Hydra's parser of overrides, which knows the groups where Hydra is initialised."""
    loader = GlobalHydra.instance().config_loader() if GlobalHydra.instance().is_initialized() else None
    return OverridesParser.create(config_loader=loader)


def last_of_each(axes: Axes) -> list[Override]:
    """The overrides that count, in the order in which their keys first came."""
    found: dict[str, Override] = {}
    for override in override_parser().parse_overrides(list(axes.lines)):
        found[override.get_key_element()] = override
    return list(found.values())


def expand(axes: Axes, *, intervals: bool = False) -> Expansion:
    """All points: each listed point with each combination of the grid, without what conditions take away.

    Points that are equal once an axis has gone are one point. The first listed point with the first value of
    each axis is the first job, which is the centre that a comparison starts from.

    Args:
        axes: what is swept.
        intervals: of a continuous interval, which another sweeper may know, the start stands for the whole.

    Raises:
        AxisFault: an interval, a condition that cannot be told, a key that is both listed and in the grid.
        HydraException: an override cannot be parsed.
    """
    grid: list[list[tuple[str, str]]] = []
    swept: dict[str, int] = {}
    for override in last_of_each(axes):
        name, key, value = override.key_or_group, override.get_key_element(), override.value()
        if not override.is_sweep_override():
            texts = [override.input_line or ""]
        elif not isinstance(value, IntervalSweep):
            texts = [f"{key}={element}" for element in override.sweep_string_iterator()]
        elif intervals:
            texts = [f"{key}={value.start}"]
        else:
            raise AxisFault(
                f"{override.input_line}: an interval has no list of values; give values, or search it with "
                "hydra/sweeper=optuna"
            )
        if override.is_sweep_override():
            swept[name] = len(texts)
        grid.append([(name, text) for text in texts])
    listed = [_listed(point) for point in axes.points]
    twice = {name for point in listed for name, _ in point} & {values[0][0] for values in grid}
    if twice:
        raise AxisFault(
            f"{min(twice)} is in hydra.sweeper.{POINTS} and in the grid or among the overrides as well; take "
            f"it out of one of them (hydra.sweeper.{POINTS}=null drops the list)"
        )
    in_points = {name: {text for point in listed for key, text in point if key == name}
                 for point in listed for name, _ in point}  # fmt: skip
    swept = {**{name: len(texts) for name, texts in in_points.items()}, **swept}
    whole = [(*point, *rest) for point in (listed or [()]) for rest in product(*grid)]
    known = list(dict.fromkeys(name for point in whole for name, _ in point))
    conditions = conditions_in_order(axes, known)
    kept = list(dict.fromkeys(without_absent(point, conditions) for point in whole))
    for name in conditions:
        if not any(name == key for point in kept for key, _ in point):
            told = _told(conditions[name])
            raise AxisFault(f"hydra.sweeper.{ONLY_IF}: {name} is in no point, because {told} never holds")
    return Expansion(
        swept,
        tuple(tuple(text for _, text in point) for point in kept),
        _words(len(listed), in_points, swept, conditions),
        len(whole) - len(set(whole)),
    )


def conditions_in_order(axes: Axes, known: Sequence[str]) -> dict[str, Mapping[str, tuple[object, ...]]]:
    """The conditions of `known` keys, each after those of the keys that it depends on.

    Raises:
        AxisFault: a condition is for no key, asks for a key whose value is not written, or for itself.
    """
    found: dict[str, Mapping[str, tuple[object, ...]]] = {}
    for pattern, condition in (axes.only_if or {}).items():
        matched = [name for name in known if fnmatchcase(name, pattern)]
        if not matched:
            raise AxisFault(f"hydra.sweeper.{ONLY_IF}: {pattern} is neither swept nor given a value")
        for asked in condition:
            if asked not in known:
                raise AxisFault(
                    f"hydra.sweeper.{ONLY_IF}: {pattern} depends on {asked}, which is neither swept nor "
                    f"given a value; write {asked}=..."
                )
        found |= dict.fromkeys(matched, condition)
    try:
        order = list(TopologicalSorter({name: list(rows) for name, rows in found.items()}).static_order())
    except CycleError as error:
        raise AxisFault(
            f"hydra.sweeper.{ONLY_IF}: {' depends on '.join(error.args[1])}, in a circle"
        ) from error
    return {name: found[name] for name in order if name in found}


def holds(
    condition: Mapping[str, tuple[object, ...]], present: Mapping[str, str], parser: OverridesParser
) -> bool:
    """Whether a point (key to override) has what a condition asks; an absent key has no value."""
    return all(
        name in present and parser.parse_override(present[name]).value() in allowed
        for name, allowed in condition.items()
    )


def without_absent(
    point: Sequence[tuple[str, str]], conditions: Mapping[str, Mapping[str, tuple[object, ...]]]
) -> tuple[tuple[str, str], ...]:
    """A point, (key, override) pairs, without the keys whose condition does not hold."""
    present = dict(point)
    parser = override_parser() if conditions else None
    for name, condition in conditions.items():
        if parser is not None and name in present and not holds(condition, present, parser):
            del present[name]
    return tuple((name, text) for name, text in point if name in present)


def _listed(point: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    """(key, override) pairs of a listed point."""
    parser = override_parser()
    found: list[tuple[str, str]] = []
    for key, value in point.items():
        text = f"{key}={written(value)}"
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            raise AxisFault(f"hydra.sweeper.{POINTS}: {text} cannot be read as an override") from error
        if override.is_sweep_override():
            raise AxisFault(f"hydra.sweeper.{POINTS}: {text}: a listed point has one value for each key")
        found.append((override.key_or_group, text))
    return tuple(found)


def written(value: object) -> str:
    """A plain value in Hydra's grammar; text is taken to be written in it already."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _told(condition: Mapping[str, tuple[object, ...]]) -> str:
    return " and ".join(
        f"{name}={','.join(written(value) for value in values)}" for name, values in condition.items()
    )


def _words(
    n_listed: int,
    in_points: Mapping[str, object],
    swept: Mapping[str, int],
    conditions: Mapping[str, Mapping[str, tuple[object, ...]]],
) -> str:
    parts = [f"{n_listed} listed points of {', '.join(in_points)}"] if n_listed else []
    for key, count in swept.items():
        if key not in in_points:
            only = f", only where {_told(conditions[key])}" if key in conditions else ""
            parts.append(f"{key} ({count} values{only})")
    return " x ".join(parts) or "nothing swept"
