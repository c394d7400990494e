"""Reading the elements of a model without torch."""

from __future__ import annotations

import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from campaigns import ROOT
from model_zoo import ARCHITECTURES, FEW_ELEMENTS, build_model

from driver.checkpoint import elements_of

DEMO = ROOT / "models" / "demo" / "demo.model"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_elements_of_every_architecture(tmp_path, architecture):
    torch.save(build_model(architecture), tmp_path / "a.model")
    assert elements_of(tmp_path / "a.model") == FEW_ELEMENTS


def test_neither_torch_nor_the_code_in_the_file_is_run(tmp_path):
    code = (
        "import sys; from pathlib import Path; from driver.checkpoint import elements_of;"
        f"print(elements_of(Path({str(DEMO)!r})), 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "(11, 17, 35, 37, 47, 49, 51, 55, 83) False"


class Mischief:
    """Pickles as a call that leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_with_code_in_it_does_nothing(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.model", "w") as file:
        file.writestr("bad/data.pkl", pickle.dumps(Mischief(tmp_path / "trace")))
    assert elements_of(tmp_path / "bad.model") is None
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\3\4", pickle.dumps({"a": 1})])
def test_a_file_of_another_kind_says_nothing(tmp_path, content):
    (tmp_path / "a.model").write_bytes(content)
    assert elements_of(tmp_path / "a.model") is None
    assert elements_of(tmp_path / "nowhere.model") is None
    assert elements_of(tmp_path) is None
