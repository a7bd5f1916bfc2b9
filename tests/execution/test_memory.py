"""Arithmetic about memory against what models, optimisers and passes hold: to the byte, or counted operation by operation."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from transformers import AutoConfig, Qwen3Config, Qwen3ForCausalLM

import rlrt.model.forward
from rlrt.engines.engine import Engine
from rlrt.engines.hf import HfEngine
from rlrt.errors import UserError
from rlrt.execution.build import build_learner
from rlrt.execution.memory.estimate import (
    PHASES,
    Layout,
    Lengths,
    engine_needs,
    estimate,
    gradient,
    host_bytes,
    persistent,
    rollout,
    scoring,
    wide,
)
from rlrt.execution.memory.passes import (
    FLOAT,
    WIDE,
    Batch,
    chunk,
    largest_batch,
    room,
    saved_by_layer,
    saved_once,
    scores,
)
from rlrt.execution.memory.share import left_share, tell_engine
from rlrt.execution.memory.sizes import sizes_of
from rlrt.methods.entropy import entropy
from rlrt.model import packed
from rlrt.model.forward import Row, micro_batches, over_tokens, response_hidden, score
from rlrt.model.lora import add_adapters
from rlrt.model.paths import choose
from rlrt.model.precision import set_compute_dtype
from rlrt.types import Prompt
from tests.conftest import ROOT
from tests.helpers import settings
from tests.ledger import Ledger

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES = {
    "deep": {
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "head_dim": 16,
        "num_key_value_heads": 2,
    },
    "wide": {
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "head_dim": 32,
        "num_key_value_heads": 4,
    },
    "narrow": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "head_dim": 4,
        "num_key_value_heads": 4,
    },
}
WORK = [(16, 33, 8), (100, 17, 12)]
"""Tokens of a prompt, tokens of a response, responses to it."""


def model_of(shape, vocabulary=300, dtype="float32", again=False, lora=None, tied=True):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        num_attention_heads=4,
        tie_word_embeddings=tied,
        attn_implementation="sdpa",
        **SHAPES[shape],
    )
    model = Qwen3ForCausalLM(config).train()
    choose(model)
    if lora is not None:
        add_adapters(model, lora, 8.0, TARGETS, 0)
    set_compute_dtype(model, getattr(torch, dtype))
    if again:
        model.activation_checkpointing_enable()
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    return model


def ledger_of(*models):
    ledger = Ledger()
    for model in models:
        ledger.know([*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())])
    return ledger


def stored(tensors):
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


@pytest.mark.parametrize(
    ("words", "copies"),
    [
        ((), 0),
        (("teacher.weights=ema",), 1),
        (("teacher.weights=frozen", "train.kl_coef=0.1"), 2),
        (("method=sd", "teacher.weights=old", "train.minibatches=2"), 1),
        (("method=sd", "teacher.weights=old"), 0),
        (("model.lora=4", "teacher.weights=snapshot"), 1),
        (("model.lora=4", "teacher.weights=frozen", "train.kl_coef=0.1"), 2),
    ],
)
def test_weights_gradients_optimiser_and_copies_to_the_byte(words, copies):
    made = settings(*words)
    learner = build_learner(made)
    model, optimiser = learner.policy.model, learner.policy.optimiser
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    optimiser.step()
    sizes = sizes_of(model.config, "sdpa", made.model.lora, made.model.lora_targets)
    held = persistent(sizes, made, Layout("cpu"))
    assert held["weights"] == stored(model.parameters())
    assert FLOAT * sizes.trained == stored(p.grad for p in model.parameters() if p.grad is not None)
    moments = [
        t for state in optimiser.state.values() for t in state.values() if t.dim()
    ]  # the step's count is no moment
    assert held["optimiser"] == stored(moments)
    twins = [t for t in (learner.teacher._beside, learner.reference) if t is not None]
    students = {id(p) for p in model.parameters()}  # with adapters a teacher and a reference share the base
    own = [p for twin in twins for p in twin.parameters() if id(p) not in students]
    assert held["teacher"] + held["reference"] == stored(own)
    assert len(twins) == copies


@pytest.mark.parametrize("name", ["qwen3_0.6b", "qwen3_1.7b", "qwen3_4b", "qwen3_8b"])
def test_published_shapes_have_the_weights_that_their_layers_add_up_to(name):
    values = json.loads((ROOT / "tests" / "model" / "hub_configs" / f"{name}.json").read_text())
    hidden, inner, layers = values["hidden_size"], values["intermediate_size"], values["num_hidden_layers"]
    queries, keys = (values[k] * values["head_dim"] for k in ("num_attention_heads", "num_key_value_heads"))
    matrices = layers * (2 * hidden * queries + 2 * hidden * keys + 3 * hidden * inner)
    norms = layers * (2 * hidden + 2 * values["head_dim"]) + hidden
    embeddings = values["vocab_size"] * hidden * (1 if values["tie_word_embeddings"] else 2)
    found = sizes_of(AutoConfig.for_model(**values))
    assert (found.matrices, found.weights, found.embeddings) == (matrices, matrices + norms + embeddings, embeddings)
    assert found.trained == found.weights
    assert found.packed
    known = {"qwen3_0.6b": 596049920, "qwen3_1.7b": 1720574976, "qwen3_4b": 4022468096, "qwen3_8b": 8190735360}
    assert found.weights == known[name]


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("shape", ["deep", "wide"])
def test_a_pass_without_recomputing_keeps_what_autograd_saves(shape, work):
    """The tensors that autograd saves, each storage once: within 2 %."""
    prompt, response, rows = work
    model = model_of(shape)
    mine = {p.untyped_storage()._cdata for p in model.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in mine:
            saved[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = response_hidden(model, [Row([5] * prompt, [9] * response) for _ in range(rows)])
    found = sum(size for size, _ in saved.values()) + stored([out])
    sizes = sizes_of(model.config)
    batch = largest_batch(True, 10**6, prompt, response, rows, rows)
    said = sizes.layers * saved_by_layer(sizes, batch, 4, "cpu") + saved_once(sizes, batch)
    assert said == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("shape", ["deep", "wide"])
def test_what_autograd_saves_under_the_flash_kernel(shape, work, monkeypatch):
    """In bfloat16 with a reference in the kernel's place, which saves what torch's operation saves: within 2 %."""
    from tests.model import varlen

    prompt, response, rows = work
    model = model_of(shape, dtype="bfloat16")
    monkeypatch.setattr(packed, "flash", varlen.varlen_attn)
    monkeypatch.setattr(packed, "flash_dtype", lambda model: torch.bfloat16)
    weights = {tuple(s) for p in model.parameters() if p.dim() == 2 for s in (p.shape, p.shape[::-1])}
    mine = {p.untyped_storage()._cdata for p in model.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in mine and tuple(tensor.shape) not in weights:  # autocast's copies are counted apart
            saved[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = response_hidden(model, [Row([5] * prompt, [9] * response) for _ in range(rows)])
    found = sum(size for size, _ in saved.values()) + stored([out])
    sizes = sizes_of(model.config)
    batch = largest_batch(True, 10**6, prompt, response, rows, rows, flash=True)
    assert batch.seen == 0
    said = sizes.layers * saved_by_layer(sizes, batch, 2, "cuda") + saved_once(sizes, batch)
    assert said == pytest.approx(found, rel=0.02)


def test_rows_of_one_prompt_share_a_mask_and_the_flash_kernel_has_none():
    """12 rows of one prompt of 16 tokens: one mask; of two prompts: a mask for each row, since prompts differ in length."""
    assert largest_batch(True, 10**6, 16, 33, 12, 12).seen == 32 * 48
    assert largest_batch(True, 10**6, 16, 33, 6, 12).seen == 12 * 32 * 48
    assert largest_batch(True, 10**6, 16, 33, 12, 12, flash=True).seen == 0


@pytest.mark.parametrize(
    ("work", "dtype", "again", "lora"),
    [
        (WORK[0], "float32", False, None),
        (WORK[1], "float32", True, None),
        (WORK[1], "bfloat16", False, None),
        (WORK[0], "bfloat16", True, None),
        (WORK[0], "float32", False, 4),
        (WORK[1], "float32", True, 4),
        (WORK[0], "bfloat16", True, 4),
    ],
)
def test_the_peak_of_a_micro_batch(work, dtype, again, lora):
    """Everything alive at once in forward and backward, beside weights and gradients: within 15 %."""
    prompt, response, rows = work
    model = model_of("deep", 300, dtype, again, lora)
    ledger = ledger_of(model)
    base = ledger.alive
    with ledger:
        update(model, [Row([5] * prompt, [9] * response) for _ in range(rows)])
    made = configured(prompt, response, rows, dtype, again, lora)
    sizes = sizes_of(model.config, "sdpa", lora, TARGETS)
    moments = gradient(sizes, made, Lengths(prompt, prompt), Layout("cpu"))
    said = max(sum(m.values()) - m["gradients"] for m in moments)
    assert said == pytest.approx(ledger.peak - base, rel=0.15)


def update(model, rows):
    token_N = torch.cat([torch.tensor(r.response_ids) for r in rows])

    def compute(logp_CV, where):
        return logp_CV.gather(-1, token_N[where, None])[:, 0], entropy(logp_CV.detach())

    over_tokens(model, response_hidden(model, rows), 1.0, compute)[0].sum().backward()


def configured(prompt, response, rows, dtype="float32", again=False, lora=None, *more):
    return settings(
        "method=grpo",
        f"dtype={dtype}",
        f"engine.max_new_tokens={response}",
        f"model.gradient_checkpointing={again}",
        f"model.lora={'null' if lora is None else lora}",
        "train.prompts_per_step=1",
        f"train.rollouts_per_prompt={rows}",
        *more,
    )


@pytest.mark.parametrize("tied", [True, False])
def test_logits_in_pieces_and_the_output_layers_gradient(tied, monkeypatch):
    monkeypatch.setitem(rlrt.model.forward.CHUNK_ELEMENTS, "cpu", 2**18)
    prompt, response, rows = WORK[0]
    model = model_of("wide", 4000, tied=tied)
    ledger = ledger_of(model)
    base = ledger.alive
    with ledger:
        update(model, [Row([5] * prompt, [9] * response) for _ in range(rows)])
    sizes = sizes_of(model.config)
    made = configured(prompt, response, rows)
    batch = largest_batch(True, 10**6, prompt, response, rows, rows)
    assert chunk(sizes, batch, "cpu") == 65 * 4000 * 4  # 2^18 / 4000 = 65 tokens of 264
    moments = gradient(sizes, made, Lengths(prompt, prompt), Layout("cpu"))
    said = max(sum(m.values()) - m["gradients"] for m in moments)
    assert said == pytest.approx(ledger.peak - base, rel=0.15)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scoring_and_decoding(dtype):
    prompt, response, rows = 40, 60, 12
    model = model_of("deep", 2000, dtype)
    made = configured(prompt, response, rows, dtype, False, None, "engine.max_rows=12", "eval.prompts=1")
    sizes, lengths, place = sizes_of(model.config), Lengths(prompt, prompt), Layout("cpu")
    engine = HfEngine(max_new_tokens=response, temperature=1.0, max_rows=12, grade_truncated=False)
    engine.load(model, [])
    ledger = ledger_of(model)
    base = ledger.alive
    with ledger:
        found = [g.token_ids for _, _, g in engine.sample([[5] * prompt], [list(range(rows))])]
    assert sum(rollout(sizes, made, lengths, place).values()) == pytest.approx(ledger.peak - base, rel=0.2)
    ledger = ledger_of(model)
    base = ledger.alive
    with ledger:
        score(model, [Row([5] * prompt, ids) for ids in found], 1.0, 10**6, response)
    assert sum(scoring(sizes, made, lengths, place).values()) == pytest.approx(ledger.peak - base, rel=0.2)


@pytest.mark.parametrize(
    ("prompt", "response", "rows", "budget"), [(16, 33, 24, 300), (5, 7, 24, 10**6), (50, 9, 16, 60)]
)
def test_the_largest_micro_batch_is_the_first_that_the_trainer_makes(prompt, response, rows, budget):
    model = model_of("wide")
    sequences = [Row([5 + i // 8] * prompt, [9] * response) for i in range(rows)]
    first = micro_batches(model, sequences, budget)[0]
    packing = packed.pack(
        [[5 + i] * prompt for i in sorted({i // 8 for i in first})],
        [i // 8 for i in first],
        [[9] * (response - 1) for _ in first],
        torch.device("cpu"),
    )
    batch = largest_batch(True, budget, prompt, response, 8, rows)
    assert batch.tokens == len(packing.ids_N)
    found = [(*b.shape, b.mask_B1TK is not None) for b in packing.layout.blocks]
    assert found == [(*shape, masks > 0) for *shape, masks in batch.blocks]
    assert batch.responses == len(first) * response


def test_a_cache_widens_as_the_decoder_does():
    assert room(10, 20) == 74  # 10 + 64 is enough for 29
    assert (
        room(100, 200) == 365
    )  # 164, 228, 292, and a quarter more: 299 places are needed, the last token is never cached
    assert room(1000, 300) == 1562  # 1250, and a quarter more


def test_sharding_divides_what_belongs_to_weights_and_gathers_a_layer():
    made = settings("method=sd", "teacher.weights=ema", "train.kl_coef=0.1")
    config = AutoConfig.for_model(
        **json.loads((ROOT / "tests" / "model" / "hub_configs" / "qwen3_1.7b.json").read_text())
    )
    sizes = sizes_of(config)
    alone, both = (persistent(sizes, made, Layout("cuda", n, n > 1)) for n in (1, 4))
    for part in ("weights", "optimiser", "teacher", "reference"):
        assert both[part] == alone[part] / 4, part
    assert alone["gathered"] == 0
    # in bfloat16: a layer, the tied embedding, and the teacher's beside it while the student is distilled
    assert both["gathered"] == 2 * (50_336_000 + 2 * 151_936 * 2048)
    parallel = persistent(sizes, made, Layout("cuda", 4, False))
    assert parallel == alone


def test_an_engine_that_reserves_a_share_takes_it_always_or_only_while_it_samples():
    made = settings("method=grpo")
    sizes = sizes_of(build_learner(made).policy.model.config)
    place = Layout("cuda", device_bytes=10**10)

    class Reserving(Engine):
        exact, max_new_tokens, gpu_memory_utilization, release_memory = False, 48, 0.5, False

    made = dataclasses.replace(made, engine=Reserving())
    found = estimate(sizes, made, Lengths(8, 8), place)
    assert [p["server"] for p in found.phases.values()] == [5 * 10**9] * 4
    assert "cache" not in found.phases["rollout"]
    made.engine.release_memory = True
    found = estimate(sizes, made, Lengths(8, 8), place)
    assert [p["server"] for p in found.phases.values()] == [5 * 10**9, 0, 0, 0]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("grpo", WIDE["plain"]),
        ("entropy", WIDE["term"]),
        ("sd", WIDE["distilled"]),
        ("opsd", WIDE["distilled"]),
        ("sdpg", WIDE["distilled"]),
        ("purified_opsd method.purified_top_k=0", WIDE["distilled"] + 2),  # three views of the teacher
    ],
)
def test_how_many_tensors_of_tokens_by_vocabulary_a_loss_holds(method, expected):
    from rlrt.methods.signals import Signals
    from rlrt.training.batch import Batch
    from rlrt.training.passes import forward_pass

    rows, length, vocabulary = 4, 16, 20000
    made = settings(*f"method={method}".split(), "teacher.weights=live")
    assert wide(made) == expected
    learner = build_learner(made)
    model = model_of("narrow", vocabulary)
    learner.policy.model = learner.teacher._student = model
    mask_BT, zeros_BT = torch.ones(rows, length, dtype=torch.bool), torch.zeros(rows, length)
    signals = Signals(
        step=1,
        group_B=torch.zeros(rows, dtype=torch.long),
        reward_B=torch.ones(rows),
        correct_B=mask_BT[:, 0],
        seed_B=torch.arange(rows),
        token_BT=torch.full((rows, length), 9),
        mask_BT=mask_BT,
        special_BT=~mask_BT,
        logp_BT=zeros_BT,
        entropy_BT=zeros_BT,
        scored_B=mask_BT[:, 0],
    )
    ledger = ledger_of(model)
    base = ledger.alive
    with ledger:
        contexts = [Row([5] * 9, [9] * length)] * rows
        own = [Row([5] * 4, [9] * length)] * rows
        shown = [contexts] * len(learner.contexts)
        done = forward_pass(learner, Batch(own, shown, signals), torch.arange(rows), with_entropy=True)
        (done.logp_N.sum() + sum(term.sum() for term in done.term_N)).backward()
    tensor = rows * length * vocabulary * FLOAT
    assert (ledger.peak - base) / tensor == pytest.approx(expected, rel=0.2)


def test_attention_scores_are_counted_only_where_torch_makes_them():
    """8B-like shapes, one prompt of 1,024 and two responses of 20,480 tokens, worked by hand."""
    sizes = dataclasses.replace(sizes_of(build_learner(settings()).policy.model.config), heads=32, key_heads=8)
    blocks = [(1, 1024, 1024, 0), (2, 20479, 21503, 1)]
    batch = Batch(1024 + 2 * 20479, 2 * 20480, blocks)
    assert scores(sizes, batch, 2, "cuda") == 0  # bfloat16: flash for the prompt, memory-efficient under the mask
    assert scores(sizes, batch, FLOAT, "cuda") == 32 * 1024 * 1024 * 4  # float32: the prompt alone, computed plainly
    assert scores(sizes, batch, FLOAT, "cpu") == 0
    assert scores(dataclasses.replace(sizes, key_heads=32), batch, FLOAT, "cuda") == 0
    own_keys = dataclasses.replace(sizes, key_heads=32)
    more = saved_by_layer(sizes, batch, 2, "cuda") - saved_by_layer(own_keys, batch, 2, "cuda")
    repeated = 2 * 2 * 21503 * (sizes.queries - sizes.keys) * 2  # keys and values of two rows, in bfloat16
    norms = (32 - 8) * batch.tokens * FLOAT  # the root of a key head's norm is saved for each head
    assert more == repeated - norms


def sizes_of_8b():
    shapes = json.loads((ROOT / "tests" / "model" / "hub_configs" / "qwen3_8b.json").read_text())
    return sizes_of(AutoConfig.for_model(**shapes))


def test_an_engine_without_a_share_gets_what_the_trainer_leaves():
    """8B over 8 cards of 80 GB: 4 x 8.19e9 / 8 of weights, twice that of moments, a gathered layer and the embeddings, CUDA."""
    sizes, place, lengths = sizes_of_8b(), Layout("cuda", 8, True, 80 * 10**9), Lengths(1024, 8192)
    words = ["engine=vllm", "dtype=bfloat16", "engine.max_new_tokens=4096", "model.gradient_checkpointing=true"]
    made = settings(*words, "method=rlrt")
    weights = 8_190_735_360
    layer = 192_946_432
    embeddings = 2 * 151_936 * 4096
    held = 4 * weights / 8 + 8 * weights / 8 + 2 * (layer + embeddings) + 700 * 2**20
    share = left_share(sizes, made, lengths, place)
    assert share == pytest.approx((80e9 - held - 4e9) / 80e9, abs=1e-6)
    assert estimate(sizes, made, lengths, place).total("rollout") == pytest.approx(76e9, abs=10)
    made.engine.release_memory = False  # then the update's memory must stand beside it
    beside = estimate(sizes, made, lengths, place)
    assert left_share(sizes, made, lengths, place) < share
    assert beside.peak == pytest.approx(76e9, abs=10)
    assert beside.worst == "gradient"


def test_an_engine_that_needs_more_than_is_left_is_refused():
    words = ["engine=vllm", "dtype=bfloat16", "engine.max_new_tokens=20480", "method=rlrt"]
    made = settings(*words, "teacher.probe_prompts=0")
    alone = Layout("cuda", 1, False, 80 * 10**9)
    with pytest.raises(
        UserError, match=r"vLLM needs 22\.\d GB .* of 80\.0 GB the trainer leaves 0 bytes; set a smaller"
    ):
        left_share(sizes_of_8b(), made, Lengths(1024, 8192), alone)
    assert (
        left_share(sizes_of_8b(), made, Lengths(1024, 8192), alone, trains=False) > 0.5
    )  # an evaluation has the weights alone


def test_an_engine_that_answers_the_teachers_prompts_needs_a_longer_cache():
    """8B in bfloat16: 2 x 1024 keys x 2 bytes x 36 layers for each of the 7,168 tokens that the teacher's prompt is longer."""
    sizes, place, lengths = sizes_of_8b(), Layout("cuda", 1, False, 80 * 10**9), Lengths(1024, 8192)
    words = ["engine=vllm", "dtype=bfloat16", "method=rlrt"]
    probing, silent = settings(*words), settings(*words, "teacher.probe_prompts=0")
    more = engine_needs(sizes, probing, lengths, place) - engine_needs(sizes, silent, lengths, place)
    assert more == 2 * 1024 * 2 * 36 * 7168
    grpo = settings("engine=vllm", "dtype=bfloat16", "method=grpo")
    assert engine_needs(sizes, grpo, lengths, place) == engine_needs(sizes, silent, lengths, place)


def test_what_an_engine_is_told_before_it_loads():
    class Told(Engine):
        exact, max_new_tokens, own_card, gpu_memory_utilization = False, 48, True, None

        def expect(self, longest, share):
            self.told = (longest, share)

    made, engine = settings("engine.max_new_tokens=48"), Told()
    learner = build_learner(made)
    prompts = [Prompt(id=str(i), text="17:" + "3 " * i + "4>", answer="") for i in (1, 5, 3)]
    longest = max(len(learner.builder.student(p)) for p in prompts)
    tell_engine(made, engine, prompts, learner.builder, learner.policy.model, learner.context_length)
    assert engine.told == (longest + 48 + 64 + 48, 1.0)  # with a sibling's response and the template's tokens
    silent = settings("engine.max_new_tokens=48", "teacher.probe_prompts=0")
    tell_engine(silent, engine, prompts, learner.builder, learner.policy.model, learner.context_length)
    assert engine.told == (longest + 48, 1.0)
    tell_engine(made, engine, prompts, learner.builder, learner.policy.model, learner.context_length, processes=None)
    assert engine.told == (longest + 96, 1.0)
    tell_engine(made, engine, prompts, learner.builder, learner.policy.model, 60, processes=None)
    assert engine.told == (60, 1.0)


def test_the_ram_of_a_node():
    """8B in float32 is 32.76 GB; eight processes read it, each or together, or copy it and its moments, 98.3 GB."""
    sizes, made, weights = sizes_of_8b(), settings("method=rlrt", "teacher.weights=live"), 8_190_735_360
    layout, replicas = Layout("cuda", 8, True), Layout("cuda", 8, False)
    assert host_bytes(sizes, made, layout, 8) == 8 * 3 * 10**9 + 12 * weights
    assert host_bytes(sizes, made, replicas, 8) == 8 * (3 * 10**9 + 4 * weights)
    assert host_bytes(sizes, made, layout, 1) == 3 * 10**9 + 4 * weights  # copies an eighth of 98.3 GB
    assert host_bytes(sizes, made, layout, 4) == 4 * 3 * 10**9 + 6 * weights
    moving = settings("method=sd", "teacher.weights=ema")
    assert host_bytes(sizes, moving, layout, 8) == 8 * 3 * 10**9 + 16 * weights
    assert host_bytes(sizes, moving, replicas, 8) == 8 * (3 * 10**9 + 4 * weights)
    away = settings("method=rlrt", "teacher.weights=live", "train.offload=optimiser")
    assert (
        host_bytes(sizes, away, layout, 8) - host_bytes(sizes, made, layout, 8) == 8 * weights
    )  # each its eighth of 8 bytes
    words = ("model.gradient_checkpointing=true", "model.offload_activations=true", "train.token_budget=1000")
    kept = settings("method=rlrt", "teacher.weights=live", *words)
    assert host_bytes(sizes, kept, layout, 8) - host_bytes(sizes, made, layout, 8) == 8 * 36 * 1000 * 4096 * 4


def test_moments_that_lie_on_the_host_are_missing_until_the_first_optimiser_step():
    sizes, lengths, card = sizes_of_8b(), Lengths(100, 100), Layout("cuda", 1, False, 80 * 10**9)

    def moments(layout, *words):
        found = estimate(sizes, settings("method=rlrt", *words), lengths, layout)
        return [found.phases[phase]["optimiser"] for phase in PHASES]

    held = 8 * 8_190_735_360
    assert moments(card) == [held] * 4
    assert moments(card, "train.offload=optimiser") == [0, 0, 0, held]
    assert moments(card, "train.offload=optimiser", "train.minibatches=2") == [0, 0, held, held]
    assert moments(Layout("cpu"), "train.offload=optimiser") == [held] * 4  # a CPU's memory is the host's


def test_inputs_of_layers_that_lie_on_the_host_leave_two_on_the_device():
    sizes, lengths = sizes_of_8b(), Lengths(1000, 1000)
    words = (
        "method=rlrt",
        "model.gradient_checkpointing=true",
        "train.token_budget=4000",
        "engine.max_new_tokens=1000",
    )

    def activations(layout, *more):
        return max(m["activations"] for m in gradient(sizes, settings(*words, *more), lengths, layout) if "logits" in m)

    card, layer = Layout("cuda", 1, False), 4 * 4096
    saved = activations(card) - activations(card, "model.offload_activations=true")
    assert saved % (34 * layer) == 0  # 36 layers, but two
    assert 1000 < saved / (34 * layer) <= 4000
    assert activations(Layout("cpu")) == activations(Layout("cpu"), "model.offload_activations=true")
