"""`itr prepare` as a command: when killed, on a full disk, with more images than memory, and with real images."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from PIL import Image

from itr.cli import main
from itr.data.shards.schema import Manifest
from itr.data.shards.tars import read_tar
from itr.images.decode import image_size
from launching import ENOUGH
from raw import file_hashes, make_raw, write_tables

WORKERS = [1, 2]
ITR = [sys.executable, "-m", "itr"]
SOURCES = str(Path(__file__).parents[3] / "src")
ENVIRONMENT = {**os.environ, "PYTHONPATH": SOURCES}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Tables, and images large enough that resizing takes a while."""
    return write_tables(make_raw(tmp_path_factory.mktemp("raw"), 30, 10, width=900, height=700))


def command(root: Path, out: Path, *options: str) -> list[str]:
    return [*ITR, "prepare", "table", f"--root={root}", f"--out={out}", "--shard_size=2", *options]


def children(process: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition, seconds: float = ENOUGH) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to find the workers")
def test_after_being_killed_repeatedly_it_finishes_with_the_same_bytes(root, tmp_path, workers):
    out, options = tmp_path / "out", ("--resize=100", f"--num_workers={workers}")
    assert main(command(root, tmp_path / "whole", "--resize=100", "--num_workers=1")[3:]) == 0
    for finished in (2, 6):
        run = subprocess.Popen(command(root, out, *options), env=ENVIRONMENT, stdout=subprocess.PIPE)
        wait_for(lambda n=finished: len(list(out.glob(".preparing/*/*.json"))) >= n)
        worker_pids = children(run.pid)
        run.kill()
        assert run.wait() == -signal.SIGKILL
        run.stdout.close()
        wait_for(lambda pids=worker_pids: not any(map(is_alive, pids)))
        assert [path.name for path in out.iterdir()] == [".preparing"]
        for tar in out.rglob("*.tar"):
            with tarfile.open(tar) as opened:
                assert len(opened.getnames()) == 4
    result = subprocess.run(command(root, out, *options), env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert "of 20 shards are already finished" in result.stdout
    assert file_hashes(out) == file_hashes(tmp_path / "whole")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to find the workers")
@pytest.mark.slow
def test_a_killed_worker_is_reported(root, tmp_path):
    run = subprocess.Popen(
        command(root, tmp_path, "--resize=100", "--num_workers=2"), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: list(tmp_path.glob(".preparing/*/*.json")))
    os.kill(max(children(run.pid)), signal.SIGKILL)
    assert "a worker was killed, possibly because memory ran out; run the same command again" in run.communicate()[1]
    assert run.returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize("workers", WORKERS)
def test_a_keyboard_interrupt_prints_one_line(root, tmp_path, workers):
    run = subprocess.Popen(
        command(root, tmp_path, "--resize=100", f"--num_workers={workers}"),
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: list(tmp_path.glob(".preparing/*/*.json")))
    os.killpg(run.pid, signal.SIGINT)  # like a terminal, to all processes
    result = run.communicate()[1]
    assert result == "itr: error: interrupted; finished shards are kept: run the same command again to continue\n"
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", WORKERS)
def test_a_full_disk_is_reported_and_more_space_is_enough_to_continue(root, tmp_path, workers):
    """On a real one-megabyte file system, in its own mount namespace."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("needs permission to mount a small file system (unshare -rm)")
    disk = tmp_path / "disk"
    disk.mkdir()
    run = shlex.join(command(root, disk / "out", f"--num_workers={workers}"))
    again = shlex.join([*ITR, "data", "verify", str(disk / "out")])
    script = f"""mount -t tmpfs -o size=1m tmpfs {disk} || exit 77
        {run}; echo "status $?"; cd {disk}/out; find . -type f
        mount -o remount,size=9m {disk} || exit 77
        {run} && {again} && mv {disk}/out {tmp_path}/kept"""
    result = subprocess.run(["unshare", "-rm", "sh", "-c", script], env=ENVIRONMENT, capture_output=True, text=True)
    if result.returncode == 77:
        pytest.skip("needs permission to mount a small file system (tmpfs)")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr.count("itr: error") == 1
    assert f"could not write to {disk / 'out'}: No space left on device. Finished shards are kept" in result.stderr
    first, _, second = result.stdout.partition("status 1")
    assert "written" not in first
    assert ".tmp" not in second
    assert "shards are already finished" in second
    assert main(command(root, tmp_path / "whole")[3:]) == 0
    assert file_hashes(tmp_path / "kept") == file_hashes(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("workers", WORKERS)
def test_a_file_size_limit_is_reported_like_a_full_disk(root, tmp_path, workers):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    result = subprocess.run(
        command(root, tmp_path / "out", f"--num_workers={workers}"),
        env=ENVIRONMENT, capture_output=True, text=True, preexec_fn=limit,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr == (
        f"itr: error: could not write to {tmp_path / 'out'}: File too large. Finished shards are kept: "
        "solve the problem and run the same command again to continue\n"
    )
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", WORKERS)
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, workers):
    peaks = []
    for number in (4, 60):
        root = tmp_path / f"raw{number}"
        root.mkdir()
        Image.new("RGB", (1200, 1000)).save(root / "0.bmp")  # 3.6 MB
        for i in range(1, number):
            os.link(root / "0.bmp", root / f"{i}.bmp")
        rows = [{"image": f"{i}.bmp", "captions": ["x"]} for i in range(number)]
        (root / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (root / "val.jsonl").write_text("")
        code = (
            "import resource, sys; from itr.cli import main; assert main(sys.argv[1:]) == 0\n"
            "print(max(resource.getrusage(of).ru_maxrss for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))"
        )
        options = ["--shard_size", str(number // 2), "--num_workers", str(workers)]
        run = [sys.executable, "-c", code, *command(root, tmp_path / str(number), *options)[3:]]
        result = subprocess.run(run, env=ENVIRONMENT, capture_output=True, text=True, check=True)
        peaks.append(int(result.stdout.split()[-1]))
    assert peaks[1] < peaks[0] + 20_000  # kB; the images are 216 MB


def test_common_options_work_together_with_those_of_the_source(tmp_path, capsys):
    raw = make_raw(tmp_path / "raw", 20, 0)
    write_tables(raw)
    (raw.image_root / "val.jsonl").unlink()
    table = (raw.image_root / "train.jsonl").rename(raw.image_root / "all.jsonl")
    drawn = []
    for seed in (0, 1):
        out = tmp_path / str(seed)
        options = [f"--root={table}", f"--out={out}", f"--seed={seed}", "--holdout=0.25", "--resize=30"]
        options.append("--num_workers=1")
        assert main(["prepare", "table", *options]) == 0
        drawn.append([s.name for s in read_tar(out / "val" / "000000.tar")])
        assert Manifest.read(out).settings == {
            "holdout": 0.25, "resize": 30, "quality": 95, "shard_size": 1000, "seed": seed,
        }  # fmt: skip
    assert drawn[0] != drawn[1]
    assert "train: 10 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resiz=3"], "did you mean --resize?"),
        (["--resize=much"], "resize"),
        (["--bad_images=mend"], "bad_images"),
        (["--shard-size=3"], "--shard_size"),
    ],
)
def test_a_wrong_option_is_reported(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as exit_:
        main(["prepare", "table", "--root=x", f"--out={tmp_path}", *options])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_real_images_are_resized(shared, tmp_path):
    root = shared / "data" / "coco-sample"
    assert main(["prepare", "table", f"--root={root}", f"--out={tmp_path}", "--resize=128"]) == 0
    for split in ("train", "val"):
        for shard in Manifest.read(tmp_path).splits[split].shards:
            for sample in read_tar(tmp_path / shard.path):
                before, after = image_size((root / sample.name).read_bytes()), image_size(sample.image)
                assert min(after) == 128
                assert abs(after[0] / after[1] - before[0] / before[1]) < 0.02
    assert main(["data", "verify", str(tmp_path)]) == 0


@pytest.mark.slow
def test_the_benchmark_writes_its_results(tmp_path):
    script, out = Path(SOURCES).parent / "benchmarks" / "prepare.py", tmp_path / "figures"
    run = [sys.executable, str(script), "--number=20", "--rounds=1", f"--out={out}"]
    result = subprocess.run(run, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    lines = json.loads((out / "prepare.json").read_text())["lines"]
    assert [line["beside"].partition(":")[0] for line in lines] == ["cp", "Pillow"]
    assert all(line[rate] > 1 for line in lines for rate in ("ours", "theirs"))
    assert "shrinking to 256" in result.stdout
    assert result.stderr == ""
