"""Checkpoints are complete or not there, readable without pickle, and a damaged one is one clear line."""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import stat
import struct
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ansn
from ansn.data.units import Table
from ansn.errors import InputError
from ansn.training import checkpoint, load_run, train
from ansn.training.state import State
from tests.training.helpers import assert_same_run, seal, small, state, tensors, trained

PACKAGE = Path(ansn.__file__).parent


def newest(run: Path) -> Path:
    return run / "checkpoints" / f"step-{checkpoint.steps(run)[0]:08d}"


# -- what is there ---------------------------------------------------------------------------------------------


def test_round_trip_of_any_tensors(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    groups = {
        "network": {"a": base, "transposed": base.T, "row": base[1], "half": base.bfloat16()},
        "covariance": {"empty": torch.zeros(0, 3), "count": torch.tensor([7]), "double": base.double() / 3},
    }
    checkpoint.save(tmp_path, 3, groups, state())
    loaded, found = checkpoint.load(tmp_path)
    assert found == State.of({"format": checkpoint.FORMAT, "step": 3, **state()})
    for group, values in groups.items():
        assert loaded[group].keys() == values.keys()
        for name, value in values.items():
            assert loaded[group][name].dtype == value.dtype
            assert torch.equal(loaded[group][name], value)


def test_the_optimiser_survives_the_trip() -> None:
    torch.manual_seed(0)
    networks = [torch.nn.Linear(3, 2) for _ in range(2)]
    optimizers = [torch.optim.AdamW(n.parameters(), lr=0.1, betas=(0.8, 0.9)) for n in networks]
    for _ in range(3):
        networks[0](torch.rand(4, 3)).square().sum().backward()
        optimizers[0].step()
    values, groups = checkpoint.flatten_optimizer(optimizers[0])
    checkpoint.unflatten_optimizer(optimizers[1], values, json.loads(json.dumps(groups)))
    first, second = (o.state_dict() for o in optimizers)
    assert second["param_groups"] == first["param_groups"]
    assert second["param_groups"][0]["betas"] == (0.8, 0.9)
    for i, entries in first["state"].items():
        for name, value in entries.items():
            assert torch.equal(second["state"][i][name], value)


def test_two_newest_are_kept(tmp_path: Path) -> None:
    for step in (2, 9, 10, 123456789):
        checkpoint.save(tmp_path, step, {"a": {"x": torch.tensor([step])}}, state())
    assert checkpoint.steps(tmp_path) == [123456789, 10]
    assert int(checkpoint.load(tmp_path)[0]["a"]["x"]) == 123456789
    assert int(checkpoint.load(tmp_path, 10)[0]["a"]["x"]) == 10
    with pytest.raises(InputError, match=r"step: got 9, expected one of 123456789, 10"):
        checkpoint.load(tmp_path, 9)


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    for value in (1, 2):
        checkpoint.save(tmp_path, 5, {"a": {"x": torch.tensor([value])}}, state())
    assert checkpoint.steps(tmp_path) == [5]
    assert int(checkpoint.load(tmp_path)[0]["a"]["x"]) == 2


def test_other_names_in_the_folder_are_no_checkpoints(run: Path) -> None:
    for name in ("step-12", "step-00000050.tmp", ".writing-1", "notes"):
        (run / "checkpoints" / name).mkdir()
    assert checkpoint.steps(run) == [40, 30]


def test_only_safetensors_and_json(run: Path) -> None:
    """Read by their own published layouts: eight bytes of length, a JSON header, raw values."""
    names = {p.name for p in newest(run).iterdir()}
    groups = ("network", "ema", "covariance", "optimizer")
    assert names == {"state.json", "SHA256SUMS"} | {f"{g}.safetensors" for g in groups}
    for group in groups:
        data = (newest(run) / f"{group}.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        assert 8 + length + max(v["data_offsets"][1] for v in header.values()) == len(data)
    state = json.loads((newest(run) / "state.json").read_text())
    assert (state["format"], state["step"]) == (checkpoint.FORMAT, 40)
    assert state["config"]["optim"]["steps"] == 40


def test_no_pickle_is_read_or_written_anywhere() -> None:
    """In code, comments and texts aside: no pickle module, no torch.load or torch.save, no allow_pickle=True."""
    offences = []
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 30
    for file in files:
        code = [
            t
            for t in tokenize.generate_tokens(io.StringIO(file.read_text()).readline)
            if t.type in (tokenize.NAME, tokenize.OP)
        ]
        for i, token in enumerate(code):
            after = "".join(t.string for t in code[i : i + 3])
            if token.string in ("pickle", "cPickle", "dill", "joblib", "shelve", "marshal"):
                offences.append(f"{file}:{token.start[0]} {token.string}")
            if after in ("torch.load", "torch.save", "allow_pickle=True"):
                offences.append(f"{file}:{token.start[0]} {after}")
    assert offences == []


# -- interrupted while writing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", ["save_file", "replace", "fsync", "write_text"])
def test_an_error_while_writing_leaves_what_was_there(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    run = trained(tmp_path / "run", steps=10)
    before = tensors(run)
    with monkeypatch.context() as patch:
        full = OSError(28, "No space left on device")
        target: tuple[Any, str] = {
            "save_file": (checkpoint, "save_file"),
            "replace": (os, "replace"),
            "fsync": (os, "fsync"),
            "write_text": (Path, "write_text"),
        }[fails]
        original, calls = getattr(*target), []

        def refuse(*args: Any, **options: Any) -> Any:
            if fails == "replace" and "step-" not in str(args[1]):
                return original(*args, **options)
            if fails == "write_text" and args[0].name != "state.json":
                return original(*args, **options)
            calls.append(args)
            if fails == "save_file" and len(calls) < 3:  # two files are there, the third is not
                return original(*args, **options)
            raise full

        patch.setattr(*target, refuse)
        with pytest.raises(InputError, match="run: got No space left on device at the checkpoint of step 20, expected"):
            trained(run)
    assert calls
    assert checkpoint.steps(run) == [10]
    assert all(torch.equal(v, before[k]) for k, v in tensors(run).items())
    trained(run)
    assert_same_run(whole, run)
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == ["step-00000030", "step-00000040"]


def test_a_kill_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    """SIGKILL between the last file and the rename: nothing of Python runs after it."""

    def child() -> None:
        checkpoint.save(tmp_path, 1, {"a": {"x": torch.tensor([1.0])}}, state())
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        checkpoint.save(tmp_path, 2, {"a": {"x": torch.tensor([2.0])}}, state())

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert checkpoint.steps(tmp_path) == [1]
    assert float(checkpoint.load(tmp_path)[0]["a"]["x"]) == 1.0
    assert len(list((tmp_path / "checkpoints").glob(".writing-*"))) == 1
    checkpoint.save(tmp_path, 3, {"a": {"x": torch.tensor([3.0])}}, state())
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000001", "step-00000003"]


# -- damaged ---------------------------------------------------------------------------------------------------


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def edit_state(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text())
        for name, value in values.items():
            if value is KeyError:
                del state[name]
            else:
                state[name] = value
        (folder / "state.json").write_text(json.dumps(state))

    return edit


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated weights": lambda d: truncate(d / "network.safetensors"),
    "empty weights": lambda d: (d / "network.safetensors").write_bytes(b""),
    "weights that are text": lambda d: (d / "covariance.safetensors").write_text("hello, world" * 9),
    "a header longer than the file": lambda d: (d / "ema.safetensors").write_bytes(b"\xff" * 8 + b"{}"),
    "no weights": lambda d: (d / "network.safetensors").unlink(),
    "no covariance": lambda d: (d / "covariance.safetensors").unlink(),
    "another network's weights": lambda d: save_file({"x": torch.ones(3)}, d / "network.safetensors"),
    "another network's average": lambda d: save_file({"x": torch.ones(3)}, d / "ema.safetensors"),
    "another covariance": lambda d: save_file({"factor": torch.ones(3)}, d / "covariance.safetensors"),
    "no state": lambda d: (d / "state.json").unlink(),
    "truncated state": lambda d: truncate(d / "state.json"),
    "state that is no text": lambda d: (d / "state.json").write_bytes(b"\xff\xfe\x00"),
    "state that is a list": lambda d: (d / "state.json").write_text("[1, 2]"),
    "state of a later format": edit_state(format=checkpoint.FORMAT + 1),
    "state without format": edit_state(format=KeyError),
    "state without config": edit_state(config=KeyError),
    "state without data": edit_state(data=KeyError),
    "state without levels": edit_state(levels=KeyError),
    "config that is a number": edit_state(config=3),
    "config with an unknown setting": edit_state(config={"noise": {"colour": "red"}}),
    "data that is a list": edit_state(data=[1]),
    "data of another kind": edit_state(data={"name": "x"}),
    "levels that rise": edit_state(levels={"tau": [0.1, 1.0]}),
    "levels that are words": edit_state(levels={"tau": ["a"]}),
    "no step": edit_state(step=KeyError),
    "a step that is a word": edit_state(step="forty"),
}


def one_line(error: BaseException, run: Path) -> None:
    assert re.fullmatch(f"{re.escape(str(run))}.*: got .+, expected .+", str(error)), error


UNSEALED = ("truncated weights", "no weights", "no covariance", "no state", "truncated state", "a step that is a word")


@pytest.mark.parametrize(
    ("what", "sealed"), [*((what, True) for what in DAMAGES), *((what, False) for what in UNSEALED)]
)
def test_damage_is_one_clear_line(run: Path, what: str, sealed: bool) -> None:
    """Of the only checkpoint; where checksums fit, as of another program, and where they do not."""
    shutil.rmtree(run / "checkpoints" / "step-00000030")
    DAMAGES[what](newest(run))
    if sealed:
        seal(newest(run))
    # sampling with the average needs no weights but it
    ema = not sealed or what not in ("no weights", "another network's weights")
    with pytest.raises(InputError) as caught:
        load_run(run, ema=ema)
    one_line(caught.value, run)
    with pytest.raises(InputError) as caught:
        trained(run, steps=50)
    one_line(caught.value, run)


@pytest.mark.parametrize("what", UNSEALED)
def test_of_a_damaged_newest_checkpoint_the_one_before_is_taken(run: Path, what: str) -> None:
    DAMAGES[what](newest(run))
    with pytest.warns(UserWarning, match=r"step-00000040: is damaged \(.+\); step 30 before it is taken"):
        assert load_run(run).step == 30
    with pytest.raises(InputError, match=r"step-00000040: got a damaged checkpoint \(.+\), expected one that is whole"):
        load_run(run, step=40)


@pytest.mark.parametrize("name", ["network.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS"])
def test_a_flipped_bit_is_seen_and_the_run_goes_on_from_the_checkpoint_before(
    run: Path, whole: Path, name: str
) -> None:
    file = newest(run) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="step 30 before it is taken"):
        trained(run)
    assert_same_run(whole, run)
    assert checkpoint.steps(run) == [40, 30]


def test_a_checkpoint_of_a_step_is_the_newest(tmp_path: Path) -> None:
    """Later ones were damaged, or of a run that was not gone on with: they would be taken for newer."""
    for step in (10, 20, 30, 15):
        checkpoint.save(tmp_path, step, {"a": {"x": torch.tensor([step])}}, state())
    assert checkpoint.steps(tmp_path) == [15]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("group", ["ema", "covariance"])
def test_numbers_that_are_not_finite(run: Path, group: str, value: float) -> None:
    file = newest(run) / f"{group}.safetensors"
    values = load_file(file)
    name = next(k for k in values if k.endswith(("weight", "mean")))
    values[name].view(-1)[0] = value
    save_file(values, file)
    seal(newest(run))
    with pytest.raises(InputError, match=rf"{group}.safetensors: got 1 of \d+ numbers of .+ that are not finite"):
        load_run(run)
    assert load_run(run, finite=False).step == 40


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_have_the_mode_that_the_umask_gives(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        folder = checkpoint.save(tmp_path, 1, {"a": {"x": torch.ones(3)}}, state())
    finally:
        os.umask(before)
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {0o666 & ~mask}


def test_who_may_not_read_is_given_the_reason(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run as root, who may read everything."""
    original = Path.open

    def refuse(self: Path, *args: Any, **options: Any) -> Any:
        if self.suffix == ".safetensors":
            raise PermissionError(13, "Permission denied", str(self))
        return original(self, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"step-00000040/.+: got Permission denied, expected a checkpoint to read"):
        load_run(run)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: (d / "optimizer.safetensors").unlink(),
        lambda d: save_file({"0.step": torch.ones(())}, d / "optimizer.safetensors"),
        lambda d: save_file({"nonsense": torch.ones(())}, d / "optimizer.safetensors"),
        edit_state(groups=KeyError),
        edit_state(groups=[]),
        edit_state(groups=[{"params": [0]}]),
    ],
    ids=["no optimiser", "another's", "nonsense", "no groups", "empty groups", "another's groups"],
)
def test_a_damaged_optimiser_stops_only_training(run: Path, damage: Callable[[Path], Any]) -> None:
    damage(newest(run))
    seal(newest(run))
    assert load_run(run).step == 40
    with pytest.raises(InputError) as caught:
        trained(run, steps=50)
    one_line(caught.value, run)


FORMAT_2 = {
    "dense, with a scalar skip": {"structure": "dense", "skip": "scalar"},
    "dense, its spectrum tracked": {"structure": "dense"},
    "a region a class": {"structure": "dense", "regions": "labels", "class_conditional": True, "skip": "wiener"},
    "symmetric root": {"structure": "dense", "root": "symmetric"},
    "diagonal": {"structure": "diagonal", "root": "cholesky"},
}


@pytest.mark.parametrize("settings", FORMAT_2.values(), ids=FORMAT_2.keys())
def test_a_run_of_format_2_is_what_it_was(tmp_path: Path, settings: dict[str, Any]) -> None:
    """One factor, and where it was tracked the eigenbasis and l; the structure is in the settings alone."""
    new = load_run(trained(tmp_path / "run", steps=20, **settings))
    tensors, _ = checkpoint.load(new.path)
    kept = tensors["covariance"]
    old = {name: value for name, value in kept.items() if not name.startswith("snapshot.")}
    old["_extra_state"] = kept["_extra_state"][:5]
    whole = settings["structure"] == "diagonal"
    old["factor"] = kept["snapshot.deviation" if whole else "snapshot.factor"]
    if "snapshot.l" in kept and settings.get("skip") != "scalar":
        old["ratio"] = kept["snapshot.l"]
    if "snapshot.basis0" in kept:
        old["basis"] = kept["snapshot.basis0"]
    folder = new.path / "checkpoints" / "step-00000020"
    save_file({name: value.contiguous() for name, value in old.items()}, folder / "covariance.safetensors")
    values = json.loads((folder / "state.json").read_text())
    values.pop("structure")
    (folder / "state.json").write_text(json.dumps(values | {"format": 2}))
    (folder / "SHA256SUMS").unlink()

    found = load_run(new.path)
    x, region = torch.rand(5, 1, 8, 8), torch.arange(5) if "regions" in settings else None
    told = {} if region is None else {"y": region}
    with torch.no_grad():
        both = [run.model(x, 0.7, region, **told) for run in (found, new)]
    torch.testing.assert_close(*both, rtol=0, atol=1e-6)
    torch.testing.assert_close(*(run.model.noise.covariance.color(x, region) for run in (found, new)))
    assert found.structure.structure == settings["structure"]
    # and it is gone on with; it held out nothing
    train(small(new.path, steps=25, test_fraction=0.0, **(settings | {"structure": "auto", "root": None})))


def test_no_run_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none: got no folder, expected one that ansn-train wrote"):
        load_run(tmp_path / "none")
    with pytest.raises(InputError, match=r"got no checkpoint, expected the folder of a run of ansn-train"):
        load_run(tmp_path)
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(InputError, match="got no checkpoint"):
        load_run(tmp_path)


def test_load_run_of_an_earlier_step(run: Path) -> None:
    early, late = load_run(run, step=30), load_run(run)
    assert (early.step, late.step) == (30, 40)
    assert not late.model.training
    assert early.model.noise.covariance.seen == 30 * 32


def test_the_data_of_formats_before_4(tmp_path: Path) -> None:
    """Offset and scale of each column, and the number of classes; no names, no content."""
    (tmp_path / "t.csv").write_text("a,b\n" + "\n".join(f"{i % 7}.5,{i * i}.25" for i in range(40)))
    options = {"dataset": str(tmp_path / "t.csv"), "steps": 4, "test_fraction": 0.0, "skip": "scalar"}
    new = load_run(trained(tmp_path / "run", **options))
    folder = new.path / "checkpoints" / "step-00000004"
    state = json.loads((folder / "state.json").read_text())
    assert isinstance(new.info.numbers, Table)
    columns = new.info.numbers.columns
    state["data"] = {
        "name": "t.csv", "kind": "vector", "shape": [2], "num_classes": 3, "quantisation": 0.0, "columns": ["a", "b"],
        "offset": [c.offset for c in columns], "scale": [c.scale for c in columns], "rows": 40, "fewest": 9,
    }  # fmt: skip
    (folder / "state.json").write_text(json.dumps(state | {"format": 3}))
    (folder / "SHA256SUMS").unlink()
    old = load_run(new.path)
    assert (old.info.kind, old.info.columns, old.info.rows, old.info.content) == ("table", ("a", "b"), 40, "")
    assert (old.info.classes, old.info.fewest, old.info.num_classes) == (("0", "1", "2"), 9, 3)
    x = torch.randn(5, 2)
    shifted = torch.tensor([c.offset for c in columns]) + torch.tensor([c.scale for c in columns]) * x
    torch.testing.assert_close(old.to_data_units(x).float(), shifted)
