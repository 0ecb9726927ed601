"""Which sizes of kernels and layers a network can be made of: checked before it is built."""


def check_positive(**settings: int) -> None:
    """Refuse settings that are not whole numbers above 0.

    Raises
    ------
    ValueError
        With the name and the value.

    Examples
    --------
    >>> check_positive(patch=0)
    Traceback (most recent call last):
    ValueError: patch must be a whole number above 0; received 0
    """
    for name, value in settings.items():
        if not _is_positive(value):
            raise ValueError(f"{name} must be a whole number above 0; received {value!r}")


def check_layers(**settings: tuple[int, ...]) -> None:
    """Refuse lists, one number per layer, that are empty or hold other than whole numbers above 0.

    Raises
    ------
    ValueError
        With the name and the value.

    Examples
    --------
    >>> check_layers(filters=())
    Traceback (most recent call last):
    ValueError: filters must list a whole number above 0 for each layer; received ()
    """
    for name, values in settings.items():
        if not (isinstance(values, tuple) and values and all(map(_is_positive, values))):
            raise ValueError(
                f"{name} must list a whole number above 0 for each layer; received {values!r}"
            )


def for_each_layer(name: str, value: int | tuple[int, ...], layers: int) -> tuple[int, ...]:
    """Give a setting for each layer: one number stands for all.

    Raises
    ------
    ValueError
        If there are not as many numbers as layers, or one is not above 0.

    Examples
    --------
    >>> for_each_layer("kernel", 3, 2)
    (3, 3)
    >>> for_each_layer("kernel", (5, 3, 3), 2)
    Traceback (most recent call last):
    ValueError: kernel has 3 numbers for 2 layers; give one for each, or one for all
    """
    values = value if isinstance(value, tuple) else (value,) * layers
    check_layers(**{name: values})
    if len(values) != layers:
        raise ValueError(
            f"{name} has {len(values)} numbers for {layers} layers; "
            "give one for each, or one for all"
        )
    return values


def check_odd(**kernels: int | tuple[int, ...]) -> None:
    """Refuse kernels without a middle: with them, fields drift by half a pixel at each step.

    Raises
    ------
    ValueError
        With the name and the value.

    Examples
    --------
    >>> check_odd(kernel=4)
    Traceback (most recent call last):
    ValueError: kernel must be odd, so that it has a middle; received 4; try 3 or 5
    """
    for name, value in kernels.items():
        for side in value if isinstance(value, tuple) else (value,):
            check_positive(**{name: side})
            if side % 2 == 0:
                raise ValueError(
                    f"{name} must be odd, so that it has a middle; received {side}; "
                    f"try {side - 1} or {side + 1}"
                )


def check_fits(name: str, kernel: int, grid: tuple[int, int]) -> None:
    """Refuse a kernel whose rim reaches beyond the grid from every place on it.

    Parameters
    ----------
    name
        Of the setting.
    kernel
        Side.
    grid : (y, x)
        On which the kernel is used; coarser than the frames where these are in patches.

    Raises
    ------
    ValueError
        With the kernel, the grid and the largest kernel that fits.

    Examples
    --------
    >>> check_fits("kernel", 5, (2, 8))
    Traceback (most recent call last):
    ValueError: kernel of 5 cannot fit a layer's grid of 2 x 8; at most 3 does: ...
    """
    largest = 2 * min(grid) - 1
    if kernel > largest:
        raise ValueError(
            f"{name} of {kernel} cannot fit a layer's grid of {grid[0]} x {grid[1]}; at most "
            f"{largest} does: use a smaller {name}, a larger grid, fewer layers or smaller patches"
        )


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
