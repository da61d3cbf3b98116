"""Configs and overrides as people and strangers write them: one line that says what is wrong, nothing acted upon."""

from pathlib import Path

import pytest
import yaml

from padim_bottle.commands.command_line import run_verb
from padim_bottle.experiment.config_check import check_config

ROOT = Path(__file__).parents[2]
DEMO = (ROOT / "configs" / "demo.yaml").read_text()
KEY = "    alpha: 0.1\n"
LINE = DEMO[: DEMO.index(KEY)].count("\n") + 1


@pytest.fixture
def error_of(tmp_path, monkeypatch, error_line):
    """Train with a config of this text; return the one line that was printed."""
    monkeypatch.chdir(tmp_path)

    def refuse(text, *arguments):
        content = text if isinstance(text, bytes) else text.encode()
        Path("mine.yaml").write_bytes(content)
        assert run_verb("train", ["--config", "mine.yaml", *arguments]) == 2
        line = error_line()
        assert not list(Path().glob("results/*/*.json"))
        assert not list(Path().glob("results/*/*seed*"))
        return line

    return refuse


def replaced(old, new):
    assert DEMO.count(old) == 1
    return DEMO.replace(old, new)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (replaced(KEY, KEY + KEY), [f"line {LINE + 1}", f"'alpha' stands in line {LINE} already"]),
        (DEMO + "\ndata: {}\n", ["line", "'data'", "already"]),
        (replaced(KEY, "\talpha: 0.1\n"), [f"line {LINE}", "'\\t'"]),
        (replaced(KEY, "    alpha: [0.1\n"), ["line"]),
        (replaced(KEY, "    alpha: *nothing\n"), [f"line {LINE}", "nothing", "alias"]),
        (replaced(KEY, "    alpha: !!python/object/apply:os.system [true]\n"), [f"line {LINE}", "os.system"]),
        (replaced(KEY, KEY + "    7: 8\n"), ["Key must be a string", "7"]),
        ("", ["no settings"]),
        ("# nothing\n", ["no settings"]),
        ("- model\n- data\n", ["no settings"]),
        ("just words", ["no settings"]),
        ("a: 1\n---\nb: 2\n", ["line"]),
        (DEMO.encode("utf-16"), ["UTF-8"]),
        (b"\x89PNG\r\n\x1a\n\x00\x00", ["UTF-8"]),
        ("a: \x07\n", ["mine.yaml"]),
    ],
    ids=[
        "key twice", "section twice", "tab", "open bracket", "unknown alias", "python tag", "number as key",
        "empty", "comments", "list", "words", "two documents", "UTF-16",
        "picture", "control character",
    ],
)  # fmt: skip
def test_a_file_that_is_no_config_is_refused_with_the_line(error_of, text, words):
    message = error_of(text)
    assert "mine.yaml" in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        # Names from an older version, or of another key.
        ({"model": {"pretrained": True}}, ["pretrained", "not accepted"]),
        ({"data": {"image_size": [64, 64]}}, ["image_size", "not accepted"]),
        # Wrong types.
        ({"model": {"alpha": "much"}}, ["alpha", "float", "'much'"]),
        ({"model": {"layers": "layer1"}}, ["layers", "list"]),
        ({"model": {"image_size": 64}}, ["image_size"]),
        ({"model": {"image_size": [0, 64]}}, ["image_size", "1 or more"]),
        ({"model": {"calibration": "perhaps"}}, ["calibration", "bool"]),
        ({"model": {"seed": 1.5}}, ["seed", "int"]),
        ({"model": [1, 2]}, ["init_args"]),
        ({"data": {"num_workers": "many"}}, ["num_workers"]),
        # Values of the right type that make no sense.
        ({"model": {"seed": None}}, ["seed"]),
        ({"model": {"seed": -1}}, ["seed", "-1"]),
        ({"model": {"seed": 2**70}}, ["seed"]),
        ({"model": {"n_features": 0}}, ["n_features"]),
        ({"model": {"n_features": 10**6}}, ["n_features"]),
        ({"model": {"layers": []}}, ["layers"]),
        ({"model": {"alpha": float("nan")}}, ["alpha"]),
        ({"model": {"pixel_quantile": 1.5}}, ["pixel_quantile"]),
        ({"data": {"train_batch_size": 0}}, ["batch_size"]),
        ({"data": {"num_workers": -1}}, ["num_workers"]),
        ({"data": {"size": 10}}, ["size", "10"]),
        ({"data": {"train_good": -1}}, ["train_good"]),
        ({"data": {"data_seed": -1}}, ["seed"]),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_a_wrong_value_is_refused_in_one_line_that_names_it(error_of, parts, words):
    config = yaml.safe_load(DEMO)
    for part, arguments in parts.items():
        if isinstance(arguments, dict):
            config[part]["init_args"] |= arguments
        else:
            config[part]["init_args"] = arguments
    message = error_of(yaml.safe_dump(config))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model:\n  class_path: padim_bottle.NoSuchModel\n", ["NoSuchModel"]),
        ("dataset:\n  name: mvtec\n", ["dataset", "anomalib 0"]),
        ("task: SEGMENTATION\n", ["task", "anomalib 1"]),
        ("results_dir: {path: results}\n", ["results_dir", "anomalib 1"]),
        ("model:\n  class_path: padim_bottle.MVTecAD\n", ["MVTecAD"]),
        ("modle:\n  class_path: padim_bottle.Padim\n", ["modle"]),
        ("model: 3\n", ["model"]),
        ("trainer: fast\n", ["trainer"]),
        ("trainer:\n  precision: 7-bit\n", ["precision", "7-bit"]),
        ("trainer:\n  accelerator: abacus\n", ["abacus"]),
        ("trainer:\n  callbacks: 5\n", ["callbacks"]),
        ("trainer:\n  callbacks:\n    - class_path: padim_bottle.ResultsWriter\n", ["ResultsWriter", "experiment"]),
    ],
)
def test_a_wrong_section_is_refused_in_one_line_that_names_it(error_of, text, words):
    config = yaml.safe_load(DEMO) | yaml.safe_load(text)
    message = error_of(yaml.safe_dump(config))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.init_args.n_featurs", "3"], ["n_featurs", "not accepted"]),
        (["--model.init_args.n_features", "many"], ["n_features", "int", "'many'"]),
        (["--model.init_args.copies", "keep"], ["copies", "warn", "keep"]),
        (["--model.init_args.backbone", "resnet_18"], ["backbone", "no model 'resnet_18'"]),
        (["--model.init_args.layers", "[layer9]"], ["layers", "no layer9", "layer3 (256 channels)"]),
        (["--model.init_args.alpha", "7"], ["alpha", "7.0 is not between 0 and 1"]),
        (["--trainer.acelerator", "cpu"], ["trainer.acelerator"]),
        (["--unheard-of", "3"], ["unheard-of"]),
        (["--model", "os.system"], ["os.system"]),
        (["--data", "padim_bottle.MVTecAD", "--data.root", ".", "--data.category", "botle"], ["botle", "transistor"]),
    ],
)
def test_a_wrong_override_is_refused_in_one_line_that_names_it(error_of, arguments, words):
    message = error_of(DEMO, *arguments)
    assert all(word in message for word in words), message


def test_an_unknown_argument_is_named_without_repeating_the_others(error_of):
    config = yaml.safe_load(DEMO)
    config["model"] = {
        "class_path": "anomalib.models.Padim",
        "init_args": {"layers": ["layer3"], "input_size": [64, 64]},
    }
    message = error_of(yaml.safe_dump(config))
    assert "anomalib.models.Padim" in message
    assert "'input_size' is not accepted" in message
    assert "layer3" not in message


@pytest.mark.parametrize("text", ["one: &place here\nother: *place\n", "base: &b {a: 1}\nother:\n  <<: *b\n  a: 3\n"])
def test_aliases_work_and_a_merge_key_may_be_overridden(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    check_config(path)


@pytest.mark.parametrize("name", [".", "no/such.yaml"])
def test_a_config_that_is_no_file_is_refused_by_name(error_line, name):
    assert run_verb("train", ["--config", name]) == 2
    assert f"no config file {name}" in error_line()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seeds: 0-1\nseeds: 0-2\n", ["seeds"]),
        ("\tseeds: 0-1\n", ["sweep.yaml"]),
        ("- 1\n", ["sweep.yaml"]),
        ("seeds: 0-1\nfolds: 3\n", ["folds"]),
        ("group_size: [1, 2]\n", ["group_size"]),
        ("overrides: [1, 2]\n", ["sweep.yaml"]),
        ("experiments: mine.yaml\n", ["experiments"]),
        ("experiments: [mine.yaml]\noverrides: {model.class_path: [os.system]}\n", ["os.system"]),
        ("experiments: [mine.yaml]\noverrides: {model: subprocess.Popen}\n", ["Popen"]),
    ],
)
def test_a_sweep_is_refused_in_one_line(tmp_path, monkeypatch, capsys, text, words):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(DEMO)
    Path("sweep.yaml").write_text(text)
    assert run_verb("sweep", ["--config", "sweep.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in words), line
    assert not Path("results").exists()
