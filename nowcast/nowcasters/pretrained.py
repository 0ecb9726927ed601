"""The nowcasters that come with nowcast: trained, calibrated, and described by a card each."""

from pathlib import Path

from nowcast.nowcasters.neural import NeuralNowcaster

FOLDER = Path(__file__).parents[1] / "pretrained"
# By what they forecast; each refuses other grid spacings, cadences and units by itself.
PRETRAINED = {"rain_rate": "composites", "reflectivity": "taasrad19"}
CARD = "CARD.md"


def folder_of(variable: str) -> Path:
    """Give the folder of the nowcaster that comes with nowcast for a variable.

    Raises
    ------
    ValueError
        If there is none.

    Examples
    --------
    >>> folder_of("reflectivity").name
    'taasrad19'
    """
    if variable not in PRETRAINED:
        raise ValueError(
            f"no pretrained nowcaster forecasts {variable!r}; there are ones of "
            f"{' and '.join(PRETRAINED)}; train your own with `nowcast train`"
        )
    return FOLDER / PRETRAINED[variable]


def open_pretrained(variable: str = "rain_rate") -> NeuralNowcaster:
    """Open the nowcaster that comes with nowcast for a variable; its folder's `CARD` describes it.

    Raises
    ------
    ValueError
        If there is none, or its files are not those that were shipped.
    """
    return NeuralNowcaster.load(folder_of(variable))
