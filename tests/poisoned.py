"""Documents that break a step, for processes of their own: a folder for PYTHONPATH that patches decoding wherever it is imported.

A record with RAISES makes decoding raise, one with CRASHES ends its process as a segmentation fault in a C library would. With a folder in
HEADRACE_TEST_BLOCKS every block that is decoded leaves a file there.
"""

import os
from pathlib import Path

RAISES = "RAISES-AN-ERROR"
CRASHES = "CRASHES-ITS-PROCESS"
BLOCKS_VARIABLE = "HEADRACE_TEST_BLOCKS"
_HOOK = f"""
import importlib.abc, importlib.machinery, os, signal, sys, uuid

TARGET = "pipelines.steps.decode"


class Loader(importlib.abc.Loader):
    def __init__(self, inner):
        self.inner = inner

    def create_module(self, spec):
        return self.inner.create_module(spec)

    def exec_module(self, module):
        self.inner.exec_module(module)
        decode = module.decode

        def poisoned(records, settings):
            values = [value or b"" for value in records["value"].to_pylist()]
            if any({CRASHES.encode()!r} in value for value in values):
                os.kill(os.getpid(), signal.SIGSEGV)
            if any({RAISES.encode()!r} in value for value in values):
                raise RuntimeError("a bug\\nthat has two lines")
            folder = os.environ.get({BLOCKS_VARIABLE!r})
            if folder and len(records):
                open(os.path.join(folder, uuid.uuid4().hex), "w").close()
            return decode(records, settings)

        module.decode = poisoned


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != TARGET:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        spec.loader = Loader(spec.loader)
        return spec


sys.meta_path.insert(0, Finder())
"""


def poisoned_environment(folder: Path, blocks: Path | None = None) -> dict[str, str]:
    """Variables under which a child process, and all that it starts, meets the poison."""
    (folder / "sitecustomize.py").write_text(_HOOK)
    repository = Path(__file__).parents[1]
    found = {"PYTHONPATH": os.pathsep.join([str(folder), str(repository)])}
    return found | ({BLOCKS_VARIABLE: str(blocks)} if blocks else {})
