"""Eight virtual CPU devices; one worker per mixer, so that its tests share what they compile.

With `JAX_PLATFORMS=cuda` and `-m gpu`, the laws, the golden numbers and the ops are tested on a GPU.
"""

import os


os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Small programs compile twice as fast without LLVM's optimiser.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    + os.environ.get("XLA_FLAGS", "")
)

import jax  # noqa: E402
import jax.random as jr  # noqa: E402
import pytest  # noqa: E402


ON_GPU = jax.default_backend() == "gpu"
if ON_GPU:  # else its matrix products round float32 to ten bits
    jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session")
def key():
    return jr.key(0, impl="rbg")


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """A process has room for some ten thousand compiled programs, and then it crashes."""
    yield
    jax.clear_caches()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Keeps the tests of a mixer's case, else those of a file, in one worker."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        case = None if callspec is None else getattr(callspec.params.get("case"), "id", None)
        group = item.path.name if case is None else f"{item.path.name}-{case}"
        item.add_marker(pytest.mark.xdist_group(group))
        if not ON_GPU and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip("JAX's default backend is not a GPU"))
        if ON_GPU and _runs_anywhere(item.path.name):
            item.add_marker(pytest.mark.gpu)


def _runs_anywhere(file: str) -> bool:
    """Whether the file's tests say nothing of a platform, so that they hold on a GPU as well."""
    numeric = ("test_mixer_laws", "test_golden", "test_float64", "test_linear_scan")
    scans = ("test_selective_scan", "test_ssd", "test_oscillator", "test_max_scan")
    memories = (
        "test_delta_",
        "test_gated_linear",
        "test_generalized",
        "test_decayed",
        "test_triang",
    )
    return file.startswith((*numeric, *scans, *memories))


def pytest_terminal_summary(terminalreporter):
    from mixer_cases import CASES

    waivers = [(case.id, law, why) for case in CASES for law, why in case.waived.items()]
    terminalreporter.section(f"{len(waivers)} laws waived in tests/mixer_cases.py")
    for case, law, why in waivers:
        terminalreporter.line(f"{case}: {law}: {why}")
    variants = [case.id for case in CASES if case.variant]
    terminalreporter.line(f"Fewer laws, as variants of a class: {', '.join(variants)}")
