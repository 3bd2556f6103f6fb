"""The peaks of devices, without torch."""

from __future__ import annotations

# Dense operations per second in 1e12, in bf16 or fp16, and in fp32 (TF32 if the device has it), from NVIDIA's data
# sheets. The first name that is part of the device's name counts.
PEAKS = {
    "B200": (2250.0, 1125.0),
    "H200": (989.0, 494.0),
    "H100 PCIe": (756.0, 378.0),
    "H100 NVL": (835.0, 417.0),
    "H100": (989.0, 494.0),
    "A100": (312.0, 156.0),
    "A10G": (70.0, 35.0),
    "A10": (125.0, 62.5),
    "L40S": (362.0, 183.0),
    "L4": (121.0, 60.0),
    "RTX 4090": (165.0, 82.6),
    "RTX 3090": (71.0, 35.6),
    "V100": (125.0, 15.7),
    "T4": (65.0, 8.1),
}


def peak_tflops(device_name: str, *, half: bool) -> float | None:
    """Look up the peak of a device in 1e12 operations per second.

    Args:
        device_name: Name from torch, such as "NVIDIA H100 80GB HBM3".
        half: Whether matrix products are in bf16 or fp16 instead of fp32.

    Returns:
        The peak, or None for an unknown device.
    """
    for name, (in_half, in_full) in PEAKS.items():
        if name in device_name:
            return in_half if half else in_full
    return None
