"""The examples, run as a user would run them, and what they compute."""

import importlib.util
import itertools
import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from padim_bottle.evaluation import metrics

EXAMPLES = Path(__file__).parents[1] / "examples"


SMALL = ["--model.init_args.image_size", "[64, 64]", "--model.init_args.alpha", "0.2"]


@pytest.fixture
def example(monkeypatch):
    """Returns an example as a module, by its name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        monkeypatch.setitem(sys.modules, name, module := importlib.util.module_from_spec(spec))
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.slow
def test_training_from_python_writes_a_run(example, bottles, random_weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example("train_from_python", bottles / "bottle" / "train" / "good").main()
    run = tmp_path / "results" / "my_part" / "seed_42"
    metrics = json.loads((run / "metrics.json").read_text())
    assert f"threshold: {metrics['thresholds']['image']}" in capsys.readouterr().out
    assert len(pd.read_csv(run / "training_photos.csv")) == 12
    assert (run / "model.ckpt").is_file()


def test_a_photo_is_judged_as_in_the_run(example, run_folder, capsys):
    tested = pd.read_csv(run_folder / "predictions.csv").iloc[-1]
    judging = example("judge_a_photo", run_folder, tested["image_path"])
    judging.main()
    said = capsys.readouterr().out
    assert said.startswith("anomalous" if tested["predicted_label"] else "good")
    assert f"(score {tested['score']:.2f}, p = " in said
    predictor = judging.load_predictor(run_folder)
    row, column = judging.where(judging.look(predictor, np.asarray(Image.open(tested["image_path"]).convert("RGB"))))
    assert 0 < row < 1 and 0 < column < 1


def test_no_alarm_is_lost_where_the_reader_is_killed_and_the_server_is_away(tmp_path):
    told, answers = [], itertools.cycle([500, 200, 200])

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            row = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(answer := next(answers))
            self.end_headers()
            if answer == 200:
                told.append(row)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    file = tmp_path / "verdicts.jsonl"
    command = [sys.executable, EXAMPLES / "alarms_to_webhook.py", file, f"http://127.0.0.1:{server.server_port}"]
    rows = [{"path": f"{i}.png", "verdict": "good" if i % 3 else "anomalous", "regions": [i]} for i in range(30)]
    rows[7] = {"path": "7.png", "error": "damaged"}
    alarms = [row for row in rows if row.get("verdict") != "good"]

    def wait(count):
        until = time.monotonic() + 30
        while time.monotonic() < until and len({row["path"] for row in told}) < count:
            time.sleep(0.01)

    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    for start, count in ((0, 3), (700, 6), (1400, len(alarms))):
        process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
        with file.open("a") as lines:  # cut in the middle of a line
            lines.write(text[start : start + 700] if count < len(alarms) else text[start:])
        wait(count)
        process.kill()
        process.wait()
    server.shutdown()
    assert [row for i, row in enumerate(told) if row not in told[:i]] == alarms
    assert len(told) <= len(alarms) + 3  # one again for each kill


@pytest.mark.slow
def test_a_data_set_needs_a_data_module_and_nothing_else(example, bottles, random_weights, tmp_path, monkeypatch):
    photos = sorted((bottles / "bottle").glob("t*/*/*.png"))
    rows = [{"path": path, "defect": path.parent.name, "split": path.parent.parent.name} for path in photos]
    pd.DataFrame(rows).to_csv(tmp_path / "parts.csv", index=False)
    monkeypatch.chdir(EXAMPLES.parent)
    arguments = [tmp_path / "parts.csv", "--experiment", "parts", "--results", tmp_path / "results", *SMALL]
    arguments += ["--trainer.callbacks.report", "false"]
    assert example("own_data", *arguments).main() == 0
    run = tmp_path / "results" / "parts" / "seed_42"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["data"]["train_images"] == 12
    assert set(metrics["per_defect"]) == {"broken_large", "broken_small", "contamination"}
    assert metrics["image_AUROC"] is not None and metrics["data"]["fingerprint"]
    assert set(pd.read_csv(run / "predictions.csv")["defect_type"]) == {"good", *metrics["per_defect"]}


@pytest.mark.slow
def test_a_metric_that_is_named_once_stands_everywhere(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(EXAMPLES.parent)
    monkeypatch.setattr(metrics, "METRICS", list(metrics.METRICS))
    few = {"root": tmp_path / "data", "size": 64, "train_good": 12, "test_good": 4, "test_per_defect": 3}
    data = [text for name, value in few.items() for text in (f"--data.init_args.{name}", value)]
    callbacks = ["--trainer.callbacks.root", tmp_path / "results"]
    example("own_metric", "configs/demo.yaml", *SMALL, *data, *callbacks).main()
    (experiment,) = (tmp_path / "results").glob("*/")
    label, (run,) = "recall without a false alarm", experiment.glob("seed_*/")
    table = pd.read_csv(run / "predictions.csv")
    defects, good = (table.loc[table["label"] == kind, "score"] for kind in (True, False))
    expected = sum(score > good.max() for score in defects) / len(defects)
    assert json.loads((run / "metrics.json").read_text())["image_recall_without_alarms"] == expected
    assert pd.read_csv(experiment / "summary.csv")["image_recall_without_alarms"].eq(expected).all()
    shown = " ".join(capsys.readouterr().out.split())
    pages = [(run / "report.html").read_text(), (experiment / "summary.md").read_text(), shown]
    assert all(word in page for page in pages for word in label.split())
