from __future__ import annotations

import contextlib
import logging
import random

import numpy
import pytest
import torch

from rlrt.engines import vllm as module
from rlrt.engines.vllm import VllmEngine
from rlrt.model.lora import adapters, add_adapters
from tests.vllm.conformance import Conformance
from tests.vllm.worlds import KEYS, LONG, STOP, gap, sampled, seeds, tiny

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]  # vLLM's own imports warn


def engine():
    return VllmEngine(**KEYS, max_model_len=None, gpu_memory_utilization=0.4, release_memory=True)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def world(request, tmp_path_factory):
    made = engine()
    yield made, tiny(tmp_path_factory.mktemp("model"), request.param)
    made.close()


@pytest.fixture
def keep_cache(world, monkeypatch):
    @contextlib.contextmanager
    def kept():
        with monkeypatch.context() as patch:
            patch.setattr(type(world[0]._llm), "reset_prefix_cache", lambda self: True)
            yield

    return kept


class TestInProcess(Conformance):
    def test_a_groups_prompt_is_run_once(self, monkeypatch):
        scheduler = self.engine._llm.llm_engine.engine_core.engine_core.scheduler
        counts, schedule = [], scheduler.schedule

        def counted(*args, **more):
            found = schedule(*args, **more)
            counts.append(found.total_num_scheduled_tokens)
            return found

        monkeypatch.setattr(scheduler, "schedule", counted)
        sampled(self.engine, [LONG[0]], [[1, 2, 3, 4]])
        assert counts[0] == 65 + 3 * 1  # the others find two blocks of 32 and run the last token

    def test_random_numbers_and_threads_stay_as_they_were(self):
        def states():
            return torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist()

        before, set_threads = states(), torch.set_num_threads
        self.engine.close()
        self.engine.load(self.model, STOP, self.version)
        sampled(self.engine, LONG, seeds(2, LONG))
        assert states() == before
        assert torch.set_num_threads is set_threads
        assert torch.get_num_threads() == 1

    def test_a_failed_update_starts_vllm_anew(self, monkeypatch, caplog):
        weights, calls = module.named_weights, []

        def cut(model):
            calls.append(model)
            for i, pair in enumerate(weights(model)):
                if i == 5 and len(calls) == 1:
                    raise OSError("gone")
                yield pair

        monkeypatch.setattr(module, "named_weights", cut)
        before = self.engine._llm
        with caplog.at_level(logging.WARNING, "rlrt"):
            self.engine.load(self.model, STOP, self.version + 1)
        assert "and left them undefined: vLLM is restarted" in caplog.text
        assert self.engine._llm is not before
        assert gap(self.model, LONG, sampled(self.engine, LONG, seeds(2, LONG))) < 1e-4

    def test_a_weight_that_never_comes_is_an_error(self, monkeypatch):
        weights = module.named_weights
        monkeypatch.setattr(
            module, "named_weights", lambda model: (p for p in weights(model) if "layers.1.mlp.down" not in p[0])
        )
        with pytest.raises(RuntimeError, match=r"1 weights were not sent: model\.layers\.1\.mlp\.down_proj\.weight"):
            self.engine.load(self.model, STOP, self.version + 1)
        assert self.engine._llm is None

    def test_adapters_come_merged(self, tmp_path):
        model = tiny(tmp_path, self.model.config.tie_word_embeddings)
        add_adapters(model, 4, 8.0, ["q_proj", "down_proj"], 0)
        with torch.no_grad():
            for weight in adapters(model).values():
                weight.normal_(std=0.3)
        self.engine.load(model, STOP, self.version)
        assert gap(model, LONG, sampled(self.engine, LONG, seeds(4, LONG))) < 1e-4

    def test_bfloat16_starts_another_engine(self):
        self.model.compute_dtype = torch.bfloat16
        try:
            self.engine.load(self.model, STOP, self.version)
            assert gap(self.model, LONG, sampled(self.engine, LONG, seeds(2, LONG))) < 0.5
        finally:
            self.model.compute_dtype = torch.float32
