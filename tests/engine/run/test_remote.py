"""Inputs on a server: what is read is one version of each, or the run is refused by name."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.shutil import copy

from deeplight.engine.core.errors import DeepLightError, InputError, Interrupted
from deeplight.engine.core.progress import Silent
from deeplight.engine.output.parts import Mode, parts_folder
from deeplight.engine.raster.remote import object_version
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.tiling import TileRequest
from tests.engine.analytic import write_analytic
from tests.engine.output.test_facts import Stopper
from tests.scenes import write_raster


@dataclasses.dataclass
class Server:
    """Serves `files` by ranges. tells: the headers that name a version; heads: whether it answers HEAD."""

    address: str
    files: dict[str, bytes]
    tells: tuple[str, ...] = ("ETag", "Last-Modified")
    heads: bool = True
    day: int = 10


@pytest.fixture
def server() -> Iterator[Server]:
    told = Server("", {})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, body: bool) -> None:
            data = told.files.get(self.path.lstrip("/"))
            if data is None or (not body and not told.heads):
                self.send_response(404 if data is None else 403)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            part = data
            if span:
                start, end = int(span[1]), min(int(span[2] or len(data)), len(data) - 1)
                part = data[start : end + 1]
            self.send_response(206 if span else 200)
            if span:
                self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Accept-Ranges", "bytes")
            if "ETag" in told.tells:
                self.send_header("ETag", f'"{hash(data)}"')
            if "Last-Modified" in told.tells:
                self.send_header("Last-Modified", f"Tue, {told.day} Nov 2026 00:00:00 GMT")
            self.end_headers()
            if body:
                self.wfile.write(part)

        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    told.address = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield told
    http.shutdown()
    http.server_close()
    thread.join()


def lights(folder: Path, seed: int) -> bytes:
    """Three packs; of the same size for every seed."""
    ntl = np.random.default_rng(seed).gamma(0.5, 8.0, (3, 520)).astype(np.float32)
    return write_raster(folder / f"ntl{seed}.tif", ntl).read_bytes()


@pytest.fixture
def request_of(server: Server, tmp_path: Path) -> RunOptions:
    server.files["ntl.tif"] = lights(tmp_path, 1)
    scene = SceneOptions(ntl=f"{server.address}/ntl.tif", allow_remote=True)
    model = str(write_analytic(tmp_path / "analytic"))
    return RunOptions(scene=scene, out=tmp_path / "o.tif", model=model, tiles=TileRequest(256), threads=1)


def stop(request: RunOptions) -> RunOptions:
    """The request that resumes a run of which a pack is stored."""
    with pytest.raises(Interrupted):
        infer(request, Stopper(2))
    assert list(parts_folder(request.out).rglob("*.pack"))
    return dataclasses.replace(request, mode=Mode.RESUME)


def test_a_changed_object_is_refused_by_name(server: Server, request_of: RunOptions, tmp_path: Path) -> None:
    again = stop(request_of)
    old, server.files["ntl.tif"] = server.files["ntl.tif"], lights(tmp_path, 2)
    assert len(old) == len(server.files["ntl.tif"])
    with pytest.raises(
        InputError, match=r"cannot be resumed: the file of `ntl` was remote .*ETag .* and is now"
    ):
        infer(again)
    assert not again.out.exists()
    server.files["ntl.tif"] = old
    infer(again)
    local = dataclasses.replace(
        request_of, out=tmp_path / "local.tif", scene=SceneOptions(ntl=str(tmp_path / "ntl1.tif"))
    )
    infer(local)
    with rasterio.open(again.out) as ours, rasterio.open(local.out) as theirs:
        np.testing.assert_array_equal(ours.read(), theirs.read())


def test_a_date_alone_is_a_version(server: Server, request_of: RunOptions) -> None:
    server.tells = ("Last-Modified",)
    again = stop(request_of)
    server.day = 17
    with pytest.raises(InputError, match=r"modified Tue, 10 Nov .* and is now .*modified Tue, 17 Nov"):
        infer(again)


def test_without_a_version_a_run_is_made_but_not_resumed(
    server: Server, request_of: RunOptions, caplog: pytest.LogCaptureFixture
) -> None:
    server.tells = ()
    again = stop(request_of)
    assert "nobody says which version of `ntl`" in caplog.text and "cannot be resumed" in caplog.text
    with pytest.raises(InputError, match=r"cannot be resumed: nobody says which version of `ntl`.*overwrite"):
        infer(again)
    infer(dataclasses.replace(again, mode=Mode.OVERWRITE))
    assert again.out.exists()


def test_an_object_that_changes_during_the_run_is_noticed(
    server: Server, request_of: RunOptions, tmp_path: Path
) -> None:
    other = lights(tmp_path, 2)

    class Changing(Silent):
        def advance(self, pixels: int) -> None:
            server.files["ntl.tif"] = other

    with pytest.raises(DeepLightError, match=r"the file of `ntl` changed while it was read"):
        infer(request_of, Changing())
    assert not request_of.out.exists()


def test_a_second_run_in_one_process_reads_the_new_object(
    server: Server, request_of: RunOptions, tmp_path: Path
) -> None:
    infer(request_of)
    first = request_of.out.read_bytes()
    server.files["ntl.tif"] = lights(tmp_path, 2)
    with pytest.raises(InputError, match="is complete but of another run"):
        infer(dataclasses.replace(request_of, mode=Mode.RESUME))
    infer(dataclasses.replace(request_of, mode=Mode.OVERWRITE))
    with rasterio.open(request_of.out) as d:
        mean = np.nanmean(d.read(1))
    request_of.out.write_bytes(first)
    with rasterio.open(request_of.out) as d:
        assert np.nanmean(d.read(1)) != mean


def test_a_local_vrt_over_remote_files(server: Server, request_of: RunOptions, tmp_path: Path) -> None:
    vrt = tmp_path / "ntl.vrt"
    copy(str(tmp_path / "ntl1.tif"), str(vrt), driver="VRT")
    source = f'<SourceFilename relativeToVRT="0">/vsicurl/{server.address}/ntl.tif<'
    vrt.write_text(re.sub(r"<SourceFilename[^>]*>[^<]*<", source, vrt.read_text()))
    scene = dataclasses.replace(request_of.scene, ntl=str(vrt))
    again = stop(dataclasses.replace(request_of, scene=scene))
    server.files["ntl.tif"] = lights(tmp_path, 2)
    with pytest.raises(
        InputError, match=r"cannot be resumed: the file of `ntl` was .* with 1 remote files of "
    ):
        infer(again)


def test_versions(server: Server) -> None:
    server.files["a"] = b"12345"
    etag = f'ETag "{hash(b"12345")}"'
    expected = f"{etag}, modified Tue, 10 Nov 2026 00:00:00 GMT, 5 bytes"
    assert object_version(f"{server.address}/a") == expected
    assert object_version(f"/vsicurl/{server.address}/a") == expected
    server.heads = False  # as with a signed address
    assert object_version(f"{server.address}/a") == expected
    assert object_version(f"{server.address}/b") is None
    for name in ("s3://bucket/a.tif", "/vsis3/bucket/a.tif", f"/vsizip//vsicurl/{server.address}/a.zip/a"):
        assert object_version(name) is None
