"""Mutated files, read by calls in one process: a refusal is one line, and what is taken is right."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import random
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tests.attack import mutators
from tests.attack.runs import check_run
from tests.attack.trials import TRAIN, Bench, Done, Skip, Wrong, grammar, kind, same_file, sample, wanted
from tests.attack.weights import NEWEST, fit_sums, told_before

T = TypeVar("T")


def taken(load: Callable[[], T], *refusals: type[Exception]) -> T | None:
    """What it gives; None where it refuses in one line."""
    from ansn.errors import InputError

    expected: tuple[type[Exception], ...] = (InputError, *refusals)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load()
    except expected as error:
        if not grammar(str(error)):
            raise Wrong("wrong exit code", f"no refusal in one line: {error}") from None
    except MemoryError:  # the commands say it in one line
        pass
    return None


def command(name: str, *arguments: str) -> Done:
    """A command as a call in this process."""
    module: Any = importlib.import_module(f"ansn.cli.{name}")
    if name == "train":
        module.write_pictures = lambda *_, **__: []
    out, err, sys.argv = io.StringIO(), io.StringIO(), [f"ansn-{name}", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = module.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return Done(name, code, out.getvalue(), err.getvalue(), 0.0, False)


# -- checkpoints -----------------------------------------------------------------------------------------------------

_known: dict[int, tuple[Any, ...]] = {}


def identity(run: Any) -> tuple[Any, ...]:
    """What its samples are a function of."""
    import torch

    from ansn.sampling import Draw

    draw = Draw(run.model, seed=0)
    units = run.to_data_units(torch.linspace(-1, 1, 2 * int(np.prod(run.info.shape))).reshape(2, *run.info.shape))
    return draw.fingerprint(), str(draw.settings), units.numpy().tobytes(), run.info.columns


def checkpoint(bench: Bench, file: Path, content: bytes, anew: bool) -> None:
    """Load the run with this file of its newest checkpoint. With checksums that were made anew it may be another
    model; else it is the one that it was, or the one before and a line that says so."""
    from ansn import load_run

    right = (bench.golden / file).read_bytes()
    if not _known:
        _known.update({step: identity(load_run(bench.golden / "run", step=step)) for step in (30, 40)})
    file.write_bytes(content)
    if anew:
        fit_sums(NEWEST)
    told = io.StringIO()
    try:

        def load() -> tuple[Any, ...]:
            warnings.showwarning = lambda message, *_: print(message, file=told)  # type: ignore[assignment]
            warnings.simplefilter("always")
            return identity(load_run("run"))

        found = taken(load)
    finally:
        file.write_bytes(right)
        if anew:
            fit_sums(NEWEST)
    if found is not None and not anew and found != _known[40]:
        if not told_before(told.getvalue()):
            raise Wrong("silently wrong", f"{file.name}: another model, and no word of it")
        if found != _known[30]:
            raise Wrong("silently wrong", f"{file.name}: neither this checkpoint nor the one before")


def ready(bench: Bench, *names: str) -> None:
    for name in names:
        if not Path(name).exists():
            bench.copy(name)


@kind("state.json", 5000, quick=6, batch=125, share=6)
def state(bench: Bench, rng: random.Random, number: int) -> None:
    ready(bench, "run")
    file = NEWEST / "state.json"
    checkpoint(bench, file, mutators.mutated_json(rng, file.read_bytes()), anew=rng.random() < 0.6)


@kind("safetensors", 5000, quick=6, batch=125, share=6)
def tensors(bench: Bench, rng: random.Random, number: int) -> None:
    ready(bench, "run")
    file = rng.choice(sorted(NEWEST.glob("*.safetensors")))
    content, head = file.read_bytes(), 8 + int.from_bytes(file.read_bytes()[:8], "little")
    if rng.random() < 0.5:  # the header says what is where
        content = mutators.mutated(rng, content[8:head])
        content = len(content).to_bytes(8, "little") + content + file.read_bytes()[head:]
    else:
        content = mutators.mutated(rng, content)
    checkpoint(bench, file, content, anew=rng.random() < 0.5)


@kind("SHA256SUMS", 2000, quick=4, batch=125, share=2)
def sums(bench: Bench, rng: random.Random, number: int) -> None:
    ready(bench, "run")
    file = NEWEST / "SHA256SUMS"
    if not file.exists():
        raise Skip("this version has no checksums")
    checkpoint(bench, file, mutators.mutated(rng, file.read_bytes()), anew=False)


@kind("config.json, metrics.jsonl", 1000, quick=1, batch=50, share=4)
def logs(bench: Bench, rng: random.Random, number: int) -> None:
    """Neither is state: the run goes on, and is whole after it."""
    ready(bench, "half/run")
    name = ("config.json", "metrics.jsonl")[number % 2]
    content = (bench.golden / "half/run" / name).read_bytes()
    damaged = mutators.mutated_json(rng, content) if name == "config.json" else mutators.mutated(rng, content)
    Path("run", name).write_bytes(damaged)
    try:
        done = wanted(command("train", *TRAIN), 0)
        if "going on from step 20 " not in done.err:
            raise Wrong("lost", "the checkpoint was not gone on with")
        if name == "config.json":
            check_run(bench)
    finally:
        shutil.rmtree("run")


# -- unfinished draws ------------------------------------------------------------------------------------------------


@kind("OUT.part", 3000, quick=2, batch=50, share=5)
def part(bench: Bench, rng: random.Random, number: int) -> None:
    """Whatever is accepted of it, the finished draw has the right bytes; else it is refused, or begun again."""
    ready(bench, "run", "half/x.npy.part")
    folder = Path("x.npy.part")
    name = rng.choice(("done-0.json", "done-0.json", "settings.json", "rows.npy"))
    content = (folder / name).read_bytes()
    (folder / name).write_bytes((mutators.mutated_json if name.endswith(".json") else mutators.mutated)(rng, content))
    try:
        done = wanted(command("sample", *sample("x.npy")), 0, 2)
        if done.code == 2 and number % 10 == 0:
            wanted(command("sample", *sample("x.npy", "--no-resume")), 0)
            done = Done("sample", 0, "", "", 0.0, False)
        if done.code == 0:
            try:
                same_file("x.npy", bench.golden / "x.npy")
            except Wrong as error:
                raise Wrong(error.args[0], f"{name}: {error.args[1]}") from None
    finally:
        Path("x.npy").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


# -- results ---------------------------------------------------------------------------------------------------------

_texts: list[bytes] = []


@kind("evaluation.json", 5000, quick=60, batch=500)
def evaluation(bench: Bench, rng: random.Random, number: int) -> None:
    from ansn.evaluation import Evaluation, Measurement

    if not _texts:
        first = Measurement("distance", 0.5, 100, "pixels", "train", 1000, 0.1, 100, 0.4, 0.6, "lower", "a note", 0.7)
        others = [Measurement("bits/dim", 1.25, 64), Measurement("share", float("nan"), 3, better="closer to 1")]
        row = {"name": "a", "method": "heun", "steps": 4, "evaluations": 7, "seconds": 0.1, "drawn": 9, "n": 9,
               "value": 1.0, "floor": None, "low": 0.1, "high": 2.0}  # fmt: skip
        near = {"index": [[1, 2], [3, 4]], "distance": [[0.1, 0.2], [0.3, 0.4]], "space": "pixels"}
        whole = Evaluation(
            {"seed": 0, "n": 9}, "ansn-evaluate run", {"optim": {"steps": 4}}, {"step": 4}, (first, *others),
            (row, row), near, ("a sentence",),
        )  # fmt: skip
        _texts.append(whole.to_json().encode())
    text = mutators.mutated_json(rng, _texts[0]).decode(errors="surrogateescape")
    found = taken(lambda: Evaluation.from_json(text), ValueError)
    if found is not None:
        told = found.to_json()
        if Evaluation.from_json(told).to_json() != told:
            raise Wrong("silently wrong", "what it writes is read as something else")
        print(*found.measurements)


@kind("cache of classifiers", 5000, quick=40, batch=500, share=2)
def cached(bench: Bench, rng: random.Random, number: int) -> None:
    import torch

    from ansn.evaluation import cache

    place, settings = Path("cache"), {"data": "abc", "widths": [4, 2], "format": 1}
    made = {"a.weight": torch.arange(8.0).reshape(4, 2), "a.bias": torch.ones(4), "seen": torch.tensor(3)}
    if not place.exists():
        cache.kept(settings, lambda: made, place)
    file = rng.choice(sorted(place.iterdir()))
    content = file.read_bytes()
    json = file.suffix == ".json"
    file.write_bytes((mutators.mutated_json if json else mutators.mutated)(rng, content))
    found = taken(lambda: cache.kept(settings, lambda: made, place))
    if found is not None and (set(found) != set(made) or not all(torch.equal(found[k], made[k]) for k in made)):
        shutil.rmtree(place)
        raise Wrong("silently wrong", f"{file.suffix}: other tensors")


# -- data ------------------------------------------------------------------------------------------------------------

_data = np.random.default_rng(0)
_table = _data.normal(size=(40, 3))
_images = _data.integers(0, 256, (20, 8, 8), dtype=np.uint8)


def _npy(*arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    if len(arrays) == 1:
        np.save(stream, arrays[0])
    else:
        np.savez(stream, x=arrays[0], y=arrays[1])
    return stream.getvalue()


def _csv() -> bytes:
    lines = [",".join([*(f"{v:.4f}" for v in row), "ab"[i % 2]]) for i, row in enumerate(_table)]
    return "\n".join(["height,width,depth,kind", *lines, ""]).encode()


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def loaded(path: str) -> tuple[int, tuple[int, ...]] | None:
    """Rows and shape of data that is taken, which is finite."""
    import torch

    from ansn.data import load_dataset

    def load() -> tuple[int, tuple[int, ...]]:
        dataset = load_dataset(path, test_fraction=0.0)
        rows = dataset.batch(torch.arange(min(len(dataset), 1000)))[0]
        if not bool(rows.isfinite().all()):
            raise Wrong("silently wrong", f"{path}: numbers that are not finite")
        return len(dataset), tuple(dataset.shape)

    return taken(load)


def expect(path: str, right: Any, found: Any) -> None:
    if found is not None and right is not None and right != found:
        raise Wrong("silently wrong", f"{path}: {found}, an independent reader has {right}")


@kind("data: .npy", 5000, quick=20, batch=250, share=2)
def npy(bench: Bench, rng: random.Random, number: int) -> None:
    content = _npy((_table, _table.astype("f4"), _images, (_table * 9).astype("i4"))[number % 4])
    # The header alone, or anything.
    damaged = mutators.mutated(rng, content[:128]) + content[128:] if number % 3 else mutators.mutated(rng, content)
    Path("a.npy").write_bytes(damaged)
    found = loaded("a.npy")
    with contextlib.suppress(Exception):
        right = np.load("a.npy", allow_pickle=False)
        expect("a.npy", right.size, found and found[0] * int(np.prod(found[1])))


@kind("data: .npz", 5000, quick=10, batch=250, share=2)
def npz(bench: Bench, rng: random.Random, number: int) -> None:
    content = _npy((_table, _images)[number % 2], np.arange((40, 20)[number % 2]) % 2)
    Path("a.npz").write_bytes(mutators.mutated(rng, content))
    found = loaded("a.npz")
    right = None
    with contextlib.suppress(Exception), np.load("a.npz", allow_pickle=False) as arrays:
        right = arrays["x"].size
    expect("a.npz", right, found and found[0] * int(np.prod(found[1])))


@kind("data: .csv", 5000, quick=20, batch=250, share=2.5)
def csvs(bench: Bench, rng: random.Random, number: int) -> None:
    Path("a.csv").write_bytes(mutators.mutated(rng, _csv()))
    found = loaded("a.csv")
    with contextlib.suppress(Exception):
        rows = [row for row in csv.reader(Path("a.csv").read_text().splitlines(), strict=True) if row]
        if len({len(row) for row in rows}) == 1:
            expect("a.csv", True, found and len(rows) - 1 <= found[0] <= len(rows) and found[1][0] <= len(rows[0]))


@kind("data: IDX", 5000, quick=10, batch=250, share=1.5)
def idx(bench: Bench, rng: random.Random, number: int) -> None:
    head = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in _images.shape)
    labels = b"\0\0\x08\x01" + (20).to_bytes(4, "big") + bytes(i % 3 for i in range(20))
    contents = {"train-images-idx3-ubyte": head + _images.tobytes(), "train-labels-idx1-ubyte": labels}
    Path("idx").mkdir(exist_ok=True)
    target = list(contents)[number % 2]
    for name, content in contents.items():
        Path("idx", name).write_bytes(mutators.mutated(rng, content) if name == target else content)
    found = loaded("idx")
    content = Path("idx/train-images-idx3-ubyte").read_bytes()
    sizes = [int.from_bytes(content[i : i + 4], "big") for i in (4, 8, 12)]
    if content[:4] == b"\0\0\x08\x03" and len(content) == 16 + int(np.prod(sizes, dtype=object)):
        expect("idx", (sizes[0], (1, *sizes[1:])), found)


@kind("data: PNG", 5000, quick=10, batch=250, share=2.5)
def png(bench: Bench, rng: random.Random, number: int) -> None:
    from PIL import Image

    Path("png").mkdir(exist_ok=True)
    for i in range(6):
        if not Path(f"png/{i}.png").exists():
            Path(f"png/{i}.png").write_bytes(_png(_images[i]))
    Path("png/3.png").write_bytes(mutators.mutated(rng, _png(_images[3])))
    found = loaded("png")
    right = None
    with contextlib.suppress(Exception), Image.open("png/3.png") as image:
        image.load()
        right = (6, (8, 8)) if image.size == (8, 8) else None
    expect("png", right, found and (found[0], found[1][1:]))
