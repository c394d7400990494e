from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from http_server import Behaviour, serve

from driver.download import Retries
from driver.errors import UsageError
from driver.models import (
    PROJECT_ROOT,
    ModelFile,
    ModelSpec,
    cache_folder,
    configured_models,
    fetch,
    licence_notice,
    list_models,
    model_record,
    resolve,
)

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = Retries(attempts=2, pause_s=0.01)
FOUNDATION_MODELS = {
    "mace-mp-0-small",
    "mace-mp-0-medium",
    "mace-mp-0-large",
    "mace-mp-0b3",
    "mace-mpa-0",
    "mace-omat-0",
    "mace-matpes-pbe-0",
    "mace-matpes-r2scan-0",
    "mace-mh-1",
}


@pytest.fixture
def spec():
    with serve(Behaviour(CONTENT)) as url:
        yield ModelSpec("some", file="some.model", url=url, head="pbe", licence="ASL", licence_url="https://x/ASL")


def test_fetched_model_resolves_with_its_checksum(spec, tmp_path):
    told = []
    file = fetch(spec, tmp_path, notify=told.append, retries=QUICK)
    assert file == ModelFile("some", tmp_path / "some.model", SHA256, "pbe")
    assert resolve(spec, tmp_path) == file
    assert told == ["model some is under the licence ASL (https://x/ASL): by using it you accept its terms"]


def test_a_second_fetch_downloads_nothing(spec, tmp_path):
    first = fetch(spec, tmp_path, retries=QUICK)
    offline = ModelSpec("some", file="some.model", url="http://127.0.0.1:9/none", head="pbe")
    assert fetch(offline, tmp_path, retries=QUICK) == first


def test_a_file_copied_into_the_cache_is_taken_and_recorded(tmp_path):
    (tmp_path / "some.model").write_bytes(CONTENT)
    spec = ModelSpec("some", file="some.model", url="http://127.0.0.1:9/none")
    assert fetch(spec, tmp_path).sha256 == SHA256
    assert (tmp_path / "some.model.sha256").read_text() == f"{SHA256}  some.model\n"


def test_a_damaged_file_is_refused_and_fetched_anew(spec, tmp_path):
    fetch(spec, tmp_path, retries=QUICK)
    (tmp_path / "some.model").write_bytes(CONTENT[:-1])
    assert [status.state for status in list_models([spec], tmp_path)] == ["changed"]
    with pytest.raises(UsageError, match=f"instead of {SHA256}.*python -m driver models fetch some"):
        resolve(spec, tmp_path)
    assert fetch(spec, tmp_path, retries=QUICK).sha256 == SHA256


def test_a_checksum_in_the_configuration_goes_before_the_recorded_one(tmp_path):
    (tmp_path / "some.model").write_bytes(CONTENT)
    assert resolve(ModelSpec("some", file="some.model", url="u", sha256=SHA256), tmp_path).sha256 == SHA256
    with pytest.raises(UsageError, match="has sha256"):
        resolve(ModelSpec("some", file="some.model", url="u", sha256="0" * 64), tmp_path)


def test_a_missing_model_names_the_command_that_fetches_it(tmp_path):
    spec = configured_models()["mace-mpa-0"]
    with pytest.raises(UsageError, match="run `python -m driver models fetch mace-mpa-0`") as caught:
        resolve(spec, tmp_path)
    assert "\n" not in str(caught.value)


def test_local_files(tmp_path, monkeypatch):
    (tmp_path / "mine.model").write_bytes(CONTENT)
    monkeypatch.chdir(tmp_path)
    assert resolve(ModelSpec("mine", path="mine.model"), tmp_path / "cache").path == tmp_path / "mine.model"
    assert resolve(ModelSpec("mine", path=str(tmp_path / "mine.model")), tmp_path).sha256 == SHA256
    with pytest.raises(UsageError, match=r"other\.model does not exist; set its path"):
        resolve(ModelSpec("mine", path="other.model"), tmp_path)
    with pytest.raises(UsageError, match=r"no file is set; give models\.file\.path="):
        resolve(ModelSpec("file"), tmp_path)
    with pytest.raises(UsageError, match=r"local file.*nothing to fetch"):
        fetch(ModelSpec("mine", path="mine.model"), tmp_path)


def test_relative_paths_are_found_in_the_project_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = resolve(ModelSpec("toml", path="pyproject.toml"), tmp_path)
    assert file.path == PROJECT_ROOT / "pyproject.toml"


def test_list_tells_ready_partial_and_missing_apart(tmp_path):
    for name in ("a.model", "b.model.part"):
        (tmp_path / name).write_bytes(CONTENT)
    specs = [ModelSpec(key, file=f"{key}.model", url="u") for key in "abc"] + [ModelSpec("file")]
    assert [(status.state, status.size_bytes) for status in list_models(specs, tmp_path)] == [
        ("ready", 7000),
        ("partial", 7000),
        ("missing", 0),
        ("missing", 0),
    ]


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("LATDYN_MODELS", raising=False)
    assert cache_folder() == Path.home() / ".cache/latdyn/models"
    monkeypatch.setenv("LATDYN_MODELS", str(tmp_path))
    assert cache_folder() == tmp_path
    assert cache_folder("~/models") == Path.home() / "models"


def test_every_foundation_model_is_configured():
    specs = configured_models()
    assert set(specs) == FOUNDATION_MODELS | {"demo", "file"}
    for key in FOUNDATION_MODELS:
        spec = specs[key]
        assert spec.url.startswith("https://github.com/ACEsuit/")
        assert spec.url.endswith("/" + spec.file)
        assert spec.training_data
        assert "arXiv" in spec.citation
        restricted = any(name in key for name in ("omat", "matpes", "mh"))
        assert (spec.licence == "ASL") == restricted == bool(licence_notice(spec))
    assert len({spec.file for spec in specs.values() if spec.file}) == len(FOUNDATION_MODELS)
    assert specs["mace-mh-1"].head == "omat_pbe"


def test_addresses_are_those_that_mace_downloads_from():
    package = importlib.util.find_spec("mace")
    if package is None:
        pytest.skip("mace-torch is not installed")
    source = Path(package.submodule_search_locations[0], "calculators/foundations_models.py").read_text()
    for key in FOUNDATION_MODELS:
        assert f'"{configured_models()[key].url}"' in source


def test_an_unknown_entry_is_named(tmp_path):
    (tmp_path / "x.yaml").write_text("key: x\nsha265: abc\n")
    with pytest.raises(UsageError, match=r"x\.yaml: unknown entries sha265"):
        configured_models(tmp_path)


def test_hydra_composes_several_models_at_once():
    hydra = pytest.importorskip("hydra")
    from omegaconf import OmegaConf

    with hydra.initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        config = hydra.compose(overrides=["+model=[demo,mace-mpa-0,mace-mp-0b3]", "models.mace-mpa-0.head=x"])
    models = OmegaConf.to_container(config)["models"]
    assert list(models) == ["demo", "mace-mpa-0", "mace-mp-0b3"]
    specs = {key: ModelSpec(**content) for key, content in models.items()}
    assert all(key == spec.key for key, spec in specs.items())
    assert specs["mace-mpa-0"].head == "x"


def test_record_for_the_archive(tmp_path):
    spec = configured_models()["mace-mh-1"]
    record = model_record(spec, ModelFile("mace-mh-1", tmp_path / "m.model", SHA256, spec.head))
    assert (record.key, record.file, record.sha256, record.head) == ("mace-mh-1", "m.model", SHA256, "omat_pbe")
    assert record.licence == "ASL"


def test_models_are_known_without_torch():
    code = "import sys, driver.models; assert not {'torch', 'mace', 'mpi4py', 'hydra'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, check=True)
