"""A pretended GPU: device "cuda:0" on a CPU build of torch. Its tensors have real values, computed on the CPU.

- An operation on tensors of two devices is refused, as a real card refuses it.
- Waits of the host for the device, and copies to the device, are counted by the line of ``rlrt`` that causes them.
- The kernel that an H100 would take is noted for every attention call.

It does not see memory, kernels' limits and rounding, streams, NCCL, FSDP2 or vLLM.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).parent
PACKAGE = f"{Path(importlib.util.find_spec('rlrt').origin).parent}/"
"""The folder of the package, whatever the checkout is called."""


def load_guard() -> None:
    """Compile and load guard.cpp, once for each version of torch; call this before torch is imported."""
    assert "torch" not in sys.modules, "the guard must be loaded before torch"
    torch_folder = Path(importlib.util.find_spec("torch").origin).parent
    version = (torch_folder / "version.py").stat().st_mtime_ns
    library = Path(tempfile.gettempdir()) / f"rlrt_card_{os.getuid()}_{version}.so"
    if not library.exists():
        work = library.with_suffix(f".{os.getpid()}")
        command = ["g++", "-O0", "-std=c++20", "-fPIC", "-shared", f"-I{torch_folder}/include", str(HERE / "guard.cpp")]
        command += ["-o", str(work), f"-L{torch_folder}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch_folder}/lib"]
        subprocess.run(command, check=True)
        work.replace(library)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


load_guard()
import torch  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing  # noqa: E402
from torch.utils._pytree import tree_flatten, tree_map  # noqa: E402

aten = torch.ops.aten
CARD, CPU = torch.device("cuda", 0), torch.device("cpu")
ACROSS = {aten.copy_.default, aten._to_copy.default}
"""Operations that take tensors of two devices."""
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
"""Operations that take an index on the CPU."""
WAITS = {
    aten._local_scalar_dense.default, aten.item.default, aten.nonzero.default, aten.masked_select.default,
    aten._unique2.default, aten.equal.default, aten.repeat_interleave.Tensor, aten.repeat_interleave.self_Tensor,
    aten.unique_dim.default, aten.is_nonzero.default,
}  # fmt: skip
"""Operations whose result, or its shape, the host waits for."""


class DeviceMix(RuntimeError):
    """An operation that CUDA would refuse."""


class OnCard(torch.Tensor):
    """A tensor on the pretended card; ``held`` has its values."""

    @staticmethod
    def __new__(cls, real):
        made = torch.Tensor._make_wrapper_subclass(
            cls, real.size(), strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype, device=CARD
        )
        made.held = real
        return made

    def __repr__(self, **_):
        return f"OnCard({self.held})"

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = OnCard(self.held.detach().clone())
            is_parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if is_parameter else copied
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return launch(func, args, kwargs or {})


COUNTS: collections.Counter = collections.Counter()
"""(kind, line of rlrt) -> how often: "WAIT", "copy to the card", "copy to the host" (without a wait), "operations"."""
KERNELS: collections.Counter = collections.Counter()
"""Attention kernel -> how often."""


def line_of_rlrt() -> str:
    """The innermost line of the package on the stack."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE):
            return f"{file.removeprefix(PACKAGE)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def launch(func, args, kwargs):
    """One operation: refuse, count, compute, and mark where the result is."""
    leaves = tree_flatten((args, kwargs))[0]
    ours = [x for x in leaves if isinstance(x, OnCard)]
    others = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, OnCard) and x.dim() > 0]
    asked = next((x for x in leaves if isinstance(x, torch.device)), None)
    if ours and others and func not in ACROSS:
        indexed_by_cpu = (
            func in INDEXING and isinstance(args[0], OnCard) and not any(x is o for o in others for x in args[2:3])
        )
        if not indexed_by_cpu:
            shapes = [[tuple(x.shape) for x in side] for side in (ours, others)]
            raise DeviceMix(f"{func}: {shapes[0]} on the card, {shapes[1]} on the CPU, in {line_of_rlrt()}")
        COUNTS["copy to the card", line_of_rlrt()] += 1
    to_card = asked.type == "cuda" if asked is not None else bool(ours)
    if kind := exchange(func, args, ours, others, asked, to_card):
        COUNTS[kind, line_of_rlrt()] += 1
    if ours:
        COUNTS["operations", ""] += 1
    result = computed(func, args, kwargs)
    if ours and asked is not None and any(result is x.held for x in ours):
        result = result if to_card else result.clone()
    if not to_card or func is aten._local_scalar_dense.default:
        return result
    with torch.inference_mode(False):
        wrapped = tree_map(lambda x: OnCard(x) if isinstance(x, torch.Tensor) else x, result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if ours else wrapped


def exchange(func, args, ours, others, asked, to_card) -> str:
    """What an operation exchanges between host and device; empty: nothing."""
    if func is aten.copy_.default:
        if isinstance(args[0], OnCard) == isinstance(args[1], OnCard):
            return ""
        waits = not (len(args) > 2 and args[2])  # non_blocking: whoever reads the copy must have waited for the card
        return "copy to the card" if isinstance(args[0], OnCard) else "WAIT" if waits else "copy to the host"
    if ours and asked is not None and asked.type == "cpu":
        return "WAIT"
    if not ours and to_card and others:
        return "copy to the card"
    by_mask = func in INDEXING and any(
        isinstance(x, OnCard) and x.dtype == torch.bool for x in tree_flatten(args[1:])[0]
    )
    return "WAIT" if ours and (func in WAITS or by_mask) else ""


def varlen(func, plain):
    """The flash kernel's results on the CPU, by the reference of tests/model/varlen.py; None for another operation."""
    from tests.model import varlen as reference

    name = str(func)
    if name == "torch_attn._varlen_attn.default":
        query, key, value, *starts, longest_query, longest_key, causal, scale, window = plain[:10]
        assert causal, "causal attention"
        assert query.dtype in (torch.float16, torch.bfloat16), "half precision"
        assert query.shape[-1] % 8 == 0, "a size of heads that the kernel has"
        reference.checked(query, key, value, starts, (longest_query, longest_key), window)
        KERNELS["varlen flash"] += 1
        made = reference.forward(query, key, value, *starts, scale)
        return *made, torch.zeros(2, dtype=torch.uint64)
    if name == "torch_attn._varlen_attn_backward.default":
        upstream, query, key, value, output, _, *starts = plain[:8]
        return tuple(reference.backward(upstream, query, key, value, output, *starts, plain[12]))
    return None


def computed(func, args, kwargs):
    """The result on the CPU."""

    def bare(x):
        return x.held if isinstance(x, OnCard) else CPU if isinstance(x, torch.device) and x.type == "cuda" else x

    plain, named = tree_map(bare, (args, kwargs))
    if named.get("pin_memory"):
        named["pin_memory"] = False
    with (
        torch.inference_mode(False),
        torch._C._AutoDispatchBelowAutograd(),
    ):  # a view of a weight is no inference tensor
        if func is aten.mm.dtype:  # bfloat16 inputs, float32 sums: not on the CPU
            return plain[0].to(plain[2]) @ plain[1].to(plain[2])
        if func is aten.addmm.dtype_out:
            return named["out"].copy_(plain[0] + plain[1].to(plain[3]) @ plain[2].to(plain[3]))
        if (made := varlen(func, plain)) is not None:
            return made
        return func(*plain, **named)


class Dispatch(TorchDispatchMode):
    """Sees tensors that are made out of nothing, too."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return launch(func, args, kwargs or {})


def kernel(q, k, mask, gqa) -> str:
    """The one of torch's attention kernels that an H100 would take (sdp_utils.cpp's rules for training, dropout 0)."""
    half = q.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(
        "cuda"
    )  # autocast casts inside the call
    if mask is None and half:
        return "flash"
    if gqa and q.shape[1] != k.shape[1]:
        return "plain, scores in memory"
    return "memory-efficient" + (", mask in memory" if mask is not None else "") + ("" if half else ", float32")


class Functions(TorchFunctionMode):
    """Sees calls that never reach the dispatcher, and notes attention."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.tolist and isinstance(args[0], OnCard):
            COUNTS["WAIT", line_of_rlrt()] += 1
            return args[0].held.tolist()
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:  # made below the dispatcher
            device = torch.device(kwargs.pop("device"))
            return func(*args, **kwargs).to(device)
        if func is torch.nn.functional.scaled_dot_product_attention and isinstance(args[0], OnCard):
            KERNELS[kernel(args[0], args[1], kwargs.get("attn_mask"), kwargs.get("enable_gqa"))] += 1
        return func(*args, **kwargs)


PRETENDED = {
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "_lazy_init": lambda: None,
    "set_device": lambda device: None,
    "is_bf16_supported": lambda *_, **__: True,
    "synchronize": lambda *_: None,
    "is_initialized": lambda: False,
    "empty_cache": lambda: None,
    "get_device_properties": lambda *_: SimpleNamespace(total_memory=80 * 10**9),
    "get_device_name": lambda *_: "a pretended card",
    "get_device_capability": lambda *_: (9, 0),
    "get_arch_list": lambda: ["sm_90"],
}
"""What torch.cuda answers."""


@contextlib.contextmanager
def card():
    """Everything that is put on ``cuda`` inside goes to the pretended card."""
    before = {name: getattr(torch.cuda, name) for name in PRETENDED}
    for name, value in PRETENDED.items():
        setattr(torch.cuda, name, value)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with Dispatch(), Functions():
            yield
    finally:
        for name, value in before.items():
            setattr(torch.cuda, name, value)
        torch.__future__.set_swap_module_params_on_conversion(False)
