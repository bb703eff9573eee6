"""Arguments as Python gives them → the values that the library's options hold, or one sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from deeplight.engine.core.errors import InputError

if TYPE_CHECKING:
    from deeplight.engine.output.acquired import Span

_T = TypeVar("_T")


def scale(name: str, given: Any) -> tuple[float, float] | None:
    """None, F or (F, OFFSET): physical value = raw · F + OFFSET."""
    from deeplight.engine.raster.bands import parse_scale

    if given is None:
        return None
    return _parsed(name, given, parse_scale, "F or (F, OFFSET) with F not 0", "(0.0000275, -0.2)")


def psf(name: str, given: Any) -> tuple[float, float] | str | None:
    """None, "auto", "unknown", one FWHM or two."""
    from deeplight.engine.raster.psf import WIDEST, parse_psf

    if given is None:
        return None
    wanted = f'"auto", "unknown", or a FWHM of 0 to {WIDEST} LR pixels or two of them'
    return _parsed(name, given, parse_psf, wanted, "1.6")


def bounds(name: str, given: Any) -> tuple[float, float, float, float] | None:
    """None or (west, south, east, north)."""
    from deeplight.engine.raster.placement import parse_bounds

    if given is None:
        return None
    return _parsed(
        name,
        given,
        parse_bounds,
        "(west, south, east, north) in the units of its CRS",
        "(5.5, 49.4, 6.6, 50.2)",
    )


def crs(name: str, given: Any) -> str | None:
    """None, or a text, number or CRS that PROJ knows."""
    from deeplight.engine.raster.placement import parse_crs

    if given is None:
        return None
    text = f"EPSG:{given}" if isinstance(given, int) else given if isinstance(given, str) else _wkt(given)
    return _parsed(name, given, parse_crs, "a coordinate reference system", '"EPSG:4326"', text)


def _wkt(given: Any) -> str:
    return str(given.to_wkt()) if hasattr(given, "to_wkt") else str(given)


def tiles(given: Any) -> Any:
    """ "auto", CORE, "CORE+HALO", or None for the scene in one piece."""
    from deeplight.engine.run.tiling import parse_tiles

    if given is None:
        return None
    text = str(given) if isinstance(given, Integral) and not isinstance(given, bool) else given
    wanted = '"auto", a side in LR pixels, "CORE+HALO" or None (in one piece)'
    return _parsed("tiles", given, parse_tiles, wanted, '"128+16"', text)


def extra_bands(given: Any) -> tuple[str, ...]:
    """One name or several."""
    from deeplight.engine.run.options import EXTRA_BANDS, parse_extra_bands

    names = [given] if isinstance(given, str) else list(given)
    if not names:
        return ()
    text = ",".join(map(str, names))
    return _parsed(
        "bands", text, parse_extra_bands, f"names of {', '.join(EXTRA_BANDS)}", '("isp", "quality")'
    )


def slots(name: str, given: Any) -> dict[str, int] | None:
    """None, or slot → band number."""
    from deeplight.engine.core.spec import DMO_SLOTS
    from deeplight.engine.raster.bands import parse_bands

    if given is None:
        return None
    text = ",".join(f"{k}={v}" for k, v in given.items()) if isinstance(given, Mapping) else given
    wanted = f"slots ({', '.join(DMO_SLOTS)}) with the band number of each, counted from 1"
    example = '{"blue": 1, "green": 2, "red": 3, "nir": 4}'
    return _parsed(name, given, parse_bands, wanted, example, text)


def shard(given: Any) -> Any:
    """None or (I, N): share I of N."""
    from deeplight.engine.run.options import parse_shard

    if given is None:
        return None
    text = "/".join(map(str, given)) if isinstance(given, tuple | list) else given
    return _parsed("shard", given, parse_shard, "(I, N) with I from 0 to N - 1", "(0, 4)", text)


def workers(given: Any) -> Any:
    """None, "local:N" or "ray[:HOST:PORT][,N]"."""
    from deeplight.engine.run.workers.request import parse_workers

    if given is None:
        return None
    return _parsed("workers", given, parse_workers, '"local:N", "ray" or "ray:HOST:PORT,N"', '"local:2"')


def number(name: str, given: Any) -> float | None:
    """None or a number, NaN included."""
    if given is not None and not _real(given):
        raise InputError(f"{name}={given!r} is not a number: give one such as 0, -999.3 or float('nan')")
    return None if given is None else float(given)


def count(name: str, given: Any, least: int = 0) -> int:
    """A whole number."""
    if not isinstance(given, Integral) or isinstance(given, bool) or given < least:
        raise InputError(
            f"{name}={given!r} is not a whole number of at least {least}: give one such as {max(least, 4)}"
        )
    return int(given)


def count_or_none(name: str, given: Any, least: int = 1) -> int | None:
    """None or a whole number."""
    return None if given is None else count(name, given, least)


def choice(name: str, given: _T, among: Sequence[_T]) -> _T:
    """One of some values."""
    if given not in among:
        names = ", ".join(repr(value) for value in among)
        raise InputError(f"{name}={given!r} is not one of {names}: give one of them")
    return given


def text(name: str, given: Any) -> str:
    """A text."""
    if not isinstance(given, str):
        raise InputError(f"{name}={given!r} is not a text: give one")
    return given


def text_or_none(name: str, given: Any) -> str | None:
    """None or a text."""
    return None if given is None else text(name, given)


def path(name: str, given: Any) -> Path:
    """A path."""
    if not isinstance(given, str | Path):
        raise InputError(f"{name}={given!r} is not a path: give a text or a pathlib.Path")
    return Path(given)


def path_or_none(name: str, given: Any) -> Path | None:
    """None or a path."""
    return None if given is None else path(name, given)


def dates(given: str | Sequence[object] | None) -> list[Span] | None:
    """The time that each of some dates covers, such as "2019", "2020-03" or "2020-01-01/2020-03-31"."""
    from deeplight.engine.output.acquired import parse_date

    if given is None:
        return None
    try:
        return [parse_date(str(date)) for date in (given.split(",") if isinstance(given, str) else given)]
    except ValueError as error:
        raise InputError(str(error)) from None


def _real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _parsed(
    name: str, given: Any, parse: Callable[[str], _T], wanted: str, example: str, text: Any = None
) -> _T:
    """What the command line makes of the same value, spelt as `text`, by default as `given` would be. Raises InputError
    in terms of the parameter."""
    text = given if text is None else text
    if _real(text):
        text = repr(float(text))
    elif isinstance(text, Sequence) and not isinstance(text, str) and all(map(_real, text)):
        text = ",".join(repr(float(value)) for value in text)
    try:
        if not isinstance(text, str) or text in ("", "nan"):
            raise ValueError
        return parse(text)
    except (ValueError, InputError):
        raise InputError(f"{name}={given!r} is not {wanted}; an example is {name}={example}") from None
