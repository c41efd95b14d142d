"""What torchvision publishes of each model: its size, and the pixels that its weights expect."""

from __future__ import annotations

from tlx.backend.preprocess import Interpolation
from tlx.models.pixels import Pixels

# Parameters with 1,000 classes, as `tlx models` lists them; a test holds them equal to torchvision's.
# fmt: off
PARAMETERS = {
    "resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032, "resnet101": 44_549_160,
    "resnet152": 60_192_808, "wide_resnet50_2": 68_883_240, "wide_resnet101_2": 126_886_696,
    "resnext50_32x4d": 25_028_904, "resnext101_32x8d": 88_791_336, "resnext101_64x4d": 83_455_272,
    "squeezenet1_0": 1_248_424, "squeezenet1_1": 1_235_496, "alexnet": 61_100_840, "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840, "vgg13": 133_047_848, "vgg13_bn": 133_053_736, "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992, "vgg19": 143_667_240, "vgg19_bn": 143_678_248, "densenet121": 7_978_856,
    "densenet161": 28_681_000, "densenet169": 14_149_480, "densenet201": 20_013_928, "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184, "efficientnet_b2": 9_109_994, "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616, "efficientnet_b5": 30_389_784, "efficientnet_b6": 43_040_704,
    "efficientnet_b7": 66_347_960, "mobilenet_v2": 3_504_872, "mobilenet_v3_large": 5_483_032,
    "mobilenet_v3_small": 2_542_856, "mnasnet0_5": 2_218_512, "mnasnet0_75": 3_170_208, "mnasnet1_0": 4_383_312,
    "mnasnet1_3": 6_282_256, "shufflenet_v2_x0_5": 1_366_792, "shufflenet_v2_x1_0": 2_278_604,
    "shufflenet_v2_x1_5": 3_503_624, "shufflenet_v2_x2_0": 7_393_996, "regnet_x_400mf": 5_495_976,
    "regnet_x_800mf": 7_259_656, "regnet_x_1_6gf": 9_190_136, "regnet_x_3_2gf": 15_296_552,
    "regnet_x_8gf": 39_572_648, "regnet_x_16gf": 54_278_536, "regnet_x_32gf": 107_811_560,
    "regnet_y_400mf": 4_344_144, "regnet_y_800mf": 6_432_512, "regnet_y_1_6gf": 11_202_430,
    "regnet_y_3_2gf": 19_436_338, "regnet_y_8gf": 39_381_472, "regnet_y_16gf": 83_590_140,
    "regnet_y_32gf": 145_046_770, "regnet_y_128gf": 644_812_894, "googlenet": 6_624_904, "inception_v3": 23_834_568,
    "vit_b_16": 86_567_656, "vit_b_32": 88_224_232, "vit_l_16": 304_326_632, "vit_l_32": 306_535_400,
    "vit_h_14": 632_045_800, "swin_t": 28_288_354, "swin_s": 49_606_258, "swin_b": 87_768_224,
    "convnext_tiny": 28_589_128, "convnext_small": 50_223_688, "convnext_base": 88_591_464,
    "convnext_large": 197_767_336,
}
# fmt: on


def _pixels(crop: int, resize: int, interpolation: Interpolation) -> Pixels:
    """Return what torchvision's evaluation does: resize the shorter side, and keep the central square."""
    return Pixels(crop, interpolation=interpolation, crop_fraction=crop / resize)


# Where they are others than `IMAGENET`; a test holds them equal to the transforms of torchvision's weights.
PIXELS = {
    "resnext101_64x4d": _pixels(224, 232, "bilinear"),
    "efficientnet_b0": _pixels(224, 256, "bicubic"),
    "efficientnet_b1": _pixels(240, 256, "bicubic"),
    "efficientnet_b2": _pixels(288, 288, "bicubic"),
    "efficientnet_b3": _pixels(300, 320, "bicubic"),
    "efficientnet_b4": _pixels(380, 384, "bicubic"),
    "efficientnet_b5": _pixels(456, 456, "bicubic"),
    "efficientnet_b6": _pixels(528, 528, "bicubic"),
    "efficientnet_b7": _pixels(600, 600, "bicubic"),
    "mnasnet0_75": _pixels(224, 232, "bilinear"),
    "mnasnet1_3": _pixels(224, 232, "bilinear"),
    "shufflenet_v2_x1_5": _pixels(224, 232, "bilinear"),
    "shufflenet_v2_x2_0": _pixels(224, 232, "bilinear"),
    "regnet_y_128gf": _pixels(384, 384, "bicubic"),
    "inception_v3": _pixels(299, 342, "bilinear"),
    "vit_l_16": _pixels(224, 242, "bilinear"),
    "vit_h_14": _pixels(224, 224, "bicubic"),
    "swin_t": _pixels(224, 232, "bicubic"),
    "swin_s": _pixels(224, 246, "bicubic"),
    "swin_b": _pixels(224, 238, "bicubic"),
    "convnext_tiny": _pixels(224, 236, "bilinear"),
    "convnext_small": _pixels(224, 230, "bilinear"),
    "convnext_base": _pixels(224, 232, "bilinear"),
    "convnext_large": _pixels(224, 232, "bilinear"),
}
