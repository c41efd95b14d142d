"""The fields of a recipe, once as they are declared and once as the keywords that an editor completes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from tlx.backend.optimizers import OptimizerName
from tlx.backend.preprocess import Aspect, Interpolation
from tlx.data import DataLike
from tlx.data.augment import describe_ops
from tlx.data.images import MAX_PIXELS
from tlx.data.sources.registry import describe_sources
from tlx.recipe_fields import (
    ClassWeights,
    Exact,
    FeatureCache,
    HeadLike,
    ModelLike,
    OnBadImage,
    PrecisionName,
    Sampler,
    check_data,
    check_head,
    check_model,
    check_strategy,
    choice,
    field,
    loggers,
    names,
    number,
    text,
    triple,
    truth,
    widths,
)
from tlx.strategy.built_in import StrategyName
from tlx.strategy.plan import DecayOn, FrozenNorm, Strategy
from tlx.strategy.schedule import ScheduleName


@dataclass(frozen=True, slots=True, repr=False)
class Schema:
    """What a `Recipe` holds. The class that checks and uses the values is the recipe itself."""

    backend: str = text(
        "torch", "backend that computes: see `tlx backends`", group="Machine and files", affects="place"
    )
    strategy: StrategyName | str | Strategy = field(
        "full", "what trains, and at which rates: see `tlx strategies`", check_strategy, group="Strategy"
    )
    lr: float | None = number(None, "learning rate of the head, or of everything", group="Strategy", low=0)
    backbone_lr: float | None = number(
        None, "learning rate of the backbone, where the strategy has one", group="Strategy", low=0
    )
    stages: tuple[str, ...] | None = names(
        "strategy partial: the stages that train; default: the last",
        group="Strategy",
        example="['layer3', 'layer4']",
        least=1,
    )
    phase_epochs: int | None = number(
        None,
        "strategy head_then_full: epochs of the head alone; gradual: epochs between two stages",
        group="Strategy",
        low=1,
        whole=True,
    )
    layer_decay: float | None = number(
        None, "strategy layer_decay: a stage's rate divided by that of the next", group="Strategy", low=0, high=1
    )
    neighbors: int | None = number(
        None,
        "strategy knn: training images that vote; default: 10, 20, 100 or 200, by the validation accuracy",
        group="Strategy",
        low=1,
        whole=True,
    )
    rank: int | None = number(
        None, "strategy lora: rank of the adapters", group="Strategy", low=1, high=2**14, whole=True
    )
    alpha: float | None = number(
        None, "strategy lora: the adapters count alpha / rank times", group="Strategy", low=1e-6
    )
    lora_targets: tuple[str, ...] | None = names(
        "strategy lora: patterns of the layers that get adapters, by path; default: every linear layer but the head",
        group="Strategy",
        example="['*.mlp.*', 'layer4.*']",
        least=1,
    )
    frozen_norm: FrozenNorm = choice(
        "keep",
        "BatchNorm in a frozen part keeps its statistics, or goes on adapting them as in the tutorials",
        FrozenNorm,
        group="Strategy",
    )
    data: DataLike = field("cifar10", describe_sources(), check_data, group="Data")
    data_root: str | None = text(
        None, "folder that holds the published data set; default: the download cache", group="Data", affects="place"
    )
    classes: tuple[str, ...] | None = names(
        "use only these classes, in this order", group="Data", example="['cat', 'dog']", least=2
    )
    limit_train: int | None = number(
        None, "use at most this many training images, with the classes in proportion", group="Data", low=1, whole=True
    )
    limit_test: int | None = number(
        None, "use at most this many test images, with the classes in proportion", group="Data", low=1, whole=True
    )
    val_fraction: float = number(
        0.1,
        "fraction of the training images held out for validation, which chooses the best epoch; 0: keep the last epoch",
        group="Data",
        low=0,
        high=0.9,
    )
    images_per_class: int | None = number(
        None,
        "train on at most this many images of each class, drawn by the seed from what is not held out for validation",
        group="Data",
        low=1,
        whole=True,
    )
    test_fraction: float = number(
        0.2,
        "fraction held out for the test where the data has no parts; 0: no test, and a val folder chooses the epoch",
        group="Data",
        low=0,
        high=0.9,
    )
    evaluate_test: bool = truth(
        True,
        "evaluate on the test part at the end; off: it stays unread, so that runs are chosen by validation alone",
        group="Data",
    )
    on_bad_image: OnBadImage = choice(
        "error", "an image that cannot be decoded stops the run, or is left out and counted", OnBadImage, group="Data"
    )
    max_pixels: int = number(
        MAX_PIXELS,
        "a photo of more pixels is refused before it takes memory: 4 bytes a pixel in each thread that decodes",
        group="Data",
        low=1,
        whole=True,
        affects="place",
    )
    path_column: str | None = text(
        None, "column of a .csv or .parquet file with the photos or their paths; default: guessed", group="Data"
    )
    label_column: str | None = text(
        None,
        "column of a .csv or .parquet file, or name in a shard's .json, with the labels; default: guessed; of a .csv "
        "also several, with commas between, that hold 0 or 1",
        group="Data",
    )
    label_separator: str | None = text(
        None, 'what stands between several labels of an image in the label_column of a .csv, such as "|"', group="Data"
    )
    fixes: str | None = text(
        None, "CSV file of decisions on single images, as `tlx check --decisions` writes it", group="Data"
    )
    model: ModelLike = field(
        "resnet18",
        "architecture: see `tlx models`, or timm:NAME; in Python also a module of the framework",
        check_model,
        group="Model",
    )
    head: HeadLike | None = field(
        None,
        "path of the layer to replace in a module of your own, such as classifier.2; in Python also a module for it",
        check_head,
        group="Model",
    )
    hidden: int | tuple[int, ...] | None = widths(
        "widths of the head's hidden layers, such as 256 or 512,256, each with a ReLU", group="Model"
    )
    dropout: float = number(
        0.0,
        "fraction of the units that the head drops before its last layer, and after each hidden one",
        group="Model",
        low=0,
        high=0.99,
    )
    weights: str | None = text(
        None,
        "imagenet, none, a weights file (.pth, .ckpt, .bin, .safetensors), a run folder, or hf-hub:OWNER/NAME",
        group="Model",
    )
    epochs: int = number(3, "passes over the training images", group="Training", low=1, whole=True)
    batch_size: int = number(
        64, "images in a step, at most all; the last partial batch is kept", group="Training", low=1, whole=True
    )
    micro_batch: int | None = number(
        None,
        "images on the device at once; their gradients add up to those of batch_size",
        group="Training",
        low=1,
        whole=True,
    )
    image_size: int | None = number(
        None,
        "height and width of the network's input, in pixels; default: the model's, 224 of most",
        group="Pixels",
        low=8,
        high=4096,
        whole=True,
    )
    aspect: Aspect | None = choice(
        None,
        "a photo becomes square by its central part, by changing the ratio of its sides, or by margins; default: the "
        "model's, crop of most; images of one size are taken whole",
        Aspect,
        group="Pixels",
    )
    crop_fraction: float | None = number(
        None,
        "fraction of the sides that evaluation keeps, of the shorter where it crops; default: the model's for photos, "
        "0.875 of most, otherwise 1",
        group="Pixels",
        low=0.1,
        high=1,
    )
    interpolation: Interpolation | None = choice(
        None, "how images are resized; default: the model's, bilinear of most", Interpolation, group="Pixels"
    )
    antialias: bool = truth(
        True, "shrinking averages all pixels; off: for weights that were trained without", group="Pixels"
    )
    mean: tuple[float, float, float] | None = triple(
        "subtracted from red, green and blue, on the scale from 0 to 1; default: the model's, ImageNet's of most",
        group="Pixels",
        low=0,
        example="0.485,0.456,0.406",
    )
    std: tuple[float, float, float] | None = triple(
        "what red, green and blue are then divided by; default: the model's, ImageNet's of most",
        group="Pixels",
        low=0.001,
        example="0.229,0.224,0.225",
    )
    augment: str = text("flips", describe_ops(), group="Augmentation and labels")
    augment_repeats: int | None = number(
        None,
        "epochs after which augmentation repeats itself, so that features of random crops can be cached",
        group="Augmentation and labels",
        low=1,
        whole=True,
    )
    mixup: float = number(0.0, "alpha of mixup; 0: off", group="Augmentation and labels", low=0, high=100)
    cutmix: float = number(0.0, "alpha of cutmix; 0: off", group="Augmentation and labels", low=0, high=100)
    label_smoothing: float = number(
        0.0, "fraction of each label spread over all classes", group="Augmentation and labels", low=0, high=1
    )
    class_weights: ClassWeights = choice(
        "none", "balanced: rare classes weigh more in the loss", ClassWeights, group="Augmentation and labels"
    )
    sampler: Sampler = choice(
        "shuffle",
        "shuffle: each image once an epoch; balanced: each class equally often",
        Sampler,
        group="Augmentation and labels",
    )
    optimizer: OptimizerName = choice("sgd", "update rule", OptimizerName, group="Training")
    momentum: float = number(0.9, "momentum factor (sgd, rmsprop)", group="Training", low=0, high=0.9999)
    weight_decay: float = number(
        5e-4, "L2 penalty, added to the gradient; adamw shrinks the weights instead", group="Training", low=0
    )
    decay_on: DecayOn = choice(
        "all", "weight_decay acts on all parameters, or leaves norms and biases alone", DecayOn, group="Training"
    )
    clip_norm: float | None = number(None, "gradients are clipped to this joint norm", group="Training", low=1e-12)
    schedule: ScheduleName = choice(
        "constant", "how the learning rates change over time", ScheduleName, group="Training"
    )
    step_size: int = number(
        7,
        "schedule step: epochs between drops; plateau: epochs without a lower validation loss before a drop",
        group="Training",
        low=1,
        whole=True,
    )
    gamma: float = number(0.1, "factor of each drop (schedules step and plateau)", group="Training", low=0, high=1)
    warmup: float = number(0.0, "epochs of linear warm-up", group="Training", low=0)
    ema: float | None = number(
        None,
        "decay of a moving average of the weights, which is then what is evaluated and saved",
        group="Training",
        low=0,
        high=0.999999,
    )
    patience: int | None = number(
        None, "stop after this many epochs without a better validation accuracy", group="Training", low=1, whole=True
    )
    exact: Exact = choice(
        "fast",
        "how gradients are added up; bits: those of fixed shards in one order, so that any number of processes gives "
        "the same bits",
        Exact,
        group="Training",
    )
    shards: int = number(
        4,
        "exact bits: shards of each batch, at least one for each process",
        group="Training",
        low=1,
        high=2**10,
        whole=True,
    )
    seed: int = number(0, "random seed", group="Training", low=0, high=2**63 - 1, whole=True)
    precision: PrecisionName = choice(
        "auto",
        "auto: bfloat16 where the hardware has it and gradients are repeatable in it, otherwise float32",
        PrecisionName,
        group="Machine and files",
        affects="place",
    )
    device: str = text(
        "auto", "auto: cuda where there is one, otherwise cpu", group="Machine and files", affects="place"
    )
    workers: int = number(
        2, "threads that decode photos", group="Machine and files", low=0, high=256, whole=True, affects="speed"
    )
    feature_cache: FeatureCache = choice(
        "auto",
        "the output of a frozen backbone is cached, auto: for later runs too; run: for this run only; off: never",
        FeatureCache,
        group="Machine and files",
        affects="speed",
    )
    save_seconds: float = number(
        60.0, "seconds between two saves within an epoch", group="Machine and files", low=0, affects="speed"
    )
    out: str | None = text(
        None, "folder of this run; default: a new one below runs/", group="Machine and files", affects="place"
    )
    log: str | tuple[str, ...] | None = loggers(
        "where else the figures go, besides the folder: tensorboard, wandb, mlflow, trackio, or several with commas",
        group="Machine and files",
    )


class RecipeFields(TypedDict, total=False):
    """The fields of a `Recipe` as keywords, for editors and type checkers; a test holds them equal to the class."""

    backend: str
    strategy: StrategyName | str | Strategy
    lr: float | None
    backbone_lr: float | None
    stages: tuple[str, ...] | None
    phase_epochs: int | None
    layer_decay: float | None
    neighbors: int | None
    rank: int | None
    alpha: float | None
    lora_targets: tuple[str, ...] | None
    frozen_norm: FrozenNorm
    data: DataLike
    data_root: str | None
    classes: tuple[str, ...] | None
    limit_train: int | None
    limit_test: int | None
    val_fraction: float
    images_per_class: int | None
    test_fraction: float
    evaluate_test: bool
    on_bad_image: OnBadImage
    max_pixels: int
    path_column: str | None
    label_column: str | None
    label_separator: str | None
    fixes: str | None
    model: ModelLike
    head: HeadLike | None
    hidden: int | tuple[int, ...] | None
    dropout: float
    weights: str | None
    epochs: int
    batch_size: int
    micro_batch: int | None
    image_size: int | None
    aspect: Aspect | None
    crop_fraction: float | None
    interpolation: Interpolation | None
    antialias: bool
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    augment: str
    augment_repeats: int | None
    mixup: float
    cutmix: float
    label_smoothing: float
    class_weights: ClassWeights
    sampler: Sampler
    optimizer: OptimizerName
    momentum: float
    weight_decay: float
    decay_on: DecayOn
    clip_norm: float | None
    schedule: ScheduleName
    step_size: int
    gamma: float
    warmup: float
    ema: float | None
    patience: int | None
    exact: Exact
    shards: int
    seed: int
    precision: PrecisionName
    device: str
    workers: int
    feature_cache: FeatureCache
    save_seconds: float
    out: str | None
    log: str | tuple[str, ...] | None
