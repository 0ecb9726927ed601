import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nowcast.verification.events import blocks_of_cases, is_wet, selected

FIRST = pd.Timestamp("2024-06-01T00:00")


def _described(wet_share, later=None, hours=None):
    """Cases of a known wet share, an hour apart or at these hours."""
    hours = np.arange(len(wet_share)) if hours is None else np.array(hours)
    later = wet_share if later is None else later
    return xr.Dataset(
        {"wet_share": ("base_time", wet_share), "wet_share_later": ("base_time", later)},
        coords={"base_time": FIRST + pd.to_timedelta(hours, unit="h")},
    )


def _spells(*lengths, dry=8):
    """Wet spells of so many hourly cases, dry ones between them."""
    return _described([share for length in lengths for share in [0.3] * length + [0.0] * dry])


def test_a_case_is_wet_now_or_later_from_one_percent_on_and_never_if_unknown():
    nan = np.nan
    described = _described([0.01, 0.0099, 0.0, nan, nan], later=[0.0, nan, 0.01, 0.5, nan])
    assert is_wet(described).tolist() == [True, False, True, True, False]


def test_six_hours_without_rain_do_not_divide_an_event_and_a_minute_more_does():
    within = _described([0.3, 0.0, 0.3], hours=[0, 3, 6])
    assert blocks_of_cases(within, least_events=1).of_case.tolist() == [0, 0, 0]
    beyond = _described([0.3, 0.0, 0.3], hours=[0, 3, 6 + 1 / 60])
    assert blocks_of_cases(beyond, least_events=1).of_case.tolist() == [0, 0, 1]


def test_dry_cases_belong_to_the_nearest_event_also_before_the_first_and_across_missing_data():
    shares = [0, 0, 0.3, 0.3, 0, 0, 0, 0, 0.3, 0, 0]
    hours = [0, 5, 10, 11, 12, 15, 20, 110, 111, 112, 200]
    blocks = blocks_of_cases(_described(shares, hours=hours), least_events=2)
    assert blocks.of_case.tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert blocks.labels == (
        "2024-06-01T00:00/2024-06-01T20:00",
        "2024-06-05T14:00/2024-06-09T08:00",
    )
    assert (blocks.unit, blocks.resampled) == ("event", "2 events")


def test_a_case_in_the_very_middle_belongs_to_the_earlier_event():
    blocks = blocks_of_cases(_described([0.3, 0, 0.3], hours=[0, 5, 10]), least_events=2)
    assert blocks.of_case.tolist() == [0, 0, 1]


def test_eight_events_are_resampled_and_seven_are_not():
    eight = blocks_of_cases(_spells(*[4] * 8))
    assert (eight.unit, eight.resampled) == ("event", "8 events")
    assert np.bincount(eight.of_case).tolist() == [8, *[12] * 6, 16]
    seven = blocks_of_cases(_spells(*[4] * 7))
    assert seven.unit == "3-hour block"
    assert seven.resampled == "28 blocks of 3 hours, since there are only 7 events"


def test_three_hour_blocks_are_cut_at_whole_multiples_and_none_is_empty():
    blocks = blocks_of_cases(_described([0.3] * 5, hours=[1, 2.5, 3, 9, 9.5]))
    assert blocks.of_case.tolist() == [0, 0, 1, 2, 2]
    assert blocks.labels[0] == "2024-06-01T01:00/2024-06-01T02:30"
    assert blocks.resampled == "3 blocks of 3 hours, since there is only 1 event"


def test_without_rain_or_thresholds_there_are_no_events():
    for share in (0.0, np.nan):
        blocks = blocks_of_cases(_described([share] * 2), least_events=1)
        assert blocks.resampled == "1 block of 3 hours, since there are no events"


def test_leaving_cases_out_does_not_divide_an_event():
    described = _spells(30, 4)
    every = described.indexes["base_time"]
    blocks = blocks_of_cases(described, every[:30:10], least_events=1)
    assert blocks.of_case.tolist() == [0, 0, 0]
    assert blocks.resampled == "1 event"
    both = blocks_of_cases(described, every[[20, 0, 39]], least_events=2)
    assert both.of_case.tolist() == [0, 0, 1]
    assert both.labels[0] == "2024-06-01T00:00/2024-06-01T20:00"


def test_wet_and_dry_cases_are_all_cases_but_those_of_which_nothing_is_known():
    described = _described([0.3, 0.0, np.nan, 0.01])
    times = described.indexes["base_time"]
    assert list(selected(described, "all")) == list(times)
    assert list(selected(described, "wet")) == list(times[[0, 3]])
    assert list(selected(described, "dry")) == list(times[[1]])


def test_cases_are_thinned_evenly():
    described = _described([0.3] * 9)
    hours = selected(described, "wet", most=3).hour
    assert hours.tolist() == [0, 4, 8]
    assert len(selected(described, "all", most=9)) == len(selected(described, "all", most=99)) == 9


def test_as_many_cases_are_drawn_from_each_event_as_the_middle_one_has():
    described = _spells(2, 5, 20)
    drawn = selected(described, "events")
    events = blocks_of_cases(described, drawn, least_events=3)
    assert np.bincount(events.of_case).tolist() == [2, 5, 5]
    assert is_wet(described.sel(base_time=drawn)).all()
    assert drawn.is_monotonic_increasing
    assert drawn.is_unique
    assert drawn.equals(selected(described, "events"))
    assert not drawn.equals(selected(described, "events", seed=1))


def test_fewer_cases_are_drawn_from_each_event_where_their_number_is_limited():
    described = _spells(2, 5, 20)
    for most, numbers in {9: [2, 3, 3], 10: [2, 4, 4], 3: [1, 1, 1], 40: [2, 5, 20]}.items():
        drawn = selected(described, "events", most=most)
        events = blocks_of_cases(described, drawn, least_events=3)
        assert np.bincount(events.of_case).tolist() == numbers
    assert len(selected(described, "events", most=2)) == 2


@pytest.mark.parametrize("selection", ["wet", "events", "dry"])
def test_a_selection_without_a_case_says_what_to_do(selection):
    described = _described([0.3 if selection == "dry" else 0.0] * 3)
    with pytest.raises(ValueError, match=r"none of 3 cases is .* select 'all', or choose"):
        selected(described, selection)
    with pytest.raises(ValueError, match="give thresholds or select 'all'"):
        selected(_described([np.nan] * 3), selection)


def test_an_unknown_selection_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no selection 'rainy'; there are all, wet, dry, events"):
        selected(_described([0.3]), "rainy")
