"""Every image below a folder is found, through links too, and every other file is counted by its type."""

from __future__ import annotations

import pytest

from itr.data.preparing.image_files import check_image_file
from itr.errors import UserError
from itr.images import kinds
from itr.images.decode import decode_pixels, pillow_formats
from itr.images.folders import find_images
from itr.protocols.image_sets import read_images
from linked_folders import make_tree


@pytest.fixture
def no_heif(monkeypatch):
    for name in ("itr.images.kinds", "itr.images.decode", "itr.data.preparing.image_files"):
        monkeypatch.setattr(f"{name}.reads_heif", lambda: False)


def test_links_are_followed_and_a_cycle_ends(tmp_path, no_heif):
    folder = make_tree(tmp_path)
    for name in ("a/._1.jpg", "a/new.HEIC", "b/notes.txt", "list", "c.txt"):
        (folder / name).write_bytes(b"x")
    (folder / "itself").symlink_to("itself")
    (folder / "gone.png").symlink_to("nowhere.png")  # reported when it is read
    (folder / "again").symlink_to("a")
    found = find_images(folder)
    assert found.names == ["a/1.jpg", "again/1.jpg", "b/2.jfif", "b/3.avif", "gone.png"]
    assert found.loops == ["a/above", "again/above"]
    [kinds_line, loops_line] = found.notices()
    assert "2 .txt" in kinds_line
    assert "2 .heic" in kinds_line
    assert "2 without extension" in kinds_line
    assert "to read HEIC files, install pillow-heif: pip install 'itr[images]'" in kinds_line
    assert "not followed: a/above, again/above" in loops_line


def test_links_between_many_folders_end_with_a_message(tmp_path):
    folders = [tmp_path / str(number) for number in range(8)]
    for folder in folders:
        folder.mkdir()
        for other in folders:
            (folder / f"to{other.name}").symlink_to(other)
    with pytest.raises(UserError, match="more than 100 links below"):
        find_images(tmp_path)


def test_evaluation_of_a_folder_of_classes_follows_links(tmp_path):
    images = read_images(make_tree(tmp_path), "folder")
    assert images.names == ["a/1.jpg", "b/2.jfif", "b/3.avif"]
    assert images.labels == ["a", "b", "b"]
    assert any("a/above" in notice for notice in images.notices)


def test_preparation_names_the_package_that_reads_heic(tmp_path, no_heif):
    _, problem = check_image_file(str(tmp_path), "a.heic")
    assert problem == "is a HEIC file, which needs an extra package; install pillow-heif: pip install 'itr[images]'"
    assert not kinds.is_image("a.heic")


def test_heic_is_read_with_its_package(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif, the extra `images`")
    assert "HEIF" in pillow_formats()
    path = tmp_path / "a.heic"
    pillow_heif.from_bytes("RGB", (64, 48), bytes([200, 30, 40]) * 64 * 48).save(path, quality=95)
    pixels = decode_pixels(path.read_bytes(), 10**6)
    assert pixels.shape == (48, 64, 3)
    assert abs(pixels.astype(int) - [200, 30, 40]).max() <= 6
    assert find_images(tmp_path).names == ["a.heic"]
    assert check_image_file(str(tmp_path), "a.heic")[1] == ""
