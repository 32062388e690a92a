"""An encoder that is taught by questions about what it reads or sees; knows no model."""

from typing import Any

from torch import nn

from services.tiny.workbench import workbench


@workbench()
def pupil(encoder: Any, width: int, num_answers: int) -> Any:
    """Put a layer beside the `encoder` that answers from the `width` numbers it makes: the same one at every call.

    Returns:
        "encoder" and "answers", where the encoder is.
    """
    return nn.ModuleDict({"encoder": encoder, "answers": nn.Linear(width, num_answers)}).to(encoder.device)
