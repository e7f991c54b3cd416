"""The pictures: read back from the file, they show what was drawn."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import ansn
from ansn import figures, sample_figures
from ansn.data.units import Column
from ansn.evaluation import everything
from ansn.region_figures import regions_figure, save_regions

Pixels = NDArray[np.uint8]
RECORDS = [{"step": 50 * i, "loss": 3.0 / i, "condition_number": 1.0 + 0.1 * i} for i in range(1, 21)]


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    return everything(ansn.load_dataset("digits"))


def pixels(path: Path) -> Pixels:
    """A whole picture of sensible size that is not all one colour."""
    with Image.open(path) as image:
        image.verify()
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.mode == "RGB"
        drawn = np.asarray(image)
    assert 40 <= drawn.shape[0] <= 4000
    assert 480 <= drawn.shape[1] <= 4000
    assert drawn.std() > 1
    return drawn


def cells(drawn: Pixels, columns: int, size: int, scale: int) -> Pixels:
    """The middle of every pixel of every image of a grid, ``[rows, columns, size, size, 3]``."""
    middle = drawn[scale // 2 :: scale, scale // 2 :: scale]
    rows = (middle.shape[0] - 1) // (size + 1)
    inner = middle[1:, 1:].reshape(rows, size + 1, columns, size + 1, 3)[:, :size, :, :size]
    return inner.transpose(0, 2, 1, 3, 4)


def test_a_grid_holds_every_pixel_exactly(digits: torch.Tensor, tmp_path: Path) -> None:
    figures.save_samples(digits[:64], tmp_path / "x.png")
    drawn = pixels(tmp_path / "x.png")
    scale = drawn.shape[1] // 73
    assert drawn.shape == (73 * scale, 73 * scale, 3)
    expected = (digits[:64] * 255).round().numpy().astype(np.uint8).reshape(8, 8, 8, 8)
    assert np.array_equal(cells(drawn, 8, 8, scale), np.broadcast_to(expected[..., None], (8, 8, 8, 8, 3)))
    # Nothing is smoothed: every pixel is a block of one colour.
    assert (drawn.reshape(73, scale, 73, scale, 3) == drawn[::scale, None, ::scale, None]).all()


def test_colours_columns_and_scale(tmp_path: Path) -> None:
    x = torch.rand(5, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    figures.save_samples(x, tmp_path / "x.png", columns=3, upscale=25)
    drawn = pixels(tmp_path / "x.png")
    assert drawn.shape == (15 * 25, 22 * 25, 3)
    shown = cells(drawn, 3, 6, 25).reshape(6, 6, 6, 3)
    assert np.array_equal(shown[:5], (x * 255).round().numpy().astype(np.uint8).transpose(0, 2, 3, 1))
    assert (shown[5] == round(0.35 * 255)).all()  # the cell that is left over


def test_clipping_is_told_only_when_it_hides_something(digits: torch.Tensor, tmp_path: Path) -> None:
    whole = digits[:16]
    for name, x in {"in": whole, "slightly": whole - 0.01, "out": 1.5 * whole, "few": whole.clone()}.items():
        if name == "few":
            x[0, 0, 0, 0] = -5.0
        figures.save_samples(x, tmp_path / f"{name}.png")
    heights = {name: pixels(tmp_path / f"{name}.png").shape[0] for name in ("in", "slightly", "out", "few")}
    assert heights["in"] == heights["slightly"] == heights["few"]
    line = heights["out"] - heights["in"]
    assert 20 <= line <= 40
    drawn = pixels(tmp_path / "out.png")
    assert (drawn[:line] < 100).any()  # letters
    assert (drawn[:line, :4] == 255).all()  # which are not cut off
    assert (drawn[:line, -4:] == 255).all()
    figures.save_samples((1.5 * whole).clamp(0, 1), tmp_path / "clipped.png")
    assert np.array_equal(drawn[line:], pixels(tmp_path / "clipped.png"))


def test_what_is_not_finite_shows(digits: torch.Tensor, tmp_path: Path) -> None:
    x = digits[:4].clone()
    x[1, 0, 2, 3], x[2, 0, 0, 0] = math.nan, math.inf
    figures.save_samples(x, tmp_path / "x.png", upscale=40)
    drawn = pixels(tmp_path / "x.png")
    shown = cells(drawn[drawn.shape[0] - 19 * 40 :], 2, 8, 40).reshape(4, 8, 8, 3)
    magenta = (shown == np.array([255, 0, 255])).all(-1)
    assert {tuple(map(int, where)) for where in np.argwhere(magenta)} == {(1, 2, 3), (2, 0, 0)}


def test_lines_are_curves_in_cells_on_one_scale(tmp_path: Path) -> None:
    # In each cell a constant that rises from cell to cell, and its negative as the second channel.
    x = torch.linspace(0, 1, 8)[:, None, None].repeat(1, 2, 50) * torch.tensor([1.0, -1.0])[:, None]
    x[0] = math.nan  # nothing to draw
    figures.save_samples(x, tmp_path / "x.png", columns=4)
    pixels(tmp_path / "x.png")
    lines = sample_figures.curves_figure(x.double().numpy(), 4).axes[0].get_lines()
    assert len(lines) == 16
    up = np.array([line.get_ydata() for line in lines]).reshape(2, 8, 50)
    row = np.repeat([1, 0], 4)  # the first cells are the upper ones
    height = up - row[:, None]
    assert np.isnan(height[:, 0]).all()
    assert ((height[:, 1:] > 0) & (height[:, 1:] < 1)).all()
    np.testing.assert_allclose(np.diff(height[0, 1:, 0]), 0.06, rtol=1e-5)
    np.testing.assert_allclose(np.diff(height[1, 1:, 0]), -0.06, rtol=1e-5)
    across = np.array([line.get_xdata() for line in lines[:8]])
    assert (np.floor(across) == np.tile(np.arange(4), 2)[:, None]).all()


def test_volumes_are_the_middle_slices_of_three_axes_on_one_scale() -> None:
    x = torch.full((4, 2, 5, 3, 6), 1e9)
    x[:, 0] = torch.linspace(-4, 6, 4 * 5 * 3 * 6).view(4, 5, 3, 6)
    planes, what = sample_figures.layers(x)
    assert what == "middle slices across the three axes (2 of 5, 1 of 3, 3 of 6) of channel 0"
    expected = [x[:, 0, 2], x[:, 0, :, 1], x[:, 0, :, :, 3]]
    assert all(torch.equal(a, b) for a, b in zip(planes, expected, strict=True))
    scale = sample_figures.limits(x)
    assert len(set(scale)) == 1
    assert scale[0] == (float(min(p.min() for p in planes)), float(max(p.max() for p in planes)))
    assert sample_figures.tiles(x).shape == (4, 3, 5, 6 + 1 + 6 + 1 + 3)


@pytest.mark.parametrize(("offset", "scale"), [(280.0, 1.0), (0.0, 1e-17)])
def test_maps_are_in_colours_on_the_datas_scale_in_any_unit(offset: float, scale: float) -> None:
    data = offset + scale * torch.rand(9, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    samples = data.flip(0).clone()
    samples[0], samples[1, 0, 0, 0] = offset + 5 * scale, math.nan
    scales = sample_figures.limits(data, "field")
    assert scales == [(float(data.min()), float(data.max()))]
    a, b = (sample_figures.tiles(x, "field", scales) for x in (data, samples))
    assert torch.equal(a.flip(0)[2:], b[2:])
    at = ((data - data.min()) / (data.max() - data.min())).numpy()[:, 0]
    np.testing.assert_allclose(a.movedim(1, -1), matplotlib.colormaps["viridis"](at)[..., :3], atol=1e-6)
    assert torch.equal(b[1, :, 0, 0], torch.tensor([1.0, 0.0, 1.0]))
    assert "of the values lay outside the data's scale" in sample_figures.clipping(samples, scales)
    assert "1 values are not finite" in sample_figures.clipping(samples, scales)


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_images_of_other_channels_lie_side_by_side_in_grey(channels: int, tmp_path: Path) -> None:
    x = torch.rand(4, channels, 6, 5, generator=torch.Generator().manual_seed(0))
    shown = sample_figures.tiles(x)
    for c in range(min(channels, 4)):
        torch.testing.assert_close(shown[..., 6 * c : 6 * c + 5], x[:, c : c + 1].expand(4, 3, 6, 5))
    figures.save_samples(x, tmp_path / "x.png", reference=x)
    pixels(tmp_path / "x.png")


SHAPES: list[tuple[str, tuple[int, ...]]] = [
    ("image", (1, 8, 8)), ("image", (3, 8, 8)), ("image", (4, 8, 8)), ("field", (1, 8, 8)), ("field", (3, 8, 6)),
    ("field", (2, 40)), ("field", (1, 4, 6, 8)), ("table", (1,)), ("table", (2,)), ("table", (3,)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "shape"), SHAPES)
def test_every_kind_is_drawn_beside_the_data(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Also where the data has fewer rows; the data's part of the picture is the same for other samples."""
    g = torch.Generator().manual_seed(0)
    x, data = torch.rand(9, *shape, generator=g), torch.rand(5, *shape, generator=g)
    for name, rows in (("a", x), ("b", 0.5 * x.flip(0))):
        figures.save_samples(rows, tmp_path / f"{name}.png", kind=kind, reference=data)
    a, b = pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png")
    assert not np.array_equal(a, b)
    if len(shape) > 1:  # on the left
        left = slice(0, a.shape[1] // 2 - 20)
        assert np.array_equal(a[40:, left], b[40:, left])  # below the lines on what was clipped
        assert a[:, left].std() > 1


@pytest.mark.parametrize(("kind", "shape"), SHAPES[3:])
def test_samples_of_no_number_and_data_of_one_are_drawn(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = torch.full((4, *shape), math.nan)
        figures.save_samples(x, tmp_path / "x.png", kind=kind, reference=torch.zeros(3, *shape))
    pixels(tmp_path / "x.png")


def test_words_and_times_mark_the_axes() -> None:
    columns = [Column("sort", "category", words=("cat", "$dog"), shares=(0.5, 0.5))]
    columns.append(Column("when", "time", form="%Y-%m-%d"))
    x = np.stack((np.arange(40) % 2, 1.6e9 + 1e6 * np.arange(40)), 1)
    figure = sample_figures.scatter_figure(x, None, ["sort", "when"], cells=columns)
    axes = figure.axes[0]
    figures.rasterised(figure, 50)
    words = [label.get_text() for label in axes.get_xticklabels()]
    assert {"cat", r"\$dog"} <= set(words) <= {"cat", r"\$dog", ""}
    assert all(label.get_text().startswith("202") for label in axes.get_yticklabels())


@pytest.mark.parametrize("top", [2, 30, 500])
def test_bars_of_whole_numbers_hold_as_many_each(top: int) -> None:
    """Else a smooth distribution would have a comb's picture."""
    x = np.tile(np.arange(top), 400).astype(float)
    ends = sample_figures.edges(x, 12)
    counts = np.histogram(x, ends)[0]
    assert counts.sum() == len(x)
    assert len(set(counts[:-1])) == 1
    assert len(counts) <= 31
    assert (sample_figures.edges(np.append(x, 1e9), 12) < 1e6).all()  # one outlier
    rare = np.append(np.zeros(1000), 3.0)  # a word of four
    assert sample_figures.edges(rare, 12).tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5]


def test_channels_of_other_spreads_have_their_scales() -> None:
    x = np.random.default_rng(0).normal(size=(8, 2, 30))
    same, other = sample_figures.line_scales(x), sample_figures.line_scales(x * np.array([[1.0], [1e5]]))
    assert same[0] == same[1]
    assert other[1][1] > 1e4 * other[0][1]


def test_one_large_line_leaves_the_others_a_shape() -> None:
    x = np.random.default_rng(0).normal(size=(16, 1, 30))
    usual = sample_figures.line_scales(x)[0]
    assert usual == (x.min(), x.max())
    x[3] *= 100
    low, high = sample_figures.line_scales(x)[0]
    assert high - low < 3 * (usual[1] - usual[0])


def test_a_few_large_values_leave_the_others_their_colours() -> None:
    x = torch.exp(2 * torch.randn(8, 1, 12, 12, 12, generator=torch.Generator().manual_seed(0)))
    high = sample_figures.limits(x, "field")[0][1]
    assert high < 0.3 * float(x.max())
    shown = torch.cat([plane.flatten() for plane in sample_figures.layers(x)[0]])
    assert float((shown > high).float().mean()) < 0.006
    plain = torch.rand(8, 1, 12, 12)
    assert sample_figures.limits(plain, "field") == [(float(plain.min()), float(plain.max()))]


def test_points_of_few_whole_numbers_are_spread_where_some_are_not_known() -> None:
    x = np.array([[0.0, 0.5], [1.0, 1.5], [math.nan, 2.5]] * 50)
    codes, numbers = sample_figures._apart(x, 0, 1)
    assert len(np.unique(codes[np.isfinite(codes)])) == 100
    assert np.nanmax(np.abs(codes - x[:, 0])) <= 0.2
    assert np.array_equal(numbers, x[:, 1])


@pytest.mark.parametrize("d", [1, 2, 6])
def test_vectors_are_plotted_against_the_data(d: int, tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    x, data = torch.randn(200, d, generator=g), torch.randn(300, d, generator=g)
    x[0, 0] = math.nan  # one sample that diverged does not spoil the picture
    figures.save_samples(x, tmp_path / "alone.png")
    figures.save_samples(x, tmp_path / "both.png", reference=data, names=[f"column {j}" for j in range(d)])
    alone, both = pixels(tmp_path / "alone.png"), pixels(tmp_path / "both.png")
    assert alone.shape == both.shape
    assert not np.array_equal(alone, both)


@pytest.mark.parametrize(
    "name", [r"$\frac{", "a$b$", "_under", "\x00\n\t", "日本語", "", "\ud800", "long " * 50, "%s {x}"]
)
def test_any_name_can_be_drawn(name: str, tmp_path: Path) -> None:
    """Column names come from files."""
    shown = sample_figures.drawable(name)
    assert 1 <= len(shown.replace(r"\$", "$")) <= 24
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor is a missing letter worth a warning
        figures.save_samples(torch.randn(20, 2), tmp_path / "x.png", names=[name, "other"])
    pixels(tmp_path / "x.png")


def test_points_lie_where_they_belong(tmp_path: Path) -> None:
    """Samples in the upper right quarter of the data's square colour that quarter alone."""
    corners = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]])
    x = 0.8 * torch.rand(400, 2, generator=torch.Generator().manual_seed(0)) + 0.1
    figures.save_samples(x, tmp_path / "x.png", reference=corners)
    drawn = pixels(tmp_path / "x.png").astype(int)
    blue = (drawn[..., 2] - drawn[..., 0]) > 60
    rows, columns = np.nonzero(blue[100:])  # below the legend
    grey = (abs(drawn - 153).max(-1) < 8)[100:]
    middle = np.nonzero(grey)[1]
    assert len(rows) > 300
    assert columns.min() > (middle.min() + middle.max()) / 2 - 10
    assert rows.max() + 100 < drawn.shape[0] * 0.6


@pytest.mark.parametrize("options", [{"rho": 0.5}, {"rho": 0.0}, {"gamma": 0.5}, {"structure": "diagonal"}])
def test_covariance_of_images(options: dict[str, Any], digits: torch.Tensor, tmp_path: Path) -> None:
    covariance = ansn.AdaptiveCovariance((1, 8, 8), **options).update(digits).freeze()
    figures.save_covariance(covariance, tmp_path / "x.png")
    drawn = pixels(tmp_path / "x.png").astype(int)
    assert drawn.shape[1] >= 1000
    right = drawn[:, drawn.shape[1] // 2 :]
    # A scale about 0 has both of its colours among the draws of the noise.
    assert ((right[..., 0] - right[..., 2]) > 80).mean() > 0.002
    assert ((right[..., 2] - right[..., 0]) > 80).mean() > 0.002


@pytest.mark.parametrize("shape", [(3, 6, 6), (2,), (30,), (2, 5, 5)])
def test_covariance_of_other_shapes_and_regions(shape: tuple[int, ...], tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    covariance = ansn.AdaptiveCovariance(shape, regions=2)
    scale = torch.rand(shape, generator=g) + 0.1
    covariance.update(scale * torch.randn(200, *shape, generator=g), torch.arange(200) % 2)
    for region in (0, 1):
        figures.save_covariance(covariance, tmp_path / f"{region}.png", region=region)
    assert not np.array_equal(pixels(tmp_path / "0.png"), pixels(tmp_path / "1.png"))
    with pytest.raises(ValueError, match=r"region: got 2, expected 0..1"):
        figures.save_covariance(covariance, tmp_path / "2.png", region=2)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 6), (2, 5, 5), (2, 30), (1, 3, 4, 5), (1,), (2,), (300,)])
def test_regions_of_any_shape(shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row for each of the largest, from the largest down; what is drawn changes nothing of the mixture."""
    monkeypatch.setattr("ansn.region_figures.MOST", 3)
    region, g = torch.arange(200) % 5 % 4, torch.Generator().manual_seed(0)
    x = torch.rand(200, *shape, generator=g) + region.reshape(-1, *(1 for _ in shape))
    mixture = ansn.Mixture(ansn.AdaptiveCovariance(shape, 4, "diagonal").update(x, region))
    before = {name: value.clone() for name, value in mixture.state_dict().items()}
    names = [r"$\frac{"] * shape[0] if len(shape) == 1 else None
    save_regions(mixture, tmp_path / "x.png", names=names)
    assert pixels(tmp_path / "x.png").shape[1] == 825
    axes = regions_figure(mixture, names).axes
    assert [cell.get_ylabel() for cell in axes[::4]] == ["40.0%", "20.0%", "20.0%"]
    assert all(torch.equal(before[name], value) for name, value in mixture.state_dict().items())


def test_heading_states_the_covariances_own_numbers(digits: torch.Tensor) -> None:
    covariance = ansn.AdaptiveCovariance((1, 8, 8), rho=0.9).update(digits).freeze()
    heading = figures.heading(
        covariance, 0, torch.linalg.eigvalsh(covariance.covariance()[0]), covariance.eigenvalues()[0]
    )
    condition, rank = float(covariance.condition_number()), float(covariance.effective_rank())
    assert heading == (
        f"dense, rho = 0.9, 1,347 points: condition number of R {condition:.4g}, effective rank of S {rank:.1f} of 64"
    )


def test_a_covariance_that_saw_nothing_has_a_picture(tmp_path: Path) -> None:
    figures.save_covariance(ansn.AdaptiveCovariance((1, 4, 4)), tmp_path / "x.png")
    pixels(tmp_path / "x.png")


def test_an_eigenvectors_sign_is_fixed() -> None:
    v = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(figures.signed(v), figures.signed(-v))
    assert torch.equal(figures.signed(v).abs(), v.abs())


@pytest.mark.parametrize("count", [0, 1, 4, 20])
def test_loss_of_any_number_of_records(count: int, tmp_path: Path) -> None:
    figures.save_loss(RECORDS[:count], tmp_path / "x.png")
    pixels(tmp_path / "x.png")


def test_loss_leaves_out_what_is_no_number(tmp_path: Path) -> None:
    figures.save_loss(RECORDS, tmp_path / "a.png")
    holes: list[dict[str, Any]] = [{"step": 0, "loss": None}, {"step": 7}, {"step": 9, "loss": math.nan}]
    figures.save_loss([*RECORDS, *holes], tmp_path / "b.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))
    figures.save_loss([{k: v for k, v in r.items() if k != "condition_number"} for r in RECORDS], tmp_path / "c.png")
    assert not np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "c.png"))


def _draw_all(digits: torch.Tensor, folder: Path) -> None:
    figures.save_samples(1.2 * digits[:9], folder / "samples.png")
    figures.save_samples(digits[:50].flatten(1)[:, 20:22], folder / "table.png")
    figures.save_covariance(ansn.AdaptiveCovariance((1, 8, 8)).update(digits), folder / "covariance.png")
    figures.save_loss(RECORDS, folder / "loss.png")


def test_the_same_input_gives_the_same_bytes_and_no_other_file(digits: torch.Tensor, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        _draw_all(digits, tmp_path / name)
    names = {"samples.png", "table.png", "covariance.png", "loss.png"}
    assert {p.name for p in (tmp_path / "a").iterdir()} == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_matplotlibs_own_state_is_left_alone(digits: torch.Tensor, tmp_path: Path) -> None:
    """Only the parameters are read: a figure of pyplot's would show in ``get_fignums``."""
    before = dict(matplotlib.rcParams.copy())
    _draw_all(digits, tmp_path)
    assert dict(matplotlib.rcParams.copy()) == before
    import matplotlib.pyplot as plt

    assert plt.get_fignums() == []


def test_a_picture_that_cannot_be_written_leaves_the_old_one(
    digits: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "x.png"
    figures.save_samples(digits[:4], target)
    before = target.read_bytes()

    def full(self: Path, content: bytes) -> None:
        with self.open("wb") as stream:
            stream.write(content[:11])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        figures.save_samples(digits[4:8], target)
    assert target.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(3, 1, 2, 2, 2, 2), {}, r"x: got shape \[3, 1, 2, 2, 2, 2\], expected"),
        (torch.zeros(8), {}, r"x: got shape \[8\]"),
        (torch.zeros(0, 1, 8, 8), {}, "n at least 1"),
        (torch.zeros(2, 1, 8, 8), {"columns": 0}, "columns: got 0"),
        (torch.zeros(2, 1, 8, 8), {"upscale": -1}, "upscale: got -1"),
        (torch.zeros(2, 3), {"reference": torch.zeros(2, 4)}, r"reference: got shape \[2, 4\], expected \[m, 3\]"),
        (torch.zeros(2, 3), {"names": ("a", "b")}, "names: got 2, expected one for each of 3 columns"),
    ],
)
def test_wrong_arguments_are_named(x: torch.Tensor, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        figures.save_samples(x, tmp_path / "x.png", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_link_of_the_name_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("someone's")
    (tmp_path / "loss.png").symlink_to(tmp_path / "other")
    figures.save_loss([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}], tmp_path / "loss.png")
    assert (tmp_path / "other").read_text() == "someone's"
    assert not (tmp_path / "loss.png").is_symlink()
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"
