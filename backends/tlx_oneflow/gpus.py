"""NVIDIA's GPUs as their driver describes them, asked without OneFlow, whose first use of cuda may end the process."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU and its compute capability, such as (9, 0) of Hopper."""

    name: str
    capability: tuple[int, int]

    @property
    def usable(self) -> bool:
        """Whether OneFlow 0.9.0 has code for it.

        Its wheel holds code for sm_60 to sm_86, which runs on later minors of the same majors too, and no PTX, which a
        driver could translate for others.
        """
        return 6 <= self.capability[0] <= 8


def gpus() -> list[Gpu]:
    """Return the GPUs of this machine; none without a driver that answers."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    return [_described(driver, number) for number in range(count.value)]


def _described(driver: ctypes.CDLL, number: int) -> Gpu:
    device, name, values = ctypes.c_int(0), ctypes.create_string_buffer(256), [ctypes.c_int(0), ctypes.c_int(0)]
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetName(name, len(name), device)
    for attribute, value in zip((_MAJOR, _MINOR), values, strict=True):
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return Gpu(name.value.decode(errors="replace"), (values[0].value, values[1].value))
