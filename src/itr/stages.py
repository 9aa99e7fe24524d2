"""`itr stages CONFIG CONFIG ...`: runs that build on one another, such as both stages of D2S-VSE."""

from __future__ import annotations

import subprocess
import sys

from itr.errors import UserError
from itr.parsing import find_config

USAGE = """usage: itr stages CONFIG CONFIG ... [options]

Train with one config after another: `itr fit --config CONFIG [options]` for each. The options go to all of them, so
leave out those that belong to one; a later config names what it takes from an earlier one.

  itr stages f30k_d2s_stage1.yaml f30k_d2s.yaml --data.root shards"""


def main(arguments: list[str]) -> None:
    """Run `itr fit` for each config, each as a process of its own, and stop at the first that fails."""
    configs: list[str] = []
    rest = arguments[1:]
    while rest and not rest[0].startswith("-"):
        configs.append(rest.pop(0))
    if not configs or {"-h", "--help"} & set(rest):
        print(USAGE)
        return
    if any(option.startswith("--trainer.default_root_dir") for option in rest):
        raise UserError("--trainer.default_root_dir would put all stages into one folder; set it in the configs")
    paths = [find_config(config) for config in configs]
    for number, (config, path) in enumerate(zip(configs, paths, strict=True), 1):
        print(f"\nstage {number} of {len(configs)}: itr fit --config {config}", flush=True)
        done = subprocess.run([sys.executable, "-m", "itr", "fit", "--config", path, *rest])
        if done.returncode:
            raise UserError(
                f"stage {number}, {config}, ended with status {done.returncode}; the later ones were not run"
            )
