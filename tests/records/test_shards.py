"""Parts of tensors in safetensors files: the bytes, the digest, the reading, and what it costs."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pickle
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlrt.records import shards
from rlrt.records.shards import Piece, Stopped, read_into, shapes, write_bytes, write_pieces

MIXED = {
    "w": torch.arange(6.0).reshape(2, 3),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "step": torch.tensor(7.0),
    "ids": torch.tensor([1, 2, 3]),
    "mask": torch.tensor([True, False, True]),
    "none": torch.zeros(0, 4),
    "turned": torch.arange(6.0).reshape(2, 3).T,
}


def pieces(tensors):
    return [Piece(name, tensor) for name, tensor in tensors.items()]


def test_a_file_of_whole_tensors_is_what_safetensors_writes(tmp_path):
    digest = write_pieces(tmp_path / "ours", pieces(MIXED))
    save_file({k: v.contiguous() for k, v in MIXED.items()}, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert digest == hashlib.sha256((tmp_path / "ours").read_bytes()).hexdigest()
    assert shapes(tmp_path) == {}
    (tmp_path / "ours").rename(tmp_path / "ours.safetensors")
    assert shapes(tmp_path) == {k: tuple(v.shape) for k, v in MIXED.items()}


def test_numbers_are_converted_while_they_are_written_and_indices_are_not(tmp_path):
    write_pieces(tmp_path / "a.safetensors", [Piece(n, t, dtype=torch.bfloat16) for n, t in MIXED.items()])
    back = load_file(tmp_path / "a.safetensors")
    assert {n: t.dtype for n, t in back.items() if t.dtype != torch.bfloat16} == {
        "ids": torch.int64, "mask": torch.bool,
    }  # fmt: skip
    assert torch.equal(back["w"], MIXED["w"].bfloat16())


def cut(tensor, *bounds):
    """The rows of a tensor between bounds, as the parts of as many ranks."""
    return [Piece("w", tensor[a:b], (a, 0)) for a, b in itertools.pairwise(bounds)]


@pytest.mark.parametrize("written", [(0, 7), (0, 4, 7), (0, 3, 6, 7)])
@pytest.mark.parametrize("rows", [slice(0, 7), slice(0, 4), slice(4, 7), slice(3, 5), slice(6, 7)])
def test_any_part_is_read_from_what_any_number_of_ranks_wrote(tmp_path, written, rows):
    whole = torch.arange(21.0).reshape(7, 3)
    for i, piece in enumerate(cut(whole, *written)):
        step = [Piece("step", torch.tensor(3.0))] if i == 0 else []
        write_pieces(tmp_path / f"shard-{i}.safetensors", [piece, *step])
    assert shapes(tmp_path) == {"w": (7, 3), "step": ()}
    target = Part(whole.shape, rows)
    step = torch.zeros(())
    read_into(tmp_path, {"w": target.tensor(), "step": step})
    assert torch.equal(target.local, whole[rows])
    assert step.item() == 3


class Part:
    """A rank's rows of a tensor, as a sharded tensor without other ranks."""

    def __init__(self, shape, rows):
        self.shape, self.rows = shape, rows
        self.local = torch.zeros(rows.stop - rows.start, *shape[1:])

    def tensor(self):
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

        offset, shape, local = (self.rows.start, 0), self.shape, self.local

        class Sharded(torch.Tensor):
            """Two methods of DTensor."""

            def __create_chunk_list__(self):
                return [ChunkStorageMetadata(torch.Size(offset), local.shape)]

            def __get_tensor_shard__(self, index):
                return local

            def __create_write_items__(self, *_):
                raise NotImplementedError

        return torch.zeros(shape).as_subclass(Sharded)


def test_what_is_not_there_is_named(tmp_path):
    write_pieces(tmp_path / "a.safetensors", [Piece("w", torch.zeros(2, 3))])
    with pytest.raises(ValueError, match=r"holds v as None, expected \(2,\)"):
        read_into(tmp_path, {"v": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"holds w as \(2, 3\), expected \(3, 2\)"):
        read_into(tmp_path, {"w": torch.zeros(3, 2)})


def test_reading_unpickles_nothing(tmp_path, monkeypatch):
    def refused(*given, **more):
        raise AssertionError("something is unpickled")

    write_pieces(tmp_path / "a.safetensors", [Piece("w", torch.arange(6.0).reshape(2, 3), (0, 0))])
    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refused)
    target = torch.zeros(2, 3)
    read_into(tmp_path, {"w": target})
    assert target.sum() == 15
    (tmp_path / ".metadata").write_bytes(b"cos\nsystem\n(S'true'\ntR.")  # what DCP's other format would unpickle
    (tmp_path / "__0_0.distcp").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    read_into(tmp_path, {"w": target})


def test_a_writer_can_be_stopped_between_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BLOCK", 4)
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        write_bytes(tmp_path / "a", [b"01234", b"567"], lambda: next(asked))
    assert (tmp_path / "a").read_bytes() == b"01234"


def test_blocks_that_the_disk_takes_in_parts_are_written_whole(tmp_path):
    class Slow:
        def __init__(self):
            self.taken = b""

        def write(self, part):
            self.taken += bytes(part[:3])
            return min(3, len(part))

    file = Slow()
    shards.write_all(file, b"0123456789")
    assert file.taken == b"0123456789"


def test_writing_makes_no_second_copy(tmp_path):
    """In a process of its own: 64 MB of weights are written with less than 24 MB more than they take themselves."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            tensors = {f"w{i}": torch.full((4, 2**20), float(i)) for i in range(4)}  # 16 MB each
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            write_pieces(tmp_path / "a.safetensors", pieces(tensors))
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            (tmp_path / "grown").write_text(json.dumps(grown))
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert json.loads((tmp_path / "grown").read_text()) < 24 * 1024  # KB
