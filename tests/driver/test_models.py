from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import shutil
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
    trust_file,
)

CONTENT = b"\x80\x02" + b"weights" * 1000
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


@pytest.fixture(autouse=True)
def trust(tmp_path_factory, monkeypatch):
    """A user who has not agreed to anything yet."""
    folder = tmp_path_factory.mktemp("trust")
    monkeypatch.setenv("LATDYN_TRUST", str(folder))
    return folder


@pytest.fixture
def behaviour():
    return Behaviour(CONTENT)


@pytest.fixture
def spec(behaviour):
    with serve(behaviour) as url:
        yield ModelSpec("some", file="some.model", url=url, head="pbe", licence="MIT")


def test_fetched_model_resolves_with_its_checksum_and_may_be_loaded(spec, tmp_path, trust):
    told = []
    file = fetch(spec, tmp_path, notify=told.append, retries=QUICK)
    assert file == ModelFile("some", tmp_path / "some.model", SHA256, "pbe")
    assert resolve(spec, tmp_path) == file
    assert told == [
        "some: the catalogue has no sha256; that of this first download is recorded and checked from now on"
    ]
    record = json.loads((trust / "models" / f"{SHA256}.json").read_text())
    assert record["source"] == spec.url


def test_a_licence_that_restricts_is_accepted_once_and_remembered_with_its_date(spec, tmp_path, behaviour, trust):
    spec = dataclasses.replace(spec, licence="ASL", licence_url="https://x/ASL")
    asked = []
    for accept in (None, lambda model: asked.append(model.key)):
        with pytest.raises(UsageError, match=r"licence ASL \(https://x/ASL\).*--accept-licence ASL$") as caught:
            fetch(spec, tmp_path, accept=accept, retries=QUICK)
        assert "\n" not in str(caught.value)
    assert not behaviour.requests and not list(trust.iterdir())
    fetch(spec, tmp_path, accept=lambda model: model.licence == "ASL", retries=QUICK)
    fetch(spec, tmp_path, retries=QUICK)  # not asked again
    record = json.loads((trust / "licences" / "ASL.json").read_text())
    assert (record["url"], record["accepted"][:2]) == ("https://x/ASL", "20")
    assert asked == ["some"]


def test_a_file_that_changed_where_it_is_published_is_not_taken_for_the_same(spec, tmp_path, behaviour):
    fetch(spec, tmp_path, retries=QUICK)
    (tmp_path / "some.model").unlink()
    behaviour.content, behaviour.etag = CONTENT + b"!", '"two"'
    with pytest.raises(UsageError, match=rf"not {SHA256}; .*remove .*some\.model\.sha256 and fetch again"):
        fetch(spec, tmp_path, retries=QUICK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some.model.sha256"]


def test_what_comes_and_is_no_model_is_thrown_away(spec, tmp_path, behaviour, trust):
    behaviour.content = b"not found, but with status 200"
    with pytest.raises(UsageError, match=r"what came from http.* is not a model: it begins with 'not found"):
        fetch(spec, tmp_path, retries=QUICK)
    assert not list(tmp_path.iterdir()) and not list(trust.iterdir())


def test_a_second_fetch_downloads_nothing(spec, tmp_path):
    first = fetch(spec, tmp_path, retries=QUICK)
    offline = ModelSpec("some", file="some.model", url="http://127.0.0.1:9/none", head="pbe")
    assert fetch(offline, tmp_path, retries=QUICK) == first


def test_a_file_copied_into_the_cache_is_taken_and_recorded_once_the_user_trusts_it(tmp_path):
    path = tmp_path / "some.model"
    path.write_bytes(CONTENT)
    spec = ModelSpec("some", file="some.model", url="http://127.0.0.1:9/none")
    for use in (resolve, fetch):
        with pytest.raises(UsageError, match=f"type: python -m driver models trust {path}$") as caught:
            use(spec, tmp_path)
        assert "\n" not in str(caught.value)
    assert trust_file(path) == SHA256
    assert resolve(spec, tmp_path).sha256 == SHA256
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


def test_a_file_is_loaded_only_once_the_user_has_said_so(tmp_path):
    path = tmp_path / "my model.model"
    path.write_bytes(CONTENT)
    spec = ModelSpec("mine", path=str(path))
    with pytest.raises(UsageError, match=f"runs whatever code.*models trust '{path}'$"):
        resolve(spec, tmp_path)
    assert resolve(dataclasses.replace(spec, sha256=SHA256.upper()), tmp_path).sha256 == SHA256
    trust_file(path)
    assert resolve(spec, tmp_path).sha256 == SHA256
    path.write_bytes(CONTENT + b"!")  # what is remembered is the content
    with pytest.raises(UsageError, match="models trust"):
        resolve(spec, tmp_path)


def test_files_that_the_catalogue_knows_need_no_word(tmp_path):
    copy = tmp_path / "copy.model"
    shutil.copy(PROJECT_ROOT / "models/demo/demo.model", copy)
    assert resolve(ModelSpec("mine", path=str(copy)), tmp_path).path == copy


def test_trusting_a_copy_of_a_published_model_asks_for_its_licence(tmp_path):
    path = tmp_path / configured_models()["mace-omat-0"].file
    path.write_bytes(CONTENT)
    with pytest.raises(UsageError, match="--accept-licence ASL"):
        trust_file(path)
    trust_file(path, lambda spec: True)
    assert resolve(configured_models()["mace-omat-0"], tmp_path).sha256 == SHA256


def test_a_record_that_is_damaged_or_of_another_file_says_nothing(tmp_path, trust):
    path = tmp_path / "mine.model"
    path.write_bytes(CONTENT)
    trust_file(path)
    record = trust / "models" / f"{SHA256}.json"
    for content in ("", "[]", '{"sha256": "00"}', "{"):
        record.write_text(content)
        with pytest.raises(UsageError, match="models trust"):
            resolve(ModelSpec("mine", path=str(path)), tmp_path)
    trust_file(path)
    assert resolve(ModelSpec("mine", path=str(path)), tmp_path).sha256 == SHA256


def test_many_processes_trust_at_once(tmp_path, trust):
    code = "import sys; from pathlib import Path; from driver.models import trust_file; trust_file(Path(sys.argv[1]))"
    paths = [tmp_path / f"{number}.model" for number in range(3)]
    for path in paths:
        path.write_bytes(CONTENT + path.name.encode())
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=PROJECT_ROOT) for path in paths for _ in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0] * 6
    for path in paths:
        assert resolve(ModelSpec("mine", path=str(path)), tmp_path).path == path
    assert len(list(trust.rglob("*"))) == 4  # a folder and three records


def test_a_folder_that_cannot_be_written_is_a_line(spec, behaviour, tmp_path, monkeypatch):
    (tmp_path / "mine.model").write_bytes(CONTENT)
    (tmp_path / "file").touch()
    monkeypatch.setenv("LATDYN_TRUST", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"cannot write .*set LATDYN_TRUST to a folder that you may write$"):
        trust_file(tmp_path / "mine.model")
    with pytest.raises(UsageError, match=r"set LATDYN_TRUST to a folder that you may write$"):
        fetch(spec, tmp_path, retries=QUICK)
    assert not behaviour.requests  # said before the download, not after it


def test_local_files(tmp_path, monkeypatch):
    (tmp_path / "mine.model").write_bytes(CONTENT)
    trust_file(tmp_path / "mine.model")
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
    file = resolve(ModelSpec("demo", path="models/demo/demo.model"), tmp_path)
    assert file.path == PROJECT_ROOT / "models/demo/demo.model"


def test_list_tells_ready_partial_and_missing_apart(tmp_path):
    for name in ("a.model", "b.model.part"):
        (tmp_path / name).write_bytes(CONTENT)
    specs = [ModelSpec(key, file=f"{key}.model", url="u") for key in "abc"] + [ModelSpec("file")]
    assert [(status.state, status.size_bytes) for status in list_models(specs, tmp_path)] == [
        ("not trusted", 7002),
        ("partial", 7002),
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
