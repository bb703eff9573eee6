"""The backend openvino in processes of their own: what its import tells, forks, signals, and where it is not there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest

pytest.importorskip("openvino", reason="there is no OpenVINO for this machine")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One for all tests of this file."""
    with pytest.MonkeyPatch.context() as change:
        change.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def run_python(lines: Sequence[str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_its_makers_are_told_nothing() -> None:
    """OpenVINO reports imports by a package of its own, which is not even loaded."""
    home = "deeplight.engine.runtime.backends.openvino_library"
    found = run_python(
        [
            "import sys, socket",
            "def refuse(*a): raise RuntimeError('the network')",
            "socket.socket.connect = refuse",
            f"import {home}",
            "print(*[m for m in sys.modules if m.startswith('openvino_telemetry')], 'done')",
        ]
    )
    assert found == ["done"]


def test_a_process_that_was_forked_too_late_says_so() -> None:
    """OpenVINO would wait there for ever."""
    text = run_python(
        [
            "import multiprocessing, sys",
            "from deeplight.engine.runtime.artifact import load_artifact",
            "from deeplight.engine.runtime.backends import open_backend",
            "from deeplight.engine.runtime.trial import trial_inputs",
            "backend = open_backend('openvino', load_artifact('deeplight-tiny'))",
            "def used(_):",
            "    try: return str(backend.run(trial_inputs())['ntl_hr'].shape)",
            "    except Exception as e: return f'{type(e).__name__} {e}'",
            "def opened(_):",
            "    try: open_backend('openvino', load_artifact('deeplight-tiny'))",
            "    except Exception as e: return f'{type(e).__name__} {e}'",
            "used(0)",
            "with multiprocessing.get_context('fork').Pool(1) as pool:",
            "    print(*pool.map(used, [0]), *pool.map(opened, [0]))",
        ]
    )
    assert text.count("DeepLightError") == 2 and text.count("forked,") == 2, text


def test_where_it_is_not_installed_the_sentence_says_how() -> None:
    text = run_python(
        [
            "import sys",
            "sys.modules['openvino'] = None",
            "from deeplight.engine.runtime.artifact import load_artifact",
            "from deeplight.engine.runtime.backends import open_backend",
            "try: open_backend('openvino', load_artifact('deeplight-tiny'))",
            "except Exception as e: print(type(e).__name__, e)",
        ]
    )
    assert text[0] == "InputError" and "pip install 'openvino" in " ".join(text)


def test_signals_arrive_after_models_were_closed_in_any_order() -> None:
    """With a Core for each, the stack for signals would be that of one that is gone: SIGTERM would end in SIGSEGV."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, signal\n"
            "from deeplight.engine.runtime.artifact import load_artifact\n"
            "from deeplight.engine.runtime.backends import open_backend\n"
            "from deeplight.engine.runtime.trial import trial_inputs\n"
            "artifact, inputs = load_artifact('deeplight-tiny'), trial_inputs()\n"
            "models = [open_backend('openvino', artifact) for _ in range(2)]\n"
            "for model in models: model.run(inputs)\n"
            "del model\n"
            "while models: models.pop(0).close()\n"
            "signal.signal(signal.SIGTERM, lambda *_: print('arrived'))\n"
            "os.kill(os.getpid(), signal.SIGTERM)\n",
        ],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "arrived"), done.stderr
