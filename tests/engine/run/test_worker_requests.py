"""Which workers a run asks for, how hosts are shared out among them, and what is said where that cannot be."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from deeplight.engine.core.errors import DeepLightError, InputError, Interrupted
from deeplight.engine.core.progress import Silent
from deeplight.engine.core.terminal import signals_raise
from deeplight.engine.output.shards import Shard
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run.events import Events
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.tiling import TileRequest
from deeplight.engine.run.workers.beforehand import check_count, count_packs, narrowed
from deeplight.engine.run.workers.dispatch import Lost
from deeplight.engine.run.workers.lead import _in_a_thread
from deeplight.engine.run.workers.ray_pool import RayPool, Share, _reason, shares
from deeplight.engine.run.workers.relay import Voice
from deeplight.engine.run.workers.request import Workers, parse_workers
from tests.engine.run.wholes import PACKS, Whole


@pytest.mark.parametrize(
    ("text", "workers"),
    [
        ("local:2", Workers(True, None, 2)),
        ("ray", Workers(False, None, None)),
        ("ray,3", Workers(False, None, 3)),
        ("ray:10.0.0.1:6379", Workers(False, "10.0.0.1:6379", None)),
        ("ray:head:6379,16", Workers(False, "head:6379", 16)),
    ],
)
def test_texts_of_workers(text: str, workers: Workers) -> None:
    assert parse_workers(text) == workers and str(workers) == text


@pytest.mark.parametrize(
    "text", ["", "local", "local:0", "local:x", "ray:", "ray:head", "ray://h:1", "ray,0", "8", "dask:2"]
)
def test_what_names_no_workers(text: str) -> None:
    with pytest.raises(
        ValueError, match="names no workers: give local:N for N processes on this host, or ray"
    ):
        parse_workers(text)


def options(**changes: object) -> RunOptions:
    return RunOptions(SceneOptions(ntl="n.tif"), Path("o.tif"), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "changes", "nodes", "share"),
    [
        ("local:2", {}, [(8, 0)], Share(2, 4, 1, 0.0, 2)),
        ("local:3", {}, [(8, 0)], Share(3, 2, 1, 0.0, 3)),
        ("local:4", {}, [(2, 0)], Share(4, 1, 1, 0.0, 4)),
        ("local:2", {"threads": 5}, [(8, 0)], Share(2, 5, 1, 0.0, 2)),
        ("local:2", {}, [(16, 4)], Share(2, 8, 1, 1.0, 2)),
        ("local:8", {"device": "cuda"}, [(16, 4)], Share(8, 2, 1, 0.5, 8)),
        ("local:2", {"device": "cpu"}, [(16, 4)], Share(2, 8, 1, 0.0, 2)),
        ("ray", {}, [(16, 0), (8, 0)], Share(2, 8, 8, 0, 1)),
        ("ray,6", {}, [(16, 0), (8, 0)], Share(6, 2, 2, 0, 3)),
        ("ray", {}, [(32, 4), (16, 4), (8, 0)], Share(8, 4, 4, 1, 4)),
        ("ray", {"backend": "onnxruntime"}, [(32, 4), (16, 4)], Share(2, 16, 16, 0, 1)),
        ("ray,3", {"threads": 2}, [(32, 1), (16, 1)], Share(3, 2, 2, 1, 1)),
    ],
)
def test_shares_of_hosts(
    text: str, changes: dict[str, object], nodes: list[tuple[int, int]], share: Share
) -> None:
    assert shares(parse_workers(text), options(**changes), nodes) == share


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match='`device="cuda"` needs a GPU and Ray finds none'):
        shares(parse_workers("ray"), options(device="cuda"), [(8, 0)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tiles": None}, "`tiles=None` computes the scene in one piece, which `workers` cannot share"),
        ({"shard": Shard(0, 2)}, "`shard` is one process of a job array"),
        ({"device": "cuda:1"}, "is one GPU, and each of `workers` has its own"),
    ],
    ids=["whole", "shard", "device"],
)
def test_what_workers_cannot_do(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        infer(options(workers=Workers(True, None, 2), **changes))


def test_without_ray_a_sentence_says_what_to_install(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"`workers` needs Ray, which is not installed: .*pip install"):
        infer(dataclasses.replace(whole.request, workers=Workers(True, None, 2)))


def test_more_processes_than_a_host_can_serve_are_refused() -> None:
    with pytest.raises(
        InputError,
        match=re.escape('`workers="local:2000"` asks for 2000 processes on 2 CPUs: give local:8 or fewer, 4'),
    ):
        check_count(Workers(True, None, 2000), 2)
    check_count(Workers(True, None, 8), 2)
    check_count(Workers(False, None, 2000), 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scene": SceneOptions(ntl="n.tif")}, "n.tif does not exist"),
        ({"model": "no-such-model"}, "no-such-model"),
        ({"precision": "fp7"}, "fp7"),
        ({"device": "cuda", "backend": "onnxruntime"}, "is not offered by backend onnxruntime"),
    ],
    ids=["input", "model", "precision", "device"],
)
def test_what_cannot_be_used_is_refused_before_ray_starts(
    whole: Whole, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], message: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    request = dataclasses.replace(whole.request, workers=Workers(True, None, 2), **changes)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        infer(request)
    with pytest.raises(InputError, match=message):  # in the same words as without workers
        infer(dataclasses.replace(request, workers=None))


def test_no_more_workers_than_packs(whole: Whole) -> None:
    said: list[str] = []

    class Heard(Silent):
        def log(self, message: str) -> None:
            said.append(message)

    assert count_packs(whole.request) == PACKS
    assert count_packs(dataclasses.replace(whole.request, tiles=TileRequest(257))) == -(-PACKS // 2)
    assert narrowed(Workers(True, None, 8), PACKS, Heard()) == Workers(True, None, PACKS)
    assert narrowed(Workers(True, None, 2), PACKS, Heard()) == Workers(True, None, 2)
    assert said == [f"local:8: the scene has {PACKS} packs, and no worker takes less than one"]


def test_what_the_leading_process_has_said_its_workers_do_not_say_again() -> None:
    said: list[str] = []

    class Heard(Silent):
        def log(self, message: str) -> None:
            said.append(message)

    with Events(None) as events:
        voice = Voice(Heard(), events)
        with voice.hearing():
            logging.getLogger("deeplight.engine.raster.scene").warning("a band is %s", "dark")
        voice.log("warning: a band is dark")
        voice.log("another line")
    assert said == ["another line"]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("ActorDiedError", "class_name: Site actor_id: 64", "its process or its host has ended"),
        ("ActorUnavailableError", "", "it cannot be reached"),
        (
            "ActorDiedError",
            "in its creation\nModuleNotFoundError: No module named 'deeplight'",
            "its host has not the same installed (ModuleNotFoundError: No module named 'deeplight')",
        ),
        ("OtherError", "a\n  b", "OtherError: a b"),
    ],
)
def test_what_is_said_of_a_lost_worker(name: str, text: str, told: str) -> None:
    assert _reason(type(name, (Exception,), {})(text)) == told


def pool_of(workers: Workers, events: Sequence[Lost]) -> RayPool:
    """A pool of two workers that tells these events, without Ray."""
    pool = RayPool.__new__(RayPool)
    pool.__dict__.update(_asked=workers, _names={}, _actors={2: None}, wait=lambda: events)
    return pool


def test_what_one_worker_of_this_host_refuses_all_would() -> None:
    with pytest.raises(InputError, match=r"^n\.tif does not exist$"):
        pool_of(Workers(True, None, 2), [Lost(1, "n.tif does not exist", refused=True)]).first()


def test_whatever_ray_raises_when_it_starts_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        monkeypatch.setenv(name, "")

    def init(*_: object, **__: object) -> None:
        raise Exception("The current node\ntimed out")

    with pytest.raises(InputError, match=r"could not be joined \(The current node timed out\): see that it"):
        pool_of(Workers(False), [])._start(SimpleNamespace(init=init))


def test_what_runs_in_a_thread_ends_when_its_caller_is_interrupted() -> None:
    stop = threading.Event()
    ended: list[str] = []

    def work() -> None:
        timer.start()
        stop.wait(60)
        ended.append("work")

    timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted), signals_raise():
        _in_a_thread(work, stop)
    assert ended == ["work"]
    assert _in_a_thread(lambda: 7, threading.Event()) == 7
    with pytest.raises(DeepLightError, match="no"):
        _in_a_thread(fail, threading.Event())


def fail() -> None:
    raise DeepLightError("no")
