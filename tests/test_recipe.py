"""Recipes: strict, told of all mistakes at once, extended, overridden, and written out again."""

import importlib
import tomllib
from pathlib import Path
from typing import Any

import pytest

from s2s_cli.core.errors import RecipeError
from s2s_cli.core.recipe import Recipe, dump, load, override, packaged, parse
from s2s_cli.core.recipe.schema import (
    Adam,
    ConstantSchedule,
    HalvingSchedule,
    HubDataset,
    SentencePiece,
    SeparateTokenizers,
    Sgd,
    SharedTokenizer,
    Table,
    TextFiles,
    TorchInitialization,
    TsvFile,
    UniformInitialization,
    Words,
)

SMALL = """
[data.train]
kind = "text"
source = "train.en"
target = "train.fr"

[tokenizer]
kind = "shared"
model = { kind = "bpe", vocabulary = 100 }

[model.encoder]
layers = 1
embedding = 2
hidden = 3

[model.decoder]
kind = "plain"
layers = 1
embedding = 2
hidden = 3

[optimizer]
kind = "sgd"
lr = 0.5
momentum = 0.9
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A complete recipe with few keys."""
    return write(tmp_path / "small.toml", SMALL)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(path: Path, *overrides: str) -> list[str]:
    """The lines of the error that a recipe gives, after the first one, which is checked here."""
    with pytest.raises(RecipeError) as caught:
        load(str(path), overrides)
    first, *lines = str(caught.value).splitlines()
    count = "a mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    assert first == f"{count} in recipe {path}:"
    return [line.removeprefix("  ") for line in lines]


# --- types -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "training.seed = true",
        "training.seed = 1.0",
        'training.seed = "1"',
        "training.seed = -1",
        "training.log_every = 0",
        'optimizer.lr = "0.5"',
        "optimizer.lr = true",
        "optimizer.lr = nan",
        "optimizer.lr = inf",
        "optimizer.lr = 0",
        "optimizer.momentum = 1",
        "optimizer.momentum = -0.1",
        "model.reverse_source = 1",
        'model.reverse_source = "no"',
        "model.encoder.layers = 0",
        'model.encoder.cell = "lstn"',
        "about = 3",
        'differs = "nothing"',
        'evaluation.metrics = "bleu"',
        "data = 3",
        "optimizer = 0.5",
        "tokenizer.model = []",
        'name = "a/b"',
        'name = ".hidden"',
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_a_mistake(small: Path, change: str) -> None:
    (line,) = mistakes(small, change.replace(" = ", "="))
    assert line.startswith(change + ": ")


def test_only_a_whole_number_stands_for_a_fraction(small: Path) -> None:
    recipe = load(str(small), ["optimizer.lr=1", "training.epochs=2"])
    assert (recipe.optimizer.lr, recipe.training.epochs) == (1.0, 2.0)
    assert isinstance(recipe.optimizer.lr, float)


def test_a_recipe_cannot_be_changed(small: Path) -> None:
    recipe = load(str(small))
    with pytest.raises(ValueError, match="frozen"):
        recipe.optimizer.lr = 1.0  # type: ignore[misc]


# --- mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ("optimiser=1", "did you mean `optimizer`?"),
        ("optimizer.lrr=1", "did you mean `lr`?"),
        ("model.encoder.hiden=4", "did you mean `hidden`?"),
        ("tokenizer.model.vocabulry=9", "did you mean `vocabulary`?"),
        ("data.train.sorce=x", "did you mean `source`?"),
        ("beam_size=4", "there is evaluation.beam_size, search.beam_size"),
        ("model.dropout=0.1", "there is model.decoder.dropout, model.encoder.dropout"),
        ("optimizer.beta1=0.8", "only kind adam, adamw has it"),
        ("data.train.revision=abc", "only kind hub has it"),
    ],
)
def test_an_unknown_key_brings_a_hint(small: Path, change: str, hint: str) -> None:
    (line,) = mistakes(small, change)
    key, _, value = change.partition("=")
    shown = value if value[0].isdigit() else f'"{value}"'
    assert line.startswith(f"{key} = {shown}: no such key; {hint} (allowed: ")


def test_an_unknown_key_like_no_other_lists_what_is_allowed(small: Path) -> None:
    (line,) = mistakes(small, "evaluation.zzz=1")
    assert line == "evaluation.zzz = 1: no such key (allowed: metrics, select, beam_size)"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            "optimizer.kind=sdg",
            (
                'optimizer.kind = "sdg": one of sgd, adam, adamw, adagrad, adadelta; '
                "did you mean `sgd`?"
            ),
        ),
        (
            "data.train.kind=tvs",
            'data.train.kind = "tvs": one of text, tsv, hub; did you mean `tsv`?',
        ),
        (
            "tokenizer.model.kind=word",
            (
                'tokenizer.model.kind = "word": one of unigram, bpe, char, words; '
                "did you mean `words`?"
            ),
        ),
        (
            "batches.unit=token",
            'batches.unit = "token": one of sentences, tokens; did you mean `tokens`?',
        ),
        (
            'evaluation.metrics=["bleu", "bluer"]',
            (
                'evaluation.metrics[1] = "bluer": one of bleu, chrf, ter, exact, wer; '
                "did you mean `bleu`?"
            ),
        ),
    ],
)
def test_a_choice_that_does_not_exist_brings_a_hint(small: Path, change: str, line: str) -> None:
    assert mistakes(small, change) == [line]


def test_all_mistakes_come_at_once_with_their_paths(tmp_path: Path) -> None:
    path = write(
        tmp_path / "bad.toml",
        """
        colour = "red"
        [data.train]
        kind = "tsv"
        source_column = "one"
        [tokenizer]
        kind = "separate"
        source = { kind = "bpe", vocabulary = 0 }
        target = { kind = "words", vocabulary = 9, sample = 3 }
        [model.encoder]
        layers = 1
        embedding = 2
        [model.decoder]
        layers = 1
        embedding = 2
        hidden = 3
        [optimizer]
        lr = 0.5
        [[expects]]
        metric = "bleu"
        score = "high"
        data = "test"
        """,
    )
    paths = {line.partition(": ")[0].partition(" = ")[0] for line in mistakes(path)}
    assert paths == {
        "colour",
        "data.train.path",
        "data.train.source_column",
        "tokenizer.source.vocabulary",
        "tokenizer.target.sample",
        "model.encoder.hidden",
        "model.decoder.kind",
        "optimizer.kind",
        "expects[0].score",
    }


def test_a_missing_key_brings_its_meaning_and_a_missing_kind_its_choices(tmp_path: Path) -> None:
    text = SMALL.replace('kind = "sgd"\n', "").replace("hidden = 3\n", "", 1)
    lines = mistakes(write(tmp_path / "bad.toml", text))
    assert "model.encoder.hidden: missing; Cells in a layer, of one direction" in lines
    assert "optimizer.kind: missing; one of sgd, adam, adamw, adagrad, adadelta" in lines


def test_tables_that_do_not_fit_each_other_are_a_mistake(small: Path) -> None:
    (line,) = mistakes(small, "model.decoder.hidden=4")
    assert line.startswith("model.encoder.hidden = 3 and model.decoder.hidden = 4 differ")
    (line,) = mistakes(small, "evaluation.select=ter")
    assert line.startswith("evaluation.select = 'ter' is not among evaluation.metrics = ['bleu']")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"about = ", "is not TOML"), (b'about = "\xe9"', "is not UTF-8")],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=said) as caught:
        load(str(path))
    assert str(path) in str(caught.value)


def test_a_recipe_that_is_nowhere_brings_a_hint() -> None:
    with pytest.raises(RecipeError, match="did you mean `quickstart`"):
        load("quickstrat")
    with pytest.raises(RecipeError, match="`s2s recipes` lists the packaged ones"):
        load("zzz.toml")


# --- kinds -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "path", "kind"),
    [
        ((), "optimizer", Sgd),
        (("optimizer.kind=adam", "optimizer.lr=0.1"), "optimizer", Adam),
        (("optimizer.kind=adamw", "optimizer.lr=0.1"), "optimizer", Adam),
        ((), "data.train", TextFiles),
        (("data.train.kind=tsv", "data.train.path=x"), "data.train", TsvFile),
        (
            (
                "data.train.kind=hub",
                "data.train.dataset=x",
                "data.train.source_column=a",
                "data.train.target_column=b",
            ),
            "data.train",
            HubDataset,
        ),
        (("data.validation.kind=tsv", "data.validation.path=x"), "data.validation", TsvFile),
        ((), "tokenizer", SharedTokenizer),
        ((), "tokenizer.model", SentencePiece),
        (
            (
                'tokenizer={kind="separate"}',
                'tokenizer.source={kind="words",vocabulary=9}',
                'tokenizer.target={kind="char",vocabulary=9}',
            ),
            "tokenizer",
            SeparateTokenizers,
        ),
        (("tokenizer.model.kind=words", "tokenizer.model.vocabulary=9"), "tokenizer.model", Words),
        ((), "model.initialization", TorchInitialization),
        (
            ("model.initialization.kind=uniform", "model.initialization.range=0.1"),
            "model.initialization",
            UniformInitialization,
        ),
        ((), "schedule", ConstantSchedule),
        (
            ("schedule.kind=halving", "schedule.start=5", "schedule.every=0.5"),
            "schedule",
            HalvingSchedule,
        ),
    ],
)
def test_kind_chooses_the_table(
    small: Path, changes: tuple[str, ...], path: str, kind: type[Table]
) -> None:
    found: Any = load(str(small), changes)
    for name in path.split("."):
        found = vars(found)[name]
    assert type(found) is kind


# --- extends ---------------------------------------------------------------------------------


def test_extends_merges_key_by_key(small: Path, tmp_path: Path) -> None:
    child = write(
        tmp_path / "child.toml",
        """
        extends = "small.toml"
        [optimizer]
        lr = 0.25
        [tokenizer.model]
        vocabulary = 200
        [search]
        beam_size = 7
        """,
    )
    recipe, parent = load(str(child)), load(str(small))
    assert recipe.optimizer == Sgd(kind="sgd", lr=0.25, momentum=0.9)
    assert recipe.tokenizer == SharedTokenizer(
        kind="shared", model=SentencePiece(kind="bpe", vocabulary=200)
    )
    assert recipe.search.beam_size == 7
    assert (recipe.data, recipe.model) == (parent.data, parent.model)


def test_extends_over_two_generations(small: Path, tmp_path: Path) -> None:
    write(tmp_path / "b.toml", 'extends = "small.toml"\n[optimizer]\nlr = 2.0\nmomentum = 0.1')
    last = write(tmp_path / "c.toml", 'extends = "b.toml"\n[optimizer]\nlr = 3.0')
    assert load(str(last)).optimizer == Sgd(kind="sgd", lr=3.0, momentum=0.1)


def test_a_table_of_another_kind_replaces_its_parent(small: Path, tmp_path: Path) -> None:
    child = write(
        tmp_path / "child.toml",
        'extends = "small.toml"\n[optimizer]\nkind = "adam"\nlr = 0.001\n'
        '[tokenizer.model]\nkind = "words"\nvocabulary = 50',
    )
    recipe = load(str(child))
    assert recipe.optimizer == Adam(kind="adam", lr=0.001)
    assert recipe.tokenizer == SharedTokenizer(
        kind="shared", model=Words(kind="words", vocabulary=50)
    )
    child.write_text('extends = "small.toml"\n[optimizer]\nkind = "adam"', encoding="utf-8")
    assert mistakes(child) == ["optimizer.lr: missing; Learning rate"]


def test_a_table_of_the_same_kind_is_merged(small: Path, tmp_path: Path) -> None:
    child = write(
        tmp_path / "child.toml", 'extends = "small.toml"\n[optimizer]\nkind = "sgd"\nlr = 2.0'
    )
    assert load(str(child)).optimizer == Sgd(kind="sgd", lr=2.0, momentum=0.9)


def test_name_about_and_expects_are_not_inherited(tmp_path: Path) -> None:
    said = """
    name = "parent"
    about = "The parent."
    differs = ["It is small."]
    [[expects]]
    metric = "bleu"
    score = 30.0
    data = "test"
    """
    write(tmp_path / "parent.toml", said + SMALL)
    child = load(str(write(tmp_path / "child.toml", 'extends = "parent.toml"')))
    assert (child.name, child.about, child.expects) == ("child", "", ())
    assert child.differs == ("It is small.",)
    own = write(tmp_path / "own.toml", 'extends = "parent.toml"\nname = "me"\nabout = "Mine."')
    assert (load(str(own)).name, load(str(own)).about) == ("me", "Mine.")


def test_a_missing_parent_is_named_with_its_child(tmp_path: Path) -> None:
    child = write(tmp_path / "child.toml", 'extends = "nobody.toml"')
    with pytest.raises(RecipeError) as caught:
        load(str(child))
    assert str(tmp_path / "nobody.toml") in str(caught.value)
    assert f"extended by {child}" in str(caught.value)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_circle_is_told_as_a_chain(tmp_path: Path, length: int) -> None:
    files = [tmp_path / f"{number}.toml" for number in range(length)]
    for number, path in enumerate(files):
        write(path, f'extends = "{(number + 1) % length}.toml"')
    with pytest.raises(RecipeError) as caught:
        load(str(files[0]))
    assert " -> ".join(str(path) for path in [*files, files[0]]) in str(caught.value)


def test_a_circle_further_up_is_found_too(tmp_path: Path) -> None:
    child = write(tmp_path / "child.toml", 'extends = "a.toml"')
    write(tmp_path / "a.toml", 'extends = "b.toml"')
    write(tmp_path / "b.toml", 'extends = "a.toml"')
    with pytest.raises(RecipeError, match=r"in a circle: .*child.* -> .*a.* -> .*b.* -> .*a\.toml"):
        load(str(child))


def test_extends_takes_one_path(tmp_path: Path) -> None:
    child = write(tmp_path / "child.toml", 'extends = ["a.toml", "b.toml"]')
    with pytest.raises(RecipeError, match="should be the path of a recipe"):
        load(str(child))


# --- --set -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("about=plain words, even with = and #", "plain words, even with = and #"),
        ('about="quoted # text"', "quoted # text"),
        ("about='single'", "single"),
        ("about=", ""),
        ('differs=["a", "b"]', ("a", "b")),
        ("name=r2.d2", "r2.d2"),
    ],
)
def test_a_value_is_toml_or_plain_text(small: Path, change: str, value: object) -> None:
    assert vars(load(str(small), [change]))[change.partition("=")[0]] == value


def test_values_of_all_types(small: Path) -> None:
    recipe = load(
        str(small),
        [
            "training.seed=7",
            "optimizer.lr=1e-3",
            "model.reverse_source=true",
            "batches.unit=tokens",
            "search={beam_size=9, batch_size=3}",
        ],
    )
    assert (recipe.training.seed, recipe.optimizer.lr) == (7, 0.001)
    assert (recipe.model.reverse_source, recipe.batches.unit) == (True, "tokens")
    assert (recipe.search.beam_size, recipe.search.batch_size) == (9, 3)


def test_the_last_word_counts_and_tables_grow(small: Path) -> None:
    recipe = load(
        str(small),
        ["schedule.kind=halving", "schedule.start=1", "schedule.every=2", "schedule.start=3"],
    )
    assert recipe.schedule == HalvingSchedule(kind="halving", start=3.0, every=2.0)


@pytest.mark.parametrize(
    "change", ["optimizer.lr", "=3", ".lr=3", "optimizer.=3", "optimizer..lr=3", ""]
)
def test_bad_syntax_tells_the_right_one(small: Path, change: str) -> None:
    with pytest.raises(RecipeError, match="write KEY=VALUE") as caught:
        load(str(small), [change])
    assert f"--set {change}:" in str(caught.value)


def test_a_value_cannot_be_a_table_too(small: Path) -> None:
    with pytest.raises(RecipeError, match="`optimizer` was set to a value before"):
        load(str(small), ["optimizer=3", "optimizer.lr=0.5"])


def test_override_changes_one_table_only(small: Path) -> None:
    recipe = load(str(small), ["about=kept"])
    changed = override(recipe, ["search.beam_size=2", "search.length_penalty=1"], "search")
    assert (changed.search.beam_size, changed.search.length_penalty) == (2, 1.0)
    assert changed.model_copy(update={"search": recipe.search}) == recipe
    with pytest.raises(RecipeError, match=r"--set optimizer.lr=1: only keys of \[search\]"):
        override(recipe, ["search.beam_size=2", "optimizer.lr=1"], "search")
    with pytest.raises(RecipeError, match="did you mean `beam_size`"):
        override(recipe, ["search.beamsize=2"], "search")


# --- paths -----------------------------------------------------------------------------------


def test_paths_start_at_the_folder_of_their_file(tmp_path: Path) -> None:
    write(tmp_path / "parents" / "small.toml", SMALL)
    child = write(
        tmp_path / "children" / "child.toml",
        'extends = "../parents/small.toml"\n[data]\nprepared = "../made"\n'
        '[data.train]\ntarget = "own.fr"\n'
        f'[data.validation]\nkind = "tsv"\npath = "{tmp_path}/absolute.tsv"',
    )
    data = load(str(child)).data
    assert isinstance(data.train, TextFiles)
    assert isinstance(data.validation, TsvFile)
    assert Path(data.train.source) == tmp_path / "parents" / "train.en"
    assert Path(data.train.target) == tmp_path / "children" / "own.fr"
    assert Path(data.prepared or "").resolve() == tmp_path / "made"
    assert Path(data.validation.path) == tmp_path / "absolute.tsv"


def test_paths_in_overrides_start_at_the_current_folder(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    data = load("../small.toml", ["data.train.source=new.en", "data.prepared=~/made"]).data
    assert isinstance(data.train, TextFiles)
    assert Path(data.train.source) == here / "new.en"
    assert Path(data.train.target) == tmp_path / "train.fr"
    assert Path(data.prepared or "") == tmp_path / "home" / "made"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("wmt/wmt14", "wmt/wmt14"),
        ("./wmt/wmt14", "{folder}/wmt/wmt14"),
        ("../wmt14", "{folder}/../wmt14"),
        ("/data/wmt14", "/data/wmt14"),
    ],
)
def test_a_hub_name_is_no_path(tmp_path: Path, written: str, read: str) -> None:
    text = SMALL.replace('kind = "text"', 'kind = "hub"')
    text = text.replace('source = "train.en"', f'dataset = "{written}"\nsource_column = "en"')
    text = text.replace('target = "train.fr"', 'target_column = "fr"')
    train = load(str(write(tmp_path / "hub.toml", text))).data.train
    assert isinstance(train, HubDataset)
    assert (train.source_column, train.target_column) == ("en", "fr")
    assert train.dataset == read.format(folder=tmp_path)


# --- names and writing out -------------------------------------------------------------------


def test_the_name_is_the_stem_of_the_file(tmp_path: Path) -> None:
    assert load(str(write(tmp_path / "my recipe v1.2.toml", SMALL))).name == "my-recipe-v1.2"
    assert load(str(write(tmp_path / "other.toml", 'name = "own"' + SMALL))).name == "own"


def test_packaged_recipes_are_found_by_their_nested_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "recipes" / "paper" / "first.toml", SMALL)
    write(tmp_path / "recipes" / "alone.toml", SMALL)
    # The package's own `load` function hides the module of that name.
    module = importlib.import_module("s2s_cli.core.recipe.load")
    monkeypatch.setattr(module, "recipe_folder", lambda: tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    assert list(packaged()) == ["alone", "paper/first"]
    assert load("paper/first").name == "paper-first"
    assert load("recipes/paper/first.toml").name == "paper-first"
    assert load("paper/first") == load(str(file))


def tables_and_keys(recipe: Table) -> dict[str, Any]:
    """Every key of a recipe as plain data, found without pydantic's own dump; None is left out."""

    def plain(value: Any) -> Any:
        if isinstance(value, Table):
            return tables_and_keys(value)
        return [plain(each) for each in value] if isinstance(value, tuple) else value

    return {name: plain(value) for name, value in vars(recipe).items() if value is not None}


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ('about="quotes \\" and \\\\ and é and \\n lines"', 'differs=["a", "#b"]'),
        ("optimizer.kind=adam", "optimizer.lr=1e-300", "optimizer.epsilon=1.5e-8"),
        ('expects=[{metric="bleu", score=30.25, data="test", signature="a|b"}]',),
        ('data.validation={kind="tsv", path="v.tsv"}', "data.prepared=made", "name=x"),
        ("evaluation.metrics=[]", "evaluation.select=perplexity"),
    ],
)
def test_written_out_and_read_again_a_recipe_is_the_same(
    small: Path, tmp_path: Path, changes: tuple[str, ...]
) -> None:
    recipe = load(str(small), changes)
    text = dump(recipe)
    assert tomllib.loads(text) == tables_and_keys(recipe)
    assert load(str(write(tmp_path / "elsewhere" / "recipe.toml", text))) == recipe


def test_parse_takes_what_toml_gives(small: Path) -> None:
    raw = tomllib.loads(SMALL) | {"name": "given"}
    assert parse(raw, "here").name == "given"
    with pytest.raises(RecipeError, match="a mistake in recipe here:"):
        parse(tomllib.loads(SMALL), "here")


@pytest.mark.parametrize("name", sorted(packaged()))
def test_every_packaged_recipe_loads_and_repeats(name: str, tmp_path: Path) -> None:
    recipe: Recipe = load(name)
    assert recipe.name == name.replace("/", "-")
    assert recipe.about.strip()
    assert load(str(write(tmp_path / "other-name.toml", dump(recipe)))) == recipe
    assert tomllib.loads(dump(recipe)) == tables_and_keys(recipe)
