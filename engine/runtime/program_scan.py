"""Looks inside a program.pt2 before PyTorch loads it: torch.export.load runs what such a file may carry.

A .pt2 is a zip archive. Loading it unpickles example inputs, custom objects and some tensors, evaluates symbolic
shape expressions (sympy.sympify) and executes guards as Python. So only what our exporter writes is let through:
listed files, no pickle, no guard, operators of an allow-list, expressions of a small grammar, plain names.
Standard library only.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from typing import Any

from deeplight.engine.core.errors import ArtifactError

MAX_BYTES = 1 << 26
"""Of a program: it holds a graph, not weights."""

MAX_ENTRIES = 512

WEIGHT_FILE = re.compile(r"^[^/]+/data/weights/weight_\d+$")
"""Entries with the weights, which the exporter leaves out and the loader puts in."""

WEIGHTS_CONFIG = re.compile(r"^[^/]+/data/weights/model_weights_config\.json$")
MODEL = re.compile(r"^[^/]+/models/model\.json$")
SAMPLE_INPUTS = re.compile(r"^[^/]+/data/sample_inputs/model\.pt$")
_CONSTANTS_CONFIG = re.compile(r"^[^/]+/data/constants/model_constants_config\.json$")
_PLAIN = re.compile(
    r"^[\w-]+/(archive_format|archive_version|byteorder|\.format_version|\.storage_alignment|"
    r"\.data/(version|serialization_id)|data/constants/tensor_\d+)$"
)
_TARGET = re.compile(
    r"^(torch\.ops\.(aten|deeplight)\.[a-z0-9_]+\.[A-Za-z0-9_]+"
    r"|_operator\.(add|sub|mul|floordiv|mod|neg|pos|getitem|eq|ne|lt|le|gt|ge)|torch\.sym_(max|min|int|float))$"
)
_EXPRESSION = re.compile(
    r"(?:Symbol\('\w{1,32}+'|(?:Mul|Add|Integer|Max|Min|Mod|FloorDiv|PythonMod|CleanDiv)\("
    r"|(?:positive|integer|nonnegative)=(?:True|False)|s\d{1,6}+|\d{1,12}+(?!\d)|\*(?!\*)|[ ,()+-])++"
)
"""What sympy may evaluate: no powers (9**9**9), no attribute, no other call. Possessive, so that it cannot hang."""
_NAME = re.compile(r"^[\w.+-]*$")
_STRUCTURES = (None, "builtins.tuple", "builtins.list", "builtins.dict")


def check_program(data: bytes) -> None:
    """Refuse a program that could do more than compute. Raises ArtifactError in one sentence."""
    try:
        _check_archive(data)
    except _Refused as e:
        raise ArtifactError(f"the program is refused: {e}; export the model again") from None
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, RecursionError, NotImplementedError) as e:
        raise ArtifactError(
            f"the program is damaged ({type(e).__name__}: {e}); export the model again"
        ) from None


class _Refused(Exception):
    """What was found that must not be loaded."""


def _check_archive(data: bytes) -> None:
    if len(data) > MAX_BYTES:
        raise _Refused(f"it has {len(data)} bytes, more than {MAX_BYTES}")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        names = [e.filename for e in entries]
        if len(entries) > MAX_ENTRIES or len(set(names)) != len(names):
            raise _Refused("its archive has too many or repeated entries")
        if len({name.split("/")[0] for name in names}) != 1 or sum(map(_is_model, names)) != 1:
            raise _Refused("its archive is not that of one model")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise _Refused(f"{entry.filename} is compressed or encrypted")
            _check_entry(entry.filename, archive.read(entry))


def _is_model(name: str) -> bool:
    return MODEL.match(name) is not None


def _check_entry(name: str, content: bytes) -> None:
    """One file of the archive, by name: everything that is not listed is refused, pickles among them."""
    if MODEL.match(name):
        _check_model(json.loads(content))
    elif WEIGHTS_CONFIG.match(name):
        _check_payloads(json.loads(content), re.compile(r"weight_\d+"))
    elif _CONSTANTS_CONFIG.match(name):
        _check_payloads(json.loads(content), re.compile(r"tensor_\d+"))
    elif SAMPLE_INPUTS.match(name):
        if content:
            raise _Refused("it carries example inputs, which are a pickle")
    elif not _PLAIN.match(name):
        raise _Refused(f"it carries {name}, which may be a pickle or native code")


def _check_payloads(config: Mapping[str, Any], path: re.Pattern[str]) -> None:
    for name, payload in config["config"].items():
        if payload["use_pickle"] is not False or not path.fullmatch(payload["path_name"]):
            raise _Refused(f"the tensor {name} is a pickle or lies elsewhere")


def _check_model(model: Mapping[str, Any]) -> None:
    if model["guards_code"]:
        raise _Refused("it carries guards, which are Python code")
    for key in model["range_constraints"]:
        _check_expression(key)
    module = model["graph_module"]
    for call in module["module_call_graph"]:
        signature = call.get("signature") or {}
        for key in ("in_spec", "out_spec"):
            if signature.get(key) is not None:
                _check_structure(json.loads(signature.pop(key))[1])
    _check_strings(model, "")


def _check_structure(spec: Mapping[str, Any]) -> None:
    """A nesting of tuples, lists and dicts with plain keys."""
    if spec["type"] not in _STRUCTURES or not re.fullmatch(r'[\w\s",.\[\]-]*', spec["context"] or ""):
        raise _Refused(f"its inputs or outputs are of the type {spec['type']}")
    for child in spec["children_spec"]:
        _check_structure(child)


def _check_strings(value: Any, key: str) -> None:
    """Every text and every key of the graph: an operator, an expression or a plain name."""
    if isinstance(value, dict):
        for k, v in value.items():
            if key != "range_constraints" and not _NAME.match(k):
                raise _Refused(f"{k[:60]!r} is not a name")
            _check_strings(v, k)
    elif isinstance(value, list):
        for v in value:
            _check_strings(v, key)
    elif isinstance(value, str):
        if key == "target":
            if not _TARGET.match(value):
                raise _Refused(f"the operator {value[:60]!r} is not one that a network needs")
        elif key == "expr_str":
            _check_expression(value)
        elif not _NAME.match(value):
            raise _Refused(f"{value[:60]!r} is not a name")


def _check_expression(text: str) -> None:
    if len(text) > 4096 or not _EXPRESSION.fullmatch(text):
        raise _Refused(f"{text[:60]!r} is not a shape expression")
