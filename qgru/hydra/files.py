"""``+quant=path/to/file.json`` (or ``.yaml``) on a Hydra command line, and overrides of what there is not.

Hydra executes this file by itself where it finds plugins: it imports qgru, and so torch, for such a file alone.
"""

import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.core.object_type import ObjectType
from hydra.errors import ConfigCompositionException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf

_GROUP = "quant/"
_AUTO = "auto"
_EXAMPLES = ("int8", _AUTO)  # of what presets hold, and of what the search for one does
_FILES = (".json", ".yaml")
_OPTIONAL = "op.Rh_add_br"


class QGRUFileSource(ConfigSource):
    """Bit width files as choices of the group ``quant``; its path is the folder of the presets."""

    def __init__(self, provider: str, path: str) -> None:
        super().__init__(provider, path)
        check_overrides(sys.argv[1:], Path(self.path))

    @staticmethod
    def scheme() -> str:
        """Return what its entry of the search path begins with."""
        return "qgru-files"

    def available(self) -> bool:
        """Be there: files may be anywhere."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Have no group of its own."""
        return False

    def is_config(self, config_path: str) -> bool:
        """Tell whether a choice of ``quant`` is written like a file's path; Hydra's own folders come first."""
        return config_path.startswith(_GROUP) and config_path.endswith(_FILES)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Have nothing to list."""
        return []

    def load_config(self, config_path: str) -> ConfigResult:
        """Return a file as a preset: what the others do, with its bit widths.

        Raises:
            ConfigCompositionException: where it is not there, or no bit width configuration.
        """
        from qgru.configs import load_config

        path = Path(config_path.removeprefix(_GROUP))
        try:
            quant = load_config(path).to_nested()
        except (OSError, ValueError) as error:
            raise ConfigCompositionException(f"+quant={path} is no bit width file: {error}") from error
        defaults = ["/qgru_lifecycle@_global_", {"optional /qgru_schema@quant": "typed"}, "_self_"]
        config = OmegaConf.create({"defaults": defaults, "quant": quant})
        return ConfigResult(self.provider, f"file://{path.resolve()}", config, {"package": "_global_"})


def check_overrides(arguments: Sequence[str], presets: Path) -> None:
    """Refuse overrides of a preset's operators and fields that it can't have, which Hydra would offer to append.

    Args:
        arguments: a command line, of any program.
        presets: the folder that holds ``quant``.

    Raises:
        ConfigCompositionException: naming the nearest operator, and all of them.
    """
    names = {path.stem for path in (presets / "quant").glob("*.yaml")}
    chosen = [choice for key, value in _split(arguments) if key == "quant" for choice in value.split(",")]
    known = {choice for choice in chosen if choice in names or choice.endswith(_FILES)}
    if not known:
        return  # somebody else's quant
    files = (OmegaConf.load(presets / "quant" / f"{name}.yaml") for name in _EXAMPLES)
    node, auto = (OmegaConf.to_container(file.quant) for file in files)
    groups = node["operator_config"]
    operators = [f"{group}.{leaf}" for group, leaves in groups.items() for leaf in leaves] + [_OPTIONAL]
    fields = list(groups["input"]["x"])
    sections = {*(node if known != {_AUTO} else ()), *(auto if _AUTO in known else ())}
    expected = [f"quant.{name}" for name in auto if name in sections]
    if known != {_AUTO}:
        expected.append(f"quant.operator_config.<operator>.<field>, with {_expected(operators, fields)}")
    for key, value in _split(arguments):
        section, _, rest = key.removeprefix("quant.").partition(".")
        if key.startswith("quant.") and section not in sections:
            raise ConfigCompositionException(
                f"{key}={value}: there is no {section!r} in quant; expected {' or '.join(expected)}"
            )
        if key.startswith("quant.operator_config."):
            _check_operator(key, value, rest.split("."), operators, fields)


def _check_operator(key: str, value: str, path: list[str], operators: Sequence[str], fields: Sequence[str]) -> None:
    written, rest = ".".join(path[:2]), path[2:]
    known = operators if len(path) > 1 else [name.partition(".")[0] for name in operators]
    if written not in known:
        near = get_close_matches(written, operators, n=1, cutoff=0.0)[0]
        raise ConfigCompositionException(
            f"{key}={value}: there is no operator {written!r}; the nearest is {near!r} ({_expected(operators, fields)})"
        )
    if rest and (len(rest) > 1 or rest[0] not in fields):
        raise ConfigCompositionException(
            f"{key}={value}: operator {written!r} has no {'.'.join(rest)!r}; expected {', '.join(fields)}"
        )


def _expected(operators: Sequence[str], fields: Sequence[str]) -> str:
    return f"operators: {', '.join(operators)}; fields: {', '.join(fields)}"


def _split(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of whatever is written like an override that sets something."""
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and not key.startswith(("~", "-")):
            yield key.lstrip("+"), value
