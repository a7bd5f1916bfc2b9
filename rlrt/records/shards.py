"""Shards of tensors in safetensors files: written in one pass with their SHA-256, read back into tensors sharded in any way.

A file has the format of safetensors, and its header says where each tensor's part begins in the whole tensor, in the words of
``torch.distributed.checkpoint`` (DCP). So DCP reads it, and each rank reads only the parts that overlap its own. DCP's own
writer of safetensors is not used: it makes the bytes of a whole file in memory (a second copy) while it holds the interpreter's
lock (training would stand still), and its files would have to be read again for a digest.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from rlrt.records.files import tensors_of

BLOCK = 8 * 2**20
"""Bytes that are written and digested at a time; between two blocks a writer can be stopped."""
NAMES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of types in the headers of safetensors files."""


class Stopped(Exception):
    """The writer was told to stop."""


@dataclass(frozen=True)
class Piece:
    """A part of a tensor.

    Attributes:
        name: of the whole tensor.
        tensor: the part, on any device.
        offset: where the part begins in the whole tensor, an index for each dimension; None: it is the whole.
        dtype: type in the file; None: the tensor's own.
    """

    name: str
    tensor: Tensor
    offset: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None

    @property
    def stored(self) -> torch.dtype:
        """Return the type in the file; only numbers with a fraction are converted."""
        return self.dtype if self.dtype is not None and self.tensor.is_floating_point() else self.tensor.dtype

    @property
    def bytes(self) -> int:
        """Return the bytes in the file."""
        return self.tensor.numel() * self.stored.itemsize

    def content(self) -> memoryview:
        """Return the bytes of the part; a view where the tensor lies in memory as it is stored."""
        plain = self.tensor.detach().to(device="cpu", dtype=self.stored).contiguous().reshape(-1)
        data: Any = plain.view(torch.uint8).numpy()
        return memoryview(data)


def pieces_of(name: str, tensor: Any) -> list[Piece]:
    """Return the parts of a sharded tensor that this rank holds, or a tensor that is not sharded as one part."""
    if not hasattr(tensor, "__create_chunk_list__"):
        return [Piece(name, tensor)]
    (chunk,) = tensor.__create_chunk_list__()  # FSDP gives a rank one part
    local = tensor.to_local()
    return [Piece(name, local, tuple(chunk.offsets))] if local.numel() else []


def write_bytes(path: Path, blocks: Iterable[bytes | memoryview], stop: Callable[[], bool] = lambda: False) -> str:
    """Write a file and sync it to disk; return the SHA-256 of what was written.

    Raises:
        OSError: if the disk takes no more, for example.
        Stopped: if ``stop`` was True between two blocks.
    """
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for block in blocks:
            for start in range(0, len(block), BLOCK):
                if stop():
                    raise Stopped(path)
                part = block[start : start + BLOCK]
                write_all(file, part)
                digest.update(part)
        os.fsync(file.fileno())
    return digest.hexdigest()


def write_all(file: BinaryIO, part: bytes | memoryview) -> None:
    """Write all of a block: an unbuffered file may take a part of it at a time."""
    view = memoryview(part)
    while view:
        view = view[file.write(view) :]


def write_pieces(path: Path, pieces: Sequence[Piece], stop: Callable[[], bool] = lambda: False) -> str:
    """Write parts of tensors as one safetensors file; return its SHA-256.

    Raises:
        OSError, Stopped: as ``write_bytes``.
    """
    ordered = sorted(pieces, key=lambda p: (-p.stored.itemsize, p.name))  # so that every tensor is aligned
    blocks = (part.content() for part in ordered)  # a converted tensor exists only while it is written
    return write_bytes(path, itertools.chain([header(ordered)], blocks), stop)


def header(pieces: Sequence[Piece]) -> bytes:
    """Return the beginning of a safetensors file whose tensors follow in this order."""
    entries: dict[str, Any] = {}
    begin = 0
    for piece in pieces:
        end = begin + piece.bytes
        entries[piece.name] = {
            "dtype": NAMES[piece.stored],
            "shape": list(piece.tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    about = {"format": "pt"}
    if any(p.offset is not None for p in pieces):
        offsets = {p.name: {"saved_offsets": list(p.offset or [0] * p.tensor.dim())} for p in pieces}
        about |= {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0"}
    text = json.dumps({"__metadata__": about, **entries}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every whole tensor whose parts lie in the safetensors files of a folder, from their headers."""
    found: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        entries = tensors_of(file)
        offsets = json.loads(entries.pop("__metadata__", {}).get("DCP_SHARDING_INFO", "{}"))
        for name, entry in entries.items():
            begins = offsets.get(name, {}).get("saved_offsets", [0] * len(entry["shape"]))
            ends = [b + n for b, n in zip(begins, entry["shape"], strict=True)]
            found[name] = tuple(max(pair) for pair in zip(found.get(name, ends), ends, strict=True))
    return found


@torch.no_grad()
def read_into(folder: Path, targets: Mapping[str, Any]) -> None:
    """Read tensors from the safetensors files of a folder into tensors that exist, name by name.

    A rank reads the bytes of its own shards alone, without a word to the others, whatever number of ranks wrote them. Only
    headers (JSON) and tensors are read; nothing is unpickled.

    Raises:
        ValueError: for a name that is not there or has another shape.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    if not targets:
        return
    stored = shapes(folder)
    for name, target in targets.items():
        if stored.get(name) != tuple(target.shape):
            raise ValueError(f"{folder} holds {name} as {stored.get(name)}, expected {tuple(target.shape)}")
    with warnings.catch_warnings():  # it says that it works without the other ranks, which is what was asked for
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        reader = HuggingFaceStorageReader(str(folder))
        load({n: t.detach() for n, t in targets.items()}, storage_reader=reader, no_dist=True)
