"""Every way to start several processes gives the same run, and none outlives the others."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from itr.cli import main
from itr.commands.configs import resolve_configs
from itr.errors import UserError
from itr.private_api.lightning import ddp_timeout
from itr.runs.command import TrainingCLI
from itr.runs.processes import wait_for_processes
from launching import ENOUGH, Run, fit, free_port, torchrun
from tiny import TINY_VSE

TWO_NODES = ["--trainer.devices=1", "--trainer.num_nodes=2"]
BOUND = 30.0  # seconds in which all of a run end after one was killed


def weights(folder: Path) -> dict[str, torch.Tensor]:
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2 * (44 // 8)
    return saved["state_dict"]


@pytest.fixture(scope="module")
def lightning(scenes, tmp_path_factory) -> dict[str, torch.Tensor]:
    """The weights of a run that Lightning started on one machine."""
    folder = tmp_path_factory.mktemp("lightning")
    with Run(folder / "log") as run:
        run.start(fit(scenes, folder, "--trainer.devices=2", "--trainer.max_epochs=2"))
        assert run.statuses(ENOUGH) == [0], run.said()
        assert not run.left_after(5)
    return weights(folder)


def torchrun_on_one_node(run: Run, arguments: list[str]) -> None:
    run.start([*torchrun("--nproc_per_node=2", f"--master_port={run.port}"), *arguments, "--trainer.devices=2"])


def torchrun_on_two_nodes(run: Run, arguments: list[str]) -> None:
    where = ["--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={run.port}"]
    for node in range(2):
        run.start([*torchrun(*where, f"--node_rank={node}"), *arguments, *TWO_NODES])


def elastic_torchrun_on_two_nodes(run: Run, arguments: list[str]) -> None:
    where = ["--nnodes=2", "--nproc_per_node=1", "--max-restarts=1", "--rdzv_backend=c10d", "--rdzv_id=1"]
    for _ in range(2):
        run.start([*torchrun(*where, f"--rdzv_endpoint=127.0.0.1:{run.port}"), *arguments, *TWO_NODES])


def lightning_on_two_nodes(run: Run, arguments: list[str]) -> None:
    for node in range(2):
        run.start([*arguments, *TWO_NODES], NODE_RANK=node, MASTER_ADDR="127.0.0.1", MASTER_PORT=run.port)


def slurm(run: Run, arguments: list[str]) -> None:
    """Two tasks on two nodes, started as srun does."""
    shared: dict[str, object] = {
        "SLURM_JOB_ID": 4242,
        "SLURM_JOB_NAME": "itr",
        "SLURM_NNODES": 2,
        "SLURM_STEP_NUM_TASKS": 2,
    }
    shared |= {"SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 1, "SLURM_NODELIST": "localhost,localhost"}
    for task in range(2):
        own = {"SLURM_PROCID": task, "SLURM_NODEID": task, "SLURM_LOCALID": 0, "MASTER_PORT": run.port}
        run.start([*arguments, *TWO_NODES], **shared, **own)


@pytest.mark.slow
@pytest.mark.parametrize(
    "start",
    [
        torchrun_on_one_node,
        torchrun_on_two_nodes,
        elastic_torchrun_on_two_nodes,
        lightning_on_two_nodes,
        slurm,
    ],
)
def test_every_launcher_gives_the_same_weights(lightning, scenes, tmp_path, start):
    with Run(tmp_path / "log") as run:
        start(run, fit(scenes, tmp_path, "--trainer.max_epochs=2"))
        assert set(run.statuses(ENOUGH)) == {0}, run.said()
        assert not run.left_after(5)
    found = weights(tmp_path)
    assert found.keys() == lightning.keys()
    for name, value in lightning.items():
        assert torch.equal(value, found[name]), name


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two network namespaces with a cable between them: separate hosts to the network."""
    names, links = [f"itr{os.getpid()}{end}" for end in "ab"], [f"v{os.getpid()}{end}" for end in "ab"]
    commands = [f"netns add {name}" for name in names]
    commands.append(f"link add {links[0]} netns {names[0]} type veth peer name {links[1]} netns {names[1]}")
    for number, (name, link) in enumerate(zip(names, links, strict=True), 1):
        commands += [f"-n {name} address add 10.77.0.{number}/24 dev {link}", f"-n {name} link set {link} up"]
        commands.append(f"-n {name} link set lo up")
    try:
        for command in commands:
            done = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"this machine makes no network namespaces: {done.stderr.strip()}")
        yield list(map(" ".join, zip(names, links, strict=True)))
    except FileNotFoundError:
        pytest.skip("there is no command `ip`")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.slow
def test_two_hosts_train_as_one(lightning, scenes, tmp_path, hosts):
    arguments = fit(scenes, tmp_path, "--trainer.max_epochs=2", *TWO_NODES)
    where = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", "--rdzv_id=1"]
    where += [f"--rdzv_endpoint=10.77.0.1:{free_port()}"]
    with Run(tmp_path / "log") as run:
        for number, (name, link) in enumerate(map(str.split, hosts), 1):
            local = [f"--local_addr=10.77.0.{number}", f"--rdzv_conf=is_host={str(number == 1).lower()}"]
            prefix = ["ip", "netns", "exec", name]
            run.start([*torchrun(*where, *local), *arguments], prefix, GLOO_SOCKET_IFNAME=link)
        assert run.statuses(ENOUGH) == [0, 0], run.said()
    assert all(torch.equal(value, lightning[name]) for name, value in weights(tmp_path).items())


def started_by_lightning(run: Run, arguments: list[str]) -> None:
    run.start([*arguments, "--trainer.devices=2"])


def rank(run: Run, launcher: object, number: int) -> int:
    """The process of a rank: the first with its number, whose loaders have it too."""
    if launcher is torchrun_on_one_node:
        return run.alive(RANK=number)[0]
    return run.alive(LOCAL_RANK=1)[0] if number else run.started[0].pid


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [started_by_lightning, torchrun_on_one_node])
@pytest.mark.parametrize("number", [0, 1])
def test_when_a_rank_is_killed_all_end_and_the_status_shows_it(scenes, tmp_path, launcher, number):
    with Run(tmp_path / "log") as run:
        launcher(run, fit(scenes, tmp_path, "--trainer.max_epochs=10000"))
        run.wait_for(tmp_path / "checkpoints" / "last.ckpt")
        assert len(run.alive()) >= 4, "two ranks with a loader each"
        os.kill(rank(run, launcher, number), signal.SIGKILL)
        start = time.monotonic()
        statuses = run.statuses(BOUND)
        assert statuses == [-signal.SIGKILL if launcher is started_by_lightning and number == 0 else 1], run.said()
        assert not run.left_after(BOUND - (time.monotonic() - start)), run.said()
        print(f"all ended {time.monotonic() - start:.1f} s after; status {run.started[0].returncode}")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [started_by_lightning, torchrun_on_one_node])
def test_ranks_that_hang_end_with_their_launcher(scenes, tmp_path, launcher):
    with Run(tmp_path / "log") as run:
        launcher(run, fit(scenes, tmp_path, "--trainer.max_epochs=10000"))
        run.wait_for(tmp_path / "checkpoints" / "last.ckpt")
        os.kill(rank(run, launcher, 1), signal.SIGSTOP)  # like a process that hangs in a driver
        run.started[0].kill()
        run.statuses(BOUND)
        assert not run.left_after(BOUND), run.said()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("callback", "ended", "status"),
    [("FailsAtTheEnd", 3, 1), ("FailsWhileTheFirstWaits", 3, 1), ("IsStoppedWhileTheFirstWaits", 130, 130)],
)
def test_a_rank_that_ends_early_ends_the_run(scenes, tmp_path, callback, ended, status):
    """Lightning alone exits with 0 if the first process has finished, and with 137 if no collective fails."""
    with Run(tmp_path / "log") as run:
        ends = f"--trainer.callbacks+=launching.{callback}"
        run.start(fit(scenes, tmp_path, "--trainer.devices=2", "--trainer.max_epochs=1", ends))
        assert run.statuses(ENOUGH) == [status], run.said()
        assert f"process 1 of this machine ended with status {ended}" in run.said()
        assert not run.left_after(BOUND), run.said()


def test_a_failed_process_is_reported_while_another_still_runs():
    launcher = _SubprocessScriptLauncher(LightningEnvironment(), num_processes=3, num_nodes=1)
    launcher.procs = [subprocess.Popen(["sleep", "600"]), subprocess.Popen(["sh", "-c", "exit 3"])]
    other = launcher.procs[0]
    with pytest.raises(UserError, match="process 2 of this machine ended with status 3"):
        wait_for_processes(SimpleNamespace(strategy=SimpleNamespace(launcher=launcher)))
    assert other.wait(ENOUGH) == -signal.SIGKILL


@pytest.mark.slow
def test_a_parameter_that_no_loss_reaches_is_named(scenes, tmp_path):
    with Run(tmp_path / "log") as run:
        spare = "--model.methods+=launching.Spare"
        run.start(fit(scenes, tmp_path, "--trainer.devices=2", "--trainer.max_epochs=1", spare))
        assert run.statuses(ENOUGH) == [1], run.said()
        assert "no loss reaches 1 parameters" in run.said()
        assert "methods.spare.unused" in run.said()


@pytest.mark.slow
def test_a_port_in_use_is_named(scenes, tmp_path):
    with Run(tmp_path / "log") as run, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run.start(fit(scenes, tmp_path, "--trainer.devices=2", "--trainer.max_epochs=1"), MASTER_PORT=port)
        assert run.statuses(ENOUGH) == [1], run.said()
        assert f"can't meet at 127.0.0.1:{port}" in run.said()
        assert not run.left_after(BOUND), run.said()


@pytest.mark.slow
def test_settings_that_differ_from_the_number_of_started_processes_are_refused(scenes, tmp_path):
    """Without --trainer.devices each of the two would train alone, and both write to one folder."""
    with Run(tmp_path / "log") as run:
        run.start([*torchrun("--nproc_per_node=2", f"--master_port={run.port}"), *fit(scenes, tmp_path / "run")])
        assert run.statuses(ENOUGH) == [1], run.said()
        assert "2 processes were started, but --trainer.num_nodes 1 with --trainer.devices 1 make 1" in run.said()
        assert not (tmp_path / "run").exists()


SPLIT = [pytest.param(name, marks=pytest.mark.slow) for name in ("deepspeed_stage_2", "xla", "FSDPStrategy")]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", "ddp_spawn", *SPLIT])
def test_untested_strategies_are_refused_before_anything_starts(scenes, tmp_path, capsys, strategy):
    where = [f"--data.root={scenes}", f"--trainer.default_root_dir={tmp_path / 'run'}", "--trainer.devices=2"]
    assert main(["fit", *TINY_VSE, *where, f"--trainer.strategy={strategy}"]) == 1
    said = capsys.readouterr().err
    assert f"{strategy}; it must be" in said
    assert "gradient_checkpointing" in said
    assert not (tmp_path / "run").exists()


def test_a_timeout_of_collectives_is_a_setting():
    timeout = ["--trainer.strategy=DDPStrategy", "--trainer.strategy.timeout=0:05:00"]
    cli = TrainingCLI([*TINY_VSE, *timeout, "--trainer.accelerator=cpu", "--trainer.devices=2"], run=False)
    assert ddp_timeout(cli.trainer.strategy) == timedelta(minutes=5)


EXAMPLES = Path(__file__).parents[2] / "docs" / "cluster"


def commands(text: str) -> list[list[str]]:
    """The `itr fit` command lines in a script, with variables as the scripts set them or as 2."""
    lines = re.findall(r"itr fit (.*)", text.replace("\\\n", " "))
    return [shlex.split(re.sub(r"\$\{?[A-Z_]+\}?", "2", line)) for line in lines]


class Parsed(Exception):  # noqa: N818
    """The settings of a command line, before anything is built."""


class ParseOnly(TrainingCLI):
    def parse_arguments(self, parser, args) -> None:
        LightningCLI.parse_arguments(self, parser, args)  # without looking for the checkpoint
        raise Parsed(self.config)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.iterdir()))
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_the_example_scripts_are_valid(name):
    text = (EXAMPLES / name).read_text()
    if name.endswith(".yaml"):
        service, job = yaml.safe_load_all(text)
        spec = job["spec"]["template"]["spec"]
        assert (service["kind"], job["kind"]) == ("Service", "Job")
        assert service["metadata"]["name"] == spec["subdomain"]
        assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
        assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
        assert {m["name"] for m in spec["containers"][0]["volumeMounts"]} == {v["name"] for v in spec["volumes"]}
        text = spec["containers"][0]["args"][0]
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    found = commands(text)
    assert len(found) == 1
    with pytest.raises(Parsed) as parsed:
        ParseOnly(resolve_configs(["fit", *found[0]]))
    trainer = parsed.value.args[0].fit.trainer
    told = {option: value for option, value in re.findall(r"--([\w-]+)[= ](\d+)", text)}
    per_node = told.get("nproc_per_node") or told.get("ntasks-per-node") or "2"
    assert trainer.num_nodes == int(told.get("nnodes") or told.get("nodes") or "2")
    assert int(trainer.devices) == int(per_node)


@pytest.mark.slow
@pytest.mark.parametrize(("accelerator", "devices"), [("gpu", 8), ("cpu", 0)])
def test_missing_devices_are_named(scenes, tmp_path, capsys, accelerator, devices):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    where = [f"--data.root={scenes}", f"--trainer.default_root_dir={tmp_path}"]
    wanted = [f"--trainer.accelerator={accelerator}", f"--trainer.devices={devices}"]
    assert main(["fit", *TINY_VSE, *where, *wanted]) == 1
    assert "itr: error: " in capsys.readouterr().err
