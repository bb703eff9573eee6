"""Which version of an object a server holds, so that two are never mixed. Standard library only."""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Mapping

_URL = re.compile(r"^(?:/vsicurl/)?(https?://.+)$", re.IGNORECASE | re.DOTALL)
_TOLD = {
    "ETag": "ETag",
    "Last-Modified": "modified",
    "x-goog-generation": "generation",
    "x-amz-version-id": "version",
}
"""Headers that change with an object → what they are called in messages. A size alone says nothing: rasters of one
grid often have the same."""
_TIMEOUT_S = 30.0


def object_version(name: str) -> str | None:
    """What the server says of the object that it holds now, on one line.

    name: an http or https address, with or without /vsicurl/. None for any other name, which only GDAL can follow,
    where the server gives neither an ETag nor a date, and where it does not answer.
    """
    match = _URL.match(name)
    if match is None:
        return None
    for method, asked in (
        ("HEAD", {}),
        ("GET", {"Range": "bytes=0-0"}),
    ):  # signed addresses often allow GET alone
        headers = _headers(urllib.request.Request(match[1], headers=asked, method=method))
        if headers is not None:
            return _version(headers)
    return None


def _headers(request: urllib.request.Request) -> Mapping[str, str] | None:
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            return dict(answer.headers.items())
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError):
        return None


def _version(headers: Mapping[str, str]) -> str | None:
    given = {name.lower(): value for name, value in headers.items()}
    told = [f"{called} {given[name.lower()]}" for name, called in _TOLD.items() if name.lower() in given]
    whole = given.get("content-range", "").rpartition("/")[2] or given.get("content-length", "")
    return ", ".join([*told, f"{whole} bytes"]) if told else None
