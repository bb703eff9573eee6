"""Training samples held in memory: regions of synthetic countries, in half precision (12 MB each)."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.windows import Window
from deeplight.train.clips.samples import Sample
from deeplight.train.synth import Country, CountryConfig

REGION = 96
"""Side of a stored region in LR pixels."""
STYLE_SHARES = {
    "towns": 0.4,
    "grid": 0.1,
    "river": 0.1,
    "ribbon": 0.1,
    "megacity": 0.12,
    "coast": 0.1,
    "archipelago": 0.08,
}
"""Share of the training countries that are settled in each of styles.SHAPES."""
_DRAWN = ("ntl", "ntl_hr", "isp", "dmo", "dem", "offset")
_Halves = dict[str, NDArray[Any]]
"""What `Sample.complete` takes, as float16."""


def country_config(seed: int) -> CountryConfig:
    """Return a country whose sensor is drawn from `seed` too: its blur, noise and misregistration vary as products
    do."""
    rng = np.random.default_rng(seed)
    aligned = rng.random() < 0.2
    return CountryConfig(
        seed=seed,
        psf_fwhm_lr=float(rng.uniform(0.9, 1.6)),
        misregistration_lr=0.0 if aligned else float(rng.uniform(0.3, 1.6)),
        noise=float(rng.uniform(0.02, 0.12)),
    )


def training_config(seed: int) -> CountryConfig:
    """Return `country_config`'s country, but settled in any of the styles, and mostly of materials of its own."""
    rng = np.random.default_rng((seed, 1))
    style = str(rng.choice(list(STYLE_SHARES), p=list(STYLE_SHARES.values())))
    return replace(country_config(seed), style=style, own_materials=bool(rng.random() < 0.7))


def build_pool(
    seeds: range,
    count: int,
    workers: int = 1,
    advance: Callable[[], None] = lambda: None,
    config: Callable[[int], CountryConfig] = country_config,
) -> list[Sample]:
    """Make `count` regions of REGION² LR pixels in float16, of the countries of `seeds` in turn.

    They do not depend on `workers`. advance: called after each region. config: the country of a seed.
    """
    jobs = [(config(seeds[i % len(seeds)]), i) for i in range(count)]

    def told(one: _Halves) -> _Halves:
        advance()
        return one

    if workers == 1:
        made = [told(_make(job)) for job in jobs]
    else:
        # processes: the synthesis holds the interpreter lock half of its time
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_leave_stopping) as executor:
            try:
                with _signals_wait():  # all are submitted, and so all processes started, before `map` returns
                    results = executor.map(_make, jobs)
                made = [told(one) for one in results]
            except BaseException:
                executor.shutdown(cancel_futures=True)  # else all regions would be made first
                raise
    return [Sample.complete(**arrays) for arrays in made]


_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Hold back what stops a run. Processes started meanwhile inherit that: one that comes while they import their
    modules would end them with a traceback each."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_stopping() -> None:
    """A key that stops the run, or a signal to its whole group, is for the main process, which ends the others."""
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _make(job: tuple[CountryConfig, int]) -> _Halves:
    config, index = job
    rng = np.random.default_rng((config.seed, index))
    row, col = (int(v) for v in rng.integers(0, 4096, 2))
    made = Country(config).sample(Window(row, col, REGION, REGION))
    drawn = {name: getattr(made, name).astype(np.float16) for name in _DRAWN}
    return {
        **{name: a if a.ndim == 3 else a[None] for name, a in drawn.items()},
        "psf": np.full(2, config.psf_fwhm_lr, np.float16),
        "limits": np.array([-1.0, config.noise], np.float16),
    }


class SyntheticSource:
    """Regions in memory as a SampleSource: all valid, with ISP and the true offset."""

    def __init__(self, regions: list[Sample], seeds: range) -> None:
        """seeds: what the regions were made from, for the fingerprint."""
        self._regions, self._seeds = regions, seeds

    def __len__(self) -> int:
        """How many regions there are."""
        return len(self._regions)

    def size(self, index: int) -> tuple[int, int]:
        """Return the region's height and width in LR pixels."""
        h, w = self._regions[index].ntl.shape[1:]
        return h, w

    def name(self, index: int) -> str:
        """Return a name for messages that holds the country's seed."""
        return f"synthetic region {index} (seed {self._seeds[index % len(self._seeds)]})"

    def key(self, index: int) -> str:
        """Return what names the region for random draws: its name."""
        return self.name(index)

    def read(self, index: int, window: Window) -> Sample:
        """Return the sample of a window of a region, as float32."""
        return self._regions[index].cut(window)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the seeds, the regions' lights and a sample of their bands, so that the code that makes
        them counts too."""
        text = f"synthetic {self._seeds.start} {self._seeds.stop} {len(self._regions)}"
        told = hashlib.sha256(text.encode())
        for region in self._regions:
            for part in (region.ntl, region.dmo[:, ::32, ::32]):
                told.update(part.tobytes())
        return told.hexdigest()


def synthetic_source(
    seeds: range,
    count: int,
    workers: int = 1,
    advance: Callable[[], None] = lambda: None,
    config: Callable[[int], CountryConfig] = country_config,
) -> SyntheticSource:
    """Make regions with `build_pool` and return them as a source."""
    return SyntheticSource(build_pool(seeds, count, workers, advance, config), seeds)
