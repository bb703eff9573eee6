"""The result of an evaluation in one sentence, for whoever reads no table."""

from __future__ import annotations

from typing import Any

from deeplight.train.evaluation.models import BICUBIC, NETWORK, NO_AUXILIARY

_NOTEWORTHY_DB = 0.005
"""Below, places have no layers beside the lights, or the model does not use them."""


def verdict(values: dict[str, Any]) -> str:
    """Say whether the network is better than bicubic, by how much, and whether it keeps the light. values:
    metrics.json.

    PSNR of log1p radiance over all scored pixels decides, with its bootstrap interval.
    """
    methods = values["methods"]
    network, bicubic = (methods[name]["strata"]["all"] for name in (NETWORK, BICUBIC))
    gain = _gain(network, bicubic)
    if gain is None:
        return "There is nothing to judge: no pixel is valid in truth, input and output"
    low, high = network["interval"].get("psnr_log1p_gain") or (None, None)
    between = ", too few blocks for an interval"
    if low is not None and high is not None:
        between = f", {values['settings']['bootstrap']['level']:.0%} interval {low:+.2f} to {high:+.2f}"
    compared = "better than" if gain > 0 else "worse than"
    if low is not None and high is not None and low <= 0 <= high:
        compared = "no better than" if gain <= 0 else "not surely better than"
    told = [f"DeepLight is {compared} bicubic interpolation ({gain:+.2f} dB PSNR of log1p radiance{between})"]
    if NO_AUXILIARY in methods:
        aux = _gain(network, methods[NO_AUXILIARY]["strata"]["all"])
        if aux is not None and abs(aux) >= _NOTEWORTHY_DB:
            less = "less" if aux > 0 else "more"
            told.append(f"{abs(aux):.2f} dB {less} without daytime bands and elevation")
    total = network["sum_of_lights_error"]
    if total is not None:
        told.append(f"its sum of lights is {abs(total):.1%} too {'high' if total > 0 else 'low'}")
    return "; ".join(told)


def _gain(a: dict[str, Any], b: dict[str, Any]) -> float | None:
    mine, theirs = a["psnr_log1p"], b["psnr_log1p"]
    return None if mine is None or theirs is None else float(mine - theirs)
