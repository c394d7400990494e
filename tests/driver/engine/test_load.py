"""Model files, good and bad."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_zoo import build_model, save_model

from driver.engine.load import choose_head, load_model, parse_dtype
from driver.errors import UsageError
from driver.models import ModelFile

Zoo = Callable[..., ModelFile]


class Awkward:
    """What cannot be unpickled without arguments."""

    def __reduce__(self) -> tuple[object, ...]:
        return (divmod, (1, 0))


def written(path: Path, content: bytes) -> ModelFile:
    path.write_bytes(content)
    return ModelFile("mine", path, hashlib.sha256(content).hexdigest())


def saved(path: Path, content: object) -> ModelFile:
    torch.save(content, path)
    return written(path, path.read_bytes())


def test_loads_a_model_ready_for_inference(zoo: Zoo) -> None:
    model = load_model(zoo("mp-0"))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_names_the_file_and_the_remedy(zoo: Zoo, tmp_path: Path) -> None:
    good = zoo("mp-0").path.read_bytes()
    bad = {
        "no such file.*models fetch": ModelFile("mine", tmp_path / "absent.model", ""),
        "Git LFS pointer.*git lfs pull": written(
            tmp_path / "a", b"version https://git-lfs.github.com/spec/v1\noid sha256:1"
        ),
        "web page.*download": written(tmp_path / "b", b"<!DOCTYPE html><html></html>"),
        "truncated.*fetch it again": written(tmp_path / "c", good[: len(good) // 2]),
        "not a model: it begins with 'something else e'; give": written(tmp_path / "d", b"something else entirely"),
        "empty .*; copy or fetch it again": written(tmp_path / "e", b""),
        "cannot be loaded: .*; fetch": written(tmp_path / "f", pickle.dumps({"weights": 1})),
        "cannot be loaded: .*by zero": written(tmp_path / "g", pickle.dumps(Awkward())),
        "is a folder, not a model": ModelFile("mine", tmp_path, ""),
        "has sha256 .*, not 123: it was changed meanwhile": ModelFile("mine", zoo("mp-0").path, "123"),
    }
    for message, file in bad.items():
        with pytest.raises(UsageError, match=message) as caught:
            load_model(file)
        assert str(file.path) in str(caught.value)
        assert "mine" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_refuses_what_is_not_a_mace_model(tmp_path: Path) -> None:
    for name, content in {"dict": {"weights": 1}, "Linear": torch.nn.Linear(2, 2)}.items():
        with pytest.raises(UsageError, match=f"holds a {name}, not a MACE"):
            load_model(saved(tmp_path / f"{name}.model", content))


def test_refuses_a_compiled_model(tmp_path: Path) -> None:
    path = tmp_path / "compiled.model"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(UsageError, match=r"TorchScript.*plain \.model"):
        load_model(written(path, path.read_bytes()))


def test_names_a_package_that_the_pickle_needs(tmp_path: Path) -> None:
    # a pickle that imports a module which does not exist
    file = written(tmp_path / "cueq.model", b"\x80\x02cno_such_package.layers\nLinear\n.")
    with pytest.raises(UsageError, match=r"needs the Python package 'no_such_package'.*install it"):
        load_model(file)


def test_refuses_models_with_other_inputs(tmp_path: Path) -> None:
    specs = {"total_charge": {"type": "continuous", "in_dim": 1, "emb_dim": 4, "use_bias": True, "per": "graph"}}
    model = build_model("mp-0", elements=(9, 11), embedding_specs=specs)
    with pytest.raises(UsageError, match=r"needs more than atoms and cell \(total_charge\)"):
        load_model(save_model(model, tmp_path / "charged.model"))


def test_chooses_heads(zoo: Zoo) -> None:
    single, double = load_model(zoo("mp-0")), load_model(zoo("multi-head"))
    assert choose_head(single, zoo("mp-0")) == 0
    assert choose_head(double, zoo("multi-head", head="pbe")) == 0
    assert choose_head(double, zoo("multi-head")) == 1  # the one called default
    with pytest.raises(UsageError, match=r"multi-head has no head 'r2scan': set head to one of pbe, default"):
        choose_head(double, zoo("multi-head", head="r2scan"))
    double.heads = ["pbe", "r2scan"]
    with pytest.raises(UsageError, match=r"no default: set head to one of pbe, r2scan"):
        choose_head(double, zoo("multi-head"))


def test_parses_precisions() -> None:
    assert parse_dtype("float32") is torch.float32
    with pytest.raises(UsageError, match="'float16' is not one of float32, float64"):
        parse_dtype("float16")


def test_loads_the_file_that_was_checked_and_no_other(zoo: Zoo, tmp_path: Path) -> None:
    file = written(tmp_path / "mine.model", zoo("mp-0").path.read_bytes())
    load_model(file)
    file.path.write_bytes(zoo("density").path.read_bytes())
    with pytest.raises(UsageError, match=f"has sha256 {zoo('density').sha256}, not {file.sha256}.*changed meanwhile"):
        load_model(file)
