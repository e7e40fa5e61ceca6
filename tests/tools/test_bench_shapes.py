"""Benchmark shapes against what the real models are published with."""

from __future__ import annotations

import bench_package  # noqa: F401
import pytest

from bench.shapes import LARGE, MANY_SMALL, SHAPES, numel

PUBLISHED = {
    "gpt2-124M": (148, 124_439_808),
    "llama-8b": (291, 8_030_261_248),
    "t5-base": (257, 222_903_552),
    "resnet-101": (314, 44_549_160),
    "vit-b16": (152, 86_567_656),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_real_models_have_their_published_size(name: str) -> None:
    assert (len(SHAPES[name]), numel(SHAPES[name])) == PUBLISHED[name]


@pytest.mark.parametrize("layers", [2, 4])
def test_smaller_llamas_lack_layers_alone(layers: int) -> None:
    layer = (numel(SHAPES["llama-8b-4l"]) - numel(SHAPES["llama-8b-2l"])) / 2
    assert layer == 218_112_000
    rest = numel(SHAPES["llama-8b"]) - 32 * layer
    assert numel(SHAPES[f"llama-8b-{layers}l"]) == layers * layer + rest


def test_a_shard_is_an_eighth() -> None:
    assert len(SHAPES["llama-8b-1of8"]) == len(SHAPES["llama-8b"])
    assert numel(SHAPES["llama-8b-1of8"]) * 8 == numel(SHAPES["llama-8b"])


def test_lora_adapts_each_projection_of_each_layer() -> None:
    assert len(SHAPES["lora-r16"]) == 2 * 7 * 32
    assert numel(SHAPES["lora-r16"]) == 41_943_040
    assert {min(shape) for shape in SHAPES["lora-r16"]} == {16}


def test_tiny_and_huge() -> None:
    assert len(SHAPES["tiny-1000"]) == 1000
    assert min(SHAPES["tiny-1000"]) == (1000,) and max(SHAPES["tiny-1000"]) == (97_903,)
    assert [numel(SHAPES[f"one-{size}"]) for size in ("16M", "256M", "1G")] == [2**24, 2**28, 2**30]


def test_classes_of_lists_exist() -> None:
    assert set(LARGE) | set(MANY_SMALL) < set(SHAPES)
    assert all(numel(SHAPES[name]) > 100_000_000 for name in LARGE)
