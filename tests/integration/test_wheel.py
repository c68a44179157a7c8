"""The wheel is whole: built, installed beside nothing but the packages that it needs, it does the first step of the demo in an empty folder."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
NO_REGISTRY = ("Could not find a version", "No matching distribution", "Connection")
"""What pip says where it cannot fetch the build system that pyproject.toml names."""


def run(*command: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HEADRACE_ROOT")}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def headrace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of the built wheel, in an environment whose other packages are those of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(REPOSITORY), cwd=folder)
    if built.returncode and any(sign in built.stderr for sign in NO_REGISTRY):
        pytest.skip(f"pip cannot fetch the build system: {built.stderr.splitlines()[-1]}")
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("headrace-*.whl")
    venv.create(folder / "env", symlinks=True)
    packages = next((folder / "env" / "lib").glob("python*/site-packages"))
    others = [path for path in sys.path if path.endswith("site-packages")]  # the links of an editable install are not followed from there
    (packages / "others.pth").write_text("\n".join(others))
    python = folder / "env" / "bin" / "python"
    installed = run(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel), cwd=folder)
    assert installed.returncode == 0, installed.stderr
    where = run(str(python), "-P", "-c", "import pipelines; print(pipelines.__file__)", cwd=folder)
    assert where.stdout.startswith(str(packages)), where
    return folder / "env" / "bin" / "headrace"


@pytest.mark.slow
def test_the_installed_wheel_starts_its_broker_and_publishes_samples(headrace: Path, tmp_path: Path) -> None:
    published = run(str(headrace), "produce", "--sample", "--limit", "20", "--root", "data", "--json", cwd=tmp_path)
    assert published.returncode == 0, published.stderr
    assert json.loads(published.stdout)["published"] == 20
