"""From what the user typed to jobs: compose, refuse everything that is not known, expand the sweep.

Hydra stops at the first fault, and a key added with `+` slips past its schema unseen. Here every override is
checked against the schema of the chosen options before anything runs, and all faults are reported together.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from difflib import get_close_matches
from enum import Enum
from fnmatch import fnmatchcase
from itertools import dropwhile, takewhile
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

import hydra
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException, ValidationError

from cryosweep.config import SCHEMAS, JobConfig, faults, register, schema_name
from cryosweep.study import proposals
from cryosweep.study.points import AxisFault, Expansion, expand, lists_points, read_axes
from cryosweep.study.sweep import quoted

# Hydra 1.3 wants to be told whose defaults to follow; 1.4 follows its own and warns if told.
DEFAULTS = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}
JOB_NAME = "cryosweep"

# A sweep is one study in one place under one ruler; to vary these, start another.
NOT_SWEPT = {
    "study": "a sweep is one study",
    "output_dir": "a sweep has one output folder",
    "tracking": "a sweep has one tracking store",
    "scoring": "every job of a sweep is scored by the same mask in the same band, or they cannot be compared",
}


class ConfigFaults(ValueError):
    """Everything that is wrong with a configuration."""

    def __init__(self, found: Iterable[str]) -> None:
        self.found = tuple(dict.fromkeys(found))
        super().__init__("\n".join(self.found))


@dataclass(frozen=True)
class Plan:
    """What a command line asks for, checked.

    Attributes:
        multirun: whether Hydra runs it as a sweep.
        expansion: swept keys and the overrides of each point.
        jobs: the configuration of each point.
        folder: of the run or of the sweep, absolute.
        arguments: for Hydra.
        search: of a sweep whose points are proposed one after the other, what it may cost; empty otherwise.
    """

    multirun: bool
    expansion: Expansion
    jobs: tuple[JobConfig, ...]
    folder: Path
    arguments: tuple[str, ...]
    search: str = ""


def conf_folder() -> Path:
    """The folder of configuration files: inside the package when installed, beside it in a checkout.

    Raises:
        FileNotFoundError: neither is there.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no conf/config.yaml in {package} or beside it; install cryosweep again")


def make_plan(overrides: Sequence[str], *, multirun: bool, config_folders: Sequence[Path] = ()) -> Plan:
    """Compose and check all jobs of a command line.

    Args:
        overrides: as typed: group=option, key=value, hydra.key=value.
        multirun: the user asked for a sweep; an experiment may do so too.
        config_folders: more folders laid out like `conf/`.

    Raises:
        ConfigFaults: with every fault found.
    """
    register()
    missing = [str(folder) for folder in config_folders if not folder.is_dir()]
    if missing:
        raise ConfigFaults(f"--config-dir {folder}: there is no such folder" for folder in missing)
    search_path = [f"file://{folder.absolute()}" for folder in config_folders]
    lines = list(overrides)
    if search_path:
        lines.insert(0, f"hydra.searchpath=[{','.join(quoted(place) for place in search_path)}]")
    with initialize_config_dir(str(conf_folder()), job_name=JOB_NAME, **DEFAULTS):
        return _Planner([conf_folder(), *config_folders]).plan(lines, multirun=multirun)


class _Planner:
    """The checks of one command line; Hydra is initialised while it is used."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._groups = group_options(roots)
        self._parser = OverridesParser.create()
        self._bases: dict[tuple[str, ...], DictConfig | str] = {}
        self._for_hydra: list[str] = []
        self._multirun = False

    def plan(self, lines: Sequence[str], *, multirun: bool) -> Plan:
        overrides, found = self._parse(lines)
        for_task = [override for override in overrides if not _is_for_hydra(override)]
        single = [each for each in for_task if not each.is_sweep_override() and not self._refused(each)]
        self._for_hydra = [_text(each) for each in overrides if _is_for_hydra(each)]
        top = self._base(self._of_groups(single))
        if isinstance(top, str):
            # Without hydra's part no sweep can be expanded, so the checks of single points must wait.
            raise ConfigFaults([*found, *(fault for each in for_task for fault in self._refused(each)), top])
        multirun = multirun or str(top.hydra.mode).endswith("MULTIRUN")
        self._multirun = multirun
        search = ""
        sweeper: Any = OmegaConf.to_container(top.hydra.sweeper, resolve=True) if multirun else {}
        try:
            conditional = tuple(sweeper.get("only_if") or {})
            renamed = {_text(each): _as_axis(each, conditional) for each in for_task}
            lines = [renamed.get(line, line) for line in lines]
            lines_for_task = [renamed[_text(each)] for each in for_task]
            if proposals.proposes(sweeper):
                axes, settings = proposals.read_search(sweeper, lines_for_task)
                expansion = proposals.expand_space(axes, settings)
                search = f"{settings.words()}: {expansion}"
            else:
                expansion = expand(read_axes(sweeper, lines_for_task), intervals=not lists_points(sweeper))
        except (HydraException, AxisFault) as error:
            raise ConfigFaults([*found, _one_line(error)]) from error
        if not multirun:
            found += [
                f"{_text(each)}: this is a sweep; add -m for one job a value, or write [a,b] for a list"
                for each in for_task
                if each.is_sweep_override()
            ]
        found += [
            f"{key} cannot be swept: {NOT_SWEPT[key.split('.')[0]]}"
            for key in expansion.swept
            if key.split(".")[0] in NOT_SWEPT
        ]
        if expansion.repeats:
            found.append(f"the sweep names a point twice ({expansion}); give each value once")
        jobs: list[JobConfig] = []
        for point in expansion.points:
            point_faults, job = self._job([self._parser.parse_override(line) for line in point])
            found += point_faults
            jobs += [] if job is None else [job]
        if found:
            raise ConfigFaults(found)
        folder = self._folder(top, single, multirun=multirun)
        place = f"hydra.{'sweep' if multirun else 'run'}.dir={quoted(str(folder))}"
        return Plan(multirun, expansion, tuple(jobs), folder, (*lines, place), search)

    def _parse(self, lines: Sequence[str]) -> tuple[list[Override], list[str]]:
        overrides: list[Override] = []
        found: list[str] = []
        for line in lines:
            try:
                overrides.append(self._parser.parse_override(line))
            except HydraException:
                found.append(
                    f"{line}: cannot be read; write key=value, and text that holds other characters than "
                    f"letters, digits and ./:_- in quotes that reach the program: \"key='text'\""
                )
        return overrides, found

    def _folder(self, top: DictConfig, single: Sequence[Override], *, multirun: bool) -> Path:
        """Where Hydra would put the run or the sweep; settled here, so that the app finds it afterwards."""
        top = top.copy()
        with open_dict(top):
            for override in single:
                if override.key_or_group in self._groups:
                    continue
                # a key that only some points have is not in the base; the folder cannot be named by it
                with suppress(OmegaConfBaseException):
                    OmegaConf.update(top, override.key_or_group, override.value())
        return Path(str(top.hydra.sweep.dir if multirun else top.hydra.run.dir)).absolute()

    def _job(self, point: Sequence[Override]) -> tuple[list[str], JobConfig | None]:
        """Faults of one point, and its configuration as far as one can be made."""
        refused = [fault for override in point for fault in self._refused(override)]
        base = self._base(self._of_groups([each for each in point if not self._refused(each)]))
        if isinstance(base, str):
            return [*refused, base], None
        config = base.copy()
        with open_dict(config):
            del config["hydra"]
        keys = schema_keys(base)
        for override in point:
            if override.key_or_group in self._groups or self._refused(override):
                continue
            refused += self._unknown(override, keys) or _assign(config, override, keys[override.key_or_group])
        try:
            absent = [key for key in sorted(OmegaConf.missing_keys(config)) if key not in SCHEMAS]
            refused += [
                f"{key} has no value; give {key}=..., see `cryosweep run --help {key.split('.')[0]}`"
                for key in absent
            ]
            job = None if absent else cast(JobConfig, OmegaConf.to_object(config))
        except OmegaConfBaseException as error:
            return [*refused, _one_line(error)], None
        return refused + ([] if job is None else faults(job)), job

    def _base(self, groups: Sequence[str]) -> DictConfig | str:
        """The chosen options without any value overridden, or the fault that prevents it."""
        chosen = tuple(groups)
        if chosen not in self._bases:
            try:
                composed = compose("config", [*self._for_hydra, *chosen], return_hydra_config=True)
                self._bases[chosen] = composed
            except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
                self._bases[chosen] = self._compose_fault(error)
        return self._bases[chosen]

    def _of_groups(self, overrides: Sequence[Override]) -> list[str]:
        return [_text(override) for override in overrides if override.key_or_group in self._groups]

    def _refused(self, override: Override) -> list[str]:
        """Faults that can be seen without composing: how the override is written, and options of groups."""
        line, name = _text(override), override.key_or_group
        if override.type is OverrideType.DEL:
            return [f"{line}: no key can be taken away; give it another value, null where that is allowed"]
        if override.package is not None:
            return [f"{line}: an option has its own place in the configuration; write {name}=..."]
        if name not in self._groups:
            return []
        options = self._groups[name]
        value = override.value()
        if override.type is not OverrideType.CHANGE:
            return [f"{line}: {name} is there already; write it without '+'"]
        if override.is_sweep_override() or value in options or (name == "experiment" and value is None):
            return []
        return [f"{line}: {name} has no option {value!r}{_meant(str(value), options)} ({', '.join(options)})"]

    def _unknown(self, override: Override, keys: Mapping[str, Any]) -> list[str]:
        line, name = _text(override), override.key_or_group
        if name in keys:
            if override.type is OverrideType.ADD:
                return [f"{line}: {name} is there already; write it without '+'"]
            return []
        homes = _other_options(name)
        if homes:
            hint = " (hydra.sweeper.only_if keeps a key to the points that have it)" * self._multirun
            return [
                f"{line}: the chosen option of {name.split('.')[0]} has no such key; {homes} has it{hint}"
            ]
        return [f"{line}: there is no key {name}{_meant(name, [*keys, *self._groups])}"]

    def _compose_fault(self, error: Exception) -> str:
        """One line for what stopped Hydra, with the nearest real key if a file names one there is not."""
        text = _one_line(error)
        matched = re.search(r"Key '.*' not in .* \((.+)\)$", text)
        if matched and not matched[1].startswith("hydra"):
            base = self._base([])
            known = [] if isinstance(base, str) else list(schema_keys(base))
            return f"{text}: there is no key {matched[1]}{_meant(matched[1], known)}"
        if "hydra/launcher/joblib" in text or "hydra/launcher/submitit" in text:
            extra = "parallel" if "joblib" in text else "slurm"
            return f"{text}; install it with: pip install 'cryosweep[{extra}]'"
        if "hydra/launcher/" in text:
            return f"{text}; there are basic, joblib, submitit_local and submitit_slurm"
        return text


def _is_for_hydra(override: Override) -> bool:
    return override.key_or_group.startswith(("hydra.", "hydra/"))


def _text(override: Override) -> str:
    """An override as it was written."""
    return override.input_line or ""


def _as_axis(override: Override, conditional: Sequence[str]) -> str:
    """An override as it was written, or as an axis of one value if only some points have its key.

    Hydra sets plain overrides in the configuration of the whole sweep, where such a key need not be.
    """
    name = override.key_or_group
    if override.is_sweep_override() or not any(fnmatchcase(name, pattern) for pattern in conditional):
        return _text(override)
    return f"{override.get_key_element()}=choice({override.get_value_element_as_str()})"


def _assign(config: DictConfig, override: Override, hint: Any) -> list[str]:
    """Set one value in `config`; a fault if it is of the wrong kind."""
    value = override.value()
    try:
        # OmegaConf would take any number for a truth value.
        if hint is bool and isinstance(value, int | float) and not isinstance(value, bool):
            raise ValidationError
        OmegaConf.update(config, override.key_or_group, value)
    except OmegaConfBaseException:
        return [f"{_text(override)}: must be {_expected(hint)}"]
    return []


def _expected(hint: Any) -> str:
    """A type hint in words."""
    if get_origin(hint) in (Union, UnionType):
        given = [part for part in get_args(hint) if part is not NoneType]
        words = "a number, or text with a unit such as 5px" if len(given) > 1 else _expected(given[0])
        return words + (" or null" if NoneType in get_args(hint) else "")
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(member.name for member in hint)
    if get_origin(hint) is list:
        return "a list of numbers such as [1,2,3]"
    if isinstance(hint, type) and hint in (int, float, bool, str):
        return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]
    return "a mapping of its keys, or better one key at a time"


def schema_keys(config: DictConfig) -> dict[str, Any]:
    """Every dotted key of a composed configuration, inner ones too, with its type hint."""

    def walk(schema: type, node: DictConfig, prefix: str) -> dict[str, Any]:
        keys: dict[str, Any] = {}
        for name, hint in get_type_hints(schema).items():
            keys[f"{prefix}{name}"] = hint
            if OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name):
                continue
            child = node[name]
            if isinstance(child, DictConfig):
                keys |= walk(cast(type, OmegaConf.get_type(child)), child, f"{prefix}{name}.")
        return keys

    return walk(JobConfig, config, "")


def group_options(roots: Sequence[Path]) -> dict[str, list[str]]:
    """The options of each group: the YAML files of each folder under each root; those of hydra left out."""
    groups: dict[str, list[str]] = {}
    for root in roots:
        for path in sorted(root.glob("*/*.yaml")):
            if path.parent.name != "hydra":
                groups.setdefault(path.parent.name, []).append(path.stem)
    return groups


def default_options(root: Path) -> dict[str, str]:
    """The option of each group that is taken when none is named."""
    entries = yaml.safe_load((root / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    pairs = [pair for entry in entries if isinstance(entry, dict) for pair in entry.items()]
    return {group: str(option) for group, option in pairs if group in SCHEMAS}


# A group with more keys has them on its own page of help only, so that all groups fit on a screen.
MOST_KEYS = 16


def describe_groups(roots: Sequence[Path]) -> str:
    """Groups, options (the default marked) and keys, if these are few, for the help screen."""
    defaults = default_options(roots[0])
    lines: list[str] = []
    found = group_options(roots)
    for group in [*SCHEMAS, *(name for name in found if name not in SCHEMAS)]:
        options = found[group]
        shown = "  ".join(option + "*" * (option == defaults.get(group)) for option in options)
        lines += textwrap.wrap(
            shown, 110, initial_indent=f"  {group:<14} ", subsequent_indent=" " * 17, break_on_hyphens=False
        )
        schemas = SCHEMAS.get(group, ())
        names = dict.fromkeys(field.name for schema in schemas for field in fields(schema))
        keys = [name for name in names if name != "kind"]
        told = " ".join(keys) if len(keys) <= MOST_KEYS else f"({len(keys)} keys: --help {group})"
        lines += _wrapped(told, indent=6)
    return "\n".join(lines)


def describe_options(group: str, roots: Sequence[Path]) -> str:
    """The files of one group, as they are commented.

    Raises:
        ValueError: there is no such group.
    """
    groups = group_options(roots)
    if group not in groups:
        raise ValueError(f"there is no group {group!r}{_meant(group, list(groups))} ({', '.join(groups)})")
    paths = [path for root in roots for path in sorted(root.glob(f"{group}/*.yaml"))]
    return "\n".join(f"--- {group}={path.stem}\n{path.read_text(encoding='utf-8')}" for path in paths)


def question_of(experiment: str | None, roots: Sequence[Path]) -> str:
    """What an experiment file says at its top, after the line that Hydra reads; empty without such a file."""
    paths = (root / "experiment" / f"{experiment}.yaml" for root in roots)
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return ""
    lines = path.read_text(encoding="utf-8").splitlines()
    top = takewhile(lambda line: line.startswith("#"), dropwhile(lambda line: not line.strip(), lines))
    words = [line.lstrip("#").strip() for line in top]
    return " ".join(word for word in words if word and not word.startswith("@package"))


def _wrapped(text: str, *, indent: int, width: int = 110) -> list[str]:
    pad = " " * indent
    return textwrap.wrap(text, width, initial_indent=pad, subsequent_indent=pad) if text else []


def _other_options(name: str) -> str:
    """The options of a group, other than the chosen one, whose schema has the key `name`."""
    group, _, key = name.partition(".")
    homes = [
        f"{group}={schema_name(schema)}"
        for schema in SCHEMAS.get(group, ())
        if key in {field.name for field in fields(schema)}
    ]
    return " or ".join(homes)


def _meant(name: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` with the nearest of `known`: of the whole name, or of its last part."""
    last = name.rsplit(".", 1)[-1]
    by_last = {key.rsplit(".", 1)[-1]: key for key in reversed(known)}
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    near = near or [by_last[key] for key in get_close_matches(last, list(by_last), n=1, cutoff=0.6)]
    return f"; did you mean {near[0]}?" if near else ""


def _one_line(error: Exception) -> str:
    """What an exception of Hydra, OmegaConf or the YAML reader says, and why, on one line."""
    lines = [line.strip() for each in (error, error.__cause__) if each for line in str(each).splitlines()]
    if isinstance(error, yaml.YAMLError):
        return " ".join(lines)
    text = lines[0]
    if text.endswith("raised while composing config:"):
        text = f"{text.split(':')[0]}: {lines[1]}"
    elif error.__cause__:
        text += f": {str(error.__cause__).splitlines()[0]}"
    keys = [line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")]
    return text + (f" ({keys[0]})" if keys and keys[0] not in text else "")
