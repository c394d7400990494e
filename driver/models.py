"""Which potentials a campaign uses and where their files are. Importable without torch."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from driver.archive.records import ModelRecord
from driver.download import (
    ChecksumError,
    Progress,
    Retries,
    download,
    hash_file,
    record_file,
    record_sha256,
    recorded_sha256,
)
from driver.errors import UsageError
from driver.model_container import refuse_other_files
from driver.trust import accept_licence, accepted_on, is_trusted, require_writable, trust_model

PROJECT_ROOT = Path(__file__).resolve().parents[1]
CACHE_VARIABLE = "LATDYN_MODELS"
PREPARED_VARIABLE = "LATDYN_CACHE"


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
        What the file must have, which also says that it may be loaded; "": what was recorded when it was fetched.
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
    """A model as a file on this machine that may be loaded, because of its content: a path alone says little.

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
        "ready", "missing", "partial" (a download that `fetch` will continue), "changed" (wrong checksum), "not trusted"
        (nobody has said that it may be loaded), or "no model".
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


def prepared_folder(setting: str | None = None) -> Path:
    """Return the folder of what has been made of models: the setting, else $LATDYN_CACHE, else a folder in ~/.cache."""
    chosen = setting or os.environ.get(PREPARED_VARIABLE) or "~/.cache/latdyn/prepared"
    return Path(chosen).expanduser().absolute()


def resolve(spec: ModelSpec, cache: Path) -> ModelFile:
    """Find the file of a model and check it, short of loading it.

    Parameters
    ----------
    spec : ModelSpec
    cache : Path
        From `cache_folder`.

    Raises
    ------
    UsageError
        If the file is missing (the message says which command fetches it), is something else than a model, has a wrong
        checksum, or nobody has said that it may be loaded (the message says how to).
    """
    path = _path(spec, cache)
    if path is None:
        raise UsageError(f"model {spec.key}: no file is set; give models.file.path=/where/it/is.model")
    if not path.exists():
        raise UsageError(f"model {spec.key}: {path} does not exist; {_remedy(spec)}")
    refuse_other_files(path, f"model {spec.key}: {path}", "copy it again" if spec.path else _remedy(spec))
    found = _hash(path, f"model {spec.key}")
    expected = _expected_sha256(spec, path)
    if expected and found != expected:
        raise UsageError(f"model {spec.key}: {path} has sha256 {found} instead of {expected}; {_remedy(spec)}")
    if not _may_be_loaded(spec, found):
        raise UsageError(f"model {spec.key}: {path} {_untrusted(path)}")
    return ModelFile(spec.key, path, found, spec.head)


def fetch(
    spec: ModelSpec,
    cache: Path,
    *,
    accept: Callable[[ModelSpec], bool] | None = None,
    progress: Progress | None = None,
    notify: Callable[[str], None] | None = None,
    retries: Retries | None = None,
) -> ModelFile:
    """Download a model into the cache, unless it is there and as it should be; what was fetched may be loaded.

    Parameters
    ----------
    spec : ModelSpec
    cache : Path
        From `cache_folder`; created if need be.
    accept : callable, optional
        Is asked whether the user accepts a licence that restricts use, once for each licence; that is remembered.
    progress : callable, optional
        See `driver.download.progress_bar`.
    notify : callable, optional
        Is told what the user should know.
    retries : Retries, optional

    Raises
    ------
    UsageError
        As `driver.download.download` does, for a model that is a local file, and where the licence is not accepted.
    """
    if spec.path or not spec.url:
        raise UsageError(f"model {spec.key} is a local file ({spec.path or 'path not set'}): there is nothing to fetch")
    require_licence(spec, accept)
    target = cache / spec.file
    if target.is_file():
        found = _hash(target, f"model {spec.key}")
        if _expected_sha256(spec, target) in ("", found):
            if not _may_be_loaded(spec, found):
                where = f"{target}, which was not fetched with this account (to fetch it, remove it)"
                raise UsageError(f"model {spec.key}: {where}, {_untrusted(target)}")
            if not recorded_sha256(target):
                record_sha256(target, found)
            return resolve(spec, cache)
    _download(spec, target, progress, notify or (lambda line: None), retries)
    return resolve(spec, cache)


def require_licence(spec: ModelSpec, accept: Callable[[ModelSpec], bool] | None) -> None:
    """Refuse a model whose licence restricts use until the user has accepted it; remember that.

    Parameters
    ----------
    spec : ModelSpec
    accept : callable or None
        Is asked, unless it was accepted before.

    Raises
    ------
    UsageError
        If it is not accepted, or that cannot be remembered.
    """
    if not licence_notice(spec) or accepted_on(spec.licence):
        return
    if accept is None or not accept(spec):
        raise UsageError(f"{licence_notice(spec)}; say so with --accept-licence {shlex.quote(spec.licence)}")
    accept_licence(spec.licence, spec.licence_url)


def licence_notice(spec: ModelSpec) -> str:
    """Return what a user of the model has to accept, one line; "" for a licence that restricts nothing."""
    if spec.licence in ("", "MIT"):
        return ""
    return f"model {spec.key} is under the licence {spec.licence} ({spec.licence_url}), whose terms you must accept"


def trust_file(path: Path, accept: Callable[[ModelSpec], bool] | None = None) -> str:
    """Remember, by its content, that a file may be loaded; return its sha256.

    Parameters
    ----------
    path : Path
    accept : callable, optional
        As for `fetch`, where the file has the name of a published model.

    Raises
    ------
    UsageError
        If the file is no model, its licence is not accepted, or the record cannot be written.
    """
    refuse_other_files(path, str(path))
    for spec in configured_models().values():
        if spec.file == path.name:
            require_licence(spec, accept)
    sha256 = _hash(path, "models trust")
    trust_model(sha256, str(path.absolute()), "trusted by the user")
    return sha256


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


def head_index(heads: Sequence[str], file: ModelFile) -> int:
    """Return the index of the head that `file.head` names; see `driver.engine.load.choose_head`.

    Raises
    ------
    UsageError
        There is no such head; the message names those that there are.
    """
    if file.head in heads:
        return heads.index(file.head)
    known = ", ".join(heads)
    if file.head:
        raise UsageError(f"model {file.key} has no head {file.head!r}: set head to one of {known}")
    if len(heads) == 1:
        return 0
    defaults = [index for index, head in enumerate(heads) if head.lower() == "default"]
    if not defaults:
        raise UsageError(f"model {file.key} has several heads and no default: set head to one of {known}")
    return defaults[0]


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


def _hash(path: Path, where: str) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise UsageError(f"{where}: cannot read {path} ({error.strerror}); check its permissions") from error


def _may_be_loaded(spec: ModelSpec, sha256: str) -> bool:
    """Tell whether the configuration, the catalogue or the user's own record names this content."""
    return spec.sha256.lower() == sha256 or sha256 in _catalogued() or is_trusted(sha256)


@functools.cache
def _catalogued() -> frozenset[str]:
    return frozenset(spec.sha256.lower() for spec in configured_models().values() if spec.sha256)


def _untrusted(path: Path) -> str:
    return (
        "is not trusted yet, and loading a model file runs whatever code is in it; "
        f"if you know where it is from, type: python -m driver models trust {shlex.quote(str(path))}"
    )


def _download(
    spec: ModelSpec,
    target: Path,
    progress: Progress | None,
    notify: Callable[[str], None],
    retries: Retries | None,
) -> None:
    """Download a model; the first time, where the catalogue has no checksum, that of what comes is recorded."""
    require_writable()
    recorded = recorded_sha256(target)
    try:
        found = download(
            spec.url,
            target,
            sha256=spec.sha256 or recorded,
            check=lambda part: refuse_other_files(part, f"what came from {spec.url}"),
            progress=progress,
            retries=retries,
        )
    except ChecksumError as error:
        if spec.sha256:
            raise
        raise UsageError(
            f"{error}; it was recorded when the file was first fetched: if a new one has been published, remove "
            f"{record_file(target)} and fetch again"
        ) from error
    trust_model(found, str(target), spec.url)
    if not spec.sha256 and not recorded:
        notify(
            f"{spec.key}: the catalogue has no sha256; that of this first download is recorded and checked from now on"
        )


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
        return ModelStatus(spec, path, _state(spec, path), path.stat().st_size)
    if part.is_file() and part.stat().st_size:
        return ModelStatus(spec, path, "partial", part.stat().st_size)
    return ModelStatus(spec, path, "missing", 0)


def _state(spec: ModelSpec, path: Path) -> str:
    """Return the state of a model whose file is there."""
    try:
        refuse_other_files(path, str(path))
        found = hash_file(path)
    except (UsageError, OSError):
        return "no model"
    if _expected_sha256(spec, path) not in ("", found):
        return "changed"
    return "ready" if _may_be_loaded(spec, found) else "not trusted"
