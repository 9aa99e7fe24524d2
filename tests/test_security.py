"""Input is never executed: the source is searched for calls that could do so, and hostile checkpoints are opened."""

from __future__ import annotations

import ast
import os
import pickle
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from itr.cli import main
from launching import ENOUGH
from tiny import TINY_VSE, save_checkpoint

ROOT = Path(__file__).parents[1]
NEVER = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "pickle._Unpickler", "dill.load", "joblib.load", "shelve.open",
    "marshal.load",
    "marshal.loads", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "eval", "exec", "compile",
    "__import__", "os.system", "os.popen", "shutil.unpack_archive", "torch.hub.load", "torch.jit.load",
    "torch.export.load", "urllib.request.urlopen", "urllib.request.urlretrieve", "requests.get",
}  # fmt: skip
NEVER_METHODS = {"extract", "extractall", "safe_globals", "add_safe_globals", "import_module", "hf_hub_download"}
MUST = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
MUST_METHODS = {"load_from_checkpoint": ("weights_only", True), "load_checkpoint": ("weights_only", True)}
MUST_NOT = {"shell": True, "trust_remote_code": True, "allow_pickle": True, "weights_only": False}
ALLOWED = {
    ("src/itr/cli.py", "import_module"): "the verbs of its own table",
    ("src/itr/component.py", "import_module"): "the module that builds a model, always the same",
    ("src/itr/importing.py", "import_module"): "modules that the user names on the command line, in a config or in the "
    "environment",
    ("src/itr/commands/demo.py", "import_module"): "the verbs of its own list",
    ("src/itr/moved.py", "import_module"): "the present names in its own table",
    (
        "src/itr/data/features/array_pickle.py",
        "pickle._Unpickler",
    ): "find_class gives stand-ins for arrays alone",
    (
        "src/itr/weights/script_archive.py",
        "pickle._Unpickler",
    ): "find_class gives stand-ins and tensors alone",
    ("src/itr/weights/reading.py", "safe_globals"): "argparse.Namespace, and stand-ins that ignore what "
    "they get, for settings beside weights",
    ("src/itr/teachers/load.py", "hf_hub_download"): "modules.json of the model that the user names",
}


def findings(source: str) -> Iterator[str]:
    """The forbidden calls in a source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            yield from (name for name in map(ast.unparse, node.bases) if name in NEVER)
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        given = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
        unknown = {word.arg for word in node.keywords} - set(given)
        if name in NEVER:
            yield name
        elif last in NEVER_METHODS:
            yield last
        key, value = MUST.get(name) or MUST_METHODS.get(last) or ("", None)
        if key and given.get(key, "missing") is not value:
            yield f"{name} without {key}={value}"
        for key, value in MUST_NOT.items():
            if given.get(key) is value or key in unknown:
                yield f"{name} with {key}"


def test_the_source_makes_no_call_that_could_run_untrusted_code():
    found = set()
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        found |= {(str(path.relative_to(ROOT)), name) for name in findings(path.read_text(encoding="utf-8"))}
    assert found - set(ALLOWED) == set()
    assert set(ALLOWED) - found == set(), "these calls no longer exist: remove them from the list"


@pytest.mark.parametrize(
    "line",
    [
        "pickle.loads(x)", "torch.load(x)", "torch.load(x, weights_only=False)", "torch.load(x, weights_only=safe)",
        "np.load(x)", "np.load(x, allow_pickle=True)", "yaml.load(x)", "eval(x)", "os.system(x)", "tar.extractall(x)",
        "subprocess.run(x, shell=True)", "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "Model.load_from_checkpoint(x)", "class A(pickle.Unpickler): pass",
    ],
)  # fmt: skip
def test_the_search_finds_dangerous_calls(line):
    assert list(findings(line))


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.fixture(scope="module")
def sound(scenes, tmp_path_factory) -> str:
    return save_checkpoint(tmp_path_factory.mktemp("sound"), scenes)


def hostile(kind: str, sound: str, folder: Path) -> Path:
    """A checkpoint with embedded code, in one of the formats that torch reads."""
    path, bomb = folder / "evil.ckpt", Bomb(folder / "ran")
    if kind == "pickle":
        path.write_bytes(pickle.dumps(bomb))
    else:
        saved = torch.load(sound, weights_only=True)
        torch.save({**saved, "more": bomb}, path, _use_new_zipfile_serialization=kind == "zip")
    return path


VERBS = {
    "fit": ["fit", *TINY_VSE, "--data.root={data}", "--trainer.default_root_dir={out}", "--ckpt_path={evil}"],
    "validate": ["validate", "--data.root={data}", "--trainer.default_root_dir={out}", "--ckpt_path={evil}"],
    "test": ["test", "--data.root={data}", "--trainer.default_root_dir={out}", "--ckpt_path={evil}"],
    "test unguarded": ["test", "--data.root={data}", "--ckpt_path={evil}", "--weights_only=false"],
    "predict": ["predict", "--data.root={data}", "--trainer.default_root_dir={out}", "--ckpt_path={evil}"],
    "embed": ["embed", "--data={data}", "--ckpt_path={evil}", "--out={out}/a.npz"],
    "evaluate": ["evaluate", "coco", "--data={data}", "--ckpt_path={evil}", "--out={out}/a.json"],
    "convert cusa": ["convert", "cusa", "{evil}", "--out={out}/a.ckpt"],
    "convert d2s": ["convert", "d2s", "{evil}", "--out={out}/a.ckpt"],
    "stage1": ["fit", *TINY_VSE, "--data.root={data}", "--trainer.default_root_dir={out}",
               "--model.methods+=D2S", "--model.methods.stage1={evil}"],
    "teacher": ["features", "--data={data}", "--modality=image", "--model=unicom:{evil}", "--out={out}"],
    "weights": ["fit", "--model.backbone=CLIP", "--model.backbone.pretrained={evil}", "--data.root={data}",
                "--trainer.default_root_dir={out}"],
}  # fmt: skip


QUICK = [("test", "zip"), ("embed", "pickle"), ("convert d2s", "old")]
ALL = [(verb, kind) for verb in VERBS for kind in ("zip", "old", "pickle")]
CASES = [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in ALL]


@pytest.mark.parametrize(("verb", "kind"), CASES)
def test_code_in_a_checkpoint_is_not_run(sound, scenes, tmp_path, capsys, monkeypatch, verb, kind):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # a torch option that disables its safe default
    path = hostile(kind, sound, tmp_path)
    places = {"{evil}": path, "{data}": scenes, "{out}": tmp_path / "out"}
    words = VERBS[verb]
    for place, value in places.items():
        words = [word.replace(place, str(value)) for word in words]
    assert main([*words, *(["--trainer.accelerator=cpu"] if verb in ("fit", "test") else [])]) == 1
    assert not (tmp_path / "ran").exists()
    assert "evil.ckpt" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
def test_the_code_would_run_if_it_were_allowed_to(sound, tmp_path, kind):
    path = hostile(kind, sound, tmp_path)
    if kind == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists()


WATCH = """
import sys
def report(event, arguments):
    if event == "socket.connect" or event == "socket.getaddrinfo":
        print("NETWORK", event, arguments, flush=True)
sys.addaudithook(report)
"""
RUN = """
from itr.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["fit", "test", "embed"])
def test_no_network_requests_are_made(sound, scenes, tmp_path, verb):
    words = {
        "fit": ["fit", *TINY_VSE, f"--data.root={scenes}", "--trainer.max_epochs=1", "--data.batch_size=8",
                "--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}"],
        "test": ["test", f"--data.root={scenes}", f"--ckpt_path={sound}", "--trainer.accelerator=cpu",
                 f"--trainer.default_root_dir={tmp_path}"],
        "embed": ["embed", f"--data={scenes}", f"--ckpt_path={sound}", f"--out={tmp_path}/a.npz", "--device=cpu"],
    }[verb]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", WATCH + RUN, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=ENOUGH)
    assert done.returncode == 0, done.stderr
    assert not requests_in(done.stdout)


def requests_in(printed: str) -> list[str]:
    """The network requests; an address that is a path is a local socket."""
    lines = [line for line in printed.splitlines() if line.startswith("NETWORK")]
    return [line for line in lines if "/" not in line and "127.0.0.1" not in line]


def test_network_requests_are_detected():
    code = "import socket\ntry: socket.create_connection(('no-such-host.invalid', 80))\nexcept OSError: pass"
    done = subprocess.run([sys.executable, "-c", WATCH + code], capture_output=True, text=True, check=True)
    assert len(requests_in(done.stdout)) == 1


LOCK = ROOT / "requirements.lock"
KNOWN_BAD = {
    "lightning": ["2.6.2", "2.6.3", "2.6.5"],
    "pytorch-lightning": ["2.6.2", "2.6.3", "2.6.5"],
    "torch": ["2.5.1", "2.9.1"],
    "transformers": ["5.2.0", "5.4.0"],
    "pillow": ["12.3.0"],
    "aiohttp": ["3.13.5", "3.14.0"],
}


def locked() -> dict[str, list[str]]:
    """The releases of each package in the lock file, which may depend on platform and Python version."""
    found: dict[str, list[str]] = {}
    for name, release in re.findall(r"^([a-z0-9.-]+)==([^ ;\\]+)", LOCK.read_text(), flags=re.MULTILINE):
        found.setdefault(name, []).append(release)
    return found


def required() -> list[Requirement]:
    """The requirements in pyproject.toml, including extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return [found for found in map(Requirement, lines) if found.name != project["name"]]


def test_the_lock_file_satisfies_the_project_requirements():
    releases = locked()
    for wanted in required():
        assert releases.get(canonicalize_name(wanted.name)), f"{wanted} is not in {LOCK.name}: run `make lock`"
        for release in releases[canonicalize_name(wanted.name)]:
            assert wanted.specifier.contains(release), f"{wanted}, and {LOCK.name} has {release}: run `make lock`"


def test_known_bad_releases_are_excluded():
    releases, specifiers = locked(), {wanted.name: wanted.specifier for wanted in required()}
    for name, bad in KNOWN_BAD.items():
        assert [release for release in bad if specifiers[name].contains(release)] == [], name
        assert not set(bad) & set(releases[name]), name


def test_the_lock_file_has_hashes_and_no_paths():
    text = LOCK.read_text()
    entries = re.split(r"\n(?=\S)", text.strip())
    assert len(entries) == sum(map(len, locked().values())) > 100
    assert all("--hash=sha256:" in entry for entry in entries)
    assert not re.search(r"://|index|find-links|\s@\s|/[a-z]+/", text)


@pytest.mark.slow
def test_a_user_defined_component_needs_its_module_to_be_named(scenes, tmp_path):
    (tmp_path / "my_parts.py").write_text(
        "from itr.methods import Method, MethodModule\n\n"
        "class Nothing(Method):\n    name = 'nothing'\n\n"
        "    def build(self, backbone):\n        return MethodModule()\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])

    def itr(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "PYTHONPATH": path, **more}
        command = [sys.executable, "-m", "itr", *arguments]
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=ENOUGH)

    where = [f"--trainer.default_root_dir={tmp_path / 'run'}", "--trainer.accelerator=cpu", "--trainer.max_epochs=1"]
    quick = [f"--data.root={scenes}", "--data.batch_size=8", "--data.num_workers=0"]
    made = itr("fit", *TINY_VSE, *where, *quick, "--model.methods+=my_parts.Nothing")
    assert made.returncode == 0, made.stderr
    embed = ["embed", "--ckpt_path", f"{tmp_path / 'run'}/checkpoints/last.ckpt", "--data", str(scenes)]
    embed += ["--out", str(tmp_path / "e.npz")]
    refused = itr(*embed)
    assert refused.returncode == 1
    assert "names the class 'my_parts.Nothing', which is not part of itr" in refused.stderr
    assert itr(*embed, ITR_IMPORT="my_parts").returncode == 0
    assert itr(*embed, f"--config={tmp_path / 'run' / 'config.yaml'}").returncode == 0
