"""What lies under a root is reached through pipelines/storage, so that it may lie on an object store: no other module calls the file system itself,
but for what is listed here, each with its reason.
"""

import ast
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CALLS = frozenset(
    [
        "exists",
        "is_file",
        "is_dir",
        "iterdir",
        "glob",
        "rglob",
        "read_bytes",
        "read_text",
        "write_bytes",
        "write_text",
        "open",
        "unlink",
        "rename",
        "stat",
        "rmdir",
        "touch",
        "mkdir",
        "memory_map",
        "mmap",
        "read_schema",
        "read_ipc",
        "read_parquet",
        "scan_parquet",
        "ParquetFile",
        "rmtree",
        "copytree",
        "scandir",
        "listdir",
        "walk",
        "load_file",
        "save_file",
    ]
)
FETCHED = "of a path that pipelines/storage has made local just before"
HOST_ONLY = "a file that only this host needs: nothing under the root rests on it"
NAMED = "a file or folder that the user names, outside of the root"
WHERE_LOCAL = "where the root is a folder"
FOLDER_ONLY = "of a command that refuses a root on an object store (NEEDS_FOLDER in ops/cli/main.py)"
ALLOWED = {
    "pipelines/dataset/audit.py": ("ParquetFile", FETCHED),
    "pipelines/dataset/checkpoints.py": ("mmap open", FETCHED),
    "pipelines/dataset/gc.py": ("rmdir walk", "where the root is a folder; a folder of the mirror that is empty"),
    "pipelines/dataset/shards.py": ("memory_map", FETCHED),
    "pipelines/dataset/statistics.py": ("ParquetFile", FETCHED),
    "pipelines/dataset/switch.py": ("memory_map", FETCHED),
    "pipelines/dataset/trail.py": ("scan_parquet", FETCHED),
    "pipelines/dataset/verify.py": ("memory_map read_parquet", FETCHED),
    "pipelines/dataset/verify_shards.py": ("is_file stat", FETCHED),
    "pipelines/dedup/base.py": ("mmap open", FETCHED),
    "pipelines/dedup/opening.py": ("memory_map", FETCHED),
    "pipelines/dedup/paragraphs.py": ("memory_map", FETCHED),
    "pipelines/ingest/isolation/quarantine.py": ("read_text unlink write_text", HOST_ONLY),
    "pipelines/ingest/stream.py": ("open", "of what follows the dataset in memory, not of files"),
    "pipelines/kernels/ingest.py": ("exists mkdir open rglob stat touch", "compiled code beside the sources"),
    "pipelines/lineage/croissant.py": ("read_schema", FETCHED),
    "pipelines/quality/arpa.py": ("open", NAMED),
    "pipelines/quality/models.py": ("read_text write_bytes", FETCHED + "; and into a folder that durable_folder gave"),
    "pipelines/runtime/child.py": ("mkdir open stat", HOST_ONLY),
    "pipelines/runtime/locks.py": ("open", HOST_ONLY),
    "pipelines/runtime/ports.py": ("read_text", "/proc"),
    "pipelines/runtime/stopping.py": ("open", "the null device"),
    "pipelines/semantic/embed.py": ("is_file read_bytes", NAMED),
    "pipelines/semantic/run.py": ("read_ipc", FETCHED),
    "pipelines/semantic/store.py": ("memory_map read_schema", FETCHED + "; and a list that the user names"),
    "pipelines/steps/fasttext.py": ("read_bytes", NAMED),
    "pipelines/steps/formats/references.py": ("is_dir open", FETCHED + "; and folders that the user names"),
    "pipelines/tokenizers/engine/fast.py": ("exists read_text", "/proc"),
    "pipelines/tokenizers/folders.py": ("is_file", NAMED),
    "pipelines/tokenizers/tokenizer.py": ("is_file read_text", FETCHED + "; and folders that the user names"),
    "pipelines/views/decontamination.py": ("memory_map read_parquet", FETCHED),
    "pipelines/views/export.py": ("copytree exists mkdir open stat write_text", NAMED),
    "pipelines/views/lists.py": ("read_parquet", NAMED + "; and bytes in memory"),
    "ops/cli/dataset_views.py": ("read_text", NAMED),
    "ops/cli/deadletter.py": ("open read_bytes", NAMED),
    "ops/cli/main.py": ("exists is_dir is_file open read_text", NAMED + "; and whether a root that is no URL is a folder"),
    "ops/cli/produce.py": ("exists is_dir", NAMED),
    "ops/cli/serve.py": ("exists", HOST_ONLY),
    "ops/cli/tokenizer.py": ("is_dir is_file read_bytes write_bytes", NAMED),
    "ray_apps/loop/disk.py": ("is_file read_bytes unlink", WHERE_LOCAL),
    "ray_apps/models/registry.py": (
        "exists glob is_file iterdir open rename rglob rmtree unlink write_bytes",
        WHERE_LOCAL + "; staging folders; and " + FETCHED,
    ),
    "ray_apps/serving/engine/llama_config.py": ("read_bytes", FETCHED),
    "ray_apps/serving/engine/prompts.py": ("is_file read_bytes read_text", FETCHED),
    "ray_apps/serving/engine/safetensors_files.py": ("is_file read_bytes", FETCHED),
    "ray_apps/serving/engine/torch_engine.py": ("is_file read_bytes", FETCHED),
    "ray_apps/training/app.py": ("rmtree", HOST_ONLY),
    "ray_apps/training/checkpoint.py": ("is_dir iterdir open read_bytes rmtree unlink", WHERE_LOCAL + "; and files that are being written"),
    "ray_apps/training/export.py": ("iterdir read_bytes", FETCHED),
    "ray_apps/training/loss_curve.py": ("open", HOST_ONLY),
    "ray_apps/training/run.py": ("is_file open read_bytes", WHERE_LOCAL),
    "ray_apps/training/stored.py": ("read_bytes write_bytes", HOST_ONLY + "; and " + FETCHED),
}
ALLOWED_ROOMS = {
    "pipelines/storage": "it is the seam",
    "ops/broker": FOLDER_ONLY,
    "ops/demo": FOLDER_ONLY,
    "ops/supervisor": HOST_ONLY,
    "ops/producing": NAMED,
    "ops/packaging": "files of the repository",
    "ops/cli/demo.py": FOLDER_ONLY,
}


def test_only_storage_reaches_for_files_under_the_root() -> None:
    found = {name: calls for name, calls in _calls().items() if not any(f"{name}/".startswith(f"{room}/") for room in ALLOWED_ROOMS)}
    assert found == {name: set(calls.split()) for name, (calls, _) in ALLOWED.items()}


def test_commands_whose_modules_reach_for_files_themselves_refuse_an_object_store() -> None:
    from ops.cli.main import NEEDS_FOLDER

    assert {"demo", "broker"} <= NEEDS_FOLDER


def _calls() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for room in ("pipelines", "ray_apps", "ops"):
        for path in sorted((REPOSITORY / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CALLS:
                    found.setdefault(path.relative_to(REPOSITORY).as_posix(), set()).add(node.func.attr)
    return found
