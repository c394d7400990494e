"""Composes conf/ with Hydra, on rank 0 only, and turns the result into frozen settings."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from driver.errors import UsageError
from driver.models import PROJECT_ROOT, ModelSpec
from driver.settings import Settings
from driver.structures.materials import MaterialsSettings

CONF = PROJECT_ROOT / "conf"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Configuration:
    """A composed and validated configuration.

    Attributes
    ----------
    settings : Settings
    materials : MaterialsSettings
    models : tuple of ModelSpec
    model_cache : str or None
        Folder of fetched models, if set.
    yaml : str
        All of it as composed, for the archive and for `runs/<name>/config.yaml`.
    """

    settings: Settings
    materials: MaterialsSettings
    models: tuple[ModelSpec, ...]
    model_cache: str | None
    yaml: str


def compose(overrides: Sequence[str], config_dir: Path | None = None) -> Configuration:
    """Compose the configuration from presets and overrides.

    Parameters
    ----------
    overrides : sequence of str
        In Hydra's notation: `campaign=smoke`, `dynamics.temperature_K=400`.
    config_dir : Path, optional
        A folder with presets of the user's own, laid out like conf/.

    Raises
    ------
    UsageError
        Naming the preset, key or value that is wrong, and the nearest right one.
    """
    tree, text = _compose_tree(overrides, config_dir)
    models = tree.pop("models", None) or {}
    materials = build(MaterialsSettings, tree.pop("materials", None) or {}, "materials")
    model_cache = tree.pop("model_cache", None)
    specs = tuple(build(ModelSpec, value, f"models.{key}") for key, value in models.items())
    _refuse_same_key(specs)
    return Configuration(build(Settings, tree, ""), materials, specs, model_cache, text)


def is_configuration_of(path: Path, name: str) -> bool:
    """Whether a file is the composed configuration of a campaign of that name."""
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(tree, Mapping) and tree.get("name") == name and {"stages", "execution"} <= tree.keys()


def presets(config_dir: Path | None = None) -> dict[str, tuple[str, ...]]:
    """List the presets of each configuration group."""
    found: dict[str, set[str]] = {}
    for root in filter(None, (CONF, config_dir)):
        for path in root.glob("*/*.yaml"):
            found.setdefault(path.parent.name, set()).add(path.stem)
    return {group: tuple(sorted(names)) for group, names in sorted(found.items())}


def _compose_tree(overrides: Sequence[str], config_dir: Path | None) -> tuple[dict[str, Any], str]:
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if config_dir is not None and not config_dir.is_dir():
        raise UsageError(f"--config-dir: {config_dir} is not a folder")
    search = [f"hydra.searchpath=[file://{config_dir.resolve()}]"] if config_dir else []
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            try:
                config = hydra.compose("config", overrides=[*overrides, *search])
                tree = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
                return typing.cast("dict[str, Any]", tree), OmegaConf.to_yaml(config, resolve=True)
            except (HydraException, OmegaConfBaseException) as error:
                default = typing.cast("dict[str, Any]", OmegaConf.to_container(hydra.compose("config")))
                raise UsageError(_explain(error, overrides, default, config_dir)) from error
    finally:
        GlobalHydra.instance().clear()


def _explain(error: Exception, overrides: Sequence[str], default: dict[str, Any], config_dir: Path | None) -> str:
    """Say which override is wrong, and what is nearest to it, in one line."""
    groups = presets(config_dir)
    known = _dotted(default) | set(groups)
    for override in overrides:
        key, equals, value = override.lstrip("+~").partition("=")
        if not equals:
            return f"{override!r} is not an override; write KEY=VALUE, as campaign=smoke or dynamics.temperature_K=400"
        if key in groups:
            for name in value.strip("[]").split(","):
                if name.strip() not in (*groups[key], "null"):
                    return f"{key}={name.strip()}: no such preset{_nearest(name.strip(), groups[key])}"
        elif key not in known and not key.startswith("hydra."):
            return f"unknown key {key!r}{_nearest(key, known)}; `run --help` explains overrides"
    return " ".join(str(error).split())


def build(kind: type[_T], values: Any, path: str) -> _T:
    """Build a frozen settings dataclass from nested mappings, checking every name and type.

    Raises
    ------
    UsageError
        Naming the key by its dotted path, the nearest valid one, or the type that is wanted.
    """
    where = f"{path}." if path else ""
    if not isinstance(values, Mapping):
        raise UsageError(f"{path or 'configuration'}: expected keys and values, got {values!r}")
    hints = typing.get_type_hints(kind)
    names = [item.name for item in fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in names:
            raise UsageError(f"unknown key {where + str(name)!r}{_nearest(str(name), names, where)}")
    for item in fields(kind):  # type: ignore[arg-type]
        if item.name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise UsageError(f"{where}{item.name} is not set")
    return kind(**{name: _convert(hints[name], value, where + str(name)) for name, value in values.items()})


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, path)
    if is_dataclass(hint):
        return build(typing.cast("type[Any]", hint), {} if value is None else value, path)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise UsageError(f"{path} = {value!r}: expected a list, as [{_example(arguments[0])}]")
        return tuple(_convert(arguments[0], entry, f"{path}[{i}]") for i, entry in enumerate(value))
    return _convert_scalar(hint, value, path)


def _convert_scalar(kind: type, value: Any, path: str) -> Any:
    if kind is bool and isinstance(value, bool):
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, int | float) and not isinstance(value, bool) and value == int(value):
        return int(value)
    if kind is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    wanted = {bool: "true or false", float: "a number", int: "a whole number", str: "a text"}[kind]
    raise UsageError(f"{path} = {value!r}: expected {wanted}")


def _example(kind: type) -> str:
    return {int: "2, 2, 2", float: "0.01, 0.02"}.get(kind, "a, b")


def _nearest(name: str, known: typing.Iterable[str], prefix: str = "") -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:  # the right last part under the wrong section
        close = [k for k in known if k.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    if close:
        return f"; did you mean {prefix}{close[0]}?"
    return f"; there is {', '.join(known)}" if len(known) <= 20 else ""


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> set[str]:
    names: set[str] = set()
    for key, value in tree.items():
        names.add(prefix + str(key))
        if isinstance(value, Mapping):
            names |= _dotted(value, f"{prefix}{key}.")
    return names


def _refuse_same_key(specs: Sequence[ModelSpec]) -> None:
    seen: set[str] = set()
    for spec in specs:
        if spec.key in seen:
            raise UsageError(f"model key {spec.key!r} is given twice; set another with models.<preset>.key=NAME")
        seen.add(spec.key)
    if not specs:
        raise UsageError("no model is selected; set model=[demo] or another preset of conf/model/")
