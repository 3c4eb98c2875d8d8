"""Conversion of pixels between byte arrays, byte tensors, and floats in [0, 1]."""

import torch
from torch import Tensor

from shards.codec.png import Pixels

CPU = torch.device("cpu")


def to_tensor(pixels: Pixels, device: torch.device = CPU) -> Tensor:
    """Move bytes (n, N, N, 3) to uint8 (n, 3, N, N) on a device, in channels-last memory."""
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)


def to_float(images_BCHW: Tensor) -> Tensor:
    """Convert uint8 to float32 in [0, 1], in channels-last memory."""
    return (images_BCHW.float() / 255).contiguous(memory_format=torch.channels_last)


def to_pixels(x_BCHW: Tensor) -> Pixels:
    """Convert float images (n, 3, N, N) in [0, 1] to bytes (n, N, N, 3) on the host, rounded."""
    images = (x_BCHW * 255).round().byte().permute(0, 2, 3, 1).contiguous()
    return images.cpu().numpy()
