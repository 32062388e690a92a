"""Random Stable Diffusions between tiny and real: which there are, and where they are kept; knows no server."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

ROOT = Path(__file__).parents[1]
BENCH = ROOT / ".atelier" / "bench"  # everything that benchmarks keep

DOWN, DOWN_ATTENTIVE = "DownBlock2D", "CrossAttnDownBlock2D"
UP, UP_ATTENTIVE = "UpBlock2D", "CrossAttnUpBlock2D"


@dataclass(frozen=True)
class Checkpoint:
    """A Stable Diffusion with the parts of services/tiny, but for the denoiser.

    Args:
        name: what the command line calls it.
        size: pixels along each side of its pictures.
        channels: of the denoiser's levels, each half as wide and high as the one before; none: the tiny one's.
        layers: blocks a level.
    """

    name: str
    size: int
    channels: tuple[int, ...] = ()
    layers: int = 1
    has_middle: bool = True

    @property
    def data_dir(self) -> Path:
        """What `ATELIER_DATA_DIR` says to a worker that shall serve it."""
        digest = hashlib.sha256(repr(self).encode()).hexdigest()
        return BENCH / f"{self.name}-{digest[:8]}"

    @property
    def folder(self) -> Path:
        """Where its files are: where the worker looks for the tiny checkpoint."""
        return self.data_dir / "tiny" / "image"

    @property
    def size_name(self) -> str:
        """The size as the API has it."""
        return f"{self.size}x{self.size}"

    def build(self) -> Path:
        """Return the folder; its files are written if they are missing or stale."""
        from services.tiny.build import stamp
        from services.tiny.folder import fill

        return fill(self.folder, stamp("image"), self._write)

    def _write(self, target: Path) -> None:
        from services.tiny import image

        image.build(target)
        if self.channels:
            self._write_denoiser(target)

    def _write_denoiser(self, target: Path) -> None:
        from diffusers import UNet2DConditionModel

        from services.tiny.workbench import workbench

        num_inner = len(self.channels) - 1  # levels beside the innermost, which attends to nothing
        with workbench():
            model: Any = UNet2DConditionModel
            denoiser = model(
                sample_size=self.size // 8,
                layers_per_block=self.layers,
                block_out_channels=self.channels,
                norm_num_groups=8,
                down_block_types=(DOWN_ATTENTIVE,) * num_inner + (DOWN,),
                mid_block_type="UNetMidBlock2DCrossAttn" if self.has_middle else None,
                up_block_types=(UP,) + (UP_ATTENTIVE,) * num_inner,
                cross_attention_dim=image_width(),
                attention_head_dim=4,
            )
            denoiser.save_pretrained(target / "unet")


def image_width() -> int:
    """The width of the tiny text encoder's states."""
    from services.tiny.image import WIDTH

    return WIDTH


CHECKPOINTS: Mapping[str, Checkpoint] = MappingProxyType(
    {
        checkpoint.name: checkpoint
        for checkpoint in (
            Checkpoint("tiny", 64),  # 0.1 M parameters
            Checkpoint("middle", 64, (32, 64, 128, 256)),  # 12.4 M: many small layers, a batch pays
            Checkpoint("layered", 64, (16, 32), layers=4, has_middle=False),  # 0.4 M: all overhead, a batch pays most
            Checkpoint("dense", 128, (64, 128)),  # 3.1 M: all arithmetic, a batch does not pay
        )
    }
)
