"""Data sets of PyTorch and torchvision themselves: their names, labels, subsets, transforms and loaders."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tlx.data import Data, load_data
from tlx.errors import DataError

pytestmark = pytest.mark.needs("torch")
WHOLE: dict[str, Any] = {"val_fraction": 0, "test_fraction": 0}


def folder(root: Path, classes: tuple[str, ...], count: int = 12) -> Path:
    """Photos, each of one grey that says its class and its number."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count // len(classes)):
            Image.new("RGB", (6, 5), (100 * label + i,) * 3).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def pets(tmp_path: Path) -> Any:
    from torchvision.datasets import ImageFolder

    return ImageFolder(str(folder(tmp_path / "pets", ("cat", "dog"))))


def names(data: Data, images: Any = None) -> list[str]:
    """The class of each image by its label, where its pixels say the same; that the pixels do is asserted."""
    images = data.train if images is None else images
    found = [data.classes[label] for label in images.labels]
    assert [("cat", "dog")[int(images.pixels(i)[0, 0, 0]) // 100] for i in range(len(images))] == found
    return found


def test_labels_of_a_known_data_set_need_no_decoding(tmp_path: Path) -> None:
    from torch.utils.data import ConcatDataset, Subset
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import default_loader

    reads: Counter[str] = Counter()

    def load(path: str) -> Any:
        reads[path] += 1
        return default_loader(path)

    root = folder(tmp_path / "pets", ("cat", "dog"), 60)
    source = ImageFolder(str(root), loader=load)
    givens: list[Any] = [
        source,
        Subset(source, range(60)),
        ConcatDataset([Subset(source, range(30)), Subset(source, range(30, 60))]),
    ]
    for given in givens:
        reads.clear()
        data = load_data(given, **WHOLE)
        assert len(reads) < 25 and not any("read once" in note for note in data.notes)
        assert len(data.train) == 60 and names(data) == ["cat"] * 30 + ["dog"] * 30


def test_a_target_transform_is_honoured_and_the_names_go_along(pets: Any, tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    plain, turned = pets, ImageFolder(pets.root, target_transform=lambda label: 1 - label)
    data = load_data((turned, plain), val_fraction=0)
    assert data.classes == ("dog", "cat") and names(data) == names(data, data.test) == ["cat"] * 6 + ["dog"] * 6
    assert any("train: 12 of 12 items were read once, to learn their labels" in note for note in data.notes)
    one_hot = ImageFolder(pets.root, target_transform=lambda label: np.eye(2)[label])
    assert names(load_data(one_hot, **WHOLE)) == ["cat"] * 6 + ["dog"] * 6
    text = ImageFolder(pets.root, target_transform=lambda label: ("Katze", "Hund")[label])
    assert load_data(text, **WHOLE).classes == ("Hund", "Katze")
    data = load_data(ImageFolder(pets.root, target_transform=lambda label: label + 1), **WHOLE)
    assert data.classes == ("cat", "dog") and data.train.labels.tolist() == [0] * 6 + [1] * 6


def test_samples_that_were_changed_by_hand_count_and_not_the_targets_beside_them(pets: Any) -> None:
    pets.samples = [(path, 1 - label) for path, label in pets.samples]
    data = load_data(pets, **WHOLE)
    assert data.train.labels.tolist() == [1] * 6 + [0] * 6


def test_names_come_through_subsets_and_joined_data_sets(pets: Any) -> None:
    import torch
    from torch.utils.data import ConcatDataset, Subset, random_split

    train, test = random_split(pets, [8, 4], generator=torch.Generator().manual_seed(0))
    data = load_data((train, test), val_fraction=0)
    assert data.classes == ("cat", "dog") and data.test is not None
    assert sorted(names(data) + names(data, data.test)) == ["cat"] * 6 + ["dog"] * 6
    joined: Any = ConcatDataset([Subset(Subset(pets, [11, 0, 3, 8]), [3, 2, 1]), ConcatDataset([pets, pets])])
    data = load_data(joined, **WHOLE)
    assert names(data) == ["dog", "cat", "cat"] + (["cat"] * 6 + ["dog"] * 6) * 2


def test_data_sets_of_other_classes_are_never_scored_as_one_another(pets: Any, tmp_path: Path) -> None:
    from torch.utils.data import ConcatDataset, Subset
    from torchvision.datasets import ImageFolder

    insects = ImageFolder(str(folder(tmp_path / "insects", ("ant", "bee"))))
    with pytest.raises(DataError, match=r"test has classes that train does not have: ant, bee\."):
        load_data((pets, insects))
    data = load_data(ConcatDataset([pets, insects]), **WHOLE)
    assert data.classes == ("ant", "bee", "cat", "dog")
    assert [data.classes[label] for label in data.train.labels[::6]] == ["cat", "dog", "ant", "bee"]
    more = ImageFolder(str(folder(tmp_path / "more", ("ape", "cat", "dog"))))
    only = [i for i, (_, label) in enumerate(more.samples) if label]
    data = load_data((pets, Subset(more, only)), val_fraction=0)
    assert data.classes == ("cat", "dog") and data.test is not None
    assert data.test.labels.tolist() == [0] * 4 + [1] * 4


def test_a_subset_of_few_classes_has_only_these(tmp_path: Path) -> None:
    from torch.utils.data import Subset
    from torchvision.datasets import ImageFolder

    source = ImageFolder(str(folder(tmp_path / "x", ("ant", "bee", "cat"))))
    data = load_data(Subset(source, [i for i, label in enumerate(source.targets) if label != 1]), **WHOLE)
    assert data.classes == ("ant", "cat") and data.train.labels.tolist() == [0] * 4 + [1] * 4


def test_transforms_that_make_tensors_are_undone_and_random_or_normalising_ones_refused(pets: Any) -> None:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose, Normalize, RandomCrop, ToTensor

    plain, tensors = load_data(pets, **WHOLE), load_data(ImageFolder(pets.root, transform=ToTensor()), **WHOLE)
    assert all(np.array_equal(plain.train.pixels(i), tensors.train.pixels(i)) for i in range(12))
    normalised = ImageFolder(pets.root, transform=Compose([ToTensor(), Normalize([0.5] * 3, [0.5] * 3)]))
    with pytest.raises(DataError, match=r"seem to be normalised. Fix: give them without Normalize"):
        load_data(normalised)
    Image.fromarray(np.arange(108, dtype=np.uint8).reshape(6, 6, 3)).save(pets.samples[0][0])
    with pytest.raises(DataError, match="item 0 of ImageFolder is another image each time"):
        load_data(ImageFolder(pets.root, transform=RandomCrop(2)))


def test_tensors_alone_and_in_a_data_set_of_tensors() -> None:
    import torch
    from torch.utils.data import TensorDataset

    pixels = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
    x, y = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), torch.arange(12) % 3
    wanting = (x.float() / 255).requires_grad_()
    for given in ((x, y), TensorDataset(x, y), TensorDataset(x.float() / 255, y[:, None]), (wanting, y.float())):
        data = load_data(given, **WHOLE)
        assert data.train.labels.tolist() == y.tolist()
        assert all(np.array_equal(data.train.pixels(i), pixels[i]) for i in range(12))
    one_hot = torch.nn.functional.one_hot(y)
    assert load_data({"train": (x, one_hot)}, val_fraction=0).train.labels.tolist() == y.tolist()
    with pytest.raises(DataError, match=r"cannot be read as an array: .* unsupported ScalarType BFloat16"):
        load_data((wanting.bfloat16(), y))
    with pytest.raises(DataError, match=r"pixels are float32 from 0 to 2.*Fix: images\.astype"):
        load_data(TensorDataset(x.float(), y))


def test_a_loader_and_a_stream_say_what_to_pass_instead(pets: Any) -> None:
    from torch.utils.data import DataLoader, IterableDataset

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(pets)

    loader: Any = DataLoader(pets, batch_size=4)
    stream: Any = Stream()
    with pytest.raises(DataError, match=r"all is a DataLoader, which makes batches.*Fix: pass loader\.dataset"):
        load_data(loader)
    with pytest.raises(DataError, match=r"train is a DataLoader.*Fix: pass loader\.dataset"):
        load_data((loader, loader))
    with pytest.raises(DataError, match=r"a Stream has no length or no items by number. Fix: pass list\(data\)"):
        load_data(stream)
    assert load_data(list(stream), **WHOLE).train.labels.tolist() == [0] * 6 + [1] * 6


def test_generated_images_are_read_once_for_their_labels() -> None:
    from torchvision.datasets import FakeData

    source = FakeData(20, (3, 6, 6), 2, random_offset=1)
    data = load_data(source, **WHOLE)
    assert data.train.labels.tolist() == [int(source[i][1]) for i in range(20)]
    assert any("all: 20 of 20 items were read once, to learn their labels" in note for note in data.notes)


def test_a_damaged_photo_of_a_known_data_set_can_be_left_out(pets: Any) -> None:
    Path(pets.samples[5][0]).write_bytes(b"no photo")
    data = load_data({"train": pets}, val_fraction=0, on_bad_image="skip")
    assert list(data.train.names) == [str(i) for i in range(12) if i != 5]
    assert any("left out 1 of 12 samples of train that cannot be used: 5" in note for note in data.notes)
