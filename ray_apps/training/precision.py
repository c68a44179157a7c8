"""Arithmetic of a run. Weights, gradients and optimizer state are always fp32; ``bf16`` and ``fp16`` are autocast around the forward pass.

fp16 has five exponent bits: small gradients vanish, so the loss is scaled up and a step whose gradients overflow is skipped
(Micikevicius et al., "Mixed Precision Training", 2018). bf16 has the range of fp32 and needs none of that.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from schemas.errors import SettingsError
from schemas.settings import TrainingSettings

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """The resolved choice for a device."""

    name: str
    """fp32, bf16 or fp16."""
    device: torch.device

    def autocast(self) -> AbstractContextManager[object]:
        """Context for the forward pass."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.name])

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaler; does nothing unless the run is fp16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")


def resolve_precision(settings: TrainingSettings, device: torch.device) -> Precision:
    """Choose for ``device``. Raises SettingsError for fp16 on a CPU, which has no fast fp16 kernels."""
    if settings.precision != "auto":
        if settings.precision == "fp16" and device.type == "cpu":
            raise SettingsError("training.precision is 'fp16', but this run is on CPU; use 'bf16', 'fp32' or 'auto'")
        return Precision(settings.precision, device)
    if device.type != "cuda":
        return Precision("fp32", device)
    return Precision("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16", device)
