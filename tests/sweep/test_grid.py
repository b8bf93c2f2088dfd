"""A grid is read as it was meant, or refused: no key is ignored, no point lost or doubled."""

from pathlib import Path

import pytest

from unitscale.sweep.grid import MOST_POINTS, grid_of, read_grid


def lines(text: str, folder: Path) -> Path:
    path = folder / "grid.toml"
    path.write_text(text)
    return path


def test_every_combination_is_a_point_once() -> None:
    content = {"lr": [0.1, 0.2], "seed": [0, 1, 2], "recipe": ["fp32", "fp8"], "steps": 5}
    points = grid_of(content | {"model": {"width": [32, 64]}}).points
    found = {(p.config.lr, p.config.seed, p.config.recipe, p.config.model["width"]) for p in points}
    assert len(points) == len(found) == 2 * 3 * 2 * 2
    assert {p.config.steps for p in points} == {5}
    assert len({p.name for p in points}) == len(points)


def test_file_without_a_list_is_one_run(tmp_path: Path) -> None:
    grid = read_grid(lines('recipe = "fp8"\ndata = "my.txt"\n', tmp_path))
    assert [p.config.recipe for p in grid.points] == ["fp8"]
    assert grid.data == tmp_path / "my.txt"  # beside the file, not where the command is run


def test_tables_unite_and_share_what_is_above_them(tmp_path: Path) -> None:
    text = """
    steps = 7
    model.depth = 1
    [[grid]]
    recipe = "fp32"
    lr = [0.5, 1]
    model.width = 32
    [[grid]]
    recipe = ["fp32", "fp8"]
    lr = 1.0
    steps = 7
    model.width = [32, 64]
    """
    grid = read_grid(lines(text, tmp_path))
    # Of the second table's four, fp32 at rate 1 and width 32 is in the first, written as `1`.
    assert len(grid.points) == 5
    assert grid.repeated == 1
    assert {p.config.model["depth"] for p in grid.points} == {1}


def test_sizes_are_swept_together_in_a_list_of_tables() -> None:
    sizes = [{"width": 32, "depth": 1}, {"width": 64, "depth": 2}]
    points = grid_of({"model": sizes, "seed": [0, 1]}).points
    assert [(p.config.model["width"], p.config.model["depth"]) for p in points] == [
        (32, 1),
        (32, 1),
        (64, 2),
        (64, 2),
    ]


def test_betas_are_one_value_and_lists_of_them_several() -> None:
    assert [p.config.betas for p in grid_of({"betas": [0.9, 0.95]}).points] == [(0.9, 0.95)]
    both = grid_of({"betas": [[0.9, 0.95], [0, 0.99]]}).points
    assert [p.config.betas for p in both] == [(0.9, 0.95), (0.0, 0.99)]


def test_default_that_is_written_out_is_the_same_point() -> None:
    tables = [{"recipe": "fp32"}, {"recipe": "fp32", "lr": 2.0**-8, "model": {"width": 128}}]
    grid = grid_of({"grid": tables})
    assert (len(grid.points), grid.repeated) == (1, 1)
    other = grid_of({"grid": [tables[0], tables[1] | {"lr": 2.0**-7}]})
    assert (len(other.points), other.repeated) == (2, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lrs = [0.1]", "unknown key 'lrs'; did you mean 'lr'?"),
        ("[[grids]]\nlr = 1", "unknown key 'grids'; did you mean 'grid'?"),
        ("zzz = 1", "unknown key 'zzz'; the keys are data, grid, recipe, existing"),
        ("[[grid]]\nlr = 1\n[[grid]]\nseeds = [1]", r"\[\[grid\]\] 2: unknown key 'seeds'"),
        ("[[grid]]\ndata = 'x'", "unknown key 'data'"),  # one text for the whole sweep
        ("model.widht = [64]", "the model has no option 'widht'"),
        ("width = 64", "unknown key 'width'"),
        ("lr = []", "lr is an empty list"),
        ("model.width = []", r"model\.width is an empty list"),
        ("model = []", "model is an empty list"),
        ("seed = [0, 1, 0]", "seed has 0 twice; a run is made once"),
        ("lr = [1, 1.0]", "lr has 1.0 twice"),
        ("lr = [0.1, -1]", "lr is -1.0; expected a number above 0"),
        ("lr = inf", "lr is inf; expected text, true, false or a finite number"),
        ("recipe = 2020-01-01", r"recipe is datetime\.date\(2020, 1, 1\); expected text"),
        ("seed = true", "seed is True; expected an integer"),
        ("recipe = ['fp32', 'fp9']", "unknown recipe 'fp9'"),
        ("steps = [[1]]", r"steps is \[1\]; expected an integer"),
        ("model = 'llama'", "model is 'llama'; expected options"),
        ("existing = 'attention'", "existing is 'attention'; expected gpt2, llama or"),
        ("grid = 3", "grid is 3; expected tables"),
        ("grid = []", r"grid is \[\]; expected tables"),
        ("data = ''", "data is ''; expected the path of a text file"),
        ("model.width = 8\n[[grid]]\nmodel = [{depth = 1}]", "model is a list of tables in one"),
        ("lr = ", "is not TOML"),
        ("a = " + "[" * 5000, "is not TOML"),
    ],
)
def test_grid_that_nobody_means_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as found:
        read_grid(lines(text, tmp_path))
    assert str(found.value).startswith(str(tmp_path / "grid.toml"))
    assert "\n" not in str(found.value).strip()


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_grid(path)


def test_too_many_points_are_refused_before_any_is_made() -> None:
    many = {"seed": list(range(1000)), "steps": list(range(1, 12))}
    with pytest.raises(ValueError, match=f"11000 points; expected at most {MOST_POINTS}"):
        grid_of(many)
