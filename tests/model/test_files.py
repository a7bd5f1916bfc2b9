"""What is refused before, or while, a model is read: names that lead elsewhere, pickles, weights of another config."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlrt.errors import UserError
from rlrt.model.files import check_folder, check_hub, other_revisions
from rlrt.model.load import load
from tests.hub import model_folder

INDEX = "model.safetensors.index.json"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("models") / "m", "hybrid")


@pytest.fixture
def folder(made, tmp_path):
    target = tmp_path / "model"
    shutil.copytree(made, target)
    return target


def try_load(path):
    return load(str(path), None, "sdpa")


def says(path, *parts):
    """The one sentence that a model is refused with, which names all of ``parts``."""
    with pytest.raises(UserError) as caught:
        try_load(path)
    text = str(caught.value)
    assert text.startswith("model.path: ")
    assert "\n" not in text
    for part in parts:
        assert part in text, text
    return text


def edit(file, **more):
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(values | more))


def sharded(folder):
    """The same weights as two shards and an index; returns its ``weight_map``."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {}
    for i, names in enumerate((sorted(weights)[::2], sorted(weights)[1::2])):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        save_file({n: weights[n] for n in names}, folder / file, metadata={"format": "pt"})
        shards |= dict.fromkeys(names, file)
    edit(folder / INDEX, metadata={}, weight_map=shards)
    return shards


def pickled(file, marker):
    """A pickle that leaves a mark where it is unpickled."""

    class Evil:
        def __reduce__(self):
            return Path.touch, (marker,)

    torch.save({"weight": Evil()}, file)


def hub(tmp_path, monkeypatch, files):
    """The hub's local cache with one model, its files links to blobs; returns its id."""
    from huggingface_hub import constants

    repo = tmp_path / "cache" / "models--owner--name"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    for file in files.iterdir():
        shutil.copy(file, repo / "blobs" / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return "owner/name"


def test_shards_load_also_as_links_and_from_the_hubs_cache(folder, tmp_path, monkeypatch):
    whole, _ = try_load(folder)
    sharded(folder)
    name = hub(tmp_path, monkeypatch, folder)
    snapshot = tmp_path / "cache" / "models--owner--name" / "snapshots" / COMMIT
    for path, revision in ((folder, None), (snapshot, None), (name, None), (name, "main"), (name, COMMIT)):
        model, _ = load(str(path), revision, "sdpa")
        for a, b in zip(whole.parameters(), model.parameters(), strict=True):
            assert torch.equal(a, b)


NAMES = [
    "../outside.bin",
    "../outside.safetensors",
    "/outside.safetensors",
    "sub/model.safetensors",
    "sub\\model.safetensors",
    "./model.safetensors",
    "pytorch_model.bin",
    "model.safetensors.bin",
    "..",
    "",
    "nul\0.safetensors",
    "\ud800.safetensors",
    "x" * 5000 + ".safetensors",
    5,
    None,
    ["model.safetensors"],
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["folder", "hub"])
def test_an_index_names_safetensors_of_its_folder(folder, tmp_path, monkeypatch, name, place):
    shards = sharded(folder)
    tensor = sorted(shards)[3]
    marker = tmp_path / "unpickled"
    for file in ("outside.bin", "model/pytorch_model.bin", "model/model.safetensors.bin"):
        pickled(tmp_path / file, marker)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shards | {tensor: name}}))
    path = folder if place == "folder" else hub(tmp_path, monkeypatch, folder)
    plain = isinstance(name, str) and name.endswith(".safetensors") and not re.search(r"[/\\\0]", name)
    if plain and place == "hub":  # the hub does not have it
        says(path, "owner/name")
    else:
        assert len(says(path, INDEX, tensor)) < 700
    assert not marker.exists()


@pytest.mark.parametrize(
    "text",
    ["", "no JSON", "[]", "null", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": "x"}', "[" * 100_000,
     '{"weight_map": ' + '{"a":' * 100_000, "\xff\xfe", "9" * 10_000],
)  # fmt: skip
@pytest.mark.parametrize("place", ["folder", "hub", "beside whole weights"])
def test_an_index_that_is_none(folder, tmp_path, monkeypatch, text, place):
    if place != "beside whole weights":
        sharded(folder)
    (folder / INDEX).write_text(text, encoding="latin-1")
    says(hub(tmp_path, monkeypatch, folder) if place == "hub" else folder, INDEX)


def test_an_index_that_is_no_file(folder):
    (folder / INDEX).mkdir()
    says(folder, INDEX)


def test_every_index_of_a_folder_is_looked_at(folder):
    edit(folder / "model.fp16.safetensors.index.json", metadata={}, weight_map={"x": "../outside.bin"})
    says(folder, "model.fp16.safetensors.index.json", "'../outside.bin'")


def test_a_shard_that_is_missing_is_named(folder):
    name = sharded(folder)["model.norm.weight"]
    (folder / name).unlink()
    says(folder, INDEX, name, "is not in its folder")
    (folder / name).symlink_to(folder / "nowhere")
    says(folder, INDEX, name, "is not in its folder")


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00002.safetensors"])
def test_a_pickle_by_another_name_is_never_unpickled(folder, tmp_path, name):
    if name != "model.safetensors":
        sharded(folder)
    marker = tmp_path / "unpickled"
    pickled(folder / name, marker)
    says(folder, "could not be loaded")
    assert not marker.exists()


@pytest.mark.parametrize("place", ["folder", "hub"])
@pytest.mark.parametrize("name", ["adapter_model.bin", "../x.safetensors", "a/x.safetensors", "pytorch_model.bin", 3])
@pytest.mark.parametrize("through", ["config", "other config", "part"])
def test_a_config_names_no_other_weights(folder, tmp_path, monkeypatch, name, through, place):
    """transformers loads ``transformers_weights``, of which ``adapter_model.bin`` may be a pickle."""
    pickled(folder / "adapter_model.bin", tmp_path / "unpickled")
    config = folder / "config.json"
    if through == "other config":
        shutil.copy(config, folder / "config.4.0.0.json")
        edit(folder / "config.4.0.0.json", transformers_weights=name)
        edit(config, configuration_files=["config.4.0.0.json"])
    elif through == "part":
        edit(config, text_config={"transformers_weights": name})
    else:
        edit(config, transformers_weights=name)
    path = folder if place == "folder" else hub(tmp_path, monkeypatch, folder)
    says(path, "config", "transformers_weights")
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_weights_and_an_index_by_other_names(folder, tmp_path, monkeypatch, place):
    (folder / "model.safetensors").rename(folder / "mine.safetensors")
    edit(folder / "config.json", transformers_weights="mine.safetensors")
    try_load(folder)
    edit(folder / "config.json", transformers_weights="mine.safetensors.index.json")
    edit(folder / "mine.safetensors.index.json", metadata={}, weight_map={"x": "../mine.bin"})
    path = folder if place == "folder" else hub(tmp_path, monkeypatch, folder)
    says(path, "mine.safetensors.index.json", "'../mine.bin'")


@pytest.mark.parametrize("place", ["folder", "hub"])
@pytest.mark.parametrize(
    ("file", "values", "parts"),
    [
        ("adapter_config.json", {"base_model_name_or_path": "/elsewhere"}, ["an adapter's", "merge_and_unload"]),
        ("config.json", {"configuration_files": ["../config.4.0.0.json"]}, ["configuration_files"]),
        ("config.json", {"_attn_implementation": "owner/kernel"}, ["'owner/kernel'", "no code"]),
        ("config.json", {"x": {"_attn_implementation": {"": "owner/kernel"}}}, ["'owner/kernel'"]),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["../tokenizer.4.0.0.json"]}, ["fast_tokenizer_files"]),
        ("special_tokens_map.json", {"tokenizer_file": "/elsewhere/tokenizer.json"}, ["tokenizer_file"]),
    ],
)
def test_other_files_name_no_other_places(folder, tmp_path, monkeypatch, file, values, parts, place):
    edit(folder / file, **values)
    says(folder if place == "folder" else hub(tmp_path, monkeypatch, folder), file, *parts)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000])
def test_a_small_file_that_is_no_object(folder, file, text):
    (folder / file).write_text(text)
    says(folder, file, "is not readable JSON")


def test_a_part_of_a_distributed_checkpoint(folder):
    shutil.copy(folder / "model.safetensors", folder / "shard-00001-model-00001-of-00001.safetensors")
    says(folder, "shard-00001-model-00001-of-00001.safetensors", "distributed checkpoint")


def test_a_file_is_no_model(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    says("model/model.safetensors", "which is no folder")


def test_a_model_that_the_hub_does_not_have(folder, tmp_path, monkeypatch):
    name = hub(tmp_path, monkeypatch, folder)
    says("owner/other", "owner/other could not be downloaded from the hub")
    with pytest.raises(UserError, match="could not be downloaded from the hub"):
        load(name, "no-such-branch", "sdpa")


@pytest.fixture
def served(folder, tmp_path, monkeypatch):
    """A hub of this machine, with an empty cache, that has the files of ``folder``; the paths that it was asked for."""
    from huggingface_hub import constants

    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            asked.append(self.path)
            file = folder / self.path.split("/")[-1]
            found = "/resolve/" in self.path and file.is_file()
            body = file.read_bytes() if found else b"{}"
            self.send_response(200 if found or self.path == "/" else 404)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{file.name}"')
            self.send_header("Content-Length", str(len(body)))
            if not found:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield asked
    server.shutdown()
    server.server_close()


def test_a_hub_is_asked_for_small_files_and_one_commit_is_looked_at(served, folder):
    sharded(folder)
    assert check_hub("owner/name", "main") == COMMIT
    assert f"/owner/name/resolve/{COMMIT}/{INDEX}" in served
    assert not any(path.endswith(".safetensors") for path in served)


@pytest.mark.parametrize("file", [INDEX, "adapter_config.json"])
def test_what_the_hub_would_send_is_refused_before_it_sends_weights(served, folder, file):
    edit(folder / file, metadata={}, weight_map={"x": "../outside.bin"})
    says("owner/name", file)
    assert not any(path.endswith((".bin", ".safetensors")) for path in served)


def change(folder, more=None, config=None):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | (more(weights) if more else {}), folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder / "config.json", **(config or {}))


@pytest.mark.parametrize(
    ("more", "config", "parts"),
    [
        (None, {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
         ["4 tensors", "(model_type llama)", "(model.layers.0.self_attn.k_norm.weight, ...)"]),
        (None, {"num_hidden_layers": 1, "layer_types": ["full_attention"]}, ["11 tensors", "model.layers.1."]),
        (lambda w: {"v_head.weight": torch.ones(2)}, {}, ["1 tensors", "(v_head.weight, ...)"]),
        (lambda w: {"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}, {}, ["q_proj.bias"]),
    ],
)  # fmt: skip
def test_weights_that_the_config_has_no_use_for(folder, more, config, parts):
    change(folder, more, config)
    says(folder, "has no use for", *parts)


@pytest.mark.parametrize(
    "more",
    [
        lambda w: {"lm_head.weight": w["model.embed_tokens.weight"].clone()},
        lambda w: {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(16) for i in range(2)},
    ],
)
def test_tensors_that_are_there_twice_or_computed_may_be_there(folder, more):
    change(folder, more)
    try_load(folder)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_of_the_model_without_its_head_may_lack_its_prefix(tmp_path, tied):
    folder = model_folder(tmp_path / "m", "base", tied=tied)
    weights = {k.removeprefix("model."): v for k, v in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    try_load(folder)


def test_a_folder_is_checked_without_reading_weights(folder):
    (folder / "model.safetensors").write_bytes(b"")
    check_folder(folder)


def test_a_model_is_loaded_from_the_hub_at_the_commit_that_was_looked_at(served, folder):
    model, _ = load("owner/name", "main", "sdpa")
    assert model.num_parameters() > 0
    weights = [path for path in served if path.endswith(".safetensors")]
    assert weights
    assert all(f"/{COMMIT}/" in path for path in weights)


@pytest.mark.parametrize("offline", [True, False])
def test_a_cache_with_another_revision_says_which(tmp_path, monkeypatch, offline):
    """The pinned commit is not there: what is there is named, and the way to get it."""
    from huggingface_hub import constants

    other, pinned = "1" * 40, "2" * 40
    snapshot = tmp_path / "models--owner--name" / "snapshots" / other
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    assert (
        other_revisions("owner/name", pinned)
        == f"; the local cache holds revision {other}, not {pinned} (model.revision)"
    )
    assert other_revisions("owner/name", other) == ""
    assert other_revisions("owner/another", pinned) == ""
    with pytest.raises(
        UserError, match=rf"holds revision {other}, not {pinned} \(model\.revision\); get it by python -m rlrt"
    ):
        check_hub("owner/name", pinned)


def test_a_paper_is_a_file_of_bounded_size(folder):
    """It is read as a whole: a tokenizer's configs, a chat template."""
    template = folder / "chat_template.jinja"
    with template.open("wb") as file:
        file.truncate(600_000_000)  # takes no room on the disk
    says(folder, f"expected a file of at most 500.0 MB as {template}, found one of 600.0 MB")
    template.unlink()
    os.mkfifo(template)
    says(folder, str(template), "found none")
    template.unlink()
    template.symlink_to("/dev/zero")
    says(folder, str(template), "found none")
