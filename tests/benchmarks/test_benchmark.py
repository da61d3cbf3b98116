"""The parts of the benchmarks that can be right or wrong; what they measure is not tested."""

import json
import subprocess
import sys
import threading
import time

import pytest
import torch
from benchmark import benchmark_command
from benchmark_report import ANOMALIB, OURS, comparison_table, markdown_table, paired_ratios, spread
from fit_benchmark import CALIBRATED, compare_fits
from process_usage import measure
from profiling import BESIDE, STAGES, Stopwatches, find

from padim_bottle.errors import UserError

needs_wait4 = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no os.wait4")

BURN_HALF_A_SECOND = "import time\nwhile time.process_time() < 0.5: pass"


def measured(code: str, sample_tree: bool = False) -> dict:
    """Usage of a Python child, measured by a small process: a child's ru_maxrss starts at its parent's size."""
    script = (
        "import json, sys, dataclasses; from process_usage import measure; "
        f"print(json.dumps(dataclasses.asdict(measure([sys.executable, '-c', {code!r}], sample_tree={sample_tree}))))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@needs_wait4
def test_measure_counts_processor_time_of_the_process_and_its_children():
    usage = measured(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN_HALF_A_SECOND!r}])")
    assert 0.5 <= usage["cpu_seconds"] < 2
    assert usage["wall_seconds"] >= 0.5
    assert usage["tree_peak_bytes"] is None


@needs_wait4
def test_measure_sees_the_peak_of_memory_that_was_freed():
    usage = measured("data = b'x' * 200_000_000; del data")
    assert 200e6 < usage["peak_bytes"] < 260e6


@needs_wait4
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_measure_adds_up_the_memory_of_a_process_tree():
    hold = "import time; data = b'x' * 100_000_000; time.sleep(0.8)"
    usage = measured(
        f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {hold!r}]); {hold}; p.wait()",
        sample_tree=True,
    )
    assert usage["peak_bytes"] < 160e6
    assert 200e6 < usage["tree_peak_bytes"] < 280e6


@needs_wait4
def test_measure_reports_the_end_of_a_failing_commands_output():
    with pytest.raises(UserError, match=r"(?s)exit code 3.*last words"):
        measure([sys.executable, "-c", "print('last words'); raise SystemExit(3)"])


def test_a_run_that_fails_makes_the_benchmark_fail(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert benchmark_command(["train", "--output", str(tmp_path / "out")]) == 2
    assert "root of the checkout" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["train", "--pairs", "0"]])
def test_a_wrong_command_line_is_refused(arguments):
    with pytest.raises(SystemExit) as error:
        benchmark_command(arguments)
    assert error.value.code == 2


def test_the_modules_start_nothing_heavy():
    code = "import sys, benchmark, profiling; print({'torch', 'numpy'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_ratios_are_taken_pair_by_pair():
    # The second pair ran on a busy machine: both slower, the ratio alike.
    assert paired_ratios([60, 120, 66], [20, 40, 30]) == {"median": 3.0, "min": 2.2, "max": 3.0}
    with pytest.raises(ValueError, match="zip"):
        paired_ratios([1, 2], [1])


def test_spread_of_one_value():
    assert spread([2.5]) == {"median": 2.5, "min": 2.5, "max": 2.5}


def test_markdown_table_aligns_its_columns():
    assert markdown_table(["", "s"], [["long name", "1"], ["b", "12.5"]]).splitlines() == [
        "|           |    s |",
        "| --------- | ---: |",
        "| long name |    1 |",
        "| b         | 12.5 |",
    ]


def test_comparison_table_gives_ratios_to_the_baseline_only():
    baseline, ours = comparison_table({"wall": ({"slow": [4.0, 6.0], "fast": [2.0, 2.0]}, "s")}, "slow").splitlines()[
        2:
    ]
    assert "5.00 s" in baseline and "x" not in baseline
    assert "2.50x (2.00 to 3.00)" in ours


def test_statistics_compares_equal_fits_of_all_contenders():
    torch.manual_seed(0)
    record = compare_fits(torch.randn(20, 5, 6, 7) + 3, repeats=2)
    assert {name: len(seconds) for name, seconds in record["seconds"].items()} == {ANOMALIB: 2, OURS: 2, CALIBRATED: 2}
    assert min(min(seconds) for seconds in record["seconds"].values()) > 0
    assert record["difference"]["mean"] < 1e-5
    assert record["difference"]["inverse_covariance"] < 1e-4
    json.dumps(record)


def test_a_watched_function_hands_its_clock_to_the_functions_it_calls():
    watches = Stopwatches(["outer", "inner"])
    inner = watches.wrap(lambda: time.sleep(0.05), "inner")

    def twice_inner() -> None:
        inner()
        inner()

    outer = watches.wrap(twice_inner, "outer")
    start = time.perf_counter()
    outer()
    thread = threading.Thread(target=inner)
    thread.start()
    thread.join()
    elapsed = time.perf_counter() - start
    read = watches.read()
    assert (read["outer"]["calls"], read["inner"]["calls"]) == (1, 3)
    assert read["inner"]["seconds"] >= 0.15
    assert read["outer"]["seconds"] + read["inner"]["seconds"] <= elapsed


def test_a_watch_stops_when_the_function_raises():
    watches = Stopwatches(["stage"])
    with pytest.raises(ZeroDivisionError):
        watches.wrap(lambda: 1 / 0, "stage")()
    assert watches.read()["stage"]["calls"] == 1


def test_every_profiled_function_exists():
    """A function that is renamed would otherwise vanish from the profile, or break it."""
    for stage, targets in (*STAGES, *BESIDE):
        for target in targets:
            function = find(target)[2]
            assert callable(getattr(function, "__func__", function)), f"{stage}: {target}"
