"""What a job can be told: one dataclass per variant of each group under `conf/`, and the checks on values.

The dataclasses say which keys exist and of which kind; the values, with their units, stand in the YAML files
and only there. `kind` names the variant, so that a written configuration says by itself what it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum, auto
from functools import cache
from typing import Literal

Length = int | float | str
"""Å as a number, or text with a unit: 7, "7A", "7Å", "5px"."""


class ThresholdUnit(StrEnum):
    """What a mask threshold is measured in."""

    fraction = auto()
    absolute = auto()


class LevelUnit(StrEnum):
    """What the threshold of a segmentation is measured in."""

    sd = auto()
    absolute = auto()


class CtfDamping(StrEnum):
    """How the B-factor and scale columns of a STAR file enter the CTF."""

    relion = auto()
    absolute = auto()
    none = auto()


class Regularisation(StrEnum):
    """How the half-maps are filtered before they serve as references."""

    wiener = auto()
    nonuniform = auto()
    none = auto()


class ConsensusMask(StrEnum):
    """What a consensus refinement aligns under."""

    dynamic = auto()
    sphere = auto()
    file = auto()


class BandFrom(StrEnum):
    """The FSC of the loop's half-maps that decides the next band and the SSNR of the references."""

    corrected = auto()
    masked = auto()


class ExtentShape(StrEnum):
    """What an extent limits: the norm of a rotation vector or shift, or each component."""

    norm = auto()
    per_axis = auto()


class MaskRole(StrEnum):
    """What the mask of a subtraction marks: what to keep, as in RELION, or to remove, as in CryoSPARC."""

    keep = auto()
    remove = auto()


class TwinDetail(StrEnum):
    """Where the fine detail of a twin's moving domain comes from, which its motion has blurred."""

    body = auto()
    map = auto()


class RestFilter(StrEnum):
    """How half-maps are filtered before they are taken out of the images."""

    fsc = auto()
    none = auto()


@dataclass
class PerDomain:
    """One number for each labelled domain that moves."""

    head: float
    foot: float
    arm: float


@dataclass
class DataConfig:
    """Where the particles come from, which of them are taken, and how they are split."""

    subset: float | None
    subset_seed: int
    groups: int
    group: int
    resplit: bool
    half_set_seed: int


@dataclass
class SimulatedData(DataConfig):
    """Particles simulated from the embedded ribosome, with known poses."""

    particles: int
    box_size: int
    pixel_size: float
    snr: float
    rotation_spread: PerDomain
    shift_spread: PerDomain
    pose_error_rotation: float
    pose_error_shift: float
    scale_spread: float
    defocus_min: float
    defocus_max: float
    voltage: float
    spherical_aberration: float
    amplitude_contrast: float
    signal_lowpass: float | None
    signal: bool
    simulation_seed: int
    head_mass: float | None
    kind: str = "simulated"


@dataclass
class RelionData(DataConfig):
    """Particles, with poses, of a RELION STAR file."""

    star: str
    image_folder: str | None
    ctf_damping: CtfDamping
    kind: str = "relion"


@dataclass
class TwinData(DataConfig):
    """Particles simulated from a user's map, with the poses, CTF and noise of the user's particles."""

    star: str
    image_folder: str | None
    ctf_damping: CtfDamping
    map: str | None
    half_a: str | None
    half_b: str | None
    domain: str
    resolution: float | None
    detail: TwinDetail
    mass_share: float | None
    hinge: list[float] | None
    rotation_spread: float
    shift_spread: float
    pose_error_rotation: float
    pose_error_shift: float
    particles: int | None
    snr: float | None
    simulation_seed: int
    kind: str = "twin"


@dataclass
class ConsensusConfig:
    """Where the starting half-maps come from."""


@dataclass
class ReconstructedConsensus(ConsensusConfig):
    """Half-maps reconstructed from the poses that come with the particles."""

    kind: str = "reconstruct"


@dataclass
class ConsensusFiles(ConsensusConfig):
    """Two half-map files."""

    half_a: str
    half_b: str
    kind: str = "files"


@dataclass
class ModelConsensus(ConsensusConfig):
    """The simulated complex itself, free of noise, for both half-sets."""

    kind: str = "model"


@dataclass
class HomogeneousConsensus(ConsensusConfig):
    """Half-maps and poses of a refinement of the whole particles, one filter for the whole map."""

    start: str | None
    rotation_extent: float
    shift_extent: float
    rotation_prior: float | None
    shift_prior: float | None
    max_iterations: int
    initial_lowpass: float
    max_resolution: float | None
    mask: ConsensusMask
    mask_path: str | None
    mask_level: float
    mask_near: float
    mask_far: float
    mask_starts: float
    scale: bool
    kind: str = "homogeneous"


@dataclass
class NonuniformConsensus(HomogeneousConsensus):
    """The same, each place of the map filtered for itself."""

    kind: str = "nonuniform"


@dataclass
class MaskBaseConfig:
    """The map that masks are cut from."""

    smoothing: float | None


@dataclass
class DomainBase(MaskBaseConfig):
    """The consensus map inside the territory of one labelled domain."""

    name: str
    kind: str = "domain"


@dataclass
class FileBase(MaskBaseConfig):
    """A map file."""

    path: str
    kind: str = "file"


@dataclass
class ConsensusBase(MaskBaseConfig):
    """The whole consensus map."""

    kind: str = "consensus"


@dataclass
class RegionsBase(MaskBaseConfig):
    """Chosen regions of the segmented consensus map, or of a segmented map file."""

    path: str | None
    segger: str | None
    threshold: float
    threshold_unit: LevelUnit
    steps: int
    step_size: Length
    target: int
    ids: list[int] | None
    point: list[float] | None
    marker: str | None
    largest: int | None
    label: str | None
    label_value: int
    rest: bool
    kind: str = "regions"


@dataclass
class MaskConfig:
    """The mask that aligns."""


@dataclass
class SoftMask(MaskConfig):
    """A mask made from the mask base: threshold, dilate, pad softly."""

    threshold: float
    threshold_unit: ThresholdUnit
    fill_holes: bool
    dilation_radius: Length
    soft_padding_width: Length
    kind: str = "soft"


@dataclass
class MaskFile(MaskConfig):
    """A finished mask."""

    path: str
    kind: str = "file"


@dataclass
class ScoringConfig:
    """The mask and the band that every job of a sweep is scored with."""

    band_low: float
    band_high: float | None
    randomisations: int
    jackknife: int
    neighbours: bool
    common_images: bool | None


@dataclass
class SoftScoring(ScoringConfig):
    """A scoring mask made from the mask base."""

    threshold: float
    threshold_unit: ThresholdUnit
    dilation_radius: Length
    soft_padding_width: Length
    kind: str = "soft"


@dataclass
class ScoringFile(ScoringConfig):
    """A finished scoring mask."""

    path: str
    kind: str = "file"


@dataclass
class FulcrumConfig:
    """The point that rotations turn about."""


@dataclass
class MaskCentre(FulcrumConfig):
    """The centre of mass of the mask that aligns."""

    kind: str = "mask_centre"


@dataclass
class BoxCentre(FulcrumConfig):
    """The centre of the box."""

    kind: str = "box_centre"


@dataclass
class FulcrumPx(FulcrumConfig):
    """A point in px from the box corner, as read from a viewer."""

    position: list[float]
    kind: str = "px"


@dataclass
class FulcrumMarker(FulcrumConfig):
    """A point in Å in the frame of the map: of a marker file, or given."""

    path: str | None
    position: list[float] | None
    kind: str = "marker"


@dataclass
class DomainHinge(FulcrumConfig):
    """The hinge that the domain of the mask base was simulated to turn about."""

    kind: str = "hinge"


@dataclass
class Interface(FulcrumConfig):
    """Where the domain of the mask base touches the part that carries it."""

    parts: list[str]
    kind: str = "interface"


@dataclass
class SubtractionConfig:
    """What is taken out of the images before the refinement."""


@dataclass
class NoSubtraction(SubtractionConfig):
    """Nothing."""

    kind: str = "none"


@dataclass
class DomainSubtraction(SubtractionConfig):
    """Everything but the domain."""

    keep_padding_width: Length
    rest_threshold: float
    dilation_radius: Length
    soft_padding_width: Length
    smoothing: float
    filter: RestFilter
    kind: str = "domain"


@dataclass
class FileSubtraction(SubtractionConfig):
    """What a finished mask says."""

    path: str
    role: MaskRole
    filter: RestFilter
    kind: str = "file"


@dataclass
class SearchConfig:
    """How far from its starting pose a particle may go."""

    rotation_extent: float
    shift_extent: float
    extent_shape: ExtentShape
    rotation_prior: float | None
    shift_prior: float | None
    recentre: bool
    audit: float


@dataclass
class RefinementConfig:
    """The loop of the local refinement."""

    max_iterations: int
    initial_lowpass: float
    max_resolution: float | None
    regularisation: Regularisation
    band_from: BandFrom
    marginalise: bool
    scale: bool


@dataclass
class PostprocessingConfig:
    """Maps made of the refined half-maps to be looked at."""

    b_factor: float | None
    guinier_from: float
    local_resolution: bool
    local_resolution_window: float | None
    local_resolution_step: float | None
    local_resolution_threshold: float


@dataclass
class ComputeConfig:
    """What a job runs on."""

    device: str
    threads: int
    memory_budget: str
    compile: bool


@dataclass
class TrackingConfig:
    """Where runs are logged besides their own folder."""

    enabled: bool
    uri: str | None


@dataclass
class JobConfig:
    """One job: everything `job.run_job` needs to know."""

    study: str
    seed: int
    output_dir: str
    data: DataConfig
    consensus: ConsensusConfig
    mask_base: MaskBaseConfig
    mask: MaskConfig
    scoring: ScoringConfig
    fulcrum: FulcrumConfig
    subtraction: SubtractionConfig
    search: SearchConfig
    refinement: RefinementConfig
    postprocessing: PostprocessingConfig
    compute: ComputeConfig
    tracking: TrackingConfig


SCHEMAS: dict[str, tuple[type, ...]] = {
    "data": (SimulatedData, RelionData, TwinData),
    "consensus": (
        ReconstructedConsensus,
        ConsensusFiles,
        ModelConsensus,
        HomogeneousConsensus,
        NonuniformConsensus,
    ),
    "mask_base": (DomainBase, FileBase, ConsensusBase, RegionsBase),
    "mask": (SoftMask, MaskFile),
    "scoring": (SoftScoring, ScoringFile),
    "fulcrum": (MaskCentre, BoxCentre, FulcrumPx, FulcrumMarker, DomainHinge, Interface),
    "subtraction": (NoSubtraction, DomainSubtraction, FileSubtraction),
    "search": (SearchConfig,),
    "refinement": (RefinementConfig,),
    "postprocessing": (PostprocessingConfig,),
    "compute": (ComputeConfig,),
    "tracking": (TrackingConfig,),
}
"""The variants of each group; a group with one variant needs no `kind`."""


def schema_name(schema: type) -> str:
    """The name under which `conf/` refers to `schema`: its kind, or `default`."""
    return str(getattr(schema, "kind", "default"))


@cache
def register() -> None:
    """Make the schemas known to Hydra, once, as `/schema/<group>/<kind>` and `schema` at the top."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="schema", node=JobConfig)
    for group, schemas in SCHEMAS.items():
        for schema in schemas:
            store.store(group=f"schema/{group}", name=schema_name(schema), node=schema)


_LENGTH = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(px|A|Å|\u212b)?\s*")


def parse_length(value: Length, pixel_size: float) -> float:
    """Length in Å of a number (Å) or of text with a unit ("7A", "7Å", "5px").

    Raises:
        ValueError: not a length, or negative.
    """
    matched = _LENGTH.fullmatch(str(value))
    number = float(matched[1]) if matched else math.nan
    if matched is None or not math.isfinite(number):
        raise ValueError(f"{value!r} is not a length; write Å as 7 or 7A, or voxels as 5px")
    if number < 0.0:
        raise ValueError(f"{value!r} is negative; a length is 0 or more")
    return number * pixel_size if matched[2] == "px" else number


_MEMORY_UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}


def parse_memory(text: str) -> int:
    """Bytes of a text such as "4GB" (MB, GB, MiB, GiB).

    Raises:
        ValueError: not a positive amount of memory.
    """
    matched = re.fullmatch(r"\s*(\d+\.?\d*)\s*(MB|GB|MiB|GiB)\s*", text)
    if matched is None or float(matched[1]) <= 0.0:
        raise ValueError(f"{text!r} is not an amount of memory; write for example 4GB (MB, GB, MiB or GiB)")
    return int(float(matched[1]) * _MEMORY_UNITS[matched[2]])


def faults(config: JobConfig) -> list[str]:
    """Every value that cannot be used, one sentence each; empty if there is none.

    What needs the data files themselves is checked by the job.
    """
    return [
        *_top_faults(config),
        *_kind_faults(config),
        *_data_faults(config.data),
        *_consensus_faults(config),
        *_selection_faults(config),
        *_base_faults(config),
        *_mask_faults("mask", config.mask),
        *_scoring_faults(config),
        *_fulcrum_faults(config),
        *_subtraction_faults(config),
        *_search_faults(config.search),
        *_refinement_faults(config),
        *_postprocessing_faults(config.postprocessing),
        *_compute_faults(config.compute),
    ]


Bound = Literal["above", "from"]


def _range(
    key: str,
    value: float | None,
    low: float,
    high: float = math.inf,
    *,
    bound: Bound = "from",
    unit: str = "",
    remedy: str = "",
) -> list[str]:
    """A fault unless `value` is finite and from (or above) `low` up to `high`; null passes."""
    if value is None:
        return []
    reaches = value > low if bound == "above" else value >= low
    if math.isfinite(value) and reaches and value <= high:
        return []
    name = f" {unit}" if unit else ""
    allowed = f"{bound} {low:g}{name}" + ("" if math.isinf(high) else f" up to {high:g}{name}")
    return [f"{key}={value:g}: must be {allowed}" + (f"; {remedy}" if remedy else "")]


def _top_faults(config: JobConfig) -> list[str]:
    found = _range("seed", config.seed, 0, 2**31 - 1)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", config.study):
        found.append(
            f"study={config.study!r}: names a folder, so it may hold letters, digits, '.', '_' and '-' only"
        )
    if not config.output_dir:
        found.append("output_dir='': must name a folder, for example output_dir=cryosweep_out")
    return found


def _kind_faults(config: JobConfig) -> list[str]:
    found: list[str] = []
    for group, schemas in SCHEMAS.items():
        chosen = getattr(config, group)
        kind = getattr(chosen, "kind", None)
        if kind is not None and kind != schema_name(type(chosen)):
            options = ", ".join(schema_name(schema) for schema in schemas)
            found.append(
                f"{group}.kind={kind}: follows from the option chosen and cannot be set ({options}); "
                f"choose another option with {group}=..."
            )
    return found


def _data_faults(data: DataConfig) -> list[str]:
    if isinstance(data, TwinData):
        return _twin_faults(data)
    if not isinstance(data, SimulatedData):
        return []
    found = [
        *_range("data.particles", data.particles, 8),
        *_range("data.box_size", data.box_size, 16, 1024, unit="px"),
        *_range("data.pixel_size", data.pixel_size, 0, bound="above", unit="Å"),
        *_range("data.snr", data.snr, 0, bound="above"),
        *_range("data.pose_error_rotation", data.pose_error_rotation, 0, 180, unit="degrees"),
        *_range("data.pose_error_shift", data.pose_error_shift, 0, unit="Å"),
        *_range("data.scale_spread", data.scale_spread, 0, 1),
        *_range("data.defocus_min", data.defocus_min, 0, unit="Å"),
        *_range("data.voltage", data.voltage, 50, 1000, unit="kV"),
        *_range("data.spherical_aberration", data.spherical_aberration, 0, 10, unit="mm"),
        *_range("data.amplitude_contrast", data.amplitude_contrast, 0, 1),
        *_range(
            "data.signal_lowpass",
            data.signal_lowpass,
            2.0 * data.pixel_size,
            unit="Å",
            remedy="it ends at Nyquist at the finest; null leaves the signal whole",
        ),
        *_range("data.simulation_seed", data.simulation_seed, 0, 2**31 - 1),
        *_range("data.head_mass", data.head_mass, 5, 279, unit="kDa"),
    ]
    for domain in ("head", "foot", "arm"):
        rotation, shift = getattr(data.rotation_spread, domain), getattr(data.shift_spread, domain)
        found += _range(f"data.rotation_spread.{domain}", rotation, 0, 180, unit="degrees")
        found += _range(f"data.shift_spread.{domain}", shift, 0, unit="Å")
    if data.box_size % 2:
        found.append(f"data.box_size={data.box_size}: simulated boxes are even; give an even number of px")
    if not data.defocus_max >= data.defocus_min:
        found.append(
            f"data.defocus_max={data.defocus_max:g}: must be from data.defocus_min={data.defocus_min:g} Å up"
        )
    return found


def _twin_faults(data: TwinData) -> list[str]:
    found = [
        *_range("data.resolution", data.resolution, 0, bound="above", unit="Å"),
        *_range("data.mass_share", data.mass_share, 0.001, 0.9),
        *_range("data.rotation_spread", data.rotation_spread, 0, 180, unit="degrees"),
        *_range("data.shift_spread", data.shift_spread, 0, unit="Å"),
        *_range("data.pose_error_rotation", data.pose_error_rotation, 0, 180, unit="degrees"),
        *_range("data.pose_error_shift", data.pose_error_shift, 0, unit="Å"),
        *_range("data.particles", data.particles, 8),
        *_range("data.snr", data.snr, 0, bound="above"),
        *_range("data.simulation_seed", data.simulation_seed, 0, 2**31 - 1),
    ]
    given = [name for name in ("map", "half_a", "half_b") if getattr(data, name) is not None]
    if given not in (["map"], ["half_a", "half_b"]):
        said = " and ".join(f"data.{name}" for name in given) or "none"
        found.append(f"data=twin: give data.half_a and data.half_b, or data.map; given: {said}")
    elif given == ["map"] and data.resolution is None:
        found.append(
            "data.resolution has no value: one map does not tell its own; give it in Å, or the half maps as "
            "data.half_a and data.half_b"
        )
    if data.hinge is not None and (len(data.hinge) != 3 or not all(map(math.isfinite, data.hinge))):
        found.append(f"data.hinge={list(data.hinge)}: must be three numbers [x,y,z] in Å")
    return found


def _consensus_faults(config: JobConfig) -> list[str]:
    chosen = config.consensus
    if isinstance(chosen, ModelConsensus) and not isinstance(config.data, SimulatedData):
        return ["consensus=model: only simulated data have a model; choose consensus=reconstruct or files"]
    if isinstance(chosen, ConsensusFiles) and isinstance(config.data, TwinData):
        return [
            "consensus=files: half maps of the real particles are none of their twin's; choose "
            "consensus=reconstruct"
        ]
    if not isinstance(chosen, HomogeneousConsensus):
        return []
    found = [
        *_range("consensus.rotation_extent", chosen.rotation_extent, 0, 180, unit="degrees"),
        *_range("consensus.shift_extent", chosen.shift_extent, 0, unit="Å"),
        *_range("consensus.rotation_prior", chosen.rotation_prior, 0, bound="above", unit="degrees"),
        *_range("consensus.shift_prior", chosen.shift_prior, 0, bound="above", unit="Å"),
        *_range("consensus.max_iterations", chosen.max_iterations, 1, 100),
        *_range("consensus.initial_lowpass", chosen.initial_lowpass, 0, bound="above", unit="Å"),
        *_range("consensus.max_resolution", chosen.max_resolution, 0, bound="above", unit="Å"),
        *_range("consensus.mask_level", chosen.mask_level, 0, 0.99, bound="above"),
        *_range("consensus.mask_near", chosen.mask_near, 0, unit="Å"),
        *_range("consensus.mask_far", chosen.mask_far, 0, bound="above", unit="Å"),
        *_range("consensus.mask_starts", chosen.mask_starts, 0, bound="above", unit="Å"),
        *_nyquist_faults(
            config,
            (
                ("consensus.initial_lowpass", chosen.initial_lowpass),
                ("consensus.max_resolution", chosen.max_resolution),
            ),
        ),
    ]
    if not chosen.mask_near < chosen.mask_far:
        found.append(
            f"consensus.mask_far={chosen.mask_far:g}: must be above "
            f"consensus.mask_near={chosen.mask_near:g} Å"
        )
    if chosen.mask is ConsensusMask.file and chosen.mask_path is None:
        found.append("consensus.mask=file: give the mask as consensus.mask_path")
    if chosen.mask is not ConsensusMask.file and chosen.mask_path is not None:
        found.append(
            f"consensus.mask_path={chosen.mask_path}: is read with consensus.mask=file only, and it is "
            f"{chosen.mask.value}"
        )
    return found


def _selection_faults(config: JobConfig) -> list[str]:
    data = config.data
    found = [
        *_range("data.subset", data.subset, 0, bound="above"),
        *_range("data.subset_seed", data.subset_seed, 0, 2**31 - 1),
        *_range("data.half_set_seed", data.half_set_seed, 0, 2**31 - 1),
        *_range("data.groups", data.groups, 1, 100),
        *_range("data.group", data.group, 0, max(data.groups, 1) - 1, remedy="raise data.groups"),
    ]
    if data.subset is not None and data.subset > 1.0 and data.subset != round(data.subset):
        found.append(
            f"data.subset={data.subset:g}: above 1 it is a whole number of particles, up to 1 a share"
        )
    if data.resplit and isinstance(config.consensus, ConsensusFiles):
        found.append(
            "data.resplit=true: the half maps of consensus=files hold the old half sets, so each half would "
            "start from its own and the other's particles; choose consensus=reconstruct"
        )
    return found


def _base_faults(config: JobConfig) -> list[str]:
    base = config.mask_base
    found = _range("mask_base.smoothing", base.smoothing, 0, unit="Å")
    if isinstance(base, DomainBase):
        if isinstance(config.data, TwinData):
            if base.name not in ("body", "domain"):
                found.append(f"mask_base.name={base.name}: must be body or domain, the parts of a twin")
        elif not isinstance(config.data, SimulatedData):
            found.append(
                "mask_base=domain: only simulated data have labelled domains; "
                "choose mask_base=file (a map of the domain) or mask_base=consensus"
            )
        elif base.name not in ("body", "head", "foot", "arm"):
            found.append(f"mask_base.name={base.name}: must be one of body, head, foot, arm")
    if isinstance(base, RegionsBase):
        found += _regions_faults(base)
    return found


def _regions_faults(base: RegionsBase) -> list[str]:
    found = [
        *_range("mask_base.steps", base.steps, 0, 100),
        *_range("mask_base.target", base.target, 1),
        *_range("mask_base.largest", base.largest, 1),
        *_range("mask_base.label_value", base.label_value, 0),
    ]
    if not math.isfinite(base.threshold):
        found.append(f"mask_base.threshold={base.threshold}: must be a number")
    try:
        if parse_length(base.step_size, 1.0) == 0.0 and base.steps:
            found.append(
                f"mask_base.step_size={base.step_size}: must be above 0; for no steps set mask_base.steps=0"
            )
    except ValueError as error:
        found.append(f"mask_base.step_size: {error}")
    ways = ("ids", "point", "marker", "largest", "label")
    given = [way for way in ways if getattr(base, way) is not None]
    if len(given) != 1:
        said = " and ".join(f"mask_base.{way}" for way in given) or "none"
        found.append(
            f"mask_base=regions: choose regions by one of {', '.join(ways)}; {said} "
            f"{'are' if len(given) > 1 else 'is'} given (`cryosweep segment` lists regions with their ids)"
        )
    if base.ids is not None and (not base.ids or min(base.ids) < 1):
        found.append(f"mask_base.ids={list(base.ids)}: must be one number or more, each from 1")
    point = base.point
    if point is not None and (len(point) != 3 or not all(math.isfinite(x) for x in point)):
        found.append(f"mask_base.point={list(point)}: must be three numbers [x,y,z] in px")
    return found


def _mask_faults(group: str, mask: object) -> list[str]:
    """Faults of a mask that is made here; `group` is the key it stands under."""
    if not isinstance(mask, SoftMask | SoftScoring):
        return []
    found: list[str] = []
    if mask.threshold_unit is ThresholdUnit.fraction:
        found += _range(
            f"{group}.threshold",
            mask.threshold,
            0,
            1,
            bound="above",
            remedy=f"for map units set {group}.threshold_unit=absolute",
        )
    elif not math.isfinite(mask.threshold):
        found.append(f"{group}.threshold={mask.threshold}: must be a number in map units")
    return found + _length_faults(group, mask, ("dilation_radius", "soft_padding_width"))


def _length_faults(group: str, chosen: object, keys: Sequence[str]) -> list[str]:
    found: list[str] = []
    for key in keys:
        try:
            parse_length(getattr(chosen, key), 1.0)
        except ValueError as error:
            found.append(f"{group}.{key}: {error}")
    return found


def _nyquist_faults(config: JobConfig, limits: Sequence[tuple[str, float | None]]) -> list[str]:
    """Faults of resolutions finer than the Nyquist limit, where the pixel size is already known."""
    if not isinstance(config.data, SimulatedData):
        return []
    nyquist = 2.0 * config.data.pixel_size
    return [
        f"{key}={value:g}: lies beyond Nyquist; at data.pixel_size={config.data.pixel_size:g} Å "
        f"give {nyquist:g} Å or more"
        for key, value in limits
        if value is not None and 0.0 < value < nyquist
    ]


def _scoring_faults(config: JobConfig) -> list[str]:
    scoring = config.scoring
    found = [
        *_range("scoring.band_low", scoring.band_low, 0, bound="above", unit="Å"),
        *_range("scoring.band_high", scoring.band_high, 0, bound="above", unit="Å"),
        *_range("scoring.randomisations", scoring.randomisations, 1, 100),
        *_range("scoring.jackknife", scoring.jackknife, 0, 100),
        *_mask_faults("scoring", scoring),
        *_nyquist_faults(
            config, (("scoring.band_low", scoring.band_low), ("scoring.band_high", scoring.band_high))
        ),
    ]
    if scoring.jackknife == 1:
        found.append("scoring.jackknife=1: one block is all particles; give 2 or more, or 0 for none")
    if scoring.band_high is not None and scoring.band_high >= scoring.band_low:
        found.append(
            f"scoring.band_high={scoring.band_high:g}: must be a finer resolution (fewer Å) than "
            f"scoring.band_low={scoring.band_low:g} Å"
        )
    return found


def _fulcrum_faults(config: JobConfig) -> list[str]:
    fulcrum = config.fulcrum
    if isinstance(fulcrum, DomainHinge):
        base = config.mask_base
        if isinstance(config.data, TwinData):
            return []
        if not isinstance(config.data, SimulatedData) or not isinstance(base, DomainBase):
            return [
                "fulcrum=hinge: only a labelled domain of simulated data has a known hinge; "
                "choose fulcrum=marker, fulcrum=px or fulcrum=mask_centre"
            ]
        return ["fulcrum=hinge: the body carries the others and turns about no hinge"] * (base.name == "body")
    if isinstance(fulcrum, Interface):
        return _interface_faults(config, fulcrum)
    if not isinstance(fulcrum, FulcrumPx | FulcrumMarker):
        return []
    position = fulcrum.position
    if isinstance(fulcrum, FulcrumMarker) and (fulcrum.path is None) == (position is None):
        given = "neither is" if position is None else "both are"
        return [f"fulcrum=marker: give fulcrum.path or fulcrum.position, one of the two; {given} given"]
    if position is None:
        return []
    if len(position) != 3 or not all(math.isfinite(x) for x in position):
        return [f"fulcrum.position={position}: must be three numbers [x,y,z]"]
    if isinstance(fulcrum, FulcrumPx) and isinstance(config.data, SimulatedData):
        box, pixel = config.data.box_size, config.data.pixel_size
        if not all(0.0 <= x <= box - 1 for x in position):
            in_px = ",".join(f"{x / pixel:.1f}" for x in position)
            return [
                f"fulcrum.position={position} px: lies outside the {box} px box; "
                f"if these are Å, divide by data.pixel_size ({pixel:g}) to get [{in_px}]"
            ]
    return []


def _interface_faults(config: JobConfig, fulcrum: Interface) -> list[str]:
    labelled = isinstance(config.data, SimulatedData | TwinData) and isinstance(config.mask_base, DomainBase)
    if not fulcrum.parts and not labelled:
        return [
            "fulcrum.parts=[]: only a labelled domain of simulated data knows its neighbours; "
            "give fulcrum.parts=[carrier.mrc], or all other parts"
        ]
    if not fulcrum.parts and isinstance(config.mask, MaskFile):
        return [
            "fulcrum.parts=[]: with mask=file the other parts are not known; give fulcrum.parts=[carrier.mrc]"
        ]
    if isinstance(config.mask_base, ConsensusBase) and not isinstance(config.mask, MaskFile):
        return [
            "fulcrum=interface: mask_base=consensus is the whole complex, which touches no other part; "
            "choose mask_base=file (a map of the domain) or mask=file"
        ]
    return []


def _subtraction_faults(config: JobConfig) -> list[str]:
    chosen = config.subtraction
    if not isinstance(chosen, DomainSubtraction):
        return []
    found = [
        *_range("subtraction.rest_threshold", chosen.rest_threshold, 0, 1, bound="above"),
        *_range("subtraction.smoothing", chosen.smoothing, 0, unit="Å"),
        *_length_faults(
            "subtraction", chosen, ("keep_padding_width", "dilation_radius", "soft_padding_width")
        ),
    ]
    if isinstance(config.mask_base, ConsensusBase) and isinstance(config.scoring, SoftScoring):
        found.append(
            "subtraction=domain: mask_base=consensus is the whole map, so nothing lies outside it; choose "
            "mask_base=file (a map of the domain), scoring=file (a mask of it) or subtraction=file"
        )
    return found


def _search_faults(search: SearchConfig) -> list[str]:
    return [
        *_range("search.rotation_extent", search.rotation_extent, 0, 180, unit="degrees"),
        *_range("search.shift_extent", search.shift_extent, 0, unit="Å"),
        *_range("search.rotation_prior", search.rotation_prior, 0, bound="above", unit="degrees"),
        *_range("search.shift_prior", search.shift_prior, 0, bound="above", unit="Å"),
        *_range("search.audit", search.audit, 0, 1),
    ]


def _refinement_faults(config: JobConfig) -> list[str]:
    refinement = config.refinement
    found = [
        *_range("refinement.max_iterations", refinement.max_iterations, 1, 100),
        *_range("refinement.initial_lowpass", refinement.initial_lowpass, 0, bound="above", unit="Å"),
        *_range("refinement.max_resolution", refinement.max_resolution, 0, bound="above", unit="Å"),
        *_nyquist_faults(
            config,
            (
                ("refinement.initial_lowpass", refinement.initial_lowpass),
                ("refinement.max_resolution", refinement.max_resolution),
            ),
        ),
    ]
    cap = refinement.max_resolution
    if cap is not None and cap > refinement.initial_lowpass:
        found.append(
            f"refinement.max_resolution={cap:g}: must not be coarser than "
            f"refinement.initial_lowpass={refinement.initial_lowpass:g} Å, where the first iteration starts"
        )
    return found


def _postprocessing_faults(chosen: PostprocessingConfig) -> list[str]:
    key = "postprocessing"
    return [
        *_range(f"{key}.b_factor", chosen.b_factor, -5000, 5000, unit="Å^2"),
        *_range(f"{key}.guinier_from", chosen.guinier_from, 0, bound="above", unit="Å"),
        *_range(f"{key}.local_resolution_window", chosen.local_resolution_window, 0, bound="above", unit="Å"),
        *_range(f"{key}.local_resolution_step", chosen.local_resolution_step, 0, bound="above", unit="Å"),
        *_range(f"{key}.local_resolution_threshold", chosen.local_resolution_threshold, 0.01, 0.99),
    ]


def _compute_faults(compute: ComputeConfig) -> list[str]:
    found = [
        *_range("compute.threads", compute.threads, 1, 1024),
    ]
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", compute.device):
        found.append(f"compute.device={compute.device}: must be auto, cpu, cuda or cuda:<number>")
    try:
        parse_memory(compute.memory_budget)
    except ValueError as error:
        found.append(f"compute.memory_budget: {error}")
    return found
