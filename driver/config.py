"""Composes conf/ with Hydra, on rank 0 only, and turns the result into frozen settings."""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from driver.build import build, nearest
from driver.errors import UsageError
from driver.models import PROJECT_ROOT, ModelSpec
from driver.settings import Settings
from driver.structures.materials import MaterialsSettings

CONF = PROJECT_ROOT / "conf"

_LISTED = "model"
"""The group of which several presets can be picked at once."""


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
    groups = presets(config_dir)
    readable = [_readable(override, groups) for override in overrides]
    tree, text = _compose_tree(readable, config_dir)
    models = tree.pop("models", None) or {}
    materials = build(MaterialsSettings, tree.pop("materials", None) or {}, "materials")
    model_cache = tree.pop("model_cache", None)
    specs = tuple(build(ModelSpec, value, f"models.{key}") for key, value in models.items())
    _refuse_incomplete(materials, specs, tree, readable, groups)
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
    from omegaconf import OmegaConf

    if config_dir is not None and not config_dir.is_dir():
        raise UsageError(f"--config-dir: {config_dir} is not a folder")
    search = [f"hydra.searchpath=['file://{config_dir.resolve()}']"] if config_dir else []
    with _hydra():
        try:
            config = hydra.compose("config", overrides=[*overrides, *search])
            tree = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
            return typing.cast("dict[str, Any]", tree), OmegaConf.to_yaml(config, resolve=True)
        except Exception as error:  # also what YAML and Hydra's own code run into in presets of the user's own
            default = typing.cast("dict[str, Any]", OmegaConf.to_container(hydra.compose("config")))
            raise UsageError(_explain(error, overrides, default, config_dir)) from error


@contextlib.contextmanager
def _hydra() -> Iterator[None]:
    """Let Hydra compose from conf/."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().clear()


def _readable(override: str, groups: Mapping[str, Collection[str]]) -> str:
    """Return an override as Hydra's grammar wants it; texts that it takes in quotes only (`~/x`, `größe`) get them.

    Raises
    ------
    UsageError
        If it is no override, or its value cannot be read or cannot be meant.
    """
    key, equals, value = override.partition("=")
    key = key.strip()
    if not equals or key.startswith("~"):
        raise UsageError(f"{override!r} is not an override; write KEY=VALUE, as campaign=smoke or name=mine")
    name = key.lstrip("+")
    parsed, text = _parse(override), override
    if parsed is None:
        _refuse_unbalanced(name, value)
        text = f"{key}={_quoted(value.strip())}"
        parsed = _parse(text)
    if parsed is None:
        raise UsageError(f"{override!r} cannot be read; put the value in quotes twice: \"{name}='...'\"")
    if parsed.is_sweep_override():
        raise UsageError(
            f'{name} has several values ({value}); write a list in brackets, "{name}=[{value}]", or a text with commas '
            f"in quotes twice, \"{name}='{value}'\""
        )
    if name in groups:
        _refuse_odd_choice(name, parsed.value(), groups[name])
    return text


def _parse(override: str) -> Any:
    """Return Hydra's reading of an override, or None."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def _quoted(value: str) -> str:
    """Put a text into quotes, of a list the entries that need them."""
    if value.startswith("[") and value.endswith("]"):
        entries = [entry.strip() for entry in value[1:-1].split(",")]
        return "[" + ",".join(entry if _parse(f"x={entry}") else _quoted(entry) for entry in entries) + "]"
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _refuse_unbalanced(name: str, value: str) -> None:
    """Refuse brackets and quotes that do not match; parentheses may stand in names of files."""
    for opening, closing in (("[", "]"), ("{", "}")):
        missing = value.count(opening) - value.count(closing)
        if missing:
            which = closing if missing > 0 else opening
            raise UsageError(f'{name}={value}: a {which!r} is missing; quote the whole for the shell: "{name}=[a,b]"')
    for quote in "\"'":
        if value.strip().startswith(quote) != value.strip().endswith(quote):
            raise UsageError(f"{name}={value}: a {quote} is missing")


def _refuse_odd_choice(group: str, value: Any, known: Collection[str]) -> None:
    """Refuse what is no choice of presets."""
    names = value if isinstance(value, list) else [value]
    if value is None:
        raise UsageError(f"{group}=null: leave {group}= out, or pick one of {', '.join(known)}")
    if isinstance(value, list) and group != _LISTED and len(names) != 1:
        raise UsageError(f"{group}={','.join(map(str, names))}: one preset only; there is {', '.join(known)}")
    for name in names:
        if name not in known:
            own = group == _LISTED and (str(name).endswith(".model") or "/" in str(name))
            hint = f"; for a file of your own: model=file models.file.path={name}" if own else nearest(str(name), known)
            raise UsageError(f"{group}={name}: no such preset{hint}")


def _refuse_incomplete(
    materials: MaterialsSettings,
    models: Sequence[ModelSpec],
    tree: Mapping[str, Any],
    overrides: Sequence[str],
    groups: Mapping[str, Collection[str]],
) -> None:
    """Refuse a campaign without materials, model or name, saying what there is to choose from."""
    picked = {override.partition("=")[0].lstrip("+") for override in overrides}
    if materials.empty and not picked & {"campaign", "materials"}:
        listed = (f"{group + ':':<11}{', '.join(groups[group])}" for group in ("campaign", "materials", "model"))
        lines = (
            "nothing to run: pick a campaign (campaign=demo), or name your own and pick its materials and models:",
            'name=mine materials=structures "materials.structures=[crystals/*.cif]" model=mace-mpa-0',
            *listed,
        )
        raise UsageError("\n  ".join(lines))
    missing = []
    if tree.get("name") is None:
        missing.append("the campaign has no name: set name=mine, and it lives in runs/mine/")
    if not models:
        missing.append(f"no model is selected: set model=mace-mpa-0, or another of {', '.join(groups['model'])}")
    if missing:
        raise UsageError("; ".join(missing))


def _explain(error: Exception, overrides: Sequence[str], default: dict[str, Any], config_dir: Path | None) -> str:
    """Say which override is wrong, and what is nearest to it, in one line."""
    known = _dotted(default) | set(presets(config_dir))
    for override in overrides:
        key = override.partition("=")[0].strip().lstrip("+")
        if key.startswith("models."):
            model = key.split(".")[1]
            if model not in (default.get("models") or {}):
                return f"{key}: model {model!r} is not selected, or has no such setting; select it with model={model}"
        elif key not in known and not key.startswith("hydra."):
            return f"unknown key {key!r}{nearest(key, known)} (`run --help` explains overrides)"
    return " ".join(str(error).split())


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
