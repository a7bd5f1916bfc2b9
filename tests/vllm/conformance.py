"""What each vLLM engine must do, as tests over a fixture ``world`` of (engine, model) that the engine's own file gives."""

from __future__ import annotations

import pytest
import torch

from rlrt.engines.hf import HfEngine
from rlrt.types import Sampling
from tests.vllm.worlds import LONG, RAGGED, STOP, gap, ids, sampled, seeds, train_a_little


class Conformance:
    """Mixed into a test class."""

    @pytest.fixture(autouse=True)
    def loaded(self, world):
        """Each test starts from the model's weights of that moment."""
        self.engine, self.model = world
        self.engine.max_new_tokens = 24
        self.version = self.engine._version + 1
        self.engine.load(self.model, STOP, self.version)

    def test_sampled_log_probabilities_are_the_trainers(self):
        groups = sampled(self.engine, RAGGED, seeds(6))
        assert gap(self.model, RAGGED, groups) < 1e-4
        assert all(torch.equal(g.entropy_T, -g.logp_T) for group in groups for g in group)

    @pytest.mark.parametrize(
        "how",
        [
            Sampling(0.7),
            Sampling(1.6),
            Sampling(1.0, top_k=3),
            Sampling(1.0, top_p=0.6),
            Sampling(1.3, top_p=0.7, top_k=20),
        ],
        ids=str,
    )
    def test_they_are_those_of_the_distribution_that_was_drawn_from(self, how):
        assert gap(self.model, LONG, sampled(self.engine, LONG, seeds(4, LONG), how), how) < 1e-4

    def test_stale_weights_and_a_stale_cache_show_and_load_mends_both(self, keep_cache):
        given = seeds(4, LONG)
        before = ids(sampled(self.engine, LONG, given))
        train_a_little(self.model)
        assert ids(sampled(self.engine, LONG, given)) == before
        assert gap(self.model, LONG, sampled(self.engine, LONG, given)) > 1e-2
        with keep_cache():
            self.engine.load(self.model, STOP, self.version + 1)
        assert gap(self.model, LONG, sampled(self.engine, LONG, given)) > 1e-2
        moved = self.engine.synced_bytes
        self.engine.load(self.model, STOP, self.version + 2)
        assert self.engine.synced_bytes - moved == pytest.approx(
            sum(p.nbytes for p in self.model.parameters()), rel=0.02
        )
        assert gap(self.model, LONG, sampled(self.engine, LONG, given)) < 1e-4

    def test_the_same_version_is_not_sent_again(self):
        train_a_little(self.model)
        moved, seconds = self.engine.synced_bytes, self.engine.synced_s
        self.engine.load(self.model, STOP, self.version)
        assert (self.engine.synced_bytes, self.engine.synced_s) == (moved, seconds)
        assert gap(self.model, LONG, sampled(self.engine, LONG, seeds(2, LONG))) > 1e-2

    def test_a_rollout_depends_on_its_own_seed_alone(self):
        together = ids(sampled(self.engine, RAGGED, seeds(4)))
        assert ids(sampled(self.engine, RAGGED, seeds(4))) == together
        for i, g in ((0, 2), (2, 0), (3, 3)):
            assert ids(sampled(self.engine, [RAGGED[i]], [[seeds(4)[i][g]]])) == [[together[i][g]]]
        assert len({tuple(tokens) for tokens in together[0]}) == 4

    def test_greedy_is_the_reference_engines(self):
        mine = HfEngine(max_new_tokens=24, temperature=1.0, max_rows=64, grade_truncated=False)
        mine.load(self.model, STOP, 0)
        found = sampled(self.engine, RAGGED, seeds(1), Sampling(0.0))
        assert ids(found) == ids(sampled(mine, RAGGED, seeds(1), Sampling(0.0)))
        assert gap(self.model, RAGGED, found, Sampling(0.0)) < 1e-4

    def test_only_the_stop_tokens_end_a_response_and_they_belong_to_it(self):
        everywhere = list(range(0, 400, 8))  # each token in eight: most responses end before the limit
        self.engine.load(self.model, everywhere, self.version)
        flat = [g for group in sampled(self.engine, RAGGED, seeds(16)) for g in group]
        for g in flat:
            assert [t in everywhere for t in g.token_ids[:-1]] == [False] * (len(g.token_ids) - 1)
            assert g.truncated == (g.token_ids[-1] not in everywhere)
            assert len(g.token_ids) == 24 if g.truncated else len(g.token_ids) <= 24
        assert {g.truncated for g in flat} == {True, False}
        self.engine.load(self.model, [], self.version)  # nothing ends one, not even the model's own end of sequence
        assert {len(g.token_ids) for group in sampled(self.engine, RAGGED, seeds(4)) for g in group} == {24}

    def test_a_caller_may_leave_before_the_end(self):
        responses = self.engine.sample(RAGGED, seeds(8))
        next(responses)
        responses.close()
        assert gap(self.model, LONG, sampled(self.engine, LONG, seeds(2, LONG))) < 1e-4
