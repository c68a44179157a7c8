"""An object store with an address of its own: alocals3, which makes and refuses a conditional put in one step, as stores do that hosts share."""

import sysconfig
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from subprocess import STDOUT

import pytest

from tests.cluster.hosts import NETWORK, Site, packages
from tests.cluster.waiting import until

NUMBER, PORT = 6, 9000
URL = "s3://bucket/held-out"
"""A root on it."""
ENVIRONMENT = {
    "AWS_ENDPOINT_URL": f"http://{NETWORK}.{NUMBER}:{PORT}/s3",
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}
"""What a process needs to use it."""
START_TIMEOUT_S = 120.0


@contextmanager
def running_store(site: Site) -> Iterator[None]:
    """Start it with an empty bucket, on a host of its own at the site. This thread must reach the site's network. Skips where it is not installed."""
    if find_spec("alocals3") is None:
        pytest.skip("alocals3 is not installed (requirements-peers.lock lists it; `make test-cluster` installs it)")
    host = site.add("store", NUMBER)
    server = [f"python{sysconfig.get_python_version()}", "-m", "alocals3.server", "--host", "0.0.0.0", "--port", str(PORT)]
    data = ["--storage-root", "/root/data", "--database-url", "sqlite:////root/alocals3.db"]
    paths = {"PYTHONPATH": ":".join(map(str, packages()))}
    log = host.folder / "root/store.log"
    with log.open("w") as output, host.start([*server, *data], environment=paths, stdout=output, stderr=STDOUT) as process:
        try:
            until(lambda: _has_bucket() or process.poll() is not None or None, "the object store", START_TIMEOUT_S)
            assert process.poll() is None, log.read_text()
            yield
        finally:
            site.kill(host)


def _has_bucket() -> bool:
    """Ask for the bucket; whether it is there."""
    try:
        urllib.request.urlopen(urllib.request.Request(f"{ENVIRONMENT['AWS_ENDPOINT_URL']}/bucket", method="PUT"), timeout=10).close()
    except urllib.error.URLError:
        return False
    return True
