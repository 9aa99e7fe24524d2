"""`itr stages CONFIG CONFIG ...`: runs that build on one another, such as both stages of D2S-VSE."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from itr.commands.config_files import find_config
from itr.errors import UserError

STOPPED = (130, 143)  # exit statuses of a run that a signal has ended in good order
SIGNALS = (signal.SIGINT, signal.SIGTERM)
HANDED_ON = "ITR_SIGNALS_HANDED_ON"  # environment: says that a signal may come twice

USAGE = """usage: itr stages CONFIG CONFIG ... [options]

Train with one config after another: `itr fit --config CONFIG [options]` for each. The options go to all of them, so
leave out those that belong to one; a later config names what it takes from an earlier one.

  itr stages f30k_d2s_stage1.yaml f30k_d2s.yaml --data.root shards"""


def main(arguments: list[str]) -> int:
    """Run `itr fit` for each config, each as a process of its own, and stop at the first that fails or is stopped."""
    configs: list[str] = []
    rest = arguments[1:]
    while rest and not rest[0].startswith("-"):
        configs.append(rest.pop(0))
    if not configs or {"-h", "--help"} & set(rest):
        print(USAGE)
        return 0
    if any(option.startswith("--trainer.default_root_dir") for option in rest):
        raise UserError("--trainer.default_root_dir would put all stages into one folder; set it in the configs")
    paths = [find_config(config) for config in configs]
    for number, (config, path) in enumerate(zip(configs, paths, strict=True), 1):
        print(f"\nstage {number} of {len(configs)}: itr fit --config {config}", flush=True)
        status = _run([sys.executable, "-m", "itr", "fit", "--config", path, *rest])
        if status in STOPPED:
            return status
        if status:
            raise UserError(f"stage {number}, {config}, ended with status {status}; the later ones were not run")
    return 0


def _run(command: list[str]) -> int:
    """Run a stage, handing signals on to it, which may reach it on its own too; its exit status."""
    process = subprocess.Popen(command, env={**os.environ, HANDED_ON: "1"})
    earlier = {signum: signal.signal(signum, lambda signum, _: process.send_signal(signum)) for signum in SIGNALS}
    try:
        return process.wait()
    finally:
        for signum, handler in earlier.items():
            signal.signal(signum, handler)
