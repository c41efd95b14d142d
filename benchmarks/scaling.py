"""What many devices would cost: a calculation, not a measurement, from one device's speed and published bandwidths.

    python benchmarks/scaling.py --images-per-second 30 --parameters 11.7e6

A step takes as long as a device computes its share, and then sums the gradients: in a ring each device sends and
receives 2 (W - 1) / W of them (Patarasuk and Yuan, 2009), at the bandwidth of the slowest link, and waits for 2 (W - 1)
hops. Nothing of it overlaps with computing, as in tlx. A BatchNorm that trains adds three small sums for each layer.
The channel adds one exchange through the first process, whose time grows with W; `--exchange` is what one other process
adds, measured by `--measure` between processes of this machine.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time

# Bytes a second of one device in each direction, and seconds of a hop.
LINKS = {
    # NVIDIA's data sheet of the H100 SXM: NVLink 900 GB/s in both directions together.
    "NVLink 4 within a node": (450e9, 5e-6),
    # NVIDIA's data sheet of ConnectX-7: 400 Gb/s a port; a port for each device, as in a DGX H100.
    "InfiniBand NDR, 400 Gb/s a device": (50e9, 10e-6),
    # IEEE 802.3by: 25 Gb/s, which one flow of a ring crosses between two nodes.
    "Ethernet, 25 Gb/s a node": (25e9 / 8, 50e-6),
}
PROBE = """
import sys, time
from tlx.processes import connected
with connected() as channel:
    channel.gather(b"")
    begun = time.perf_counter()
    for _ in range(500):
        channel.gather(b"12345678")
    if channel.world.rank == 0:
        print((time.perf_counter() - begun) / 500 / (channel.world.size - 1))
"""


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images-per-second", type=float, required=True, help="of one device, measured")
    parser.add_argument("--parameters", type=float, default=11.7e6)
    parser.add_argument("--batch-norms", type=int, default=20, help="that train; of ResNet-18 there are 20")
    parser.add_argument("--per-device", type=int, default=64, help="images of the global batch for each device")
    parser.add_argument("--exchange", type=float, default=50e-6, help="seconds that each other process adds")
    parser.add_argument("--measure", action="store_true", help="measure the exchange here, with 3 processes")
    options = parser.parse_args()
    exchange = measured() if options.measure else options.exchange
    compute = options.per_device / options.images_per_second
    print(
        f"calculated: {options.per_device} images a device take {compute * 1e3:.1f} ms; "
        f"exchange {exchange * 1e6:.0f} us"
    )
    print("\n| devices | link | gradients, ms | BatchNorm, ms | channel, ms | efficiency |\n|---|---|---|---|---|---|")
    for devices in (8, 64, 1024):
        for link, (bandwidth, hop) in LINKS.items():
            if devices > 8 and link.startswith("NVLink"):
                continue
            gradients = ring(4 * options.parameters, devices, bandwidth, hop)
            norms = 3 * options.batch_norms * 2 * math.ceil(math.log2(devices)) * hop  # so small that a tree does it
            channel = exchange * (devices - 1)
            efficiency = compute / (compute + gradients + norms + channel)
            costs = " | ".join(f"{seconds * 1e3:.2f}" for seconds in (gradients, norms, channel))
            print(f"| {devices:,} | {link} | {costs} | {efficiency:.2f} |")
    return 0


def ring(size: float, devices: int, bandwidth: float, hop: float) -> float:
    """Return the seconds in which so many bytes are summed over devices in a ring."""
    return 2 * (devices - 1) / devices * size / bandwidth + 2 * (devices - 1) * hop


def measured() -> float:
    """Return what each process but the first adds to an exchange, in seconds."""
    children = []
    for rank in range(3):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 3, "LOCAL_WORLD_SIZE": 3, "MASTER_PORT": 29600}
        environ = {**os.environ, **{name: str(n) for name, n in place.items()}, "MASTER_ADDR": "127.0.0.1"}
        children.append(subprocess.Popen([sys.executable, "-c", PROBE], env=environ, stdout=-1, text=True))
        time.sleep(0.01)
    return float(children[0].communicate()[0])


if __name__ == "__main__":
    sys.exit(main())
