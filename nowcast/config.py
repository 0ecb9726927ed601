"""All settings of an experiment, on one screen: frozen, typed, read from one TOML file.

Every field has a default that runs on a laptop, on the synthetic source. A setting on the
command line is ``--set section.field=value``.
"""

import tomllib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nowcast.conventions import VARIABLES, Variable, check_thresholds
from nowcast.rainrate import Transform
from nowcast.turns import Views

PERIODIC = "periodic"  # the nowcaster that every variable with a cycle is compared with

HeadKind = Literal["field", "fraction", "exceedance", "quantiles", "series", "classes"]
LossKind = Literal[
    "mse",
    "mae",
    "balanced",
    "b_mse",
    "b_mae",
    "cross_entropy",
    "crps",
    "quantile",
    "ordinal",
    "ordinal_heavy",
]


class Section(BaseModel):
    """A frozen group of settings that refuses names it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class VariableSection(Section):
    """What is forecast. For a quantity that nowcast does not know, give every field.

    Only its standard name and its cycle may be left out: then it has none.
    """

    name: str = "rain_rate"
    units: str = "mm h-1"
    long_name: str = "rain rate"
    standard_name: str = "rainfall_rate"
    valid_min: float = Field(0.0, allow_inf_nan=False)
    valid_max: float = Field(1000.0, allow_inf_nan=False)
    period_hours: float = Field(0.0, ge=0)  # of its cycle, 24 for a daily one; 0: it has none

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        name = given.get("name") if isinstance(given, dict) else None
        if not isinstance(name, str):
            return given
        known = VARIABLES.get(name)
        return {**(vars(known) if known else {"standard_name": ""}), **given}

    @model_validator(mode="after")
    def _is_said(self) -> "VariableSection":
        needed = ("units", "long_name", "valid_min", "valid_max")
        absent = [field for field in needed if field not in self.model_fields_set]
        if self.name not in VARIABLES and absent:
            raise ValueError(
                f"of {self.name!r} {' and '.join(absent)} must be given too, since only "
                f"{' and '.join(VARIABLES)} are known by name"
            )
        if self.valid_min >= self.valid_max:
            raise ValueError(
                f"valid_min must lie below valid_max; received {self.valid_min} and "
                f"{self.valid_max} {self.units}"
            )
        return self

    @property
    def variable(self) -> Variable:
        """The same as the convention's type."""
        return Variable(**self.model_dump(exclude={"period_hours"}))

    @property
    def period(self) -> pd.Timedelta:
        """Of its cycle; zero without one."""
        return pd.Timedelta(hours=self.period_hours)


class TransformSection(Section):
    """The scale on which networks see the variable; see `nowcast.rainrate.Transform`."""

    name: Literal["log", "linear"] = "log"
    offset: float = Field(0.0, allow_inf_nan=False)  # physical units
    reference: float = Field(0.5, allow_inf_nan=False)  # physical units; above 0 for log
    top: float = Field(3.0, allow_inf_nan=False)  # physical units; above the offset

    @model_validator(mode="after")
    def _rises(self) -> "TransformSection":
        if self.name == "log" and self.reference <= 0:
            raise ValueError(
                f'reference must be above 0 where name="log"; received {self.reference}; set it '
                'to where the scale turns logarithmic, or name="linear"'
            )
        if self.top <= self.offset:
            raise ValueError(
                f"top, which becomes 1, must be above offset, which becomes 0; received "
                f"top={self.top} and offset={self.offset}"
            )
        return self

    @property
    def transform(self) -> Transform:
        """The same as the type that computes."""
        return Transform(**self.model_dump())


class DataSection(Section):
    """Where observations come from."""

    # An archive folder, a NetCDF/Zarr path or raw radar files; several: each grid on one canvas.
    observations: str | tuple[str, ...] = "synthetic"
    source: str = ""  # which source of an archive that holds several
    coarsen: int = Field(1, ge=1)  # pixels averaged along y and along x; missing ones respected
    leave_out: tuple[str, ...] = ()  # frames with one of these quality flags, such as "frozen"
    clutter_map: str = ""  # file of static clutter, whose pixels become missing; "": none
    speckle_filter: bool = False  # wet pixels without a wet neighbour become missing
    step: float = Field(0.0, ge=0)  # of the training cache's codes, in units; 0: nowcast.cache


class SyntheticSection(Section):
    """The embedded source; see `nowcast.data.synthetic`."""

    events: int = Field(90, ge=1)
    hours: float = Field(6.0, gt=0)  # of each event; events are a gap apart
    size: int = Field(64, ge=8)  # pixels along y and x
    grid_spacing_m: float = Field(2000.0, gt=0)
    seed: int = 0


class WindowSection(Section):
    """What one forecast sees and gives."""

    input_frames: int = Field(4, ge=2)
    lead_frames: int = Field(6, ge=1)
    step_minutes: int = Field(10, ge=1)

    @property
    def step(self) -> pd.Timedelta:
        """Time between frames."""
        return pd.Timedelta(minutes=self.step_minutes)

    @property
    def lead_times(self) -> pd.TimedeltaIndex:
        """Every lead time, from one step to the last."""
        return pd.TimedeltaIndex([self.step * lead for lead in range(1, self.lead_frames + 1)])


class SplitSection(Section):
    """Blocks of time for training, validation and test, none sharing a frame or its echo.

    Give either the fractions (in time order: training first, test last; or dealt in stretches of
    some hours, so that each block has all seasons) or all three periods, as
    ``"2010-08-26T00:00/2010-08-26T05:00"``, several with spaces between.
    """

    validation_fraction: float = Field(0.15, gt=0, lt=1)
    test_fraction: float = Field(0.15, gt=0, lt=1)
    guard_minutes: int = Field(60, ge=0)  # left unused between two blocks
    stretch_hours: float = Field(0.0, ge=0)  # dealt in turn to the three blocks; 0: in time order
    train: str = ""
    validation: str = ""
    test: str = ""

    @model_validator(mode="after")
    def _all_or_none(self) -> "SplitSection":
        periods = [self.train, self.validation, self.test]
        if any(periods) and not all(periods):
            raise ValueError("give all of train, validation and test as periods, or none")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction must leave room for training")
        return self


class NetworkSection(Section):
    """Which network, and its own settings; `nowcast list` names them."""

    name: str = "convlstm"
    settings: dict[str, Any] = Field(default_factory=dict)
    channels: Literal[1, 2] = 2  # value and observed; 1: values alone, where none is ever missing
    views: Views = 1  # of frames, whose mean is issued; 4: flips too; 8: and quarter turns
    head: HeadKind = "field"  # what its outputs mean
    levels: tuple[float, ...] = ()  # of exceedance: thresholds in units; of quantiles: in (0, 1)
    points: tuple[tuple[float, float], ...] = ()  # [[y, x], ...] of a series; none: areal mean


class TrainingSection(Section):
    """How a network is fitted."""

    epochs: int = Field(3, ge=1)
    steps_per_epoch: int = Field(0, ge=0)  # 0: every window once
    validation_windows: int = Field(0, ge=0)  # evenly among those of the block; 0: all
    batch_size: int = Field(8, ge=1)
    least_lead_frames: int = Field(0, ge=0)  # of a window that must be there; 0: all
    keep_lead_times: bool = False  # that --from knows, as they are; only more are learnt
    crop_pixels: int = Field(0, ge=0)  # side of the squares trained on; 0: the whole grid
    sampling: Literal["uniform", "wet", "intense"] = "uniform"  # which windows come more often
    augment: bool = False  # flips and, of squares, quarter turns of what is trained on
    workers: int = Field(2, ge=1)  # threads that read batches; no number changes by them
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"  # of layers
    devices: int = Field(
        1, ge=1
    )  # among which each batch is shared out; more need KERAS_BACKEND=jax
    steps_per_execution: int = Field(1, ge=1)  # between which the learning rate stands still
    optimizer: Literal["adam", "rmsprop"] = "adam"  # gradients of adam are cut at a norm of 1
    learning_rate: float = Field(3e-3, gt=0)  # at first
    schedule: Literal["cosine", "constant"] = "cosine"  # of the learning rate: to 0 at the end
    loss: LossKind = "balanced"  # which fit which head: nowcast.networks.losses
    patience: int = Field(3, ge=1)  # epochs without a better validation loss before stopping
    minutes: float = Field(0.0, ge=0)  # of training at most; 0: no limit, and the same every time
    seed: int = 0


class VerificationSection(Section):
    """How nowcasters are compared."""

    baselines: tuple[str, ...] = ("persistence", "extrapolation")  # and periodic for a cycle
    thresholds: tuple[float, ...] = (0.5, 1.0, 5.0)  # in the variable's units; may be none
    references: tuple[Literal["steps", "smoothed"], ...] = ("steps", "smoothed")  # beside these
    steps_members: int = Field(12, ge=2)  # of the ensemble of steps
    every_minutes: int = Field(30, ge=1)  # between base times, from the first with a full window
    selection: Literal["all", "wet", "dry", "events"] = "all"  # of these: docs/verification.md
    most_cases: int = Field(0, ge=0)  # scored at most; 0: no limit
    batch_cases: int = Field(8, ge=1)  # cases in memory at a time


class PromotionSection(Section):
    """What a candidate must win by to become the champion."""

    model_name: str = "nowcast"  # in the registry
    score: Literal["csi", "rmse", "mae"] = "csi"
    threshold: float = 1.0  # for csi alone; one of verification.thresholds
    first_lead_minutes: int = Field(30, ge=0)  # lead times from here on are averaged


class Config(Section):
    """One experiment.

    Examples
    --------
    >>> Config().window.lead_frames
    6
    >>> Config().replace(["window.lead_frames=12"]).window.lead_frames
    12
    """

    experiment: str = "nowcast"  # the MLflow experiment that runs belong to
    variable: VariableSection = VariableSection()
    transform: TransformSection = TransformSection()
    data: DataSection = DataSection()
    synthetic: SyntheticSection = SyntheticSection()
    window: WindowSection = WindowSection()
    split: SplitSection = SplitSection()
    network: NetworkSection = NetworkSection()
    training: TrainingSection = TrainingSection()
    verification: VerificationSection = VerificationSection()
    promotion: PromotionSection = PromotionSection()

    @property
    def baselines(self) -> tuple[str, ...]:
        """Those of the verification, and ``periodic`` for a variable with a cycle."""
        cyclic = (PERIODIC,) if self.variable.period_hours else ()
        return tuple(dict.fromkeys((*self.verification.baselines, *cyclic)))

    @model_validator(mode="after")
    def _baselines_are_defined(self) -> "Config":
        if not self.baselines:
            raise ValueError("verification.baselines must name one or more nowcasters")
        if PERIODIC in self.baselines and not self.variable.period_hours:
            raise ValueError("the baseline 'periodic' needs variable.period_hours, such as 24")
        return self

    @model_validator(mode="after")
    def _levels_can_be_reached(self) -> "Config":
        low, high = self.variable.valid_min, self.variable.valid_max
        levels = self.network.levels if self.network.head == "exceedance" else ()
        if not all(low < level <= high for level in levels):
            raise ValueError(
                f"network.levels {levels} must lie above {low} and not above {high} "
                f"{self.variable.units}, the valid range of {self.variable.name!r}; every value "
                f"reaches {low}"
            )
        return self

    @model_validator(mode="after")
    def _sequences_are_of_the_whole_grid(self) -> "Config":
        network, training = self.network, self.training
        if network.points and network.head != "series":
            raise ValueError(
                f"network.points are of the head 'series', not of {network.head!r}; leave them out"
            )
        if network.head in ("series", "classes") and training.crop_pixels:
            raise ValueError(
                f"the head {network.head!r} is of the whole grid, not of squares of "
                f"{training.crop_pixels} pixels; set training.crop_pixels=0"
            )
        if network.head in ("series", "classes") and training.least_lead_frames:
            raise ValueError(
                f"the head {network.head!r} is of whole windows; set training.least_lead_frames=0"
            )
        if network.head in ("series", "classes") and network.views > 1:
            raise ValueError(
                f"a predictor of {network.head} sees frames as they are; set network.views=1"
            )
        if network.views > 1 and not training.augment:
            raise ValueError(
                f"network.views={network.views} asks a network by flips and turns, of which it was "
                "shown none; set training.augment=true, or network.views=1"
            )
        if network.points and training.augment:
            raise ValueError("flips and turns move network.points; set training.augment=false")
        return self

    @model_validator(mode="after")
    def _some_lead_frames_may_be_missing(self) -> "Config":
        least, leads = self.training.least_lead_frames, self.window.lead_frames
        if least > leads:
            raise ValueError(
                f"training.least_lead_frames={least} exceeds window.lead_frames={leads}; set it to "
                f"{leads} or less, or to 0 for whole windows"
            )
        return self

    @model_validator(mode="after")
    def _threshold_is_verified(self) -> "Config":
        promotion, thresholds = self.promotion, self.verification.thresholds
        check_thresholds(thresholds)
        if promotion.score == "csi" and promotion.threshold not in thresholds:
            raise ValueError(
                f"promotion.threshold {promotion.threshold} must be one of "
                f"verification.thresholds {thresholds}; or promote by the score rmse or mae"
            )
        return self

    def check_scale(self) -> None:
        """Refuse a transform on which a network would not see the whole valid range.

        Raises
        ------
        ConfigError
            Naming the end of the range that has no place.
        """
        variable, scale = self.variable, self.transform
        ends = {"valid_min": variable.valid_min, "valid_max": variable.valid_max}
        with np.errstate(all="ignore"):
            scaled = scale.transform.forward(np.array(list(ends.values()), np.float32))
        for (end, value), seen in zip(ends.items(), scaled, strict=True):
            if not np.isfinite(seen):
                raise ConfigError(
                    f"variable.{end}={value} {variable.units} of {variable.name!r} is {seen} on "
                    f'the scale of transform.name="{scale.name}", transform.offset={scale.offset}, '
                    f"transform.reference={scale.reference} and transform.top={scale.top}, and "
                    f'no network would learn from it; set transform.name="linear", or '
                    f"transform.offset={ends['valid_min']} or less, or a narrower valid range"
                )

    def replace(self, settings: list[str]) -> "Config":
        """Give a config in which settings such as ``window.lead_frames=12`` are changed.

        Values are TOML; what is not TOML is taken as a string.

        Raises
        ------
        ConfigError
            If a name is unknown or a value does not fit.
        """
        content = self._said()
        for setting in settings:
            path, equals, value = setting.partition("=")
            if not equals:
                raise ConfigError(f"{setting!r} is no setting; write section.field=value")
            _put(content, path.strip().split("."), _parse(value.strip()))
        return validate(content, source="--set")

    def _said(self) -> dict[str, Any]:
        """Give what was set, without what the name of a known variable brings."""
        content = self.model_dump(exclude_unset=True)
        known = VARIABLES.get(self.variable.name)
        if known and "variable" in content:
            brought = {**vars(known), "name": ""}.items()  # the name itself stays
            own = content["variable"].items()
            content["variable"] = {
                field: value for field, value in own if (field, value) not in brought
            }
        return content


class ConfigError(ValueError):
    """Settings that cannot be used: the message names the setting and what would do."""


def load(path: Path | str) -> Config:
    """Read a config from a TOML file.

    Raises
    ------
    ConfigError
        If the file is not TOML, or a key is unknown or has an unfit value.
    FileNotFoundError
        If it is not there.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    return validate(content, source=str(path))


def validate(content: dict[str, Any], *, source: str) -> Config:
    """Give the config of a nested dictionary, or one line that names what is wrong in it."""
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(map(_describe, error.errors()))) from error


def _describe(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where!r}; known here: {_known(problem['loc'])}"
    received = problem["input"]
    shown = "" if isinstance(received, dict) else f"; received {received!r}"
    told = f"{problem['msg'].removeprefix('Value error, ')}{shown}"
    return f"{where}: {told}" if where else told


def _known(location: tuple[Any, ...]) -> str:
    section: Any = Config
    for part in location[:-1]:
        section = section.model_fields[part].annotation
    return ", ".join(section.model_fields)


def _put(content: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        content = content.setdefault(part, {})
        if not isinstance(content, dict):
            raise ConfigError(f"unknown key {'.'.join(path)!r}: {part!r} is no section")
    content[path[-1]] = value


def _parse(value: str) -> Any:
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value
