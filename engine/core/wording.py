"""How messages name what a user can set: as a parameter in backquotes, such as `dmo_scale=0.0001` or `tiles`.

The Python API says the same without backquotes (`in_python`), a command line its flags in their place (`in_flags`).
Standard library only.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping

_MENTIONED = re.compile(r"`([a-z_]+(?:[=,\[][^`]*)?)`")
_OTHERWISE = {("tiles", "None"): "--whole", ("compiling", "False"): "--compile off"}
"""Values that a command line spells in another way."""
_SAFE = re.compile(r"[\w@%+=:,./-]+")
"""What a shell takes as it is; letters of all languages, unlike in shlex."""
_PHRASES = {"make the same call with": "run the same command with"}


def mention(**given: object) -> str:
    """Parameters with these values, as a message names them: `ntl="a b.tif", ntl_band=2`."""
    return f"`{', '.join(f'{name}={_python(value)}' for name, value in given.items())}`"


def counted(count: int, what: str) -> str:
    """A number of things, which are given as several: `counted(1, "tiles")` is "1 tile"."""
    return f"{count} {what.removesuffix('s') if count == 1 else what}"


def of_role(role: str, what: str = "") -> str:
    """The parameter about a layer: NTL-HR and scale → ntl_hr_scale; by default the one that gives its file."""
    return f"{role.lower().replace('-', '_')}{'_' if what else ''}{what}"


def _python(value: object) -> str:
    """A value as Python has it, with double quotes; a backquote in it would end the mention."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("`", "\\x60") + '"'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_python(k)}: {_python(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_python, value))}{',' if len(value) == 1 else ''})"
    return f"{value}"


def in_python(text: str) -> str:
    """A message as the Python API says it: without the backquotes."""
    return _MENTIONED.sub(r"\1", text)


def in_flags(text: str, flags: Mapping[str, str]) -> str:
    """A message as a command line says it. flags: parameter → flag. What is no parameter of the command stays."""

    def flagged(match: re.Match[str]) -> str:
        source = f"_({match[1]})"
        try:
            call = ast.parse(source, mode="eval").body
            assert isinstance(call, ast.Call)
            said = [_flagged(node, flags) for node in call.args]
            said += [_with_value(keyword, flags, source) for keyword in call.keywords]
        except (SyntaxError, KeyError):
            return match[0]
        return " ".join(said)

    for phrase, instead in _PHRASES.items():
        text = text.replace(phrase, instead)
    return _MENTIONED.sub(flagged, text)


def _flagged(node: ast.expr, flags: Mapping[str, str]) -> str:
    """`tiles` → --tiles; `dmo["blue"]` → --dmo-band blue, `dmo[slot]` → --dmo-band."""
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        flag = flags[f"{node.value.id}_files"]
        return f"{flag} {node.slice.value!s}" if isinstance(node.slice, ast.Constant) else flag
    if not isinstance(node, ast.Name):
        raise KeyError
    return flags[node.id]


def _with_value(keyword: ast.keyword, flags: Mapping[str, str], source: str) -> str:
    """`resume=True` → --resume; `dmo_scale=0.01` → --dmo-scale 0.01."""
    name, value = str(keyword.arg), ast.unparse(keyword.value)
    if (name, value) in _OTHERWISE:
        return _OTHERWISE[name, value]
    return flags[name] if value == "True" else f"{flags[name]} {_shell(keyword.value, source)}"


def _shell(value: ast.AST | None, source: str, whole: bool = True) -> str:
    """A value as the shell takes it: (1, 2) → 1,2; {"blue": 1} → blue=1; F or (F, OFFSET) → F[,OFFSET].

    whole: not a part of another value, so that a text is quoted where the shell needs it.
    """
    if isinstance(value, ast.BoolOp):
        first, more = (_shell(part, source) for part in value.values)
        return f"{first}[{more.removeprefix(first)}]"
    if isinstance(value, ast.Tuple | ast.List):
        return ",".join(_shell(part, source, False) for part in value.elts)
    if isinstance(value, ast.Dict):
        pairs = zip(value.keys, value.values, strict=True)
        return ",".join(f"{_shell(k, source, False)}={_shell(v, source, False)}" for k, v in pairs)
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return value.value if not whole or _SAFE.fullmatch(value.value) else shlex.quote(value.value)
    return "" if value is None else ast.get_source_segment(source, value) or ""
