"""A Kafka with an address of its own: Apache Kafka of ../shared/kafka where it and Java are there, else the embedded broker."""

import json
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE

from tests.apache_kafka import KAFKA
from tests.cluster.hosts import REPOSITORY, Host, Site

PORT = 9092


@contextmanager
def running_kafka(site: Site, number: int) -> Iterator[str]:
    """Start it on a host of its own at the site; yields its address."""
    java = shutil.which("java")
    is_apache = java is not None and (KAFKA / "start").is_file()
    seen = [KAFKA, Path(java).resolve().parents[1]] if is_apache and java else [Path(sys.prefix)]
    host = site.add("kafka", number, visible=seen, sees_repository=not is_apache)
    command = _apache(host, java) if is_apache and java else _embedded(host)
    with host.start(command, stdout=PIPE) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("{"), f"{command[0]} did not start: {line}"
            json.loads(line)
            yield f"{host.address}:{PORT}"
        finally:
            site.kill(host)


def _apache(host: Host, java: str) -> list[str]:
    listeners = f"CLIENT://0.0.0.0:{PORT},INTERNAL://127.0.0.1:9093,CONTROLLER://127.0.0.1:9094"
    settings = [
        f"listeners={listeners}",
        f"advertised.listeners=CLIENT://{host.address}:{PORT},INTERNAL://127.0.0.1:9093",
        "controller.quorum.voters=1@127.0.0.1:9094",
        "auto.create.topics.enable=false",
    ]
    flags = [word for setting in settings for word in ("--set", setting)]
    python = f"/usr/local/bin/python{sysconfig.get_python_version()}"
    path = f"PATH={Path(java).parent}:/usr/bin:/bin"
    return ["env", path, python, str(KAFKA / "start"), "--port", str(PORT), "--dir", "/root/kafka", "--foreground", *flags]


def _embedded(host: Host) -> list[str]:
    python = str(Path(sys.prefix, "bin", "python"))
    listen = f"{host.address}:{PORT}"
    return ["env", "-C", str(REPOSITORY), python, "-m", "ops.cli.main", "broker", "--listen", listen, "--root", "/root/broker", "--json"]
