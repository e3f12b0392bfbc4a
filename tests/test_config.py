import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from cryosweep.composition import (
    ConfigFaults,
    Plan,
    conf_folder,
    default_options,
    describe_groups,
    describe_options,
    group_options,
    make_plan,
)
from cryosweep.config import (
    SCHEMAS,
    DomainBase,
    FulcrumPx,
    Interface,
    RelionData,
    SimulatedData,
    SoftMask,
    ThresholdUnit,
    faults,
    parse_length,
    parse_memory,
)

# What an option needs besides its own name: keys without a default.
NEEDED: dict[str, list[str]] = {
    "data=relion": ["data.star=a.star", "mask_base=consensus"],
    "data=twin": [
        "data.star=a.star",
        "data.half_a=a.mrc",
        "data.half_b=b.mrc",
        "data.domain=c.mrc",
        "mask_base.name=domain",
    ],
    "consensus=files": ["consensus.half_a=a.mrc", "consensus.half_b=b.mrc"],
    "mask_base=file": ["mask_base.path=a.mrc"],
    "mask_base=regions": ["mask_base.ids=[1]"],
    "mask=file": ["mask.path=a.mrc"],
    "scoring=file": ["scoring.path=a.mrc"],
    "subtraction=file": ["subtraction.path=a.mrc", "subtraction.role=keep"],
    "fulcrum=px": ["fulcrum.position=[1,2,3]"],
    "fulcrum=marker": ["fulcrum.path=a.cmm"],
}
OPTIONS = [
    f"{group}={option}" for group, options in group_options([conf_folder()]).items() for option in options
]


def plan(*overrides: str, multirun: bool = False, folders: Sequence[Path] = ()) -> Plan:
    return make_plan(overrides, multirun=multirun, config_folders=folders)


def refused(*overrides: str, multirun: bool = False, folders: Sequence[Path] = ()) -> tuple[str, ...]:
    with pytest.raises(ConfigFaults) as caught:
        plan(*overrides, multirun=multirun, folders=folders)
    return caught.value.found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (7, 7.0),
        (7.5, 7.5),
        ("7", 7.0),
        ("7A", 7.0),
        ("7 Å", 7.0),
        ("7\u212b", 7.0),
        ("5px", 17.5),
        ("0px", 0.0),
    ],
)
def test_a_length_is_angstrom_unless_it_says_px(text: int | float | str, expected: float) -> None:
    assert parse_length(text, 3.5) == expected


@given(st.floats(0, 1e6), st.floats(0.1, 10))
def test_px_and_angstrom_agree(length: float, pixel_size: float) -> None:
    assert math.isclose(
        parse_length(f"{length!r}px", pixel_size), parse_length(length, 1.0) * pixel_size, rel_tol=1e-12
    )


@pytest.mark.parametrize("text", ["", "px", "5nm", "5 px 3", "one", "nan", "inf", "-3", -3, "5px5"])
def test_what_is_no_length_is_refused(text: str | int) -> None:
    with pytest.raises(ValueError, match=r"is not a length|is negative"):
        parse_length(text, 1.0)


def test_memory() -> None:
    assert parse_memory("4GB") == 4_000_000_000
    assert parse_memory("1.5 GiB") == 3 * 2**29
    for text in ("4", "0GB", "4 TBs", "GB"):
        with pytest.raises(ValueError, match="amount of memory"):
            parse_memory(text)


def test_every_file_of_conf_is_counted() -> None:
    """A file that no test below composes would be noticed here; hydra/ holds logging and the sweepers."""
    files = [path.relative_to(conf_folder()) for path in conf_folder().rglob("*.yaml")]
    assert len(files) == 57
    assert len(OPTIONS) == 52
    assert {str(path) for path in files if path.parts[0] == "hydra"} == {
        "hydra/hydra_logging/cryosweep.yaml",
        "hydra/job_logging/cryosweep.yaml",
        "hydra/sweeper/cryosweep.yaml",
        "hydra/sweeper/optuna.yaml",
    }
    assert set(group_options([conf_folder()])) == {*SCHEMAS, "experiment"}
    assert set(default_options(conf_folder())) == set(SCHEMAS)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_is_valid(option: str) -> None:
    made = plan(option, *NEEDED.get(option, []))
    sweeps = {
        "demo": 6, "fulcrum": 3, "fulcrum_and_extents": 27, "null_static": 9, "null_iterative": 6,
        "null_noise": 6, "small_domains": 80, "small_domains_limit": 64,
    }  # fmt: skip
    for domain in ("head", "foot", "arm"):
        sweeps |= {f"mask_parameters_{domain}": 27, f"subtraction_{domain}": 6}
    group, name = option.split("=")
    assert len(made.jobs) == (sweeps.get(name, 1) if group == "experiment" else 1)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_file_says_what_it_is_and_the_unit_of_each_number(option: str) -> None:
    group, name = option.split("=")
    lines = (conf_folder() / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    heading = [line for line in lines[:3] if line.startswith("# ") and "@package" not in line]
    assert heading, f"{option} has no heading"
    if group != "experiment":
        keys = [line for line in lines if ":" in line and not line.startswith(("#", "defaults", " "))]
        bare = [line for line in keys if "#" not in line]
        assert {line.split(":")[0] for line in bare} <= {"particles", "amplitude_contrast", "max_iterations"}


def test_values_arrive_typed() -> None:
    job = plan(
        "mask.dilation_radius=5px",
        "mask.threshold_unit=absolute",
        "fulcrum=px",
        "fulcrum.position=[44.5,40.8,33.2]",
        "seed=3",
    ).jobs[0]
    assert isinstance(job.data, SimulatedData)
    assert isinstance(job.mask, SoftMask)
    assert isinstance(job.mask_base, DomainBase)
    assert isinstance(job.fulcrum, FulcrumPx)
    assert job.mask.dilation_radius == "5px"
    assert job.mask.threshold_unit is ThresholdUnit.absolute
    assert job.data.rotation_spread.head == 7.0
    assert job.fulcrum.kind == "px"
    star = plan("data=relion", "data.star=a.star", "mask_base=consensus", "seed=3").jobs[0].data
    assert isinstance(star, RelionData)
    assert star.half_set_seed == 3


def test_the_demo_is_a_sweep_that_the_command_line_can_change() -> None:
    demo = plan("experiment=demo")
    assert demo.multirun
    assert demo.expansion.swept == {"mask.dilation_radius": 3, "mask.soft_padding_width": 2}
    assert len(demo.jobs) == 6
    assert demo.folder.parts[-3:-1] == ("cryosweep_out", "demo")
    narrowed = plan("experiment=demo", "mask.dilation_radius=5px")
    assert narrowed.expansion.swept == {"mask.soft_padding_width": 2}
    assert len(narrowed.jobs) == 2


def test_a_sweep_over_options_and_values() -> None:
    made = plan("fulcrum=mask_centre,box_centre", "search.shift_extent=range(1,4)", multirun=True)
    assert made.expansion.swept == {"fulcrum": 2, "search.shift_extent": 3}
    assert str(made.expansion) == "fulcrum (2 values) x search.shift_extent (3 values)"
    assert [getattr(job.fulcrum, "kind", None) for job in made.jobs] == ["mask_centre"] * 3 + [
        "box_centre"
    ] * 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "mask.treshold=0.2",
            "mask.treshold=0.2: there is no key mask.treshold; did you mean mask.threshold?",
        ),
        ("+mask.dilation=3", "there is no key mask.dilation; did you mean mask.dilation_radius?"),
        ("++dilation_radius=4", "there is no key dilation_radius; did you mean mask.dilation_radius?"),
        ("mask_bas=domain", "there is no key mask_bas; did you mean mask_base?"),
        ("data.rotation_spread.heed=3", "did you mean data.rotation_spread.head?"),
        ("zzz=1", "there is no key zzz"),
        ("+mask.threshold=0.2", "mask.threshold is there already; write it without '+'"),
        ("+experiment=demo", "experiment is there already; write it without '+'"),
        ("~mask.threshold", "no key can be taken away"),
        ("~experiment", "no key can be taken away"),
        ("mask@other=soft", "write mask=..."),
        ("data=ribosom", "data has no option 'ribosom'; did you mean ribosome?"),
        ("experiment=nosuch", "experiment has no option 'nosuch'"),
        ("mask={threshold:0.2}", "mask has no option"),
        ("fulcrum.position=[1,2,3]", "no such key; fulcrum=px or fulcrum=marker has it"),
        ("mask.threshold=abc", "mask.threshold=abc: must be a number"),
        ("mask.threshold=null", "mask.threshold=null: must be a number"),
        ("refinement.max_resolution=fine", "must be a number or null"),
        ("seed=1.5", "must be a whole number"),
        ("search.recentre=7", "must be true or false"),
        ("mask.threshold_unit=percent", "must be one of fraction, absolute"),
        ("subtraction.smoothing=3", "no such key; subtraction=domain has it"),
        ("refinement.band_from=tight", "must be one of corrected, masked"),
        ("mask.dilation_radius=[1]", "must be a number, or text with a unit such as 5px"),
        ("data.shift_spread=4", "must be a mapping of its keys"),
        ("mask.threshold=[1", "cannot be read"),
        ("data.snr=${nope}", "'nope' not found (data.snr)"),
        ("mask.threshold=0.1,0.2", "this is a sweep; add -m"),
        ("hydra.run.dri=x", "hydra.run.dri"),
        ("hydra/launcher=nosuch", "hydra/launcher/nosuch"),
        ("data=relion", "data.star has no value; give data.star=..."),
    ],
)
def test_an_override_is_refused_in_one_line(override: str, message: str) -> None:
    found = refused(override)
    assert len(found) == 1
    assert message in found[0]
    assert "\n" not in found[0]


@lru_cache
def valid(option: str) -> DictConfig:
    """A valid job with `option`, to spoil; composing one for each case would take most of a minute."""
    return OmegaConf.structured(plan(*([option] if option else []), *NEEDED.get(option, [])).jobs[0])


@pytest.mark.parametrize(
    ("option", "values", "message"),
    [
        ("", "seed=-1", "seed=-1: must be from 0"),
        ("", "study=a/b", "study='a/b': names a folder"),
        ("", "study=..", "names a folder"),
        ("", "output_dir=''", "output_dir='': must name a folder"),
        ("", "mask.kind=file", "mask.kind=file: follows from the option chosen"),
        ("", "data.particles=3", "data.particles=3: must be from 8"),
        ("", "data.box_size=97", "simulated boxes are even"),
        ("", "data.pixel_size=0", "must be above 0 Å"),
        ("", "data.snr=nan", "data.snr=nan: must be above 0"),
        ("", "data.snr=inf", "data.snr=inf: must be above 0"),
        ("", "data.rotation_spread.arm=-1", "must be from 0 degrees up to 180 degrees"),
        ("", "data.shift_spread.arm=-1", "data.shift_spread.arm=-1: must be from 0 Å"),
        ("", "data.defocus_max=5000", "must be from data.defocus_min=8000 Å up"),
        ("", "data.amplitude_contrast=7", "data.amplitude_contrast=7: must be from 0 up to 1"),
        ("", "mask_base.name=tail", "must be one of body, head, foot, arm"),
        ("data=twin", "data.snr=0", "data.snr=0: must be above 0"),
        (
            "data=twin",
            "data.half_b=null",
            "give data.half_a and data.half_b, or data.map; given: data.half_a",
        ),
        ("data=twin", "data.map=d.mrc", "given: data.map and data.half_a and data.half_b"),
        ("data=twin", "data.half_a=null data.half_b=null data.map=d.mrc", "data.resolution has no value"),
        ("data=twin", "data.hinge=[1,2]", "data.hinge=[1.0, 2.0]: must be three numbers [x,y,z] in Å"),
        ("data=twin", "data.mass_share=1.5", "data.mass_share=1.5: must be from 0.001 up to 0.9"),
        ("data=twin", "mask_base.name=head", "must be body or domain, the parts of a twin"),
        ("mask_base=regions", "mask_base.ids=null", "ids, point, marker, largest, label; none is given"),
        ("mask_base=regions", "mask_base.largest=2", "mask_base.ids and mask_base.largest are given"),
        (
            "mask_base=regions",
            "mask_base.ids=[0]",
            "mask_base.ids=[0]: must be one number or more, each from 1",
        ),
        (
            "mask_base=regions",
            "mask_base.ids=null mask_base.point=[1,2]",
            "mask_base.point=[1.0, 2.0]: must be three numbers [x,y,z] in px",
        ),
        ("mask_base=regions", "mask_base.step_size=0", "mask_base.step_size=0: must be above 0"),
        ("mask_base=regions", "mask_base.step_size=1nm", "mask_base.step_size: '1nm' is not a length"),
        ("mask_base=regions", "mask_base.target=0", "mask_base.target=0: must be from 1"),
        ("", "mask_base.smoothing=-1", "mask_base.smoothing=-1: must be from 0 Å"),
        ("", "mask.threshold=1.5", "for map units set mask.threshold_unit=absolute"),
        ("", "mask.threshold_unit=absolute mask.threshold=nan", "must be a number in map units"),
        ("", "mask.dilation_radius=5km", "mask.dilation_radius: '5km' is not a length"),
        ("", "scoring.soft_padding_width=-2", "scoring.soft_padding_width: -2 is negative"),
        ("", "scoring.band_low=5", "scoring.band_low=5: lies beyond Nyquist"),
        ("", "scoring.band_high=40", "must be a finer resolution (fewer Å) than scoring.band_low=34 Å"),
        ("", "scoring.randomisations=0", "scoring.randomisations=0: must be from 1"),
        ("fulcrum=px", "fulcrum.position=[1,2]", "must be three numbers [x,y,z]"),
        ("consensus=homogeneous", "consensus.rotation_extent=181", "must be from 0 degrees up to 180"),
        ("consensus=nonuniform", "consensus.mask_far=6", "must be above consensus.mask_near=6 Å"),
        ("consensus=nonuniform", "consensus.mask=file", "give the mask as consensus.mask_path"),
        ("consensus=homogeneous", "consensus.mask_path=a.mrc", "is read with consensus.mask=file only"),
        ("consensus=homogeneous", "consensus.initial_lowpass=2", "lies beyond Nyquist"),
        (
            "fulcrum=px",
            "fulcrum.position=[175,175,35]",
            "divide by data.pixel_size (3.5) to get [50.0,50.0,10.0]",
        ),
        ("fulcrum=marker", "fulcrum.path=null", "one of the two; neither is given"),
        ("fulcrum=marker", "fulcrum.path=a.cmm fulcrum.position=[1,2,3]", "one of the two; both are given"),
        (
            "",
            "search.rotation_extent=200",
            "search.rotation_extent=200: must be from 0 degrees up to 180 degrees",
        ),
        (
            "subtraction=domain",
            "subtraction.rest_threshold=0",
            "subtraction.rest_threshold=0: must be above 0 up to 1",
        ),
        ("subtraction=domain", "subtraction.smoothing=-1", "subtraction.smoothing=-1: must be from 0 Å"),
        ("subtraction=domain", "subtraction.dilation_radius=x", "subtraction.dilation_radius: 'x' is not a"),
        ("", "search.audit=1.5", "search.audit=1.5: must be from 0 up to 1"),
        ("", "search.shift_prior=0", "search.shift_prior=0: must be above 0 Å"),
        ("", "refinement.max_iterations=0", "refinement.max_iterations=0: must be from 1 up to 100"),
        ("", "refinement.initial_lowpass=6", "refinement.initial_lowpass=6: lies beyond Nyquist"),
        ("", "refinement.max_resolution=15", "must not be coarser than refinement.initial_lowpass=12 Å"),
        ("", "compute.device=gpu", "must be auto, cpu, cuda or cuda:<number>"),
        ("", "compute.threads=0", "compute.threads=0: must be from 1"),
        ("", "compute.memory_budget=lots", "compute.memory_budget: 'lots' is not an amount of memory"),
    ],
)
def test_a_value_out_of_range_is_refused(option: str, values: str, message: str) -> None:
    spoilt = OmegaConf.merge(valid(option), OmegaConf.from_dotlist(values.split()))
    found = faults(OmegaConf.to_object(spoilt))
    assert len(found) == 1, found
    assert message in found[0]


def test_only_simulated_data_have_domains() -> None:
    (fault,) = refused("data=relion", "data.star=a.star")
    assert "only simulated data have labelled domains; choose mask_base=file" in fault


def test_subtraction_needs_a_domain() -> None:
    """A mask cut from the whole consensus map leaves nothing outside."""
    (fault,) = refused("mask_base=consensus", "subtraction=domain")
    assert "mask_base=consensus is the whole map, so nothing lies outside it" in fault
    assert plan("mask_base=consensus", "subtraction=domain", "scoring=file", "scoring.path=a.mrc").jobs


def test_all_faults_come_together_and_once() -> None:
    found = refused(
        "mask.treshold=0.1,0.2", "data=ribosom", "search.shift_extent=-1", "seed=x", multirun=True
    )
    assert len(found) == 5
    assert sum("mask.treshold" in fault for fault in found) == 2


def test_each_point_of_a_sweep_is_checked() -> None:
    assert refused("mask.threshold=0.1,abc,2", multirun=True) == (
        "mask.threshold=abc: must be a number",
        "mask.threshold=2: must be above 0 up to 1; for map units set mask.threshold_unit=absolute",
    )


@pytest.mark.parametrize(
    "key", ["study=a,b", "output_dir=a,b", "tracking.enabled=true,false", "scoring=soft,soft"]
)
def test_what_holds_a_sweep_together_is_not_swept(key: str) -> None:
    assert any("cannot be swept" in fault for fault in refused(key, multirun=True))


def test_a_point_given_twice_is_refused() -> None:
    assert "twice" in refused("mask.threshold=0.1,0.1", multirun=True)[0]


def test_options_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("defaults: [relion, _self_]\nstar: mine.star\n")
    mine = tmp_path / "experiment" / "mine.yaml"
    mine.write_text(
        "# @package _global_\ndefaults:\n  - override /data: mine\n  - override /mask_base: consensus\n"
    )
    data = plan("experiment=mine", folders=[tmp_path]).jobs[0].data
    assert isinstance(data, RelionData)
    assert data.star == "mine.star"
    mine.write_text("# @package _global_\nmask:\n  dilation: 3\n")
    (fault,) = refused("experiment=mine", folders=[tmp_path])
    assert "there is no key mask.dilation; did you mean mask.dilation_radius?" in fault
    mine.write_text("# @package _global_\nmask:\n  threshold: abc\n")
    (fault,) = refused("experiment=mine", folders=[tmp_path])
    assert "'abc'" in fault
    assert "mask.threshold" in fault
    mine.write_text("a: [\n")
    (fault,) = refused("experiment=mine", folders=[tmp_path])
    assert str(mine) in fault
    assert "\n" not in fault
    assert "no such folder" in refused(folders=[tmp_path / "nosuch"])[0]


def test_help_shows_every_group_option_and_key() -> None:
    text = describe_groups([conf_folder()])
    for group, options in group_options([conf_folder()]).items():
        assert f"  {group} " in text
        assert all(option in text for option in options)
    assert "mask_centre*" in text
    assert "dilation_radius" in text
    assert "dilation_radius: 7            # Å" in describe_options("mask", [conf_folder()])
    with pytest.raises(ValueError, match="did you mean mask"):
        describe_options("maks", [conf_folder()])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("data=relion", "data.star=a.star", "mask_base=file", "mask_base.path=a.mrc"),
            "fulcrum.parts=[]: only a labelled domain of simulated data knows its neighbours; "
            "give fulcrum.parts=[carrier.mrc], or all other parts",
        ),
        (("mask=file", "mask.path=a.mrc"), "fulcrum.parts=[]: with mask=file the other parts are not known"),
        (
            ("mask_base=consensus", "fulcrum.parts=[a.mrc]"),
            "fulcrum=interface: mask_base=consensus is the whole complex, which touches no other part",
        ),
    ],
)
def test_an_interface_needs_a_domain_and_its_neighbours(overrides: tuple[str, ...], message: str) -> None:
    (found,) = refused("fulcrum=interface", *overrides)
    assert message in found


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("fulcrum.parts=[a.mrc]",),
        ("mask=file", "mask.path=a.mrc", "fulcrum.parts=[a.mrc,b.mrc]", "mask_base=consensus"),
        (
            "data=relion",
            "data.star=a.star",
            "mask_base=file",
            "mask_base.path=a.mrc",
            "fulcrum.parts=[b.mrc]",
        ),
    ],
)
def test_an_interface_takes_its_parts_from_labels_or_files(overrides: tuple[str, ...]) -> None:
    (job,) = plan("fulcrum=interface", *overrides).jobs
    assert isinstance(job.fulcrum, Interface)
    given = [value for value in overrides if value.startswith("fulcrum.parts")]
    assert job.fulcrum.parts == (given[0].split("[")[1].strip("]").split(",") if given else [])
