import bz2
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from sparsemix.spaces.nb201 import NB201Genotype, NB201Table, convert_nats_bench

CELLS = [str(cell) for cell in NB201Genotype.all()[:4]]
ACCURACIES = {
    "cifar10": [90.0, 93.0, 93.0, 50.0],
    "cifar100": [1.0, 2.0, 3.0, 4.0],
    "imagenet16-120": [4.0, 3.0, 2.0, 1.0],
}


@pytest.fixture
def csv_file(tmp_path):
    rows = zip(CELLS, *ACCURACIES.values(), strict=True)
    path = tmp_path / "table.csv"
    path.write_text(
        "architecture,cifar10_test,cifar100_test,imagenet16_120_test\n"
        + "".join(",".join(map(str, row)) + "\n" for row in rows)
    )
    return path


def test_answers(csv_file):
    table = NB201Table(csv_file)
    assert table.accuracy(CELLS[1], "cifar10") == 93
    assert table.accuracy(NB201Genotype.parse(CELLS[3]), "cifar100") == 4
    assert [table.rank(cell, "cifar10") for cell in CELLS] == [3, 1, 1, 4]
    assert table.best("imagenet16-120") == 4
    assert len(table) == 4
    assert table.accuracies(CELLS[3]) == {
        "cifar10": {"test": 50}, "cifar100": {"test": 4}, "imagenet16-120": {"test": 1}
    }  # fmt: skip


def test_validation_accuracies_where_the_table_has_them(csv_file):
    with pytest.raises(ValueError, match="has no column cifar100_valid"):
        NB201Table(csv_file).accuracy(CELLS[0], "cifar100", "valid")
    head, *rows = csv_file.read_text().splitlines()
    csv_file.write_text("\n".join([f"{head},cifar100_valid", *(f"{row},7.5" for row in rows)]) + "\n")
    table = NB201Table(csv_file)
    assert table.accuracies(CELLS[2])["cifar100"] == {"valid": 7.5, "test": 3}
    assert table.accuracies(CELLS[2])["cifar10"] == {"test": 93}


def test_the_file_is_read_at_the_first_question(csv_file):
    table = NB201Table(csv_file)
    csv_file.unlink()
    with pytest.raises(FileNotFoundError):
        len(table)


def test_bad_questions(csv_file, tmp_path):
    table = NB201Table(csv_file)
    with pytest.raises(ValueError, match="unknown data set 'cifar'"):
        table.accuracy(CELLS[0], "cifar")
    with pytest.raises(ValueError, match="NB201Genotype: node 1"):
        table.accuracy("nonsense", "cifar10")
    with pytest.raises(ValueError, match="has 4 of 15,625 architectures, but not"):
        table.accuracy(NB201Genotype.all()[-1], "cifar10")
    with pytest.raises(FileNotFoundError, match="no file"):
        NB201Table(tmp_path / "none.csv")
    csv_file.write_text("architecture,accuracy\n")
    with pytest.raises(ValueError, match="lacks the columns cifar100_test, cifar10_test, imagenet16_120_test"):
        len(NB201Table(csv_file))


def official_result(index):
    """One architecture as the official file holds it: per schedule, trials by (data set, seed)."""
    names = {  # trainings -> images -> (data set, what is added to its test accuracy)
        "cifar10-valid": {"x-valid": ("cifar10", -2), "ori-test": ("cifar10", 100)},
        "cifar10": {"ori-test": ("cifar10", 0)},
        "cifar100": {"x-valid": ("cifar100", -2), "x-test": ("cifar100", 0), "ori-test": ("cifar100", 100)},
        "ImageNet16-120": {"x-valid": ("imagenet16-120", -2), "x-test": ("imagenet16-120", 0)},
    }
    seeds, results = {}, {}
    for official, judged in names.items():
        seeds[official] = [777, 888]
        for seed, offset in ((777, -0.5), (888, 0.5)):
            accuracies = {}
            for images, (dataset, more) in judged.items():
                accuracies[f"{images}@199"] = np.float64(ACCURACIES[dataset][index] + more + offset)
                accuracies[f"{images}@198"] = 0.0
            results[official, seed] = OrderedDict(epochs=200, eval_acc1es=accuracies)
    return {"200": {"all_results": results, "dataset_seed": seeds}, "12": {}}


def dump(path, content):
    with bz2.open(path, "wb") as file:
        pickle.dump(content, file, protocol=4)


@pytest.mark.parametrize("layout", ["folder", "file"])
def test_conversion_of_the_official_file(tmp_path, csv_file, layout):
    source = tmp_path / "official"
    if layout == "folder":
        source.mkdir()
        dump(source / "meta.pickle.pbz2", {"meta_archs": CELLS})
        for i in range(len(CELLS)):
            dump(source / f"{i:06d}.pickle.pbz2", official_result(i))
    else:
        dump(source, {"meta_archs": CELLS, "arch2infos": {i: official_result(i) for i in range(len(CELLS))}})
    target = tmp_path / "converted.csv"
    assert convert_nats_bench(source, target) == 4
    table = NB201Table(target)
    for i, cell in enumerate(CELLS):
        assert table.accuracies(cell) == {
            dataset: {"valid": values[i] - 2, "test": values[i]} for dataset, values in ACCURACIES.items()
        }
    assert table.accuracy(CELLS[1], "cifar10", "valid") == 91


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    dump(tmp_path / "bomb", {"meta_archs": Bomb()})
    with pytest.raises(ValueError, match=r"refused to load (posix|nt)\.mkdir"):
        convert_nats_bench(tmp_path / "bomb", tmp_path / "out.csv")
    assert not (tmp_path / "exploded").exists()


def test_a_truncated_file(tmp_path):
    dump(tmp_path / "whole", {"meta_archs": CELLS})
    with bz2.open(tmp_path / "whole") as file:
        content = file.read()
    with bz2.open(tmp_path / "half", "wb") as file:
        file.write(content[: len(content) // 2])
    with pytest.raises(ValueError, match="half"):
        convert_nats_bench(tmp_path / "half", tmp_path / "out.csv")
    with pytest.raises(FileNotFoundError, match="neither a folder nor a file"):
        convert_nats_bench(tmp_path / "missing", tmp_path / "out.csv")


def test_a_file_that_lacks_results_or_is_none(tmp_path):
    dump(tmp_path / "short", {"meta_archs": CELLS, "arch2infos": {0: official_result(0), 1: {"12": {}}}})
    with pytest.raises(ValueError, match="lack '200'"):
        convert_nats_bench(tmp_path / "short", tmp_path / "out.csv")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="Invalid data stream"):
        convert_nats_bench(tmp_path / "text", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_command_line(csv_file):
    command = [sys.executable, "-m", "sparsemix", "table", "show", csv_file, CELLS[0]]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "90.00 %  rank 3 of 4, best 93.00 %" in shown.stdout


def test_the_real_table_where_one_is_given():
    """Set NB201_TABLE to the path of a converted table."""
    path = os.environ.get("NB201_TABLE")
    if not path:
        pytest.skip("NB201_TABLE names no table")
    table = NB201Table(Path(path))
    skips = NB201Genotype(("skip_connect",) * 6)
    assert [round(table.accuracy(skips, dataset), 2) for dataset in table.DATASETS] == [54.30, 15.61, 16.32]
    assert [round(table.best(dataset), 2) for dataset in table.DATASETS] == [94.37, 73.51, 47.31]
    assert set(table) == {str(cell) for cell in NB201Genotype.all()}


def test_a_table_that_is_cut_off(csv_file):
    lines = csv_file.read_text().splitlines()
    csv_file.write_text("\n".join([*lines[:2], lines[2].rsplit(",", 1)[0]]))
    with pytest.raises(ValueError, match=r"table.*\.csv, line 3"):
        len(NB201Table(csv_file))
    csv_file.write_text(lines[0])
    with pytest.raises(ValueError, match="has no rows"):
        len(NB201Table(csv_file))
