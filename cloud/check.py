"""Have SkyPilot's own loader read every task, as `sky launch` and `sky jobs launch` do.

    make cloud-check

makes an environment for it (SkyPilot and this project pin different versions of click) and prints
one line a task. No account, no cloud, no network is used. Exits with 1 at the first task that the
loader does not take, or whose job recovery it does not know.
"""

from __future__ import annotations

import sys
from pathlib import Path

import sky
from sky.jobs import recovery_strategy
from sky.utils import yaml_utils

# By way of the module that fills it.
STRATEGIES = recovery_strategy.registry.JOBS_RECOVERY_STRATEGY_REGISTRY
BUCKET = ("BUCKET", "s3://a-bucket")


def read(path: Path) -> sky.Task:
    """The task, its BUCKET filled in as by --env.

    Raises what SkyPilot raises for a field or a value that it does not know.
    """
    task = sky.Task.from_yaml_config(yaml_utils.read_yaml(str(path)), env_overrides=[BUCKET])
    task.validate_name()
    task.validate_run()
    for storage in task.storage_mounts.values():
        storage._validate_storage_spec(storage.name)  # else only when it is launched
    for resources in task.resources:
        recovery = resources.job_recovery
        if recovery is not None:
            STRATEGIES.from_str(recovery["strategy"])
    return task


def told(task: sky.Task) -> str:
    """What SkyPilot has understood, in a line."""
    (resources,) = task.resources
    machine = resources.accelerators or f"{resources.cpus} cpus, {resources.memory} GB"
    mounts = ", ".join(
        f"{place} = {storage.source} ({storage.mode.value})"
        for place, storage in sorted(task.storage_mounts.items())
    )
    kind = "spot" if resources.use_spot else "on demand"
    recovery = f"; recovery {resources.job_recovery}" if resources.job_recovery else ""
    return f"{task.name}: {task.num_nodes} x {machine}, {kind}; {mounts}{recovery}"


def main() -> int:
    tasks = sorted(Path(__file__).parent.glob("*.yaml"))
    known = ", ".join(sorted(STRATEGIES))
    print(f"skypilot {sky.__version__}; strategies of recovery: {known}")
    for path in tasks:
        try:
            print(told(read(path)))
        except (ValueError, sky.exceptions.StorageError) as error:
            print(f"error: {path.name}: {error}", file=sys.stderr)
            return 1
    print(f"{len(tasks)} tasks read")
    return 0


if __name__ == "__main__":
    sys.exit(main())
