"""Which potentials a campaign uses and where their files are. Importable without torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from driver.archive.records import ModelRecord
from driver.download import Progress, Retries, download, hash_file, record_sha256, recorded_sha256
from driver.errors import UsageError

PROJECT_ROOT = Path(__file__).resolve().parents[1]
CACHE_VARIABLE = "LATDYN_MODELS"


@dataclass(frozen=True)
class ModelSpec:
    """A model as configured (conf/model/).

    Attributes
    ----------
    key : str
        The campaign's name for the model, as `mace-mpa-0`.
    file, url : str
        Name in the cache, and where it is fetched from; "" for a local file.
    sha256 : str
        What the file must have; "": what was recorded when it was fetched.
    head : str
        Head of a multi-head model; "" for the default one.
    training_data, licence, licence_url, citation : str
    path : str
        A local file instead of `file` and `url`; relative to the working directory or the project's folder.
    """

    key: str
    file: str = ""
    url: str = ""
    sha256: str = ""
    head: str = ""
    training_data: str = ""
    licence: str = ""
    licence_url: str = ""
    citation: str = ""
    path: str = ""


@dataclass(frozen=True)
class ModelFile:
    """A model as a file on this machine.

    Attributes
    ----------
    key : str
        The campaign's name for the model, as `mace-mpa-0`.
    path : Path
        The .model file.
    sha256 : str
        Of the file, hexadecimal.
    head : str
        Head of a multi-head model; "" for the default one.
    """

    key: str
    path: Path
    sha256: str
    head: str = ""


@dataclass(frozen=True)
class ModelStatus:
    """A model and its file on this machine.

    Attributes
    ----------
    spec : ModelSpec
    path : Path or None
        Where the file is, or would be; None if none is set.
    state : str
        "ready", "missing", "partial" (a download that `fetch` will continue), or "changed" (wrong checksum).
    size_bytes : int
        What is there.
    """

    spec: ModelSpec
    path: Path | None
    state: str
    size_bytes: int


def cache_folder(setting: str | None = None) -> Path:
    """Return the folder of fetched models: the setting, else $LATDYN_MODELS, else ~/.cache/latdyn/models."""
    chosen = setting or os.environ.get(CACHE_VARIABLE) or "~/.cache/latdyn/models"
    return Path(chosen).expanduser().absolute()


def resolve(spec: ModelSpec, cache: Path) -> ModelFile:
    """Find the file of a model and check it.

    Parameters
    ----------
    spec : ModelSpec
    cache : Path
        From `cache_folder`.

    Raises
    ------
    UsageError
        If the file is missing (the message says which command fetches it) or its checksum is wrong.
    """
    path = _path(spec, cache)
    if path is None:
        raise UsageError(f"model {spec.key}: no file is set; give models.file.path=/where/it/is.model")
    if not path.is_file():
        raise UsageError(f"model {spec.key}: {path} does not exist; {_remedy(spec)}")
    try:
        found = hash_file(path)
    except OSError as error:
        raise UsageError(f"model {spec.key}: cannot read {path} ({error.strerror}); check its permissions") from error
    expected = _expected_sha256(spec, path)
    if expected and found != expected:
        raise UsageError(f"model {spec.key}: {path} has sha256 {found} instead of {expected}; {_remedy(spec)}")
    return ModelFile(spec.key, path, found, spec.head)


def fetch(
    spec: ModelSpec,
    cache: Path,
    *,
    progress: Progress | None = None,
    notify: Callable[[str], None] | None = None,
    retries: Retries | None = None,
) -> ModelFile:
    """Download a model into the cache, unless it is there and as it should be.

    Parameters
    ----------
    spec : ModelSpec
    cache : Path
        From `cache_folder`; created if need be.
    progress : callable, optional
        See `driver.download.progress_bar`.
    notify : callable, optional
        Is told the terms of a licence that restricts use, before anything is fetched.
    retries : Retries, optional

    Raises
    ------
    UsageError
        As `driver.download.download` does, and for a model that is a local file.
    """
    if spec.path or not spec.url:
        raise UsageError(f"model {spec.key} is a local file ({spec.path or 'path not set'}): there is nothing to fetch")
    notice = licence_notice(spec)
    if notice and notify:
        notify(notice)
    target = cache / spec.file
    if target.is_file() and _expected_sha256(spec, target) in ("", hash_file(target)):
        if not recorded_sha256(target):
            record_sha256(target, hash_file(target))  # copied here by hand
        return resolve(spec, cache)
    download(spec.url, target, sha256=spec.sha256, progress=progress, retries=retries)
    return resolve(spec, cache)


def licence_notice(spec: ModelSpec) -> str:
    """Return what a user of the model accepts, one line; "" for a licence that restricts nothing."""
    if spec.licence in ("", "MIT"):
        return ""
    return (
        f"model {spec.key} is under the licence {spec.licence} ({spec.licence_url}): by using it you accept its terms"
    )


def list_models(specs: Iterable[ModelSpec], cache: Path) -> tuple[ModelStatus, ...]:
    """Say for each model whether its file is here; reads every file that is, to check it."""
    return tuple(_status(spec, cache) for spec in specs)


def configured_models(folder: Path = PROJECT_ROOT / "conf" / "model") -> dict[str, ModelSpec]:
    """Return all models that the configuration knows, by key.

    Raises
    ------
    UsageError
        If a file has entries that `ModelSpec` does not know.
    """
    import yaml

    specs = {}
    known = {item.name for item in fields(ModelSpec)}
    for path in sorted(folder.glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        unknown = sorted(set(content) - known)
        if unknown:
            raise UsageError(f"{path}: unknown entries {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        spec = ModelSpec(**content)
        specs[spec.key] = spec
    return specs


def model_record(spec: ModelSpec, file: ModelFile) -> ModelRecord:
    """Return what the archive keeps of a model."""
    return ModelRecord(
        key=spec.key,
        file=file.path.name,
        sha256=file.sha256,
        head=spec.head,
        training_data=spec.training_data,
        licence=spec.licence,
        citation=spec.citation,
    )


def _path(spec: ModelSpec, cache: Path) -> Path | None:
    """Return where the file of a model is or should be; None if the specification names none."""
    if not spec.path:
        return cache / spec.file if spec.file else None
    given = Path(spec.path).expanduser()
    in_project = PROJECT_ROOT / given
    return in_project if in_project.is_file() and not given.is_file() else given.absolute()


def _expected_sha256(spec: ModelSpec, path: Path) -> str:
    return spec.sha256.lower() or ("" if spec.path else recorded_sha256(path))


def _remedy(spec: ModelSpec) -> str:
    if spec.path:
        return "set its path (and sha256) to the file that is meant"
    return f"on a machine with internet access run `python -m driver models fetch {spec.key}`"


def _status(spec: ModelSpec, cache: Path) -> ModelStatus:
    path = _path(spec, cache)
    if path is None:
        return ModelStatus(spec, None, "missing", 0)
    part = path.with_name(path.name + ".part")
    if path.is_file():
        state = "ready" if _expected_sha256(spec, path) in ("", hash_file(path)) else "changed"
        return ModelStatus(spec, path, state, path.stat().st_size)
    if part.is_file() and part.stat().st_size:
        return ModelStatus(spec, path, "partial", part.stat().st_size)
    return ModelStatus(spec, path, "missing", 0)
