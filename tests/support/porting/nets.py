"""All networks with their pairs."""

from __future__ import annotations

from support.porting import convnext, dense, loop, mbconv, shared, tokens, two, unet, vit
from support.porting.case import Case, Net

NETS: list[tuple[Net, list[Case]]] = [
    (vit.NET, vit.CASES),
    (convnext.NET, convnext.CASES),
    (convnext.DEEP, convnext.DEEP_CASES),
    (mbconv.NET, mbconv.CASES),
    (mbconv.DEEP, mbconv.DEEP_CASES),
    (mbconv.DROPS, mbconv.DROPS_CASES),
    (shared.NET, shared.CASES),
    (dense.NET, dense.CASES),
    (unet.NET, unet.CASES),
    (two.NET, two.CASES),
    (tokens.NET, tokens.CASES),
    *loop.CASES,
]
