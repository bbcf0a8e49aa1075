"""What a TPU VM reads of Google Cloud with its own identity; part of the startup script, run by the system's Python.

Usage: tpu_vm.py secret projects/P/secrets/S FILE, or tpu_vm.py fetch gs://BUCKET/OBJECT[#sha256=...] FILE.

Standard library of Python 3.8 and newer. What it reads shows in no command line, environment or log; files are their
owner's alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

METADATA = "http://" + os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
SECRET_MANAGER = os.environ.get("PREFECT_TPU_SECRET_MANAGER", "https://secretmanager.googleapis.com")
STORAGE = os.environ.get("PREFECT_TPU_STORAGE", "https://storage.googleapis.com")
TIMEOUT_SECONDS = 30.0
TRIES = 5
"""Of one call that got 429, 5xx or no answer: the network of a VM that boots comes late."""
PAUSE_SECONDS = float(os.environ.get("PREFECT_TPU_PAUSE_SECONDS", "3"))


class ReadError(Exception):
    """It cannot be read; the text says why."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Another address would get the access token, too."""

    def redirect_request(self, *_: object) -> None:
        return None


def read(url: str, headers: dict[str, str]) -> bytes:
    """What is there; no proxies (the metadata server is beside the VM) and no redirects."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects)
    for number in range(1, TRIES + 1):
        try:
            with opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
                found: bytes = answer.read()
                return found
        except urllib.error.HTTPError as error:
            says = f"HTTP {error.code} {error.reason}: {error.read(2_000).decode(errors='replace').strip()}"
            if error.code != 429 and error.code < 500:
                raise ReadError(says) from None
        except OSError as error:
            says = str(error)
        if number < TRIES:
            time.sleep(PAUSE_SECONDS)
    raise ReadError(says)


def authorization() -> dict[str, str]:
    """The access token of the VM's service account, for some minutes."""
    url = METADATA + "/computeMetadata/v1/instance/service-accounts/default/token"
    token = json.loads(read(url, {"Metadata-Flavor": "Google"}))["access_token"]
    return {"Authorization": "Bearer " + token}


def secret(name: str) -> bytes:
    """The newest version of a secret, or the one that its name says."""
    version = name if "/versions/" in name else name + "/versions/latest"
    answer = json.loads(read(SECRET_MANAGER + "/v1/" + version + ":access", authorization()))
    value = base64.b64decode(answer["payload"]["data"]).strip()
    if not value:
        raise ReadError("it is empty")
    return value


def fetch(address: str) -> bytes:
    """An object of a bucket, which must have the checksum that stands behind its address."""
    place, _, checksum = address.partition("#sha256=")
    bucket, _, name = place[len("gs://") :].partition("/")
    url = STORAGE + "/storage/v1/b/" + bucket + "/o/" + urllib.parse.quote(name, safe="") + "?alt=media"
    found = read(url, authorization())
    if checksum and hashlib.sha256(found).hexdigest() != checksum:
        raise ReadError("its SHA-256 is " + hashlib.sha256(found).hexdigest() + ", not " + checksum)
    return found


def write(path: str, content: bytes) -> None:
    """Whole or not at all, for its owner alone."""
    part = path + ".part"
    if os.path.lexists(part):
        os.unlink(part)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    os.replace(part, path)


def main(what: str, name: str, path: str) -> int:
    """Read it into a file."""
    try:
        write(path, secret(name) if what == "secret" else fetch(name))
    except (ReadError, OSError, ValueError, KeyError) as error:
        role = "roles/secretmanager.secretAccessor" if what == "secret" else "roles/storage.objectViewer"
        print(f"{name} cannot be read: {error} (the TPU VM's service account needs {role} on it)", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
