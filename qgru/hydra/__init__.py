"""The Hydra side of qgru: ``+quant=int8_mixed`` in any Hydra project, with typed bit widths.

A wheel installs this package under ``hydra_plugins`` too, where Hydra finds it by itself. Hydra can't list an editable
install, so there (and wherever in doubt) the program says ``import qgru`` behind ``import hydra``, or its primary
configuration says ``hydra: {searchpath: [pkg://qgru.conf]}``. Where it did neither, qgru warns when it is used.
"""

# Hydra executes plugins before they are in sys.modules: no `from __future__ import annotations` beside dataclasses.
import warnings
from dataclasses import dataclass, field
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Optional

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin


@dataclass
class DefaultNode:
    """The types of ``default_config``."""

    disable_quantization: bool = False


@dataclass
class OperatorNode:
    """The types of one operator's entry; ranges are checked by ``qgru.load_config``."""

    bitwidth: int = 8
    is_symmetric: bool = True
    is_unsigned: bool = False


Group = dict[str, OperatorNode]


@dataclass
class OpNode:
    """The types of ``op``, with the optional operator: None is left out."""

    rRh: OperatorNode = field(default_factory=OperatorNode)
    old_contrib: OperatorNode = field(default_factory=OperatorNode)
    new_contrib: OperatorNode = field(default_factory=OperatorNode)
    Rh_add_br: Any = None  # OmegaConf can't make a typed node out of None from the command line


@dataclass
class OperatorsNode:
    """The types of ``operator_config``: ``gate.z_out.bitwidth`` and so on."""

    input: Group = field(default_factory=dict)
    output: Group = field(default_factory=dict)
    weight: Group = field(default_factory=dict)
    matmul: Group = field(default_factory=dict)
    gate: Group = field(default_factory=dict)
    op: OpNode = field(default_factory=OpNode)


@dataclass
class QuantNode:
    """The types of a preset's ``quant`` node."""

    default_config: DefaultNode = field(default_factory=DefaultNode)
    operator_config: OperatorsNode = field(default_factory=OperatorsNode)


@dataclass
class AutoNode:
    """The types of ``+quant=auto``'s ``quant`` node; ranges are checked by the lifecycle."""

    budget: float = 1.0
    max_error: Optional[float] = None  # noqa: UP045  for OmegaConf
    points: int = 1
    logits: bool = False


class QGRUSearchPathPlugin(SearchPathPlugin):
    """Appends qgru's configuration folder, and bit width files, to Hydra's search path, after the program's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append them, once."""
        if all(entry.provider != "qgru" for entry in search_path.get_path()):
            search_path.append(provider="qgru", path=f"file://{conf_folder()}")
            search_path.append(provider="qgru", path=f"qgru-files://{conf_folder()}")


def conf_folder() -> Path:
    """Return the folder of ``quant/``, without importing qgru (and so torch) into every Hydra program."""
    package = find_spec("qgru")
    assert package is not None and package.origin is not None  # this file is part of it
    spec = spec_from_file_location("qgru_presets", Path(package.origin).with_name("presets.py"))
    assert spec is not None and spec.loader is not None
    presets = module_from_spec(spec)
    spec.loader.exec_module(presets)
    return presets.conf_folder()


def warn_of_a_late_import() -> None:
    """Say so where a preset was asked for and Hydra, which did not know of it, has made a plain string of it."""
    if not HydraConfig.initialized() or "quant" in HydraConfig.get().runtime.choices:
        return
    presets = {path.stem for path in (conf_folder() / "quant").glob("*.yaml")}
    for override in HydraConfig.get().overrides.task:
        key, _, value = override.lstrip("+").partition("=")
        if key == "quant" and (value in presets or value.endswith((".json", ".yaml"))):
            warnings.warn(
                f"{override} had no effect but the plain string {value!r}: the configuration was composed before Hydra "
                "knew of qgru's presets. Write import qgru behind import hydra at the top of the program, or put "
                "hydra.searchpath=[pkg://qgru.conf] on the command line",
                stacklevel=2,
            )


ConfigStore.instance().store(group="qgru_schema", name="typed", node=QuantNode, provider="qgru")
ConfigStore.instance().store(group="qgru_schema", name="auto", node=AutoNode, provider="qgru")
if __name__ == "qgru.hydra":  # as part of hydra_plugins, Hydra is about to register both
    from qgru.hydra.files import QGRUFileSource

    Plugins.instance().register(QGRUSearchPathPlugin)
    Plugins.instance().register(QGRUFileSource)
    warn_of_a_late_import()
