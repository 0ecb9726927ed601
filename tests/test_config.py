import json
import warnings

import numpy as np
import pytest

from nowcast.config import Config, ConfigError, load, validate
from nowcast.nowcasters.pretrained import PRETRAINED, folder_of

CELSIUS = [
    "variable.name=temperature",
    "variable.units=degC",
    "variable.long_name=air temperature",
    "variable.valid_min=-60",
    "variable.valid_max=60",
]
LINEAR = ["transform.name=linear", "transform.offset=10", "transform.top=15"]


def test_defaults_need_no_file():
    assert Config().window.lead_times[-1].total_seconds() == 3600


def test_an_unknown_key_is_named_with_the_known_ones(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("[window]\nlead = 3\n")
    with pytest.raises(ConfigError, match=r"unknown key 'window.lead'.*lead_frames"):
        load(path)


def test_an_unfit_value_is_named(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("[training]\nepochs = 0\n")
    with pytest.raises(ConfigError, match=r"training.epochs: .*received 0"):
        load(path)


def test_a_file_that_is_no_toml_is_refused(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("epochs: 3")
    with pytest.raises(ConfigError, match="is not TOML"):
        load(path)


def test_settings_on_the_command_line_are_typed():
    config = Config().replace(
        [
            "network.name=cnn_lstm",
            "network.settings={units=8}",
            "verification.thresholds=[1.0, 2.0]",
        ]
    )
    assert config.network.name == "cnn_lstm"
    assert config.network.settings == {"units": 8}
    assert config.verification.thresholds == (1.0, 2.0)


def test_observations_may_be_several():
    config = Config().replace(['data.observations=["a/*.h5", "b.nc"]'])
    assert config.data.observations == ("a/*.h5", "b.nc")
    assert Config().replace(["data.observations=archive"]).data.observations == "archive"
    with pytest.raises(ConfigError, match=r"data.observations.*received 3"):
        Config().replace(["data.observations=3"])


def test_a_setting_without_a_value_is_refused():
    with pytest.raises(ConfigError, match=r"section\.field=value"):
        Config().replace(["epochs"])


def test_thresholds_of_a_network_must_be_reachable():
    heads = ["network.head=exceedance", "training.loss=crps"]
    config = Config().replace([*heads, "network.levels=[0.5, 5.0]"])
    assert config.network.levels == (0.5, 5.0)
    for levels in ("[0.0, 5.0]", "[0.5, 2000.0]"):
        with pytest.raises(
            ConfigError, match=r"network.levels .* must lie above 0.0 and not above"
        ):
            Config().replace([*heads, f"network.levels={levels}"])


def test_a_head_or_loss_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"network.head: .*'exceedance'.*received 'rain'"):
        Config().replace(["network.head=rain"])
    with pytest.raises(ConfigError, match=r"training.loss: .*'crps'.*received 'csi'"):
        Config().replace(["training.loss=csi"])


def test_windows_may_lack_as_many_lead_frames_as_they_have():
    config = Config().replace(["window.lead_frames=4", "training.least_lead_frames=4"])
    assert config.training.least_lead_frames == 4
    with pytest.raises(ConfigError, match=r"least_lead_frames=5 exceeds window.lead_frames=4; set"):
        config.replace(["training.least_lead_frames=5"])
    with pytest.raises(ConfigError, match=r"'series' is of whole windows; set training.least"):
        config.replace(["network.head=series", "training.loss=mae"])


def test_views_are_of_networks_that_were_shown_flips_and_give_frames():
    config = Config().replace(["network.views=8", "training.augment=true"])
    assert config.network.views == 8
    with pytest.raises(ConfigError, match=r"of which it was shown none; set training.augment=true"):
        config.replace(["training.augment=false"])
    with pytest.raises(ConfigError, match=r"sees frames as they are; set network.views=1"):
        config.replace(["network.head=series", "training.loss=mae"])
    with pytest.raises(ConfigError, match=r"network.views: .*1, 4 or 8.*received 2"):
        config.replace(["network.views=2"])


def test_the_promotion_threshold_must_be_verified():
    with pytest.raises(ConfigError, match=r"promotion.threshold 7"):
        Config().replace(["promotion.threshold=7.0"])


@pytest.mark.parametrize("thresholds", ["[1.0, 1.0]", "[1.0, nan]", "[1.0, inf]"])
def test_thresholds_are_numbers_and_each_comes_once(thresholds):
    with pytest.raises(ValueError, match="thresholds must be finite and differ; received 1, "):
        Config().replace([f"verification.thresholds={thresholds}"])


def test_without_thresholds_the_best_is_chosen_by_rmse_or_mae():
    none = "verification.thresholds=[]"
    assert Config().replace([none, "promotion.score=mae"]).verification.thresholds == ()
    with pytest.raises(ConfigError, match="or promote by the score rmse or mae"):
        Config().replace([none])


def test_the_baselines_are_those_of_the_nowcasters_where_nothing_else_is_asked_for():
    from nowcast.nowcasters import BASELINES

    assert Config().baselines == BASELINES


def test_a_variable_with_a_cycle_is_compared_with_the_same_hour_yesterday():
    cyclic = Config().replace(["variable.period_hours=24"])
    assert cyclic.baselines == ("persistence", "extrapolation", "periodic")
    alone = cyclic.replace(['verification.baselines=["periodic"]'])
    assert alone.baselines == ("periodic",)
    assert cyclic.variable.period.total_seconds() == 86400


def test_a_cycle_that_is_not_known_is_no_baseline():
    with pytest.raises(ConfigError, match=r"'periodic' needs variable.period_hours"):
        Config().replace(['verification.baselines=["periodic"]'])
    with pytest.raises(ConfigError, match="must name one or more"):
        Config().replace(["verification.baselines=[]"])


def test_a_known_variable_brings_its_units():
    config = Config.model_validate({"variable": {"name": "reflectivity"}})
    assert config.variable.variable.units == "dBZ"


def test_a_known_variable_on_the_command_line_brings_its_units_too():
    config = Config().replace(["variable.name=reflectivity"])
    assert config.variable.variable.units == "dBZ"
    assert config.replace(["training.epochs=9"]).variable.units == "dBZ"


def test_another_known_variable_brings_its_own_units():
    radar = Config().replace(["variable.name=reflectivity", "variable.period_hours=24"])
    rain = radar.replace(["variable.name=rain_rate"])
    assert rain.variable == Config().replace(["variable.period_hours=24"]).variable
    narrow = radar.replace(["variable.valid_max=70"]).replace(["variable.name=rain_rate"])
    assert (narrow.variable.units, narrow.variable.valid_max) == ("mm h-1", 70)


def test_an_unknown_variable_takes_nothing_from_rain():
    temperature = Config().replace([*CELSIUS, *LINEAR])
    assert temperature.variable.standard_name == ""
    assert "standard_name" not in temperature.variable.variable.attributes
    later = temperature.replace(["variable.name=dew_point"])
    assert (later.variable.units, later.variable.valid_min) == ("degC", -60)
    whole = Config.model_validate_json(temperature.model_dump_json())
    assert whole == temperature


@pytest.mark.parametrize("known", ["", "rain_rate", "reflectivity"])
@pytest.mark.parametrize("written", [False, True])
def test_what_an_unknown_variable_lacks_is_named_at_once(known, written):
    config = Config().replace([f"variable.name={known}"] if known else [])
    if written:  # with every default
        config = Config.model_validate_json(config.model_dump_json())
    lacking = "of 'temperature' units and long_name and valid_min and valid_max must be given too"
    with pytest.raises(ConfigError, match=lacking):
        config.replace(["variable.name=temperature"])
    with pytest.raises(ConfigError, match="of 'temperature' long_name and valid_max must be given"):
        config.replace(
            ["variable.name=temperature", "variable.units=K", "variable.valid_min=0", *LINEAR]
        )


def test_an_unknown_variable_in_a_file_must_be_complete(tmp_path):
    path = tmp_path / "temperature.toml"
    path.write_text('[variable]\nname = "temperature"\nunits = "K"\nvalid_min = 180\n')
    with pytest.raises(
        ConfigError, match=r"temperature.toml: variable: .*long_name and valid_max must be given"
    ):
        load(path)


def test_a_value_of_rain_may_be_said_of_an_unknown_variable():
    said = ["units=mm h-1", "long_name=rain rate", "valid_min=0", "valid_max=1000"]
    config = Config().replace(["variable.name=snow", *(f"variable.{field}" for field in said)])
    assert config.variable.long_name == "rain rate"
    assert config.replace(["training.epochs=2"]).variable == config.variable


def test_a_name_that_is_no_text_is_refused():
    with pytest.raises(ConfigError, match=r"variable.name: .*received \[1\]"):
        Config().replace(["variable.name=[1]"])


@pytest.mark.parametrize(("low", "high"), [(5, 5), (6, 5)])
def test_a_valid_range_has_an_extent(low, high):
    with pytest.raises(ConfigError, match=r"valid_min must lie below valid_max; received"):
        Config().replace([f"variable.valid_min={low}", f"variable.valid_max={high}"])


@pytest.mark.parametrize(
    "field", ["variable.valid_max", "transform.offset", "transform.reference", "transform.top"]
)
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_a_range_and_a_scale_are_finite(field, value):
    with pytest.raises(ConfigError, match=rf"{field}: .*finite number; received {value}"):
        Config().replace([f"{field}={value}"])


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (CELSIUS, r"valid_min=-60.0 degC of 'temperature' is nan .*offset=-60.0 or less"),
        (
            ["transform.offset=0.61", "transform.top=5"],
            r"valid_min=0.0 .*nan .*offset=0.61.*=0.0 o",
        ),
        (["transform.offset=0.5"], r"valid_min=0.0 .* is -inf on .*set transform.name=\"linear\""),
        (["transform.offset=0.5", "transform.reference=0.500000001"], "is -inf on"),  # in float32
        (["transform.top=0"], r"transform: .*above offset.*received top=0.0 and offset=0.0"),
        (["transform.top=-1", "transform.name=linear"], r"received top=-1.0 and offset=0.0"),
        (["transform.offset=3", "transform.name=linear"], r"received top=3.0 and offset=3.0"),
        (["transform.reference=-0.5"], r"transform: .*reference must be above 0 .*received -0.5"),
        (["transform.reference=0"], r"reference must be above 0 .*received 0.0; .*name=\"linear\""),
        (["variable.valid_max=1e39"], r"valid_max=1e\+39 .* is inf on .*narrower valid range"),
    ],
)
def test_a_scale_without_a_place_for_the_valid_range_is_refused(settings, complaint):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy's too
        with pytest.raises(ConfigError, match=complaint):
            Config().replace(settings).check_scale()


def test_what_trains_nothing_may_leave_the_scale_of_networks_as_it_is():
    assert Config().replace(CELSIUS).variable.units == "degC"


@pytest.mark.parametrize(
    "settings",
    [
        [*CELSIUS, *LINEAR],
        [*CELSIUS, "transform.offset=-60", "transform.top=20"],
        ["transform.offset=0.4", "transform.top=5"],
        ["transform.name=linear", "transform.reference=0"],
    ],
)
def test_a_scale_with_a_place_for_the_valid_range_is_taken(settings):
    config = Config().replace(settings)
    config.check_scale()
    ends = np.array([config.variable.valid_min, config.variable.valid_max], np.float32)
    assert np.isfinite(config.transform.transform.forward(ends)).all()


@pytest.mark.parametrize("variable", PRETRAINED)
def test_the_settings_of_shipped_nowcasters_are_valid(variable):
    saved = json.loads((folder_of(variable) / "settings.json").read_text())
    config = validate({name: saved[name] for name in ("variable", "transform")}, source="shipped")
    assert config.variable.name == variable


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Config().experiment = "other"


def test_every_file_in_configs_loads():
    from pathlib import Path

    files = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))
    assert files
    for file in files:
        assert isinstance(load(file), Config)
