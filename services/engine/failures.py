"""Why a model could not be loaded, in a sentence: the one place that knows what the libraries mean."""

import errno
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from services.engine import memory
from services.engine.checkpoints import CONFIG, OWN_CODE, Unfit, damage
from services.errors import ModelUnavailable, ServiceError

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
IN_RUST = re.compile(r"\(os error (\d+)\)")  # how safetensors and tokenizers tell of the system's errors
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# What the libraries say, and what is meant. No path is to be read in it.
MEANINGS = tuple(
    (re.compile(said, re.DOTALL), meant)
    for said, meant in (
        ("trust_remote_code|not one of the libraries", OWN_CODE),
        (r"has no class `(\w+)`|module \w+ has no attribute (\w+)", "its model_index.json names an unknown class, {}"),
        (r"expected \[.*\], but only", "its model_index.json does not name all parts of this kind"),
        (
            r"because (\S+) expected shape torch.Size\((.+?)\), but got torch.Size\((.+?)\)",
            f"its weights do not fit its {CONFIG}: {{0}} is {{2}}, and {{1}} is expected",
        ),
        (r"backend tokenizer|tokenizers? library", "its tokenizer cannot be read, and none can be made of its files"),
        (r"image processor for '\S*?([^/']+)'", "its part {0} has no preprocessor_config.json"),
        (r"variant=(\w+)`, but no such", "it has no weight files of the variant '{0}'"),
        ("Weights only load failed", "its pickle holds more than weights, and is not read"),
        (r"'GenerationConfig' object has no attribute '(\w+)'", "its generation_config.json lacks {0}"),
        (r"validate_architecture.*?Error: ([^\n]+)", f"its {CONFIG} contradicts itself: {{0}}"),
    )
)
NO_FILE = re.compile(r"no file named (\S+) found in directory (\S+?)\.?$")


@contextmanager
def in_a_sentence(model_id: str, find: Callable[[], Path], *, wants_safetensors: bool) -> Iterator[None]:
    """Say what is wrong where a model is loaded, if that can be told; else what was raised goes on.

    Args:
        model_id: what the sentence calls it.
        find: brings up the checkpoint's folder once more, and checks all of it that can be checked.
        wants_safetensors: whether pickles are passed over.

    Raises:
        ModelUnavailable: the operator has to act.
    """
    try:
        with nothing_made_up():
            yield
    except ServiceError:
        raise
    except Exception as error:
        of_system = None if isinstance(error, Unfit) else system_reason(error)
        reason = of_system or _of_checkpoint(error, find(), wants_safetensors)
        if reason is None:
            raise
        raise ModelUnavailable(f"model '{model_id}' cannot be loaded: {reason}") from error


@contextmanager
def nothing_made_up() -> Iterator[None]:
    """Keep transformers from drawing at random what weights lack; one thread at a time.

    Raises:
        Unfit: they lack some, or have another shape.
    """
    from transformers import modeling_utils  # a model that is loaded has imported it, or is about to

    library: Any = modeling_utils
    report = library.log_state_dict_report

    def check(model: Any, *arguments: Any, loading_info: Any, **options: Any) -> None:
        network = type(model).__name__
        for tensor, stored, expected in sorted(loading_info.mismatched_keys):
            shapes = f"{list(stored)}, and {list(expected)} is expected"
            raise Unfit(f"the weights of its {network} do not fit its {CONFIG}: {tensor} is {shapes}")
        check_is_complete(network, loading_info.missing_keys & dict(model.named_parameters()).keys())
        report(model, *arguments, loading_info=loading_info, **options)

    library.log_state_dict_report = check
    try:
        yield
    finally:
        library.log_state_dict_report = report


def check_is_complete(network: str, missing: Collection[str]) -> None:
    """Refuse a network whose weights are not all there.

    Raises:
        Unfit: some are missing.
    """
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise Unfit(f"the weights of its {network} lack {min(missing)}{more}, which its {CONFIG} asks for")


def system_reason(error: BaseException) -> str | None:
    """Say what of the machine did not suffice or allow it, if that is why."""
    for each in chain(error):
        in_rust = IN_RUST.search(str(each))
        number = int(in_rust[1]) if in_rust else getattr(each, "errno", None)
        if number in NO_ROOM:
            return "there is no room left on the disk, or in a quota"
        if number in NOT_ALLOWED:
            name = Path(str(getattr(each, "filename", None) or "a file")).name
            return f"{name} may not be opened by the worker's user"
        if memory.is_out_of_memory(each):
            return "memory does not suffice for it"
    return None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _of_checkpoint(error: BaseException, folder: Path, wants_safetensors: bool) -> str | None:
    """Say what is wrong with the files, or else what the library means."""
    if own := next((str(each) for each in chain(error) if isinstance(each, Unfit)), None):
        return own
    try:
        damaged = damage(folder)
    except Unfit as unfit:
        return str(unfit)
    if damaged is not None:
        return damaged
    for each in chain(error):
        said = str(each)
        if missing := NO_FILE.search(said):
            return _missing(folder, Path(missing[2], missing[1]), wants_safetensors)
        for pattern, meant in MEANINGS:
            if found := pattern.search(said):
                return meant.format(*filter(None, found.groups()))
    return None


def _missing(folder: Path, file: Path, wants_safetensors: bool) -> str:
    name = file.relative_to(folder) if file.is_relative_to(folder) else file.name
    if (
        wants_safetensors
        and file.suffix == ".safetensors"
        and any(found for pattern in PICKLES for found in file.parent.glob(pattern))
    ):
        return f"{name} is missing: there are only pickles, which its entry does not allow"
    return f"{name} is missing"
