"""Shards: what goes in comes out, and a file that is none is said to be none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from streamdeblur.errors import InputError, OutputError, UnreadableInput
from streamdeblur.training.codec import decode, encode
from streamdeblur.training.shards import FORMAT, Shard, ShardWriter, count_pairs, find_shards, load_crops
from tests.training import pair, write_shards


def test_png_comes_back_to_the_byte_and_jpeg_nearly(tmp_path: Path) -> None:
    pairs = [pair(i) for i in range(5)]
    for quality, name in ((0, "png"), (98, "jpeg")):
        with ShardWriter(tmp_path, name, quality=quality, about={"made": "here"}) as writer:
            for i, (blur, sharp) in enumerate(pairs):
                writer.add(blur, sharp, f"a/{i}")
        assert writer.written == [tmp_path / f"{name}-00000.shard"]
        shard = Shard(writer.written[0])
        assert (len(shard), shard.names) == (5, [f"a/{i}" for i in range(5)])
        for (label, *got), expected in zip(shard.pairs(), pairs, strict=True):
            assert label.startswith("a/")
            for a, b in zip(got, expected, strict=True):
                assert (a.dtype, a.shape) == (np.uint8, b.shape)
                error = np.abs(a.astype(int) - b).mean()
                # the blocks are colourful: with halved chroma the error would be over 10
                assert error == 0 if quality == 0 else 0 < error < 3


def test_parts_are_cut_at_the_size_and_named_in_order(tmp_path: Path) -> None:
    length = sum(len(encode(p, 0)) for p in pair(0))
    with ShardWriter(tmp_path, quality=0, part_mib=2.5 * length / 2**20) as writer:
        for _ in range(7):
            writer.add(*pair(0), "x")
    assert [p.name for p in sorted(tmp_path.iterdir())] == [f"crops-0000{i}.shard" for i in range(3)]
    assert count_pairs(writer.written) == [3, 3, 1]


def test_an_error_drops_the_shard_in_hand_and_leaves_no_partial_file(tmp_path: Path) -> None:
    def fail() -> None:
        with ShardWriter(tmp_path) as writer:
            writer.add(*pair(0), "x")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=r"x: blurred .* differ in size"), ShardWriter(tmp_path) as writer:
        writer.add(pair(0)[0], pair(0, (20, 24))[1], "x")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="can't make"):
        ShardWriter(tmp_path / "file" / "below")


def test_finding(tmp_path: Path) -> None:
    write_shards(tmp_path / "a", (1, 1))
    single = write_shards(tmp_path / "b", (1,)) / "crops-00000.shard"
    assert find_shards([tmp_path / "a", single]) == [
        tmp_path / "a" / "crops-00000.shard",
        tmp_path / "a" / "crops-00001.shard",
        single,
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnreadableInput, match="there are no shards"):
        find_shards([tmp_path / "empty"])
    with pytest.raises(UnreadableInput, match=r"there is no shard .*none\.shard"):
        find_shards([tmp_path / "none.shard"])


def test_crops_of_all_files_in_order(tmp_path: Path) -> None:
    files = find_shards([write_shards(tmp_path, (2, 3))])
    crops = load_crops(files, threads=3)
    assert (crops.dtype, tuple(crops.shape)) == (torch.uint8, (5, 2, 3, 24, 24))
    for i in range(5):
        for side, picture in enumerate(pair(i)):
            np.testing.assert_array_equal(crops[i, side].permute(1, 2, 0).numpy(), picture)


def test_crops_of_several_sizes_are_refused(tmp_path: Path) -> None:
    a = write_shards(tmp_path / "a", (2,), size=24)
    b = write_shards(tmp_path / "b", (2,), size=20)
    with pytest.raises(InputError, match="20x20 and 24x24; training shards hold crops of one size"):
        load_crops(find_shards([a, b]), 1)


def rewritten(path: Path, metadata: dict[str, str] | None = None, **changes: torch.Tensor) -> Path:
    tensors = load_file(path)
    about = {"format": FORMAT, "names": json.dumps(Shard(path).names)}
    save_file({**tensors, **changes}, path, {**about, **(metadata or {})})
    return path


def test_damage_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    def fresh() -> Path:
        return write_shards(tmp_path, (3,)) / "crops-00000.shard"

    path = fresh()
    os.truncate(path, path.stat().st_size - 100)
    for read in (Shard, lambda p: count_pairs([p])):
        with pytest.raises(UnreadableInput, match=r"crops-00000\.shard can't be read"):
            read(path)

    offsets = load_file(fresh())["offsets"]
    with pytest.raises(UnreadableInput, match="is damaged: its index does not fit"):
        Shard(rewritten(path, offsets=offsets[:-1].clone()))
    with pytest.raises(UnreadableInput, match="can't be read"):
        Shard(rewritten(fresh(), {"names": "[1"}))
    with pytest.raises(UnreadableInput, match="is not a shard"):
        Shard(rewritten(fresh(), {"format": "other"}))

    data = load_file(fresh())["data"]
    data[int(offsets[2]) : int(offsets[3])] = 0
    shard = Shard(rewritten(path, data=data))
    assert shard.pair(0)[0].shape == (24, 24, 3)
    with pytest.raises(InputError, match=r"picture 1 of .*crops-00000\.shard is damaged"):
        shard.pair(1)
    with pytest.raises(InputError, match="picture 1 of"):
        load_crops([path], 2)
    (tmp_path / "text.shard").write_text("hello")
    with pytest.raises(UnreadableInput):
        Shard(tmp_path / "text.shard")


def test_gray_and_foreign_pictures_become_rgb() -> None:
    import cv2

    gray = np.arange(64, dtype=np.uint8).reshape(8, 8)
    data = cv2.imencode(".png", gray)[1].tobytes()
    np.testing.assert_array_equal(decode(data), np.repeat(gray[..., None], 3, 2))
    with pytest.raises(InputError, match="this one is damaged"):
        decode(b"nothing", "this one")
