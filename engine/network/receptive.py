"""The receptive field of DeepLightSR, computed from its configuration by interval arithmetic.

An interval [low, high) of pixels at one scale is followed from the outputs of one LR pixel back to the inputs:
a k×k convolution widens it by k // 2, a coarser source is every coarse pixel it touches, a finer source every fine
pixel in it. Rows and columns behave alike, so one axis is enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from deeplight.engine.core.spec import SCALE
from deeplight.engine.network.config import ModelConfig
from deeplight.engine.network.consistency import BASE_STEPS, STEP_REACH
from deeplight.engine.network.localise import SHIFT_RADIUS, WINDOW_RADIUS
from deeplight.engine.network.model import FILL_RADIUS

CUBIC_RADIUS = 2
LINEAR_RADIUS = 1


@dataclass(frozen=True)
class Span:
    """Pixels [low, high) at a scale (1, 2, 4 or 8 pixels per LR pixel)."""

    low: int
    high: int
    scale: int

    def widened(self, radius: int) -> Span:
        """The source of a convolution of this radius."""
        return Span(self.low - radius, self.high + radius, self.scale)

    def at(self, scale: int) -> Span:
        """All pixels at another scale that touch this ground."""
        if scale >= self.scale:
            f = scale // self.scale
            return Span(self.low * f, self.high * f, scale)
        f = self.scale // scale
        return Span(self.low // f, -(-self.high // f), scale)

    def union(self, other: Span) -> Span:
        """The smallest span over both; scales must agree."""
        return Span(min(self.low, other.low), max(self.high, other.high), self.scale)


def receptive_field(config: ModelConfig) -> float:
    """Radius in LR pixels: an output pixel sees nothing farther than this from its LR pixel's edge.

    With the largest offset that the network can make; fractions of an LR pixel are kept.
    """
    refined = Span(0, 1, 1).widened(STEP_REACH).at(SCALE)
    base = refined.at(1).widened(BASE_STEPS * STEP_REACH + CUBIC_RADIUS)
    features = carried = refined
    aux: list[Span] = []
    for level in (2, 1, 0):
        scale = 2 << level
        # a residual is the coarser one upsampled + what the features give, so these are needed where it is needed
        features = features.union(carried).widened(config.refine[level])
        if scale < SCALE:
            aux.append(features)
        carried = carried.at(scale // 2).widened(CUBIC_RADIUS)
        features = features.at(scale // 2).widened(1)
    features = features.widened(config.body)
    aux.append(features)
    ntl = features.widened(1).union(base).widened(FILL_RADIUS)
    return max(_reach(ntl), _aux_reach(aux, config))


def halo(config: ModelConfig) -> int:
    """Halo in whole LR pixels that makes tiles equal the whole scene."""
    return math.ceil(receptive_field(config))


def _aux_reach(spans: list[Span], config: ModelConfig) -> float:
    """Reach of the auxiliary: through the encoder, then directly (sampling) or through the offset field."""
    hr = spans[0].at(SCALE)
    for span in spans:
        hr = hr.union(span.at(SCALE))
    hr = hr.widened(1)
    shift = math.ceil(config.d_max * SCALE)
    sampled = Span(hr.low - shift, hr.high + shift + 1, SCALE)
    field = hr.at(1).widened(LINEAR_RADIUS + WINDOW_RADIUS + SHIFT_RADIUS)
    return max(_reach(sampled), _reach(field))


def _reach(span: Span) -> float:
    return max(-span.low, span.high - span.scale) / span.scale
