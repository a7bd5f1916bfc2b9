"""Rollouts by vLLM in the trainer's own process: one engine on the trainer's device, its weights handed over by reference."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch

from rlrt.engines.vllm_common import (
    EXTENSION,
    LOGPROBS,
    REFERENCE,
    VllmKeys,
    check_installed,
    dtype_name,
    parameters,
    response,
    shape_of,
    transfer,
)
from rlrt.keys import key
from rlrt.model.lora import named_weights
from rlrt.types import Generation, Sampling

log = logging.getLogger("rlrt")
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
"""What vLLM is told where the user has not said otherwise."""
CPU_CACHE = 2**30
"""Bytes of vLLM's cache of keys and values without a GPU."""
CPU_BLOCK = 32
"""Tokens of a block of that cache: vLLM's own 128 would leave out shorter prompts when it shares them."""


@dataclass
class VllmEngine(VllmKeys):
    """vLLM in this process (the environment of ``make vllm``, or one with a GPU); started at the first ``load``.

    A rollout depends on its own seed and the weights, and in the last digits on what it was computed with. ``engine.*``:
    """

    max_model_len: int | None = key(
        "tokens of prompt and response together that vLLM makes room for; null: the positions of the model's config",
        "tokens",
        least=1,
    )
    gpu_memory_utilization: float = key(
        "share of the GPU's memory that vLLM takes, its weights included; the trainer needs the rest", above=0, most=1
    )
    release_memory: bool = key("give vLLM's memory on the GPU back while the trainer updates")
    _llm: Any = field(default=None, init=False, repr=False)
    _shape: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _sleeps: bool = field(default=False, init=False, repr=False)
    _asleep: bool = field(default=False, init=False, repr=False)

    def load(self, model: Any, stop_ids: Sequence[int], version: int) -> None:
        """Start vLLM where there is none for such a model, and hand the weights over where they are new.

        An update that fails leaves weights that mean nothing: vLLM is then started anew, once.

        Raises:
            UserError: if vLLM is not installed, or not the release that is needed.
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
                log.warning(
                    "an update of vLLM's weights failed (%s), so they mean nothing now: it is started anew", error
                )

    def _hand_over(self, model: Any, version: int) -> None:
        label = self._new_label(version)
        with untouched():
            transfer(self._llm, [{"weights": named_weights(model)}], label, self._asleep)
        self._model, self._version, self._label, self._asleep = model, version, label, False

    def _start(self, model: Any) -> Any:
        """vLLM with a model of this shape and weights that mean nothing yet."""
        check_installed("engine=vllm")
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in another process there are no references
        gpu = next(model.parameters()).device.type == "cuda"
        self._sleeps = gpu and self.release_memory
        here: dict[str, Any] = {"gpu_memory_utilization": self.gpu_memory_utilization} if gpu else {}
        here |= {} if gpu else {"enforce_eager": True, "block_size": CPU_BLOCK, "kv_cache_memory_bytes": CPU_CACHE}
        with untouched(), tempfile.TemporaryDirectory(prefix="rlrt-vllm-") as folder:
            from vllm import LLM
            from vllm.config import WeightTransferConfig

            config = copy.deepcopy(model.config)
            config.architectures = config.architectures or [type(model).__name__]
            config.save_pretrained(folder)
            llm = LLM(
                model=folder,
                skip_tokenizer_init=True,
                load_format="dummy",
                generation_config="vllm",
                dtype=dtype_name(model),
                max_model_len=self.max_model_len,
                max_num_seqs=self.max_rows,
                logprobs_mode=LOGPROBS,
                enable_prefix_caching=True,
                enable_sleep_mode=self._sleeps,
                worker_extension_cls=EXTENSION,
                weight_transfer_config=WeightTransferConfig(backend=REFERENCE),
                seed=0,
                **here,
            )
            llm.init_weight_transfer_engine({"init_info": {}})
        return llm

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling | None = None
    ) -> Iterator[tuple[int, int, Generation]]:
        """Responses to each prompt, one for each of its seeds, as they end (``rlrt.engines.engine.Engine``)."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        how = Sampling(self.temperature) if sampling is None else sampling
        engine = self._llm.llm_engine
        waiting: dict[str, tuple[int, int]] = {}
        try:
            with untouched():
                for i, prompt in enumerate(prompts):
                    for g, seed in enumerate(seeds[i]):
                        asked = SamplingParams(
                            **parameters(how, seed, self.max_new_tokens, self._stop_ids),
                            output_kind=RequestOutputKind.FINAL_ONLY,
                            flat_logprobs=True,
                        )
                        engine.add_request(f"{i}-{g}", {"prompt_token_ids": list(prompt)}, asked)
                        waiting[f"{i}-{g}"] = (i, g)
            while waiting:
                with untouched():
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
            if waiting:  # nobody wants the rest
                engine.abort_request(list(waiting))

    def release(self) -> None:
        """Give weights and cache back to the GPU, under ``release_memory``; the next ``load`` brings them again."""
        if self._llm is not None and self._sleeps and not self._asleep:
            with untouched():
                self._llm.sleep(level=2)
            self._asleep = True

    def close(self) -> None:
        """End vLLM; the next ``load`` starts it again."""
        if self._llm is None:
            return
        with untouched():
            self._llm.llm_engine.engine_core.shutdown()
        self._llm, self._model, self._asleep = None, None, False
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Random numbers and threads as they were: vLLM seeds and draws from every global generator, and takes torch's
    ``set_num_threads`` away."""
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
