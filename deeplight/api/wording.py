"""The library's sentences in terms of parameters: `--dmo-scale 1e-4` becomes `dmo_scale=1e-4`.

The library's messages name the options of deeplight-infer. Whoever calls Python has parameters in their place, so
messages are translated where they leave the API. Commands of other programs in a message, as `rio warp …`, stay.
"""

from __future__ import annotations

import logging
import re
import shlex
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from deeplight.engine.core.environment import environment_trouble
from deeplight.engine.core.errors import DeepLightError, InputError

_NUMBER = r"-?(?:\d+(?:\.\d+)?(?:e[-+]?\d+)?|nan|inf)"
_FILE = r"'[^']*'|[^\s;,']+\.\w+(?![\w.])|[^\s;,']+(?= --)"
_FOREIGN = re.compile(
    r"(?:\brio (?:warp|stack|calc|edit-info)|\bdeeplight-(?:data|train|export)\b|\bpip install"
    r"|\S*python[\d.]*'? -[mc]\b).*?(?=; |\)|$)"
)
"""A command of another program, to the end of its part of the sentence."""


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _file(text: str) -> str:
    return _quote(shlex.split(text)[0])


def _scale(text: str) -> str:
    if text == "F[,OFFSET]":
        return "F or (F, OFFSET)"
    return _numbers(text) if "," in text else text


def _numbers(text: str) -> str:
    return f"({text.replace(',', ', ')})"


def _names(text: str) -> str:
    names = [_quote(name) for name in text.split(",")]
    return f"({', '.join(names)}{',' if len(names) == 1 else ''})"


def _slots(text: str) -> str:
    pairs = (part.split("=") for part in text.split(","))
    return "{" + ", ".join(f"{_quote(slot)}: {number}" for slot, number in pairs) + "}"


_Kind = tuple[str, Callable[[str], str]]
_NUM: _Kind = (rf"{_NUMBER}(?![\w.])|VALUE|FWHM|N(?!\w)", str)
_SCALE: _Kind = (rf"F\[,OFFSET\]|{_NUMBER}(?:,{_NUMBER})?(?![\w.])", _scale)
_BOUNDS: _Kind = (rf"(?:WEST,SOUTH,EAST,NORTH|{_NUMBER}(?:,{_NUMBER}){{3}})(?![\w.])", _numbers)
_CRS: _Kind = (r"EPSG:\d+", _quote)
_PATH: _Kind = (_FILE, _file)
_TRUE: _Kind = ("", lambda _: "True")


def _word(pattern: str) -> _Kind:
    return (rf"(?:{pattern})(?![\w.])", _quote)


FLAGS: Mapping[str, tuple[str, _Kind | None]] = {
    **{f"--{layer}": (layer, _PATH) for layer in ("ntl", "dmo", "dem")},
    **{f"--{layer}-crs": (f"{layer}_crs", _CRS) for layer in ("ntl", "dmo", "dem")},
    **{f"--{layer}-bounds": (f"{layer}_bounds", _BOUNDS) for layer in ("ntl", "dmo", "dem")},
    **{f"--{layer}-scale": (f"{layer}_scale", _SCALE) for layer in ("ntl", "dmo", "dem")},
    **{f"--{layer}-nodata": (f"{layer}_nodata", _NUM) for layer in ("ntl", "dmo", "dem")},
    "--ntl-band": ("ntl_band", _NUM),
    "--ntl-valid": ("ntl_valid", _PATH),
    "--ntl-valid-band": ("ntl_valid_band", _NUM),
    "--ntl-unit": ("ntl_unit", (r"DN(?!\w)|nW/cm²/sr", _quote)),
    "--dmo-band": ("dmo={slot: file}", None),
    "--dmo-bands": ("dmo_bands", (r"\w+=\d+(?:,\w+=\d+)*", _slots)),
    "--dem-band": ("dem_band", _NUM),
    "--psf": ("psf", (rf"auto|unknown|FWHM|{_NUMBER}(?:,{_NUMBER})?", lambda v: _psf(v))),
    "--allow-remote": ("allow_remote", _TRUE),
    "--out": ("out", None),
    "--model": ("model", None),
    "--backend": ("backend", _word("auto|onnxruntime|torch|tensorrt-rtx|tensorrt")),
    "--device": ("device", _word(r"auto|cpu|cuda(?::\d+)?")),
    "--precision": ("precision", _word(r"[a-z]+\d+")),
    "--compile": ("compiling", ("off", lambda _: "False")),
    "--threads": ("threads", _NUM),
    "--trust": ("trust", _TRUE),
    "--tiles": ("tiles", _word(r"auto|CORE\+HALO|\d+(?:\+\d+)?")),
    "--whole": ("tiles", ("", lambda _: "None")),
    "--streams": ("streams", _NUM),
    "--dtype": ("dtype", _word("float32|uint16")),
    "--compression": ("compression", _word("zstd|deflate")),
    "--bands": ("bands", (r"(?:isp|offset|quality|interval)(?:,\w+)*(?!\w)", _names)),
    "--conserve-radiance": ("conserve_radiance", _TRUE),
    "--resume": ("resume", _TRUE),
    "--overwrite": ("overwrite", _TRUE),
    "--report": ("report", None),
    "--events": ("events", None),
    "--quicklook": ("quicklook", None),
    "--page": ("page", None),
    "--verify-seams": ("verify_seams", _NUM),
    "--check": ("check", _NUM),
    "--stac": ("stac", _TRUE),
}
"""Option of deeplight-infer → parameter, and how a value that follows is spelt: its pattern and its Python. A pattern
that is empty belongs to an option without a value; None to one whose value messages never give."""

ZONAL_FLAGS: Mapping[str, tuple[str, _Kind | None]] = {
    "--regions": ("regions", None),
    "--by": ("by", None),
    "--layer": ("layer", (r"[^\s;,']+", _quote)),
    "--dates": ("dates", (r"[\d,/-]+(?![\w.])", lambda text: str(text.split(",")))),
    "--threshold": ("threshold", _NUM),
    "--without": ("without", None),
    "--map": ("maps", _PATH),
    "--map-unit": ("map_unit", (r"DN(?!\w)|nW/cm²/sr", _quote)),
    "--map-band": ("map_band", _NUM),
    "--map-scale": ("map_scale", _SCALE),
    "--map-nodata": ("map_nodata", _NUM),
    "--allow-remote": FLAGS["--allow-remote"],
}
"""The same of deeplight-zonal, as far as its library's messages name them."""
_EVERY = {**FLAGS, **ZONAL_FLAGS}

_PHRASES = {
    "--dmo or --dmo-band": "dmo",
    "run the same command with": "make the same call with",
    "run the same command": "make the same call",
}
_FLAG = r"(?<![\w-])--[a-z][a-z-]*"


def _psf(text: str) -> str:
    if text in ("auto", "unknown"):
        return _quote(text)
    return _numbers(text) if "," in text else text


def _one(flag: str, pattern: str) -> str:
    return rf"{flag}(?![\w-])(?: (?:{pattern}))?" if pattern else rf"{flag}(?![\w-])"


_ANY = "|".join(
    _one(flag, kind[0] if kind is not None else "")
    for flag, (_, kind) in sorted(_EVERY.items(), key=lambda item: -len(item[0]))
)
_OPTIONS = re.compile(rf"{_FOREIGN.pattern}|(?<![\w-])(?P<run>(?:{_ANY})(?: (?:{_ANY}))*)")
_EACH = re.compile(_ANY)


def in_parameters(text: str) -> str:
    """A sentence of the library as the API says it."""
    text = re.sub(r"--dmo-band (coastal|blue|green|red|nir|swir1|swir2)\b(?!=)", r'dmo["\1"]', text)
    for phrase, instead in _PHRASES.items():
        text = text.replace(phrase, instead)

    def translated(match: re.Match[str]) -> str:
        if match["run"] is None:
            return match[0]
        return ", ".join(_parameter(option[0]) for option in _EACH.finditer(match["run"]))

    return _OPTIONS.sub(translated, text)


def _parameter(option: str) -> str:
    """One option, with its value where it has one, as a parameter."""
    flag, _, value = option.partition(" ")
    name, kind = _EVERY[flag]
    if kind is None or (kind[0] and not value):
        return name
    return f"{name}={kind[1](value)}"


@contextmanager
def parameters_named(arrays: Mapping[str, str] | None = None) -> Iterator[None]:
    """Around a call of the library: its errors and log lines name parameters.

    arrays: file that an array was written to → the parameter that gave it. A full memory and a broken environment
    become DeepLightError and InputError, as on the command line.
    """

    def told(text: str) -> str:
        for file, name in (arrays or {}).items():
            text = text.replace(f"raster {file}", "array").replace(file, f"the array given as {name}")
        return in_parameters(text)

    try:
        with _LOGS.translated_by(told):
            yield
    except DeepLightError as error:
        error.args = (told(str(error)),)
        raise
    except MemoryError as error:
        raise DeepLightError("the memory is full: use smaller tiles, or free some memory") from error
    except Exception as error:
        trouble = environment_trouble(error)
        if trouble is None:
            raise
        raise InputError(trouble) from error


class _Logs(logging.Handler):
    """Rewords what the library logs while calls of the API are at work, before other handlers see it."""

    def __init__(self) -> None:
        super().__init__()
        self._translators: list[Callable[[str], str]] = []
        self._changing = threading.Lock()

    @contextmanager
    def translated_by(self, told: Callable[[str], str]) -> Iterator[None]:
        """Reword from here on; calls may overlap, in several threads too."""
        logger = logging.getLogger("deeplight")
        with self._changing:
            self._translators.append(told)
            logger.addHandler(self)  # does nothing where it is there already
        try:
            yield
        finally:
            with self._changing:
                self._translators.remove(told)
                if not self._translators:
                    logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        for told in list(self._translators):
            text = told(text)
        record.msg, record.args = text, ()
        logger = logging.getLogger("deeplight")
        unheard = not logging.getLogger().handlers and logger.handlers == [self]
        if unheard and record.levelno >= logging.WARNING:  # as logging does where nobody listens
            print(f"warning: {text}", file=sys.stderr)


_LOGS = _Logs()
