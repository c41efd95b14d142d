"""The models: where each keeps its head, how it divides into stages, and its published ImageNet checkpoint.

An architecture is described by names alone, so the core can group parameters without building anything. Here is every
classifier that torchvision and flowvision share, under torchvision's names; on every backend its parameters agree with
torchvision's in names, order and shapes. If there are several checkpoints it is torchvision's IMAGENET1K_V1;
regnet_y_128gf and vit_h_14 have only those of SWAG.

To add a model family, add its rows to `ARCHITECTURES`, with a function like `_resnet` if they have a layout in common,
and its sizes to `tlx.models.published`. No other file changes, as a backend offers every model of this table that its
framework's zoo has. To add a model from outside, call `register`: in a backend's light module, so that the command line
finds it too. A name with a prefix, such as `timm:NAME`, belongs to a library: see `tlx.models.libraries`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from tlx.errors import RecipeError, closest
from tlx.models.architecture import Architecture as Architecture
from tlx.models.architecture import own_architecture as own_architecture
from tlx.models.architecture import stages_of
from tlx.models.libraries import LIBRARIES, Listed, library_of
from tlx.models.pixels import IMAGENET
from tlx.models.published import PARAMETERS, PIXELS
from tlx.models.transformers import TRANSFORMERS

# The hex digits at the end of each checkpoint's name begin the file's SHA-256.
IMAGENET_URL = "https://download.pytorch.org/models/"


def _resnet(name: str, digits: str) -> Architecture:
    layers = tuple((f"layer{i}", (f"layer{i}",)) for i in range(1, 5))
    return Architecture(name, "fc", (("stem", ("conv1", "bn1")), *layers), f"{name}-{digits}.pth")


def _squeezenet(name: str, digits: str, min_size: int, numbers: Mapping[str, Iterable[int]]) -> Architecture:
    # The stages end where the network halves its resolution; the head is a convolution.
    return Architecture(name, "classifier.1", stages_of("features", **numbers), f"{name}-{digits}.pth", min_size)


def _alexnet(name: str, digits: str) -> Architecture:
    convolutions = stages_of("features", conv1=[0], conv2=[3], conv3=[6], conv4=[8], conv5=[10])
    linear = stages_of("classifier", fc6=[1], fc7=[4])
    return Architecture(name, "classifier.6", convolutions + linear, f"alexnet-owt-{digits}.pth", min_size=63)


def _vgg(name: str, digits: str, blocks: tuple[int, ...]) -> Architecture:
    # Each block is some convolutions, each with its ReLU and in the bn variants its norm, and ends in a pooling.
    per_convolution = 3 if name.endswith("_bn") else 2
    stages, at = {}, 0
    for i, convolutions in enumerate(blocks, 1):
        stages[f"block{i}"] = range(at, at + convolutions * per_convolution)
        at += convolutions * per_convolution + 1
    whole = stages_of("features", **stages) + stages_of("classifier", fc6=[0], fc7=[3])
    return Architecture(name, "classifier.6", whole, f"{name}-{digits}.pth", min_size=32)


def _densenet(name: str, digits: str) -> Architecture:
    ends = {1: "transition1", 2: "transition2", 3: "transition3", 4: "norm5"}
    blocks = {f"block{i}": [f"denseblock{i}", end] for i, end in ends.items()}
    return Architecture(
        name,
        "classifier",
        stages_of("features", stem=["conv0", "norm0"], **blocks),
        f"{name}-{digits}.pth",
        min_size=29,
        renamed=(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2"),  # the checkpoints are older than the names
    )


def _efficientnet(name: str, trained_by: str, digits: str) -> Architecture:
    stages = {f"stage{i}": [i] for i in range(1, 8)}
    file = f"{name}_{trained_by}-{digits}.pth"
    return Architecture(name, "classifier.1", stages_of("features", stem=[0], **stages, top=[8]), file)


def _mobilenet_v3(name: str, digits: str, numbers: Mapping[str, Iterable[int]]) -> Architecture:
    *stages, (top, paths) = stages_of("features", **numbers)
    whole = (*stages, (top, (*paths, "classifier.0")))
    return Architecture(name, "classifier.3", whole, f"{name}-{digits}.pth")


def _mnasnet(name: str, file: str) -> Architecture:
    stages = {f"stage{i}": [i + 7] for i in range(1, 7)}
    return Architecture(name, "classifier.1", stages_of("layers", stem=range(8), **stages, top=[14, 15]), file)


def _shufflenet(name: str, digits: str) -> Architecture:
    stages = tuple((stage, (stage,)) for stage in ("stage2", "stage3", "stage4"))
    file = f"{name.replace('_v2', 'v2').replace('x0_5', 'x0.5').replace('x1_0', 'x1')}-{digits}.pth"
    return Architecture(name, "fc", (("stem", ("conv1",)), *stages, ("top", ("conv5",))), file)


def _regnet(name: str, digits: str, kind: str = "") -> Architecture:
    blocks = stages_of("trunk_output", **{f"block{i}": [f"block{i}"] for i in range(1, 5)})
    return Architecture(name, "fc", (("stem", ("stem",)), *blocks), f"{name}{kind}-{digits}.pth")


# Their ImageNet weights expect pixels normalised in their own way, which the model then does itself; the auxiliary
# classifiers serve only training from nothing on ImageNet.
_GOOGLE = (("aux_logits", False), ("transform_input", True), ("init_weights", False))


def _google(name: str, file: str, min_size: int, left_out: tuple[str, ...], stages: Mapping[str, str]) -> Architecture:
    whole = tuple((stage, tuple(paths.split())) for stage, paths in stages.items())
    return Architecture(name, "fc", whole, file, min_size, _GOOGLE, left_out)


ARCHITECTURES: dict[str, Architecture] = {
    a.name: replace(a, parameters=PARAMETERS.get(a.name), pixels=PIXELS.get(a.name, IMAGENET))
    for a in (
        _resnet("resnet18", "f37072fd"),
        _resnet("resnet34", "b627a593"),
        _resnet("resnet50", "0676ba61"),
        _resnet("resnet101", "63fe2227"),
        _resnet("resnet152", "394f9c45"),
        _resnet("wide_resnet50_2", "95faca4d"),
        _resnet("wide_resnet101_2", "32ee1156"),
        _resnet("resnext50_32x4d", "7cdf4587"),
        _resnet("resnext101_32x8d", "8ba56ff5"),
        _resnet("resnext101_64x4d", "173b62eb"),
        _squeezenet("squeezenet1_0", "b66bff10", 21, dict(stem=[0], fire1=[3, 4, 5], fire2=[7, 8, 9, 10], fire3=[12])),
        _squeezenet("squeezenet1_1", "b8a52dc0", 17, dict(stem=[0], fire1=[3, 4], fire2=[6, 7], fire3=[9, 10, 11, 12])),
        _alexnet("alexnet", "7be5be79"),
        _vgg("vgg11", "8a719046", (1, 1, 2, 2, 2)),
        _vgg("vgg11_bn", "6002323d", (1, 1, 2, 2, 2)),
        _vgg("vgg13", "19584684", (2, 2, 2, 2, 2)),
        _vgg("vgg13_bn", "abd245e5", (2, 2, 2, 2, 2)),
        _vgg("vgg16", "397923af", (2, 2, 3, 3, 3)),
        _vgg("vgg16_bn", "6c64b313", (2, 2, 3, 3, 3)),
        _vgg("vgg19", "dcbb9e9d", (2, 2, 4, 4, 4)),
        _vgg("vgg19_bn", "c79401a0", (2, 2, 4, 4, 4)),
        _densenet("densenet121", "a639ec97"),
        _densenet("densenet161", "8d451a50"),
        _densenet("densenet169", "b2777c0a"),
        _densenet("densenet201", "c1103571"),
        _efficientnet("efficientnet_b0", "rwightman", "7f5810bc"),
        _efficientnet("efficientnet_b1", "rwightman", "bac287d4"),
        _efficientnet("efficientnet_b2", "rwightman", "c35c1473"),
        _efficientnet("efficientnet_b3", "rwightman", "b3899882"),
        _efficientnet("efficientnet_b4", "rwightman", "23ab8bcd"),
        _efficientnet("efficientnet_b5", "lukemelas", "1a07897c"),
        _efficientnet("efficientnet_b6", "lukemelas", "24a108a5"),
        _efficientnet("efficientnet_b7", "lukemelas", "c5b4e57e"),
        Architecture(
            "mobilenet_v2",
            "classifier.1",
            stages_of("features", stem=[0, 1], stage1=[2, 3], stage2=range(4, 7), stage3=range(7, 14))
            + stages_of("features", stage4=range(14, 18), top=[18]),
            "mobilenet_v2-b0353104.pth",
        ),
        _mobilenet_v3(
            "mobilenet_v3_large",
            "8738ca79",
            dict(stem=[0, 1], stage1=[2, 3], stage2=[4, 5, 6], stage3=range(7, 13), stage4=[13, 14, 15], top=[16]),
        ),
        _mobilenet_v3(
            "mobilenet_v3_small",
            "047dcff4",
            dict(stem=[0], stage1=[1], stage2=[2, 3], stage3=range(4, 9), stage4=[9, 10, 11], top=[12]),
        ),
        _mnasnet("mnasnet0_5", "mnasnet0.5_top1_67.823-3ffadce67e.pth"),
        _mnasnet("mnasnet0_75", "mnasnet0_75-7090bc5f.pth"),
        _mnasnet("mnasnet1_0", "mnasnet1.0_top1_73.512-f206786ef8.pth"),
        _mnasnet("mnasnet1_3", "mnasnet1_3-a4c69d6f.pth"),
        _shufflenet("shufflenet_v2_x0_5", "f707e7126e"),
        _shufflenet("shufflenet_v2_x1_0", "5666bf0f80"),
        _shufflenet("shufflenet_v2_x1_5", "3c479a10"),
        _shufflenet("shufflenet_v2_x2_0", "8be3c8ee"),
        _regnet("regnet_x_400mf", "adf1edd5"),
        _regnet("regnet_x_800mf", "ad17e45c"),
        _regnet("regnet_x_1_6gf", "e3633e7f"),
        _regnet("regnet_x_3_2gf", "f342aeae"),
        _regnet("regnet_x_8gf", "03ceed89"),
        _regnet("regnet_x_16gf", "2007eb11"),
        _regnet("regnet_x_32gf", "9d47f8d0"),
        _regnet("regnet_y_400mf", "c65dace8"),
        _regnet("regnet_y_800mf", "1b27b58c"),
        _regnet("regnet_y_1_6gf", "b11a554e"),
        _regnet("regnet_y_3_2gf", "b5a9779c"),
        _regnet("regnet_y_8gf", "d0d0e4a8"),
        _regnet("regnet_y_16gf", "9e6ed7dd"),
        _regnet("regnet_y_32gf", "4dee3f7a"),
        _regnet("regnet_y_128gf", "c8ce3e52", "_swag"),
        _google(
            "googlenet",
            "googlenet-1378be20.pth",
            15,
            ("aux1.", "aux2."),
            dict(
                stem="conv1 conv2 conv3",
                inception3="inception3a inception3b",
                inception4="inception4a inception4b inception4c inception4d inception4e",
                inception5="inception5a inception5b",
            ),
        ),
        _google(
            "inception_v3",
            "inception_v3_google-0cc3c7bd.pth",
            75,
            ("AuxLogits.",),
            dict(
                stem="Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 Conv2d_3b_1x1 Conv2d_4a_3x3",
                mixed5="Mixed_5b Mixed_5c Mixed_5d",
                mixed6="Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e",
                mixed7="Mixed_7a Mixed_7b Mixed_7c",
            ),
        ),
        *TRANSFORMERS,
        # Of the NumPy reference backend.
        *(Architecture(n, "fc", (("fc1", ("fc1", "bn1")),), "", hidden=True) for n in ("tiny-mlp", "tiny-mlp-dropout")),
    )
}


def register(arch: Architecture) -> None:
    """Add a model that a backend builds under `arch.name`, so that recipes can name it.

    Raises:
        RecipeError: another model has that name.
    """
    if ARCHITECTURES.setdefault(arch.name, arch) != arch:
        raise RecipeError(f"register: there is another model {arch.name!r} already; choose another name")


def architecture(name: str) -> Architecture:
    """Look up a model by its name.

    Raises:
        RecipeError: there is no such model; the nearest names are listed.
    """
    if name not in ARCHITECTURES:
        if name.partition(":")[0] not in LIBRARIES:
            _import_light_modules()
        if (library := library_of(name)) is not None:
            return library.load().architecture(name)
    if name not in ARCHITECTURES:
        visible = [arch.name for arch in ARCHITECTURES.values() if not arch.hidden]
        raise RecipeError(f"Unknown model {name!r}.{closest(name, visible)}")
    return ARCHITECTURES[name]


def architectures(pattern: str | None = None) -> list[Architecture]:
    """Return the models that a listing shows, with those that backends register.

    Args:
        pattern: only those whose name contains it, or matches it as a shell pattern.

    Raises:
        RecipeError: no name does.
    """
    _import_light_modules()
    visible = [arch for arch in ARCHITECTURES.values() if not arch.hidden]
    matching = [arch for arch in visible if not pattern or pattern in arch.name or fnmatchcase(arch.name, pattern)]
    if not matching:
        raise RecipeError(f"No model matches {pattern!r}; `tlx models` lists them all")
    return matching


def listed(pattern: str) -> Sequence[Listed] | None:
    """Return the models of a library that a pattern with its prefix matches; None: the pattern has no prefix.

    Raises:
        RecipeError: there is no such library, or no name matches.
    """
    _import_light_modules()
    if (library := library_of(pattern)) is None:
        return None
    if not (found := library.load().listed(pattern)):
        raise RecipeError(f"No model matches {pattern!r}; `tlx models '{library.prefix}:*'` lists them all")
    return found


def _import_light_modules() -> None:
    """Import the light module of each backend, which may register models. No framework is imported."""
    from tlx.backend import registry

    registry.available()
