"""What every test shares: no network, one thread a process, fixed seeds, the markers."""

import os

# Before torch and transformers are imported, as they read these once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tests fork; tokenizers warns at each fork otherwise
UNDER_XDIST = "PYTEST_XDIST_WORKER" in os.environ
if UNDER_XDIST:  # the workers are the parallelism: more threads only wait for each other
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import signal  # noqa: E402

# As a shell leaves it for what runs in the background; the programs that tests start would inherit it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import gc  # noqa: E402
import random  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

import tests.fakes.quick_python  # noqa: E402, F401  # started here, the workers share it

if UNDER_XDIST:
    torch.set_num_threads(1)

MARKERS = {
    "slow": "takes more than a few seconds; `make test-slow`",
    "whisper": "needs the weights of Whisper tiny.en; `make test-whisper`",
    "gpu": "needs a CUDA device; `make test-gpu`",
}
# Set by the decorators of transformers' common tests.
TRANSFORMERS_MARKERS = (
    *("accelerate_tests", "bitsandbytes", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "generate"),
    *("is_agent_test", "is_expert_parallel_test", "is_fsdp_test", "is_pipeline_test", "is_staging_test"),
    *("is_tensor_parallel_test", "is_training_test", "order", "torch_compile_test", "torch_export_test"),
)


def pytest_configure(config):
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    for name in TRANSFORMERS_MARKERS:
        config.addinivalue_line("markers", f"{name}: set by transformers' own tests")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish():
    """
    Take what is imported and collected, which lives as long as the process, out of the garbage collector's sight.

    `Trainer` and transformers' tests collect garbage again and again, which took half a second each time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def verbosity():
    """Scripts that are called in this process make transformers quiet; tests after them read its messages."""
    from transformers.utils import logging

    level, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    yield
    logging.set_verbosity(level)
    (logging.enable_progress_bar if shows_bars else logging.disable_progress_bar)()
