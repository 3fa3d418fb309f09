import pickle
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparsemix.data import DATASETS, Images, ResidentPairs, benchmark_split, halves, open_pairs, stratified_subset


def write_folder(root, counts, size=8):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def tiny_images(n=20, size=8, classes=2, **options):
    pixels = torch.arange(n * size * size * 3).remainder(251).to(torch.uint8).view(n, size, size, 3)
    return Images(pixels, torch.arange(n) % classes, tuple("abcdefghij"[:classes]), **options)


def test_digits_are_real_images_in_ten_classes():
    pairs = open_pairs("digits", batch_size=64)
    assert (pairs.in_chans, pairs.image_size, len(pairs.classes)) == (1, 8, 10)
    seen = sum(len(y) for (_, y), _ in pairs.epoch(0))
    assert len(pairs) == -(-seen // 64)
    assert 700 < seen < 800


def test_halves_are_disjoint_complete_and_stratified():
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate((7, 30, 64))])
    a, b = halves(labels, seed=3)
    assert sorted([*a.tolist(), *b.tolist()]) == list(range(101))
    for c in range(3):
        assert abs(int((labels[a] == c).sum()) - int((labels[b] == c).sum())) <= 1
    assert torch.equal(a, halves(labels, seed=3)[0])
    assert abs(len(a) - len(b)) == 1
    many = torch.arange(9).repeat_interleave(torch.arange(3, 21, 2))  # nine classes of an odd size
    assert [len(half) for half in halves(many, seed=0)] == [50, 49]
    assert not torch.equal(a, halves(labels, seed=4)[0])


def test_a_limit_keeps_every_class_its_share():
    labels = torch.arange(1000) % 10
    subset = stratified_subset(labels, 205, seed=0)
    counts = Counter(labels[subset].tolist())
    assert sum(counts.values()) == 205
    assert set(counts.values()) <= {20, 21}
    assert torch.equal(stratified_subset(labels, None, 0), torch.arange(1000))


def test_an_epoch_visits_every_image_of_the_weights_half_once():
    images = tiny_images(20)
    pairs = ResidentPairs(images, images, batch_size=6, seed=1)
    assert [len(y) for (_, y), _ in pairs.epoch(0)] == [6, 6, 6, 2]
    order = torch.cat([y for (_, y), _ in pairs.epoch(0)])
    assert order.bincount().tolist() == [10, 10]


def test_batches_are_a_pure_function_of_seed_epoch_and_step():
    images = tiny_images(20)
    pairs = ResidentPairs(images, images, batch_size=6, seed=1)
    torch.manual_seed(5)
    whole = list(pairs.epoch(3))
    torch.manual_seed(6)
    for (a, b), (c, d) in zip(whole[2:], pairs.epoch(3, start=2), strict=True):
        assert all(torch.equal(p, q) for p, q in zip((*a, *b), (*c, *d), strict=True))
    other = next(pairs.epoch(4))
    assert not torch.equal(other[0][0], whole[0][0][0])


def test_augmentation_is_a_shifted_and_mirrored_window_of_the_image():
    """Every training image is found among the windows of its padded original, plain or mirrored."""
    images = tiny_images(6, classes=2)
    pairs = ResidentPairs(images, images, batch_size=6)
    padded = torch.nn.functional.pad(images.pixels, (0, 0, 1, 1, 1, 1))
    windows = {}
    for n in range(6):
        for dy in range(3):
            for dx in range(3):
                window = padded[n, dy : dy + 8, dx : dx + 8]
                windows[window.numpy().tobytes()] = (n, False)
                windows[window.flip(1).numpy().tobytes()] = (n, True)
    seen = Counter()
    for epoch in range(20):
        for (x, y), _ in pairs.epoch(epoch):
            pixels = (
                (x.permute(0, 2, 3, 1) * pairs.weights.normalization.std + pairs.weights.normalization.mean)
                .round()
                .to(torch.uint8)
            )
            for image, label in zip(pixels, y, strict=True):
                n, mirrored = windows[image.contiguous().numpy().tobytes()]
                assert images.labels[n] == label
                seen[mirrored] += 1
    assert min(seen[True], seen[False]) > 20


def test_digits_are_not_mirrored():
    assert open_pairs("digits").weights.mirror is False


def test_normalisation_and_memory_format():
    pairs = ResidentPairs(tiny_images(64), tiny_images(64), batch_size=64)
    x = torch.cat([x for x, _ in pairs.validation()])
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_validation_is_the_alpha_half_in_order():
    weights, alphas = tiny_images(10), tiny_images(21)
    labels = torch.cat([y for _, y in ResidentPairs(weights, alphas, batch_size=2).validation()])
    assert torch.equal(labels, alphas.labels)


def alpha_labels(pairs, epoch=0):
    return [y.tolist() for _, (_, y) in pairs.epoch(epoch)]


def one_of_each(n):
    """Images that are told apart by their labels, in which no class is empty."""
    return Images(torch.zeros(n, 8, 8, 3, dtype=torch.uint8), torch.arange(n), tuple(map(str, range(n))))


def test_how_alpha_batches_are_sampled():
    """Shuffled: each image once an epoch; with replacement: some twice in a batch; anew: never twice in a batch."""
    images = one_of_each(40)
    shuffled, replaced, anew = (
        alpha_labels(ResidentPairs(images, images, 10, sampling=sampling))
        for sampling in ("shuffled", "replacement", "anew")
    )
    assert sorted(chain(*shuffled)) == [*range(40)]
    assert any(len(set(batch)) < 10 for batch in replaced)
    assert [len(set(batch)) for batch in anew] == [10] * 4
    assert sorted(chain(*anew)) != [*range(40)]


def test_alpha_batches_that_are_drawn_anew_are_full_and_reproducible():
    pairs = ResidentPairs(one_of_each(25), one_of_each(25), 10, sampling="anew")
    whole = [(len(train), val.tolist()) for (_, train), (_, val) in pairs.epoch(2)]
    assert [n for n, _ in whole] == [10, 10, 5]
    assert [len(val) for _, val in whole] == [10, 10, 10]
    assert [val.tolist() for _, (_, val) in pairs.epoch(2, start=1)] == [val for _, val in whole[1:]]


def test_an_epoch_goes_through_the_images_of_the_weights():
    """Fewer images of the alphas come again, each as often as the others to one."""
    weights = Images(torch.zeros(50, 8, 8, 3, dtype=torch.uint8), torch.arange(50) % 20, tuple(map(str, range(20))))
    pairs = ResidentPairs(weights, one_of_each(20), 8)
    assert len(pairs) == 7
    assert sum(len(y) for (_, y), _ in pairs.epoch(0)) == 50
    drawn = torch.tensor([*chain(*alpha_labels(pairs))]).bincount()
    assert (int(drawn.sum()), int(drawn.min()), int(drawn.max())) == (50, 2, 3)
    with pytest.raises(ValueError, match="alpha batches are sampled shuffled, replacement, anew; got 'twice'"):
        ResidentPairs(tiny_images(), tiny_images(), 2, sampling="twice")


def test_fewer_images_to_evaluate_on_keep_their_classes_share():
    pairs = ResidentPairs(tiny_images(20, classes=10), tiny_images(100, classes=10), 8, validation_limit=30)
    assert torch.cat([y for _, y in pairs.validation()]).bincount().tolist() == [3] * 10


def test_statistics_batches_are_always_the_same():
    pairs = ResidentPairs(tiny_images(100), tiny_images(100), 16, seed=3)
    first, again = [*pairs.statistics(40)], [*pairs.statistics(40)]
    assert [len(y) for _, y in first] == [16, 16, 8]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))


# The split of NAS-Bench-201


def stored(n, classes, start):
    """As many images as the real data set, numbered from ``start`` in three channels of one pixel."""
    numbers = torch.arange(start, start + n)
    channels = torch.stack([numbers // 65536, numbers // 256 % 256, numbers % 256], 1).to(torch.uint8)
    return Images(channels.view(n, 1, 1, 3), numbers % classes, tuple(map(str, range(classes))))


def numbers(images):
    return (images.pixels.flatten(1).long() @ torch.tensor([65536, 256, 1])).tolist()


SIZES = {"cifar10": (50_000, 10_000, 10), "cifar100": (50_000, 10_000, 100), "imagenet16-120": (151_700, 6_000, 120)}


@pytest.mark.parametrize(
    ("dataset", "weights", "alphas", "first"),
    [
        ("cifar10", 25_000, 25_000, [1, 2, 3, 4, 6, 8, 9, 10]),
        ("cifar100", 50_000, 5_000, [1, 3, 4, 5, 8, 10, 13, 14]),
        ("imagenet16-120", 151_700, 3_000, [1, 2, 3, 6, 7, 8, 9, 12]),
    ],
)
def test_the_benchmark_s_split(monkeypatch, dataset, weights, alphas, first):
    """First images of its lists as published; alphas of CIFAR-100 and ImageNet16-120 are half of the test images."""
    train, test, classes = SIZES[dataset]
    images = {True: stored(train, classes, 0), False: stored(test, classes, 10**6)}
    monkeypatch.setitem(DATASETS, dataset, lambda root, train, download: images[train])
    for_weights, for_alphas = benchmark_split(dataset, Path("data"))
    assert (len(for_weights), len(for_alphas)) == (weights, alphas)
    offset = 0 if dataset == "cifar10" else 10**6
    assert numbers(for_alphas)[:8] == [offset + i for i in first]
    assert not set(numbers(for_weights)) & set(numbers(for_alphas))
    if dataset != "cifar10":
        assert numbers(for_weights) == [*range(train)]


def test_steps_of_a_search_by_the_benchmark_s_split(monkeypatch):
    """CIFAR-100, batch 256: 196 steps an epoch; from halves of the training images 98."""
    images = {True: stored(50_000, 100, 0).resized(4), False: stored(10_000, 100, 10**6).resized(4)}
    monkeypatch.setitem(DATASETS, "cifar100", lambda root, train, download: images[train])
    assert len(open_pairs("cifar100", batch_size=256, split="benchmark", sampling="replacement")) == 196
    assert len(open_pairs("cifar100", batch_size=256)) == 98
    limited = open_pairs("cifar100", batch_size=256, split="benchmark", limit=2_000, validation_limit=500)
    assert len(limited) == 8
    assert sum(len(y) for _, y in limited.validation()) == 500


def test_splits_that_the_benchmark_does_not_have(monkeypatch):
    with pytest.raises(ValueError, match="splits cifar10, cifar100, imagenet16-120, not 'digits': use halves"):
        open_pairs("digits", split="benchmark")
    monkeypatch.setitem(DATASETS, "cifar100", lambda root, train, download: stored(200, 100, 0))
    with pytest.raises(ValueError, match=r"splits the 10000 test images of cifar100; .* has 200"):
        open_pairs("cifar100", split="benchmark")


def test_small_image_folders_are_resident(tmp_path):
    root = write_folder(tmp_path, {"cat": 6, "dog": 8})
    pairs = open_pairs("folder", root=root, batch_size=3)
    assert isinstance(pairs, ResidentPairs)
    assert pairs.classes == ("cat", "dog")
    (x, _), _ = next(pairs.epoch(0))
    assert x.shape == (3, 3, 8, 8)
    resized = open_pairs("folder", root=root, batch_size=3, image_size=16)
    assert next(resized.epoch(0))[0][0].shape == (3, 3, 16, 16)


def test_large_image_folders_are_streamed(tmp_path):
    root = write_folder(tmp_path, {"cat": 6, "dog": 8}, size=80)
    pairs = open_pairs("folder", root=root, batch_size=3, workers=0)
    assert pairs.image_size == 80
    batches = list(pairs.epoch(0))
    assert len(batches) == len(pairs) == 2
    (x, y), (x_val, y_val) = batches[0]
    assert x.shape == x_val.shape == (3, 3, 80, 80)
    assert y.shape == y_val.shape == (3,)
    labels = [torch.cat([a[1], b[1]]) for a, b in pairs.epoch(3)]
    [(again, again_val)] = pairs.epoch(3, start=1)  # the order is replayed, so that a resumed epoch goes on
    assert torch.equal(torch.cat([again[1], again_val[1]]), labels[1])
    assert sum(len(y) for _, y in pairs.validation()) == 7
    with pytest.raises(
        ValueError, match=r"batches of 8 cannot be cut from 7 images .* and 7 for the alphas; .* 7 at most"
    ):
        open_pairs("folder", root=root, batch_size=8)


def test_imagenet16_120_from_batch_files(tmp_path):
    rng = np.random.default_rng(0)
    images = {}
    for part in range(1, 11):
        labels = [*range(part * 12 - 11, part * 12 + 1)] * 2 + [121, 1000]
        pixels = rng.integers(0, 256, (len(labels), 768), dtype=np.uint8)
        for row, label in zip(pixels, labels, strict=True):
            images.setdefault(label - 1, []).append(row.reshape(3, 16, 16).transpose(1, 2, 0))
        with (tmp_path / f"train_data_batch_{part}").open("wb") as file:
            pickle.dump({"data": pixels, "labels": labels}, file)
    pairs = open_pairs("imagenet16-120", root=tmp_path, batch_size=64)
    assert (len(pairs.classes), pairs.image_size, pairs.in_chans) == (120, 16, 3)
    x, y = next(pairs.validation())
    pixels = (
        (x.permute(0, 2, 3, 1) * pairs.weights.normalization.std + pairs.weights.normalization.mean)
        .round()
        .to(torch.uint8)
        .numpy()
    )
    for image, label in zip(pixels, y.tolist(), strict=True):
        assert any(np.array_equal(image, original) for original in images[label])
    (tmp_path / "train_data_batch_4").unlink()
    with pytest.raises(FileNotFoundError, match="lacks train_data_batch_4"):
        open_pairs("imagenet16-120", root=tmp_path)


def test_cifar_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"CIFAR10 is not in .*fetched \(download\)"):
        open_pairs("cifar10", root=tmp_path)


def test_unknown_data_set():
    with pytest.raises(ValueError, match="unknown data set 'mnist'; known are digits, cifar10"):
        open_pairs("mnist")


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        open_pairs("folder", root=tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="Couldn't find any class folder"):
        open_pairs("folder", root=tmp_path / "empty")
    write_folder(tmp_path / "some", {"cat": 4, "dog": 0})
    with pytest.raises(ValueError, match="no valid file for the classes dog"):
        open_pairs("folder", root=tmp_path / "some")


def test_limits_and_sizes_that_are_too_small():
    with pytest.raises(ValueError, match=r"no images of .* among 3 images of 10 classes"):
        open_pairs("digits", limit=3)
    with pytest.raises(ValueError, match="fewer than 2 images"):
        open_pairs("digits", limit=10)
    with pytest.raises(ValueError, match="at least 1 image, got 0"):
        open_pairs("digits", limit=0)
    with pytest.raises(ValueError, match="image size must be at least 4, got 2"):
        open_pairs("digits", image_size=2)
    with pytest.raises(ValueError, match="batch size must be at least 1, got 0"):
        open_pairs("digits", batch_size=0)


def test_a_class_without_images():
    with pytest.raises(ValueError, match="no images of b among 3 images of 2 classes"):
        Images(torch.zeros(3, 4, 4, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.long), ("a", "b"))


def test_a_folder_of_images_that_differ_in_size_is_streamed(tmp_path):
    write_folder(tmp_path, {"cat": 4, "dog": 4}, size=80)
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / "0.png")
    assert open_pairs("folder", root=tmp_path, batch_size=2, workers=0).image_size == 224
    assert open_pairs("folder", root=tmp_path, batch_size=2, image_size=16).image_size == 16


def test_images_that_are_not_square():
    images = Images(torch.zeros(4, 8, 16, 3, dtype=torch.uint8), torch.arange(4) % 2, ("a", "b"))
    with pytest.raises(ValueError, match="must be square, got 8x16"):
        ResidentPairs(images, images, batch_size=2)


def test_halves_that_disagree():
    with pytest.raises(ValueError, match="the images for weights and alphas disagree"):
        ResidentPairs(tiny_images(size=8), tiny_images(size=16), batch_size=2)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
@pytest.mark.parametrize("train", [True, False])
def test_torchvision_s_layouts(monkeypatch, tmp_path, name, train):
    """Pixels and labels as torchvision's data sets hold them, which differ: channels last or first, list or array."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    asked = {}

    class Stored:
        classes = [str(i) for i in range(10)]  # noqa: RUF012
        data = pixels.transpose(0, 3, 1, 2) if name == "svhn" else pixels
        targets = [*range(10)] * 2
        labels = np.array(targets)

        def __init__(self, root, **options):
            asked.update(options, root=root)

    monkeypatch.setattr(f"torchvision.datasets.{name.upper()}", Stored)
    images = DATASETS[name](tmp_path, train, True)
    assert np.array_equal(images.pixels.numpy(), pixels)
    assert images.labels.tolist() == Stored.targets
    assert images.mirror  # SVHN too, as in the peers' code
    assert asked["download"] is True
    assert asked.get("train", asked.get("split") == "train") == train


def test_a_batch_larger_than_a_half():
    with pytest.raises(ValueError, match="batches of 100 cannot be cut from 50 images for the weights and 50 for the"):
        open_pairs("digits", limit=100, batch_size=100)


def test_a_last_batch_of_a_single_image_is_left_out():
    """A batch norm may have no statistics for it."""
    pairs = ResidentPairs(tiny_images(9), tiny_images(8), batch_size=4)
    assert len(pairs) == 2
    assert [len(train[1]) for train, _ in pairs.epoch(0)] == [4, 4]
    assert [len(y) for _, y in pairs.statistics(9)] == [4, 4]


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    write_folder(tmp_path, {"a": 4, "b": 4})
    file = next((tmp_path / "a").iterdir())
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(OSError, match=file.name):
        open_pairs("folder", root=tmp_path, batch_size=2, image_size=8)
