"""Rollouts by vLLM in the trainer's own process: one engine on the trainer's device that gets its weights by reference."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy
import torch

from rlrt.engines.vllm_common import (
    EXTENSION,
    LOGPROBS,
    REFERENCE,
    VllmKeys,
    check_installed,
    dtype_name,
    head_overrides,
    is_built_for_cpu,
    named_config,
    parameters,
    response,
    shape_of,
    transfer,
)
from rlrt.errors import UserError
from rlrt.keys import key
from rlrt.model.lora import named_weights
from rlrt.types import Generation, Sampling

log = logging.getLogger("rlrt")
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
"""vLLM's environment variables, set where the user has not set them."""
CPU_CACHE = 2**30
"""Bytes of vLLM's cache of keys and values on a machine without a GPU."""
CPU_BLOCK = 32
"""Tokens per block of that cache: with vLLM's own 128, shorter prompts would not be shared."""


def give_back_freed_memory() -> None:
    """Return to the device the memory that torch holds for tensors that are gone."""
    gc.collect()
    torch.cuda.empty_cache()


@dataclass
class VllmEngine(VllmKeys):
    """vLLM in this process (the environment of ``make setup EXTRAS=vllm``, or of ``make vllm``); started at the first ``load``.

    A rollout depends on its own seed and the weights, and in the last digits on the other rollouts of its batch. ``engine.*``:
    """

    own_card: ClassVar[bool] = True

    max_model_len: int | None = key(
        "maximum tokens of prompt and response together in vLLM; null: the run's longest prompt, the teacher's where it is "
        "probed, and engine.max_new_tokens",
        "tokens",
        least=1,
    )
    gpu_memory_utilization: float | None = key(
        "share of the GPU's memory that vLLM takes, its weights included; null: what the trainer leaves, by the estimate that "
        "rlrt.preflight prints",
        above=0,
        most=1,
    )
    release_memory: bool = key("release vLLM's memory on the GPU while the trainer updates")
    _longest: int | None = field(default=None, init=False, repr=False)
    _share: float = field(default=1.0, init=False, repr=False)
    _llm: Any = field(default=None, init=False, repr=False)
    _shape: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _sleeps: bool = field(default=False, init=False, repr=False)
    _asleep: bool = field(default=False, init=False, repr=False)

    def expect(self, longest: int, share: float) -> None:
        """Learn the length and the share of the GPU that keys of null stand for (``rlrt.engines.engine.Engine``)."""
        self._longest, self._share = longest, share

    def longest(self) -> int | None:
        """Tokens of prompt and response together that vLLM was started for."""
        return self._longest if self.max_model_len is None else self.max_model_len

    def check_installed(self) -> None:
        """Refuse an environment without vLLM, or with another release.

        Raises:
            UserError: naming what to install.
        """
        check_installed("engine=vllm")

    def load(self, model: Any, stop_ids: Sequence[int], version: int) -> None:
        """Start vLLM unless it runs with a model of this shape, and sync the weights if they are new.

        A failed sync leaves undefined weights: vLLM is then restarted, once.

        Raises:
            UserError: if vLLM is not installed, not in the release that this engine needs, or built for a GPU that is not here.
        """
        self._stop_ids = list(stop_ids)
        shape = shape_of(model.config) | {"dtype": dtype_name(model)}
        if self._llm is not None and shape != self._shape:
            self.close()
        if self._llm is not None and self._holds(model, version) and not self._asleep:
            return
        for last in (False, True):
            if self._llm is None:
                self._llm, self._shape = self._start(model), shape
            try:
                self._hand_over(model, version)
                return
            except Exception as error:
                self.close()
                if last:
                    raise
                log.warning("an update of vLLM's weights failed (%s) and left them undefined: vLLM is restarted", error)

    def _hand_over(self, model: Any, version: int) -> None:
        label, begin = self._new_label(version), time.perf_counter()
        if self._asleep:
            give_back_freed_memory()  # else vLLM cannot take the memory that the update freed, which torch still holds
        with global_state_restored():
            transfer(self._llm, [{"weights": self._counted(named_weights(model))}], label, self._asleep)
        self._model, self._version, self._label, self._asleep = model, version, label, False
        self.synced_s += time.perf_counter() - begin

    def _counted(self, weights: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield weights, and add their bytes to those of all syncs."""
        for name, tensor in weights:
            self.synced_bytes += tensor.nbytes
            yield name, tensor

    def _start(self, model: Any) -> Any:
        """Return vLLM with a model of this shape and undefined weights."""
        self.check_installed()
        if not torch.cuda.is_available() and not is_built_for_cpu():
            raise UserError(
                "engine=vllm: the installed vLLM is built for CUDA, and torch finds no GPU here; start the run where a GPU is, "
                "or with the Python of make vllm (docs/vllm.md)."
            )
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights can be passed by reference within one process only
        gpu = next(model.parameters()).device.type == "cuda"
        self._sleeps = gpu and self.release_memory
        if gpu:
            give_back_freed_memory()
        share = self._share if self.gpu_memory_utilization is None else self.gpu_memory_utilization
        device_options: dict[str, Any] = {"gpu_memory_utilization": share}
        if not gpu:
            device_options = {"enforce_eager": True, "block_size": CPU_BLOCK, "kv_cache_memory_bytes": CPU_CACHE}
        with global_state_restored(), tempfile.TemporaryDirectory(prefix="rlrt-vllm-") as folder:
            from vllm import LLM
            from vllm.config import WeightTransferConfig

            named_config(model).save_pretrained(folder)
            llm = LLM(
                model=folder,
                skip_tokenizer_init=True,
                load_format="dummy",
                generation_config="vllm",
                dtype=dtype_name(model),
                hf_overrides=head_overrides(dtype_name(model)),
                max_model_len=self.longest(),
                max_num_seqs=self.max_rows,
                logprobs_mode=LOGPROBS,
                enable_prefix_caching=True,
                enable_sleep_mode=self._sleeps,
                worker_extension_cls=EXTENSION,
                weight_transfer_config=WeightTransferConfig(backend=REFERENCE),
                seed=0,
                **device_options,
            )
            llm.init_weight_transfer_engine({"init_info": {}})
        return llm

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling | None = None
    ) -> Iterator[tuple[int, int, Generation]]:
        """Yield responses to each prompt, one for each of its seeds, as each ends (``rlrt.engines.engine.Engine``)."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        how = Sampling(self.temperature) if sampling is None else sampling
        engine = self._llm.llm_engine
        waiting: dict[str, tuple[int, int]] = {}
        try:
            with global_state_restored():
                for i, prompt in enumerate(prompts):
                    for g, seed in enumerate(seeds[i]):
                        request_parameters = SamplingParams(
                            **parameters(how, seed, self.max_new_tokens, self._stop_ids),
                            output_kind=RequestOutputKind.FINAL_ONLY,
                            flat_logprobs=True,
                        )
                        engine.add_request(f"{i}-{g}", {"prompt_token_ids": list(prompt)}, request_parameters)
                        waiting[f"{i}-{g}"] = (i, g)
            while waiting and not self.asked_to_end():
                with global_state_restored():
                    ended = [output for output in engine.step() if output.finished]
                for output in ended:
                    (one,) = output.outputs
                    by = {span.version for span in one.weight_versions or ()}
                    yield (
                        *waiting.pop(output.request_id),
                        response(
                            one.token_ids, one.logprobs.logprobs, one.finish_reason, self._stop_ids, by, self._label
                        ),
                    )
        finally:
            if waiting:  # the caller stopped early: abort the remaining requests
                engine.abort_request(list(waiting))

    def release(self) -> None:
        """Free the GPU memory of weights and cache if ``release_memory`` is set; the next ``load`` allocates it again."""
        if self._llm is not None and self._sleeps and not self._asleep:
            with global_state_restored():
                self._llm.sleep(level=2)
            self._asleep = True

    def close(self) -> None:
        """Shut vLLM down; the next ``load`` starts it again."""
        if self._llm is None:
            return
        with global_state_restored():
            self._llm.llm_engine.engine_core.shutdown()
        self._llm, self._model, self._asleep = None, None, False
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


@contextlib.contextmanager
def global_state_restored() -> Iterator[None]:
    """Restore the global random states and torch's threads: vLLM seeds and draws from every global generator, and disables
    torch's ``set_num_threads``."""
    python, arrays = random.getstate(), numpy.random.get_state()
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(arrays)
        torch.set_num_threads = set_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
