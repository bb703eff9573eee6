"""Workers as actors of Ray. One thread makes all calls to Ray. It is not the main thread,
since an exception that a signal handler raises does not survive Ray."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.extras import install_command
from deeplight.engine.core.machine import available_cpus
from deeplight.engine.output.hands import Published
from deeplight.engine.output.parts import Record
from deeplight.engine.run.contents import Seen
from deeplight.engine.run.executor import TRIES
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.workers.dispatch import Lost, Ready, Verdict
from deeplight.engine.run.workers.messages import Told, Trouble
from deeplight.engine.run.workers.relay import Voice
from deeplight.engine.run.workers.request import Workers
from deeplight.engine.run.workers.segments import Key

_POLL_S = 0.2
"""How often it is looked whether the run was stopped."""
_ANSWER_S = 3.0
"""How long a worker may take to say what it has done: one that does not has lost it."""
_SILENT_S = 300.0
"""How long a worker that assembles the output may say nothing before another is asked."""
_CALLS = 8
"""Calls of a worker at once: the packs in its hands, and questions meanwhile."""
_CONNECT_S = 5.0
_STORE_BYTES = 80 << 20
"""Of Ray's memory for objects, which packs never see: about the least that it takes."""
_REMOVALS = 10
"""How often Ray's folder is removed: its processes are still writing there while they end."""


class RunStopped(BaseException):
    """The process that leads the run has asked it to end. It is no Exception, so that it is not taken for a failure of
    a worker."""


class Gone(Exception):
    """The worker that was asked is gone."""


def import_ray() -> Any:
    """The module of Ray. Raises InputError where it is not installed."""
    # it would write to the standard output of a command, whose lost workers are told of here
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        import ray
    except ImportError:
        raise InputError(
            f"`workers` needs Ray, which is not installed: {install_command('ray')}, or use `shard` without it"
        ) from None
    return ray


@dataclass(frozen=True)
class Share:
    """What each worker has. threads: of the runtime. cpus, gpus: as Ray counts them. beside: workers on one host."""

    count: int
    threads: int
    cpus: float
    gpus: float
    beside: int


def shares(asked: Workers, options: RunOptions, nodes: Sequence[tuple[int, int]]) -> Share:
    """How hosts are divided among workers. nodes: (CPUs, GPUs) of each host."""
    on_gpus = options.device == "cuda" or (options.device == "auto" and options.backend != "onnxruntime")
    gpus = sum(gpu for _, gpu in nodes) if on_gpus else 0
    if options.device == "cuda" and not gpus:
        raise InputError(
            '`device="cuda"` needs a GPU and Ray finds none: use `device="cpu"`, or start Ray where GPUs are'
        )
    count = asked.count or gpus or len(nodes)
    if asked.local:
        threads = options.threads or max(1, nodes[0][0] // count)
        return Share(count, threads, 1, min(1.0, gpus / count), count)
    if gpus:
        beside = max(gpu for _, gpu in nodes)
        threads = options.threads or max(1, min(cpu // gpu for cpu, gpu in nodes if gpu))
        return Share(count, threads, min(threads, *(cpu // gpu for cpu, gpu in nodes if gpu)), 1, beside)
    beside = -(-count // len(nodes))
    threads = options.threads or max(1, min(cpu for cpu, _ in nodes) // beside)
    return Share(count, threads, threads, 0, beside)


def _reachable(asked: Workers) -> str:
    """The address of the cluster, where something answers; else Ray would try for many minutes. Raises OSError."""
    address = asked.address or os.environ.get("RAY_ADDRESS") or "auto"
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), _CONNECT_S).close()
    return address


def _reason(error: Exception) -> str:
    """What Ray says of a worker that is gone, in short."""
    text = " ".join(str(error).split())
    missing = re.search(r"ModuleNotFoundError: .{1,100}", text)
    if missing is not None:
        return f"its host has not the same installed ({missing[0]})"
    return {
        "ActorDiedError": "its process or its host has ended",
        "ActorUnavailableError": "it cannot be reached",
    }.get(type(error).__name__, f"{type(error).__name__}: {text[:200]}")


class RayPool:
    """A `dispatch.Pool` of actors, started here or on a cluster. A context manager; `stop` ends it from any thread.

    share: what each worker has.
    """

    def __init__(self, asked: Workers, options: RunOptions, voice: Voice, stop: threading.Event) -> None:
        self._ray = import_ray()
        self._asked, self._voice, self._stop = asked, voice, stop
        self._options = options
        self._begun: tuple[Record, Mapping[Seen, str]] | None = None
        self._job: Published | None = None
        self._actors: dict[int, Any] = {}
        self._names: dict[int, str] = {}
        self._calls: dict[Any, tuple[int, str, Sequence[Key]]] = {}
        self._hired = 0
        self._joined = False
        self._folder: str | None = None

    def __enter__(self) -> RayPool:
        try:
            self._open(self._ray)
        except BaseException:
            self._close()
            raise
        return self

    def _open(self, ray: Any) -> None:
        if not ray.is_initialized():
            self._start(ray)
        elif self._asked.local:
            raise InputError('Ray runs in this process already: use `workers="ray"` to take its workers')
        nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
        sizes = [(int(n.get("CPU", 0)), int(n.get("GPU", 0))) for n in nodes if n.get("CPU") or n.get("GPU")]
        if self._asked.local:
            sizes = [(available_cpus(), sizes[0][1])]
        if not sizes:
            raise InputError(f"{self._asked} has neither CPUs nor GPUs: start Ray on hosts that have")
        self.share = shares(self._asked, self._options, sizes)
        self._options = replace(self._options, threads=self.share.threads, beside=self.share.beside)

    def _start(self, ray: Any) -> None:
        asked = self._asked
        if asked.local:
            # a terminal that is closed is for this process, as is a key: what Ray starts inherits that it is held back
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
            # Ray's sockets need a short name
            self._folder = tempfile.mkdtemp(prefix="deeplight-", dir="/tmp")
        for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")):
            os.environ.setdefault(name, value)
        how = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
        try:
            if asked.local:
                ray.init(
                    "local",
                    num_cpus=asked.count,
                    include_dashboard=False,
                    object_store_memory=_STORE_BYTES,
                    _temp_dir=self._folder,
                    **how,
                )
            else:
                ray.init(_reachable(asked), **how)
        except Exception as error:  # Ray raises any, where a part of it does not start the plain one
            where = "could not be started here" if asked.local else f"{asked} could not be joined"
            remedy = (
                "see that /tmp and /dev/shm take files and that memory is free"
                if asked.local
                else "see that it runs there in the same version"
            )
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"Ray {where} ({reason}): {remedy}, or use `shard`") from error
        self._joined = True

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        for worker in list(self._actors):
            self.dismiss(worker)
        if self._joined:
            self._ray.shutdown()
        for _ in range(_REMOVALS if self._folder is not None else 0):
            shutil.rmtree(str(self._folder), ignore_errors=True)
            time.sleep(_POLL_S / 10)

    @property
    def options(self) -> RunOptions:
        """The run as its workers are given it."""
        return self._options

    def hire(self) -> int:
        """Start one more worker and return its number. It opens its inputs and its model, and takes part if the run has
        begun."""
        from deeplight.engine.run.workers.site import Site

        self._hired += 1
        share = self.share
        strategy = "SPREAD" if not self._asked.local else "DEFAULT"
        kind = self._ray.remote(Site).options(
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            max_concurrency=_CALLS,
            max_restarts=0,
            scheduling_strategy=strategy,
        )
        worker, actor = self._hired, kind.remote(self._options, str(Path.cwd()), share.gpus > 0)
        self._actors[worker] = actor
        self._call(worker, "open")
        return worker

    def begin(self, record: Record, digests: Mapping[Seen, str]) -> None:
        """The run has begun: all workers take part, also those that come later. See Site.begin."""
        self._begun = record, digests
        for worker in self._names:
            self._call(worker, "begin", *self._begun)

    def assemble(self, job: Published) -> None:
        """From now on pieces of this job are given. Nothing is heard any more of what was given before."""
        self._job = job
        self._calls = {ref: call for ref, call in self._calls.items() if not call[2]}

    def has(self, worker: int) -> bool:
        """Whether a worker is there, as far as is known."""
        return worker in self._names

    def give(self, worker: int, keys: Sequence[Key]) -> None:
        """Let a worker compute packs, or do pieces of the job, after what it has. Their verdicts come together."""
        if self._job is None:
            self._call(worker, "compute", keys)
        else:
            self._call(worker, "assist", keys, self._job)

    def dismiss(self, worker: int) -> None:
        """End a worker, whatever it does; `wait` tells nothing more of it."""
        actor = self._actors.pop(worker, None)
        self._names.pop(worker, None)
        self._calls = {ref: call for ref, call in self._calls.items() if call[0] != worker}
        if actor is not None:
            self._ray.kill(actor, no_restart=True)

    def wait(self) -> list[Ready | Verdict | Lost]:
        """What has happened; empty after a moment in which nothing has. Raises RunStopped."""
        # the first call of a worker that is lost takes its others away
        found = [self._events(*self._calls.pop(ref), ref) for ref in self._ready() if ref in self._calls]
        return [event for events in found for event in events]

    def first(self) -> tuple[int, str]:
        """A worker that is open, before the run has begun. Raises InputError where all were refused, on this host where
        one was, DeepLightError where they are lost again and again."""
        lost = 0
        while not self._names:
            for event in self.wait():
                if not isinstance(event, Lost):
                    continue
                if event.refused and (self._asked.local or not self._actors):
                    raise InputError(event.reason)
                self._voice.log(f"warning: {event.reason}")
                lost += not event.refused
                if lost > TRIES:
                    raise DeepLightError(event.reason)
                if not event.refused:
                    self.hire()
        return next(iter(self._names.items()))

    def ask(self, worker: int, method: str, *given: Any) -> Any:
        """What a worker answers to a call, however long that takes; what it has to say is said meanwhile. Raises Gone
        where it is lost or says nothing, RunStopped, and what went wrong with the run."""
        actor = self._actors[worker]
        answer, ray = getattr(actor, method).remote(*given), self._ray
        waited = 0.0
        heard = actor.heard.remote()
        while True:
            self._check()
            ready = ray.wait([answer, heard], num_returns=1, timeout=_POLL_S)[0]
            waited = 0.0 if ready else waited + _POLL_S
            if waited > _SILENT_S:
                raise Gone(f"{self._names[worker]} says nothing")
            if heard in ready:
                self._voice.say(self._got(heard))
                if answer not in ray.wait([answer], timeout=_POLL_S)[0]:
                    heard = actor.heard.remote()
                    continue
            elif answer not in ready:
                continue
            found = self._got(answer)
            self._voice.say(self._got(actor.heard.remote()))
            return found

    def told(self, workers: Sequence[int]) -> list[Told]:
        """What these workers say that they have done; those who do not answer soon are left out."""
        refs = [self._actors[worker].told.remote() for worker in workers]
        ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=_ANSWER_S) if refs else ([], [])
        found = []
        for ref in ready:
            with contextlib.suppress(Gone, DeepLightError):
                found.append(self._got(ref))
        return found

    def _call(self, worker: int, method: str, *given: Any) -> None:
        ref = getattr(self._actors[worker], method).remote(*given)
        self._calls[ref] = (worker, method, given[0] if method in ("compute", "assist") else ())

    def _ready(self) -> list[Any]:
        self._check()
        if not self._calls:
            self._stop.wait(_POLL_S)
            return []
        refs = list(self._calls)
        first, rest = self._ray.wait(refs, num_returns=1, timeout=_POLL_S)
        if not first or not rest:
            return list(first)
        return [*first, *self._ray.wait(rest, num_returns=len(rest), timeout=0)[0]]

    def _events(
        self, worker: int, method: str, keys: Sequence[Key], ref: Any
    ) -> Sequence[Ready | Verdict | Lost]:
        """The events that the end of a call stands for."""
        try:
            found = self._got(ref)
        except Gone as gone:
            name = self._names.get(worker, "a worker that was starting")
            self.dismiss(worker)
            return [Lost(worker, f"{name} was lost: {gone}", refused="ModuleNotFoundError" in str(gone))]
        if isinstance(found, Trouble):
            self.dismiss(worker)
            return [Lost(worker, found.sentence, found.refused, found.fatal)]
        if method == "open":
            self._names[worker] = found
            if self._begun is not None:
                self._call(worker, "begin", *self._begun)
            return []
        if method == "begin":
            return [Ready(worker, self._names[worker])]
        self._voice.say(found.messages)
        made = zip(keys, found.packs, strict=True)
        return [Verdict(worker, key, m.error, m.final, m.seconds) for key, m in made]

    def _got(self, ref: Any) -> Any:
        from ray.exceptions import RayError, RayTaskError

        try:
            return self._ray.get(ref, timeout=_SILENT_S)
        except RayTaskError as error:
            raise DeepLightError(
                f"a worker failed: {' '.join(str(error.cause or error).split())[:300]}"
            ) from error
        except RayError as error:
            raise Gone(_reason(error)) from error

    def _check(self) -> None:
        if self._stop.is_set():
            raise RunStopped
