"""Has the light moved? What a run counts about it, and the warning where it moved more than a model should move it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from deeplight.engine.core.arrays import Doubles, Floats, Mask

if TYPE_CHECKING:
    from deeplight.engine.output.facts import Facts

BLOCK = 8
"""LR pixels a side of the blocks that are compared. The model moves light between neighbouring pixels, for it corrects
displacement; what it does to blur is undone by comparing what the sensor would see."""
LIT = 1.0
"""Mean radiance from which a block counts as lit."""
MOVED = 0.2
"""Change of a block's light that counts."""
_MANY = 0.1
"""Share of moved blocks that is warned about; see BLOCK."""
_TOTAL = 0.05
"""Change of all light that is warned about."""
_RESIDUAL = 0.05
"""Rest that conservation leaves, from which it is warned about: where the blur is right it is 2 % and less."""
_PEAK = 2.0
"""A compact light: an LR pixel so many times as bright as its neighbours' mean. At most 2 % of those real lights
are, and 5 % of synthetic ones; of points narrower than 0.8 LR pixels (standard deviation) 30 % and more."""
_COMPACT = 0.2
"""Share of compact light from which it is named as the cause."""


def block_changes(lr: Floats, valid: Mask, seen: Floats, corner: tuple[int, int]) -> tuple[int, int]:
    """(lit blocks, those of them whose light changed by more than MOVED) among the whole blocks of a region.

    lr, valid, seen: (h, w); seen is what the sensor would see of the output. corner: (row, col) of the region in LR
    pixels of the scene, to which the blocks are anchored.
    """
    rows, cols = (slice(-at % BLOCK, None) for at in corner)
    known = valid[rows, cols] != 0
    h, w = (n // BLOCK * BLOCK for n in known.shape)
    if not h or not w:
        return 0, 0

    def sums(values: Doubles) -> Doubles:
        return np.asarray(values[:h, :w].reshape(h // BLOCK, BLOCK, w // BLOCK, BLOCK).sum(axis=(1, 3)))

    came = sums(np.where(known, np.maximum(lr[rows, cols], 0), 0).astype(np.float64))
    went = sums(np.where(known, seen[rows, cols], 0).astype(np.float64))
    lit = came >= LIT * np.maximum(sums(known.astype(np.float64)), 1)
    return int(lit.sum()), int((np.abs(went - came) > MOVED * came)[lit].sum())


def compact_light(lr: Floats, valid: Mask) -> float:
    """Sum of the light in pixels that are lit, and _PEAK times as bright as the mean of their valid neighbours."""
    known = np.pad((valid != 0).astype(np.float64), 1)
    light = np.pad(np.where(valid != 0, np.maximum(lr, 0), 0).astype(np.float64), 1)
    h, w = lr.shape

    def around(values: Doubles) -> Doubles:
        whole = sum(values[i : i + h, j : j + w] for i in range(3) for j in range(3))
        return np.asarray(whole - values[1:-1, 1:-1])

    own = light[1:-1, 1:-1]
    peaks = (own >= LIT) & (own * around(known) >= _PEAK * around(light))
    return float(own[peaks].sum())


def excess(facts: Facts) -> float:
    """How many times the changes of light are those from which they are warned about; above 1 they are."""
    came = facts.lights_in_clamped
    total = abs(facts.lights_out / came - 1) / _TOTAL if came > 0 else 0.0
    blocks = facts.moved_blocks / facts.lit_blocks / _MANY if facts.lit_blocks else 0.0
    return max(total, blocks)


def light_warnings(
    facts: Facts,
    unit: str,
    radiance_unit: str,
    doubtful: bool = False,
    found: Callable[[], str] = lambda: "",
    conserved: bool = False,
) -> Iterator[str]:
    """One sentence where the sum of lights, or many blocks of it, moved too far; it names the cause where one is known.

    unit: of the NTL. radiance_unit: the one that models learn. doubtful: the NTL may not be radiance in it. found:
    looks for a cause that the facts do not tell, as a clause; asked only where there is something to tell. conserved:
    the run was to conserve radiance.
    """
    came, went = facts.lights_in_clamped, facts.lights_out
    told = []
    if came > 0 and abs(went / came - 1) > _TOTAL:
        told.append(f"the sum of lights changed by {went / came - 1:+.0%}")
    if facts.lit_blocks and facts.moved_blocks > _MANY * facts.lit_blocks:
        share = facts.moved_blocks / facts.lit_blocks
        told.append(f"{share:.0%} of the lit {BLOCK}×{BLOCK} LR blocks changed by more than {MOVED:.0%}")
    left = facts.residual_rms
    if conserved and left is not None and left > _RESIDUAL:
        yield (
            f"the output seen through its blur differs from the input by {left:.0%} (rms), as it does where lights are "
            "as sharp as it or sharper: give a narrower one with `psf`, and `ntl_nodata=0` where zeros mean "
            "nothing"
        )
    elif told:
        cause = _certain(facts) or found() or _likely(facts, unit, radiance_unit, doubtful)
        remedy = (
            "give a narrower blur with `psf`"
            if conserved
            else "use `conserve_radiance=True` to keep the light"
        )
        yield f"{' and '.join(told)}{cause}: {remedy}"


def _certain(facts: Facts) -> str:
    if facts.clamped and facts.lights_out < facts.lights_in_clamped:
        return f", because {facts.clamped} pixels are beyond the range of the output's type"
    return ""


def _likely(facts: Facts, unit: str, radiance_unit: str, doubtful: bool) -> str:
    share = facts.lights_compact / facts.lights_in_clamped if facts.lights_in_clamped > 0 else 0.0
    if share > _COMPACT:
        return (
            f", likely because {share:.0%} of the light is in single pixels at least {_PEAK:g} times as bright as "
            "those around them, sharper than lights that models learn"
        )
    if doubtful:
        return f", perhaps because the NTL is not in {radiance_unit}, as the warning about it says"
    if unit not in ("", radiance_unit):
        return f", perhaps because the NTL is in {unit} and models learn {radiance_unit}"
    return ""
