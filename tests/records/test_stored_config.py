"""A stored config."""

from __future__ import annotations

from rlrt.records.stored_config import config_text, stored_config


def test_a_config_comes_back_from_its_file_as_it_was(tmp_path):
    texts = [
        "1e-3",
        "1e-06",
        "1_000",
        ".5",
        "",
        "yes",
        "null",
        "${x}",
        "${",
        "a: b",
        "a\nb ",
        " x",
        "é\u2028",
        "2020-01-01",
        "- x",
        "'",
        "0x1f",
        "~",
    ]
    plain = {
        "texts": texts,
        "numbers": [1e-6, 1.0, 3, True, None, 1e22],
        "empty": {},
        "none": [],
        "deep": {"a": {"b": "1e5"}},
    }
    (tmp_path / "config.yaml").write_text(config_text(plain), encoding="utf-8")
    assert stored_config(tmp_path) == plain
    from omegaconf import OmegaConf

    plain["texts"].remove("${")  # which OmegaConf takes for a broken interpolation
    (tmp_path / "config.yaml").write_text(config_text(plain), encoding="utf-8")
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml")) == plain
