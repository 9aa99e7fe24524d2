"""The same image under several ids: its captions are positives of one another in training."""

from __future__ import annotations

import torch

from itr.training.equal_images import join_equal
from loaders import make_loader, small_backbone
from third_party import make_image, write_tar


def test_pairs_with_an_equal_id_or_content_get_one_id():
    image_id = torch.tensor([7, 3, 9, 3, 5, 8])
    content = torch.tensor([10, 20, 10, 30, 40, 40])  # rows 0 and 2 have one content, rows 1 and 3 one id
    joined = join_equal(image_id, content)
    same = joined[:, None] == joined[None, :]
    wanted = torch.eye(6, dtype=torch.bool)
    for a, b in ((0, 2), (1, 3), (4, 5)):
        wanted[a, b] = wanted[b, a] = True
    assert torch.equal(same, wanted)


def test_a_training_batch_knows_its_equal_images(tmp_path):
    images = [make_image(0), make_image(1)]
    members = {}
    for number in range(4):
        members |= {f"{number}.jpg": images[number % 2], f"{number}.txt": f"caption {number}".encode()}
    tar = write_tar(tmp_path / "a.tar", members)
    loader = make_loader(tar, "x", small_backbone(), True, batch_items=4)
    (batch,) = list(loader)
    assert len(batch.image_id.unique()) == 4
    assert len(batch.text_content_id.unique()) == 2
    assert len(join_equal(batch.text_image_id, batch.text_content_id).unique()) == 2
    assert torch.equal(batch.to("cpu").text_content_id, batch.text_content_id)
    assert torch.equal(torch.cat([part.text_content_id for part in batch.parts(2)]), batch.text_content_id)
