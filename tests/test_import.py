"""`import qgru` costs what torch and lightning cost: it compiles nothing, initialises nothing, loads no extra."""

import subprocess
import sys

import pytest

HEAVY = ("onnx", "onnxruntime", "onnxscript", "matplotlib", "sktime", "statsmodels", "hydra", "pandas", "cuda")


def python(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_import_loads_only_its_own_modules_beyond_torch_and_lightning() -> None:
    loaded = python(
        "import sys, torch, lightning; before = set(sys.modules); import qgru;print(*(set(sys.modules) - before))"
    ).split()
    roots = {name.partition(".")[0] for name in loaded}
    assert "qgru" in roots
    assert not roots.intersection(HEAVY)
    standard = set(sys.stdlib_module_names)
    assert roots - standard <= {"qgru", "torch"}, "a third-party module that torch and lightning don't bring"


def test_import_initialises_and_compiles_nothing() -> None:
    python(
        "import subprocess, os, sys, torch\n"
        "def refuse(*a, **k): raise AssertionError('import qgru started a process')\n"
        "subprocess.Popen.__init__ = refuse; os.system = refuse\n"
        "state, threads = torch.get_rng_state(), torch.get_num_threads()\n"
        "default, grad = torch.get_default_dtype(), torch.is_grad_enabled()\n"
        "import qgru\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert 'torch.utils.cpp_extension' not in sys.modules\n"
        "assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads\n"
        "assert torch.get_default_dtype() == default and torch.is_grad_enabled() == grad\n"
        "assert not torch.distributed.is_initialized()\n"
    )


@pytest.mark.parametrize(
    "name",
    ["QuantGRU", "convert", "revert", "quantized_layers", "float_state_dict", "load_from_checkpoint", "loads_quantized",
     "BitwidthConfig", "OperatorConfig", "Grid", "load_config"],
)  # fmt: skip
def test_public_names(name: str) -> None:
    import qgru

    assert hasattr(qgru, name) and name in qgru.__all__


@pytest.mark.slow
def test_export_is_there_on_demand() -> None:
    python("import qgru; assert callable(qgru.export.export_onnx)")
    python("from qgru.callbacks import QuantizationLifecycle; from qgru.export import export_onnx")
