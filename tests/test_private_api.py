"""Private names of other libraries are only used in `itr.private_api`, and each of them still works."""

from __future__ import annotations

import ast
import importlib
import inspect
import multiprocessing
import pkgutil
import re
import signal
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

import itr
from itr.component import INSTANTIATOR
from itr.private_api import jsonargparse, lightning, transformers
from itr.private_api import torch as private_torch

PACKAGE = Path(itr.__file__).parent
# Names that begin with an underscore but are documented, or belong to Python.
ALLOWED = {
    "os._exit": "documented",
    "image._replace": "documented: a method of every named tuple",
    "pickle._Unpickler": "Python's; tests/test_security.py says why",
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def sources() -> dict[str, ast.Module]:
    """The syntax trees of all files of the package except `private_api`."""
    paths = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    return {name: ast.parse(path.read_text("utf-8")) for name, path in paths.items() if "private_api/" not in name}


def own_names(tree: ast.Module) -> set[str]:
    """Private names that a file defines: functions, classes, variables, attributes of `self` and of classes."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and on_self(node):
            found.add(node.attr)
    return found


def on_self(node: ast.Attribute) -> bool:
    """Whether this is an attribute of the object itself, of its class or of a base class."""
    text = ast.unparse(node.value)
    return text in ("self", "cls") or text.startswith("super(")


def private_uses(tree: ast.Module, own: set[str]) -> list[str]:
    """Private names that a file uses, except those in `own`, as written in the source."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            found.append(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("itr"):
            parts = [*node.module.split("."), *(name.name for name in node.names)]
            found += [ast.unparse(node)] if any(map(is_private, parts)) else []
        elif isinstance(node, ast.Import):
            found += [name.name for name in node.names if any(map(is_private, name.name.split(".")))]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(str(name.value)) and name.value not in own:
                found.append(ast.unparse(node))
    return found


@pytest.mark.slow
def test_private_names_of_other_libraries_are_used_in_private_api_alone():
    trees = sources()
    inherited = set().union(*map(own_names, trees.values()))  # a class may use what its base in another file defines
    found = {}
    for name, tree in trees.items():
        own = own_names(tree)
        shared = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and on_self(node)}
        uses = private_uses(tree, own | (shared & inherited))
        if uses := [use for use in uses if use not in ALLOWED]:
            found[name] = uses
    assert found == {}, "move these to src/itr/private_api/, with a test here"


@pytest.mark.parametrize(
    "source",
    [
        "trainer._signal_connector.x = 1",
        "from torch._dynamo import config",
        "from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher",
        "import torch._dynamo.config",
        "torch._dynamo.config.recompile_limit = 3",
        "getattr(strategy, '_ddp_kwargs', {})",
        "class Mine(Theirs):\n    def f(self):\n        return self._fs",
    ],
)
def test_the_search_finds_private_names(source):
    tree = ast.parse(source)
    assert private_uses(tree, own_names(tree))


def our_classes() -> list[type]:
    """All classes of the package."""
    modules = [m.name for m in pkgutil.walk_packages([str(PACKAGE)], "itr.") if not m.name.endswith("__main__")]
    found = [value for name in modules for value in vars(importlib.import_module(name)).values()]
    return [cls for cls in set(filter(inspect.isclass, found)) if cls.__module__.startswith("itr.")]


def clashes(cls: type) -> set[str]:
    """Private names defined by one of our classes and used by its base class from another library."""
    own = names_in_source(cls) & {name for name in vars(cls) if is_private(name)}  # metaclasses add further names
    own |= set(re.findall(r"\bself\.(_[a-z]\w*) = ", inspect.getsource(cls)))
    found = set()
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] in ("lightning", "torch", "transformers", "jsonargparse", "argparse"):
            found |= own & {*dir(base), *names_in_source(base)}
    return found


def names_in_source(cls: type) -> set[str]:
    """Private names in the source of a class, including attributes of its objects; empty for a class in C."""
    try:
        return set(re.findall(r"\b_[a-z]\w*", inspect.getsource(cls)))
    except OSError:
        return set()


@pytest.mark.slow
def test_no_class_overrides_a_private_name_of_another_library():
    found = {cls.__name__: clashes(cls) for cls in our_classes() if "private_api" not in cls.__module__}
    assert {name: names for name, names in found.items() if names} == {}, "rename these, or move them to private_api"


class Theirs(nn.Module):
    def _call_impl(self):
        """A private method of `nn.Module`."""


def test_the_search_finds_overridden_names():
    assert clashes(Theirs) == {"_call_impl"}


# Each function and class of `private_api`, really used.


@contextmanager
def explained(what: str, where: str):
    """Say on failure what a library has changed, and which part of `private_api` uses it."""
    try:
        yield
    except (AttributeError, ImportError, TypeError, KeyError, AssertionError) as error:
        pytest.fail(f"{what} any more: see private_api.{where} ({type(error).__name__}: {error})")


class Watched(pl.Callback):
    """Reads Lightning's private state at the end of each batch."""

    def __init__(self):
        self.accumulating, self.over, self.checkpoint = [], [], {}
        self.handler = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.accumulating.append(lightning.is_accumulating(trainer))
        self.over.append(lightning.is_epoch_over(trainer))
        self.checkpoint = lightning.dump_checkpoint(trainer)
        self.handler = signal.getsignal(signal.SIGTERM)


class Line(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def quiet_trainer(tmp_path, **options) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, max_epochs=1, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Watched:
    """Lightning's state during a run of three batches out of five, with two batches per step."""
    folder, seen = tmp_path_factory.mktemp("run"), Watched()
    trainer = quiet_trainer(folder, callbacks=[seen], limit_train_batches=3, accumulate_grad_batches=2)
    trainer.fit(Line(), DataLoader(torch.ones(5, 1)))
    return seen


def test_lightning_does_not_replace_our_signal_handlers(tmp_path):
    trainer = quiet_trainer(tmp_path)
    with explained("Lightning's Trainer has no _signal_connector", "lightning.no_signal_handlers"):
        assert callable(trainer._signal_connector.register_signal_handlers), "register_signal_handlers"
    with explained("Lightning's epoch loop has no _broadcast_sigterm_tensor", "lightning.no_signal_handlers"):
        assert callable(trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor), "_broadcast_sigterm_tensor"
    handlers = {}
    for taken in (True, False):
        trainer = quiet_trainer(tmp_path, callbacks=[callback := Watched()], limit_train_batches=1)
        if not taken:
            lightning.no_signal_handlers(trainer)
        trainer.fit(Line(), DataLoader(torch.ones(5, 1)))
        handlers[taken] = callback.handler
    with explained("Lightning does not call _SignalConnector.register_signal_handlers", "lightning.no_signal_handlers"):
        assert handlers[True] is not signal.getsignal(signal.SIGTERM), (
            "Lightning no longer handles signals: remove the function"
        )
        assert handlers[False] is signal.getsignal(signal.SIGTERM), "Lightning still handles signals"


def test_a_checkpoint_can_be_made_without_writing_it(watched):
    with explained("_CheckpointConnector.dump_checkpoint returns something else", "lightning.dump_checkpoint"):
        assert {"state_dict", "loops", "optimizer_states", "callbacks", "global_step"} <= watched.checkpoint.keys()


def test_gradient_accumulation_is_detected(watched):
    with explained("_TrainingEpochLoop._should_accumulate returns something else", "lightning.is_accumulating"):
        assert watched.accumulating == [True, False, False]  # the last batch is followed by a step


def test_the_last_batch_of_an_epoch_is_detected(watched):
    with explained("_TrainingEpochLoop._num_ready_batches_reached returns something else", "lightning.is_epoch_over"):
        assert watched.over == [False, False, True]


def test_the_process_launcher_is_available(tmp_path):
    with explained(
        "lightning.pytorch.strategies.launchers has no _SubprocessScriptLauncher", "lightning.script_launcher"
    ):
        launcher = lightning.script_launcher(quiet_trainer(tmp_path, strategy="ddp", devices=2))
        assert launcher is not None, "DDP starts its processes in another way"
        assert launcher.procs == [], "it has no list of processes"
        assert callable(launcher.launch)
        assert launcher.cluster_environment is not None
        assert lightning.script_launcher(quiet_trainer(tmp_path, devices=1)) is None


def test_timeout_and_backend_of_ddp_are_available(tmp_path):
    strategy = DDPStrategy(timeout=timedelta(minutes=5))
    quiet_trainer(tmp_path, strategy=strategy, devices=2)
    with explained("DDPStrategy has no _timeout", "lightning.ddp_timeout"):
        assert lightning.ddp_timeout(strategy) == timedelta(minutes=5)
    with explained("DDPStrategy has no _get_process_group_backend", "lightning.ddp_backend"):
        assert lightning.ddp_backend(strategy) == "gloo"


class Rows:
    """A writer of a CSVLogger."""

    metrics_keys = ()

    def __init__(self):
        self.rows = []
        self.saved = 0

    def log_metrics(self, metrics, step):
        self.rows.append((step, metrics))

    def save(self):
        self.saved += 1


class OwnCsv(CSVLogger):
    @property
    def experiment(self):
        return lightning.set_csv_writer(self, Rows)


def test_a_csv_logger_accepts_our_writer(tmp_path):
    logger = OwnCsv(tmp_path)
    with explained("CSVLogger does not look at _experiment", "lightning.set_csv_writer"):
        logger.finalize("success")
        assert logger._experiment is None, "finalize makes a writer"
        logger.log_metrics({"x": 1.0}, 3)
        logger.finalize("success")
        assert (logger.experiment.rows, logger.experiment.saved) == ([(3, {"x": 1.0})], 1)


class OwnCLI(lightning.TakesSavedSettings, LightningCLI):
    taken = None

    def take_saved_settings(self):
        self.taken = self.config.trainer.max_steps

    def before_instantiate_classes(self):
        assert self.taken is not None, "after parsing and before anything is built"


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_a_command_line_accepts_its_own_settings(tmp_path):
    options = {"logger": False, "accelerator": "cpu", "enable_checkpointing": False, "default_root_dir": str(tmp_path)}
    with explained(
        "LightningCLI does not call _parse_ckpt_path between parsing and building", "lightning.TakesSavedSettings"
    ):
        cli = OwnCLI(
            Line, args=["--trainer.max_steps=7"], run=False, trainer_defaults=options, seed_everything_default=0
        )
        assert cli.taken == 7


class Described(pl.LightningModule):
    def __init__(self, width: int = 1):
        super().__init__()
        self.layer, self.width = nn.Linear(1, width), width

    def on_save_checkpoint(self, checkpoint):
        path = "lightning.pytorch.cli.instantiate_module"
        checkpoint["hyper_parameters"] = {"width": 3, lightning.INSTANTIATOR_KEY: path}


def test_a_checkpoint_names_what_builds_its_module(tmp_path):
    """Without the key, Lightning passes the hyperparameters to `__init__`, which does not accept one of them here."""
    assert INSTANTIATOR == "lightning.pytorch.cli.instantiate_module"
    trainer = quiet_trainer(tmp_path)
    trainer.strategy.connect(Described(3))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    with explained("Lightning does not build modules by the key _instantiator", "lightning.INSTANTIATOR_KEY"):
        opened = Described.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
        assert opened.width == 3
        assert "_instantiator" not in opened.hparams


def test_buffers_can_be_replaced():
    norm = nn.BatchNorm1d(2)
    with explained("nn.Module has no dictionary _buffers", "torch.own_buffers"):
        buffers = private_torch.own_buffers(norm)
        assert set(buffers) == {"running_mean", "running_var", "num_batches_tracked"}
        buffers["running_mean"] = torch.full([2], 3.0)
        assert norm.running_mean.tolist() == [3.0, 3.0], "it is a copy"


def test_a_compiled_module_can_be_run_uncompiled():
    compiled, layer = [], nn.Linear(1, 1)

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    layer.compile(backend=backend)
    layer(torch.ones(1, 1))
    with explained("nn.Module has no _compiled_call_impl", "torch.forget_compiled"):
        private_torch.forget_compiled(layer)
        layer(torch.ones(2, 1, dtype=torch.float32, requires_grad=True))
        assert len(compiled) == 1, "the module is still compiled"


class Held(private_torch.StartsWorkersWithin, DataLoader):
    children = ()

    @contextmanager
    def starting_workers(self):
        self.children = [set(multiprocessing.active_children())]
        yield
        self.children.append(set(multiprocessing.active_children()))


def test_workers_of_a_loader_start_within_a_context():
    loader = Held(range(3), num_workers=1)
    with explained("DataLoader does not start its workers in _get_iterator", "torch.StartsWorkersWithin"):
        assert [int(batch) for batch in loader] == [0, 1, 2]
        before, after = loader.children
        assert len(after - before) == 1, "the worker was started outside"


def test_the_attention_and_the_name_of_a_config_are_available():
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4, image_size=16)
    model = ViTModel(config)
    with explained("configs of transformers have no _attn_implementation", "transformers.attention_of"):
        assert transformers.attention_of(model.config) == "sdpa"
        model.set_attn_implementation("eager")
        assert transformers.attention_of(model.config) == "eager"
    model.config.name_or_path = "a/b"
    with explained("configs of transformers have no _name_or_path", "transformers.NAME_KEY"):
        assert model.config.to_dict()[transformers.NAME_KEY] == "a/b"


def test_options_and_subcommands_of_a_parser_are_available():
    parser, verb = ArgumentParser(), ArgumentParser()
    parser.add_argument("--size", type=int)
    verb.add_argument("--items", type=list[int])
    with explained("ArgumentParser has no _actions", "jsonargparse.option_names"):
        assert {"help", "size"} <= set(jsonargparse.option_names(parser))
        assert "items" in jsonargparse.option_names(verb)
    with explained("ArgumentParser has no _option_string_actions", "jsonargparse.option_help"):
        assert "exit" in jsonargparse.option_help(parser, "--help")
        assert jsonargparse.option_help(parser, "--none") == ""
    with explained("ArgumentParser has no _subcommands_action", "jsonargparse.subcommands"):
        assert jsonargparse.subcommands(parser) == ("", {})
        parser.add_subcommands(dest="verb").add_subcommand("do", verb)
        assert jsonargparse.subcommands(parser) == ("verb", {"do": verb})


def test_loads_of_transformers_are_recorded_instead_of_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "image_size": 16, "patch_size": 8}
    ViTModel(ViTConfig(num_hidden_layers=1, **sizes)).save_pretrained(tmp_path)
    with transformers.recorded_loads() as loads:
        ViTModel.from_pretrained(tmp_path, num_hidden_layers=2)

    assert loads[0].missing
    assert all(".1." in name for name in loads[0].missing)
    assert loads[0].unexpected == loads[0].misshapen == ()
    assert "MISSING" not in "".join(capsys.readouterr())


def test_weights_that_other_libraries_load_can_be_changed():
    module = nn.Linear(1, 1)
    with private_torch.state_loads_through(lambda _, weights: {n[2:]: v for n, v in weights.items()}):
        module.load_state_dict({"x.weight": torch.tensor([[3.0]]), "x.bias": torch.zeros(1)})

    assert module.weight.item() == 3
    with pytest.raises(RuntimeError, match="Unexpected"):
        module.load_state_dict({"x.weight": torch.tensor([[3.0]])})
