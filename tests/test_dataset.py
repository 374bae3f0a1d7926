"""Every layout gives the same photos, captions and splits; what is wrong is named."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from regard.data.check import check, render
from regard.data.dataset import read_dataset
from regard.data.layouts import LAYOUTS
from regard.errors import DataError
from regard.text.tokenise import tokenise

CAPTIONS = {
    f"{i}00_{i}abc.jpg": (f"A dog , number {i} , runs .", f'Two men say "{i}" .') for i in range(10)
}
SPLITS = {
    name: ("val" if i == 3 else "test" if i == 7 else "train") for i, name in enumerate(CAPTIONS)
}


def photos_in(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in CAPTIONS:
        Image.new("RGB", (8, 6), (10, 200, 30)).save(folder / name)


def token_lines() -> str:
    return "".join(f"{n}#{i}\t{c}\n" for n, cs in CAPTIONS.items() for i, c in enumerate(cs))


def csv_text(rows: list[list[str]], **kind: str) -> str:
    out = io.StringIO()
    csv.writer(out, **kind).writerows(rows)
    return out.getvalue()


def flickr8k(folder: Path) -> None:
    photos_in(folder / "Flicker8k_Dataset")
    (folder / "Flickr8k.token.txt").write_text(token_lines())
    for ours, theirs in (("train", "train"), ("val", "dev"), ("test", "test")):
        names = [n for n, s in SPLITS.items() if s == ours]
        (folder / f"Flickr_8k.{theirs}Images.txt").write_text("\n".join(names) + "\n")


def kaggle8k(folder: Path) -> None:
    photos_in(folder / "Images")
    rows = [["image", "caption"], *([n, c] for n, cs in CAPTIONS.items() for c in cs)]
    (folder / "captions.txt").write_text(csv_text(rows))


def flickr30k(folder: Path) -> None:
    photos_in(folder / "flickr30k-images")
    (folder / "results_20130124.token").write_text(token_lines())


def kaggle30k(folder: Path) -> None:
    photos_in(folder / "flickr30k_images" / "flickr30k_images")
    lines = ["image_name| comment_number| comment"]
    lines += [f"{n}| {i}| {c}" for n, cs in CAPTIONS.items() for i, c in enumerate(cs)]
    (folder / "results.csv").write_text("\n".join(lines) + "\n")


def hub30k(folder: Path) -> None:
    photos_in(folder / "flickr30k-images")
    rows = [["raw", "sentids", "split", "filename", "img_id"]]
    for i, (name, captions) in enumerate(CAPTIONS.items()):
        ids = [2 * i, 2 * i + 1]
        rows.append([json.dumps(captions), json.dumps(ids), SPLITS[name], name, str(i)])
    (folder / "flickr_annotations_30k.csv").write_text(csv_text(rows))


def karpathy(folder: Path) -> None:
    photos_in(folder / "images")
    images = [
        {
            "filename": n,
            "split": "restval" if i == 0 else SPLITS[n],
            "sentences": [{"raw": c, "sentid": 2 * i + k} for k, c in enumerate(cs)],
        }
        for i, (n, cs) in enumerate(CAPTIONS.items())
    ]
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": images}))


def coco(folder: Path) -> None:
    (folder / "annotations").mkdir(parents=True)
    number = 0
    for split in ("train", "val", "test"):
        images, annotations = [], []
        (folder / f"{split}2017").mkdir()
        for i, name in enumerate(CAPTIONS):
            if SPLITS[name] != split:
                continue
            Image.new("RGB", (8, 6)).save(folder / f"{split}2017" / name)
            images.append({"id": i, "file_name": name})
            for caption in CAPTIONS[name]:
                number += 1
                annotations.append({"id": number, "image_id": i, "caption": caption})
        file = folder / "annotations" / f"captions_{split}2017.json"
        file.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations}))


def table(ending: str, separator: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        photos_in(folder / "photos")
        rows = [["image", "caption", "split"]]
        rows += [[f"photos/{n}", c, SPLITS[n]] for n, cs in CAPTIONS.items() for c in cs]
        (folder / f"mine{ending}").write_text(csv_text(rows, delimiter=separator))

    return make


def jsonl(folder: Path) -> None:
    photos_in(folder)
    lines = [
        json.dumps({"image": n, "caption": c, "split": SPLITS[n]})
        for n, cs in CAPTIONS.items()
        for c in cs
    ]
    (folder / "mine.jsonl").write_text("\n".join(lines))


def imagefolder(ending: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for split, theirs in (("train", "train"), ("val", "validation"), ("test", "test")):
            (folder / theirs).mkdir(parents=True)
            rows = [["file_name", "text"]]
            for name in CAPTIONS:
                if SPLITS[name] == split:
                    Image.new("RGB", (8, 6)).save(folder / theirs / name)
                    rows += [[name, c] for c in CAPTIONS[name]]
            file = folder / theirs / f"metadata{ending}"
            if ending == ".csv":
                file.write_text(csv_text(rows))
            else:
                file.write_text(
                    "\n".join(json.dumps({"file_name": n, "text": c}) for n, c in rows[1:])
                )

    return make


def sidecar(folder: Path) -> None:
    photos_in(folder)
    for name, captions in CAPTIONS.items():
        (folder / name).with_suffix(".txt").write_text("\n".join(captions) + "\n")


MAKERS = {
    "flickr8k": ("flickr8k", flickr8k, True),
    "kaggle-flickr8k": ("kaggle-flickr8k", kaggle8k, False),
    "flickr30k": ("flickr30k", flickr30k, False),
    "kaggle-flickr30k": ("kaggle-flickr30k", kaggle30k, False),
    "hub-flickr30k": ("hub-flickr30k", hub30k, True),
    "karpathy": ("karpathy", karpathy, True),
    "coco": ("coco", coco, True),
    "csv": ("table", table(".csv", ","), True),
    "tsv": ("table", table(".tsv", "\t"), True),
    "jsonl": ("table", jsonl, True),
    "imagefolder-csv": ("imagefolder", imagefolder(".csv"), True),
    "imagefolder-jsonl": ("imagefolder", imagefolder(".jsonl"), True),
    "sidecar": ("sidecar", sidecar, False),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_every_layout_gives_the_same(kind, tmp_path):
    layout, make, with_splits = MAKERS[kind]
    make(tmp_path)
    dataset = read_dataset(tmp_path)
    assert dataset.layout == layout
    assert dataset.problems == ()
    assert {p.path.name: p.captions for p in dataset.photos} == CAPTIONS
    assert all(p.path.is_file() for p in dataset.photos)
    if with_splits:
        assert {p.path.name: p.split for p in dataset.photos} == SPLITS
        assert dataset.split_source == "the data set's own"
    else:
        assert Counter(p.split for p in dataset.photos) == {"train": 8, "val": 1, "test": 1}
        assert "seed 0" in dataset.split_source
    assert read_dataset(tmp_path, layout=layout) == dataset


@pytest.mark.parametrize(
    "kind", [k for k in MAKERS if not k.startswith(("coco", "sidecar", "imagef"))]
)
def test_the_file_alone_gives_the_same(kind, tmp_path):
    layout, make, _ = MAKERS[kind]
    make(tmp_path)
    whole = read_dataset(tmp_path)
    [file] = [
        f
        for f in tmp_path.iterdir()
        if f.is_file() and "Images" not in f.name and f.suffix != ".jpg"
    ]
    alone = read_dataset(file)
    assert (alone.layout, alone.photos) == (layout, whole.photos)


def test_every_layout_is_tested():
    assert {layout for layout, _, _ in MAKERS.values()} == {x.name for x in LAYOUTS} - {"scenes"}


def test_the_real_collections(shared):
    dataset = read_dataset(shared / "data" / "flickr8k")
    assert Counter(p.split for p in dataset.photos) == {"train": 5996, "val": 1000}
    assert sum(len(p.captions) for p in dataset.photos) == 34980
    sample = shared / "data" / "flickr30k-sample"
    ways = [read_dataset(sample, layout=n) for n in ("karpathy", "flickr30k", "kaggle-flickr30k")]
    assert read_dataset(sample).layout == "karpathy"
    captions = [{p.id: sorted(p.captions) for p in way.photos} for way in ways]
    assert len(captions[0]) == 247
    assert captions[1] == captions[2]
    assert captions[0].keys() == captions[1].keys()


def test_the_seed_decides_the_splits_and_nothing_else_does(tmp_path):
    flickr30k(tmp_path)
    first = {p.id: p.split for p in read_dataset(tmp_path).photos}
    assert {p.id: p.split for p in read_dataset(tmp_path, seed=1).photos} != first
    file = tmp_path / "results_20130124.token"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*reversed(lines), "000_0abc.jpg#7\tOne more ."]) + "\n")
    assert {p.id: p.split for p in read_dataset(tmp_path).photos} == first


def test_other_orders_of_magnitude_keep_the_shares(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "photos" / "a.png")
    rows = []
    for i in range(1000):
        (tmp_path / "photos" / f"{i}.png").symlink_to(tmp_path / "photos" / "a.png")
        rows += [{"image": f"photos/{i}.png", "caption": "A dog ."}] * 2
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    counts = Counter(p.split for p in read_dataset(tmp_path).photos)
    assert counts == {"train": 800, "val": 100, "test": 100}


def kinds(folder: Path, **options) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for problem in read_dataset(folder, **options).problems:
        found.setdefault(problem.kind, []).append(f"{problem.where}: {problem.detail}")
    return found


def test_the_known_row_of_kaggles_flickr30k_is_repaired(tmp_path):
    kaggle30k(tmp_path)
    Image.new("RGB", (4, 4)).save(
        tmp_path / "flickr30k_images" / "flickr30k_images" / "2199200615.jpg"
    )
    with (tmp_path / "results.csv").open("a") as out:
        out.write("2199200615.jpg| 0| A dog .\n2199200615.jpg| 4   A dog runs across the grass .\n")
        out.write("2199200615.jpg| no number| A dog .\n")
    dataset = read_dataset(tmp_path)
    assert dataset.photos[-1].captions == ("A dog .", "A dog runs across the grass .")
    found = kinds(tmp_path)
    assert set(found) == {"repaired row", "bad row"}
    assert "results.csv:23" in found["repaired row"][0]
    assert "results.csv:24" in found["bad row"][0]


def test_bad_rows_of_flickr8k_are_named(tmp_path):
    flickr8k(tmp_path)
    file = tmp_path / "Flickr8k.token.txt"
    with file.open("a") as out:
        out.write("no tab here\n000_0abc.jpg#0\tAgain .\n000_0abc.jpg#8\t  \n")
        out.write("100_1abc.jpg.1#9\tA row of the original file .\n")
    with (tmp_path / "Flickr_8k.testImages.txt").open("a") as out:
        out.write("nobody.jpg\n")
    found = kinds(tmp_path)
    assert "Flickr8k.token.txt:21" in found["bad row"][0]
    assert "Flickr8k.token.txt:22" in found["duplicate id"][0]
    assert "Flickr8k.token.txt:23" in found["empty caption"][0]
    assert "Flickr8k.token.txt:24" in found["repaired row"][0]
    assert "nobody.jpg" in found["no caption"][0]
    assert "A row of the original file ." in read_dataset(tmp_path).photos[1].captions


def test_bad_rows_of_a_table_are_named(tmp_path):
    table(".csv", ",")(tmp_path)
    with (tmp_path / "mine.csv").open("a") as out:
        out.write("photos/000_0abc.jpg,unquoted, with commas,train\n")
        out.write(",A dog .,train\nphotos/000_0abc.jpg,,train\n")
        out.write("photos/000_0abc.jpg,Moved .,test\nphotos/000_0abc.jpg,Lost .,somewhere\n")
    found = kinds(tmp_path)
    assert len(found["bad row"]) == 2
    assert "mine.csv:22" in found["bad row"][0]
    assert len(found["empty caption"]) == 1
    assert len(found["split"]) == 3


def test_rows_that_are_no_json_are_named(tmp_path):
    jsonl(tmp_path)
    file = tmp_path / "mine.jsonl"
    file.write_text(file.read_text() + '\n{"image": \n[1, 2]\n{"caption": "A dog ."}\n')
    assert [p.where for p in read_dataset(tmp_path).problems] == [
        "mine.jsonl:21", "mine.jsonl:22", "mine.jsonl:23",
    ]  # fmt: skip


def test_coco_annotations_without_a_photo_are_named(tmp_path):
    coco(tmp_path)
    file = tmp_path / "annotations" / "captions_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"].append({"id": 999, "image_id": 12345, "caption": "A dog ."})
    content["annotations"].append(content["annotations"][0])
    content["images"].append({"id": 77, "file_name": "no-caption.jpg"})
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"1 of 11 photos"):
        read_dataset(tmp_path)
    found = kinds(tmp_path, allow_missing=True)
    assert {k: len(v) for k, v in found.items()} == {
        "bad row": 1, "duplicate id": 1, "no caption": 1, "missing photo": 1,
    }  # fmt: skip


def test_photos_and_texts_without_each_other_are_named(tmp_path):
    sidecar(tmp_path)
    (tmp_path / "000_0abc.txt").unlink()
    (tmp_path / "100_1abc.txt").write_text("\n")
    (tmp_path / "lonely.txt").write_text("A dog .")
    assert {k: len(v) for k, v in kinds(tmp_path).items()} == {
        "no caption": 1, "empty caption": 1, "bad row": 1,
    }  # fmt: skip


def test_missing_photos_are_an_error_or_left_out(tmp_path):
    flickr8k(tmp_path)
    for name in list(CAPTIONS)[:7]:
        (tmp_path / "Flicker8k_Dataset" / name).unlink()
    with pytest.raises(DataError) as error:
        read_dataset(tmp_path)
    text = str(error.value)
    assert "7 of 10 photos" in text
    assert "000_0abc.jpg" in text
    assert "and 2 more" in text
    assert "--allow-missing" in text
    dataset = read_dataset(tmp_path, allow_missing=True)
    assert len(dataset.photos) == 3
    assert sum(p.kind == "missing photo" for p in dataset.problems) == 7
    with pytest.raises(DataError, match="no photos for 'val'"):
        dataset.split("val")


def test_no_photo_at_all_is_an_error_even_if_some_may_be_missing(tmp_path):
    flickr8k(tmp_path)
    shutil.move(tmp_path / "Flicker8k_Dataset", tmp_path.with_name("elsewhere"))
    with pytest.raises(DataError, match="10 of 10 photos"):
        read_dataset(tmp_path, allow_missing=True)
    assert len(read_dataset(tmp_path, images=tmp_path.with_name("elsewhere")).photos) == 10


def test_what_is_no_data_set_says_so(tmp_path):
    with pytest.raises(DataError, match="There is no"):
        read_dataset(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "broken.json").write_text('{"images": [')
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "broken.json"):
        with pytest.raises(DataError, match="no captions in a known layout"):
            read_dataset(path)
    with pytest.raises(DataError, match="There is no layout 'flicker'"):
        read_dataset(tmp_path, layout="flicker")
    with pytest.raises(DataError, match="not look like coco"):
        read_dataset(tmp_path, layout="coco")
    with pytest.raises(DataError, match="holds no caption"):
        read_dataset(tmp_path / "notes.txt", layout="flickr8k")
    with pytest.raises(DataError, match="There is no folder"):
        read_dataset(tmp_path, images=tmp_path / "nowhere")


def test_several_tables_ask_which(tmp_path):
    table(".csv", ",")(tmp_path)
    shutil.copy(tmp_path / "mine.csv", tmp_path / "other.csv")
    with pytest.raises(DataError, match=r"mine\.csv, other\.csv"):
        read_dataset(tmp_path)
    assert len(read_dataset(tmp_path / "other.csv").photos) == 10


def test_a_table_a_split_gives_the_splits(tmp_path):
    photos_in(tmp_path)
    for split in ("train", "validation"):
        names = [n for n in CAPTIONS if (SPLITS[n] == "val") == (split == "validation")]
        rows = [["image", "caption"], *([n, CAPTIONS[n][0]] for n in names)]
        (tmp_path / f"{split}.csv").write_text(csv_text(rows))
    dataset = read_dataset(tmp_path)
    assert len(dataset.split("train")) == 9
    assert len(dataset.split("dev")) == 1


def test_splits_by_every_name(tmp_path):
    flickr8k(tmp_path)
    dataset = read_dataset(tmp_path)
    assert dataset.split("dev") == dataset.split("val") == dataset.split("validation")
    assert len(dataset.split("all")) == 10
    with pytest.raises(DataError, match="no split 'bla'"):
        dataset.split("bla")


def test_windows_and_bytes_that_are_not_utf8(tmp_path):
    flickr30k(tmp_path)
    file = tmp_path / "results_20130124.token"
    crlf = b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n")
    file.write_bytes(crlf + b"000_0abc.jpg#5\tA caf\xe9 .\r\n")
    dataset = read_dataset(tmp_path)
    assert dataset.photos[0].captions[:2] == CAPTIONS["000_0abc.jpg"]
    assert [p.kind for p in dataset.problems] == ["repaired row"]


def test_the_check_counts(tmp_path):
    flickr8k(tmp_path)
    report = check(read_dataset(tmp_path), tokenise)
    assert report.ok
    assert report.photos == {"train": 8, "val": 1, "test": 1, "all": 10}
    assert report.captions == {"train": 16, "val": 2, "test": 2, "all": 20}
    # a dog number runs two men say, and the eight numbers
    assert (report.vocabulary, report.once) == (15, 0)
    assert (report.lengths.shortest, report.lengths.longest) == (4, 5)
    with (tmp_path / "Flickr8k.token.txt").open("a") as out:
        out.write("000_0abc.jpg#3\t...\n000_0abc.jpg#0\tAgain [bold].\n")
    report = check(read_dataset(tmp_path), tokenise)
    assert not report.ok
    assert report.as_dict()["counts"] == {"duplicate id": 1, "empty caption": 1}
    assert json.loads(json.dumps(report.as_dict()))["problems"][0]["kind"] == "duplicate id"
    text = "\n".join(str(part) for part in render(report).renderables)
    assert "Flickr8k.token.txt:22" in text
    assert "duplicate ids      1" in text
