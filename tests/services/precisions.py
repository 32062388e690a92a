"""Half precision takes minutes where a processor has no instructions for it: such exams are left to `make test-all`."""

from collections.abc import Iterable

import pytest
import torch

IS_NATIVE = {
    "bfloat16": torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    "float16": torch.ops.mkldnn._is_mkldnn_fp16_supported(),
}


def by_setting(names: Iterable[str]) -> pytest.MarkDecorator:
    """Run a test for each of these."""
    return pytest.mark.parametrize(
        "setting",
        [name if IS_NATIVE.get(name, True) else pytest.param(name, marks=pytest.mark.fresh) for name in names],
    )
