"""What a tuning writes: the best config, and how it was found."""

import io
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from matplotlib.figure import Figure

from padim_bottle.data.defects import add_anomaly
from padim_bottle.data.digest import file_digests, fingerprint_of
from padim_bottle.data.images import read_image
from padim_bottle.errors import UserError
from padim_bottle.experiment.variants import Variant, spell_argument
from padim_bottle.files import write_whole
from padim_bottle.runs.environment import code_digest, git_commit, versions
from padim_bottle.tables import Row, Table, figure, mean_and_spread, template_of
from padim_bottle.tune.ranking import differences_from, rank
from padim_bottle.tune.settings import METRICS, PREFIX, TuneSettings, name_of

_EXAMPLES = 3


@dataclass(frozen=True)
class Tuning:
    """All that decides what a tuning finds.

    Attributes:
        name: of its folder.
        config: the YAML that was tuned.
        grid: the values of each key.
        settings: of the tuning.
        settings_file: the YAML that holds them.
        paths: the training photos.
        fixed: keys whose value replaces the config's in all settings.
    """

    name: str
    config: Path
    grid: dict[str, list[Any]]
    settings: TuneSettings
    settings_file: Path
    paths: list[Path]
    fixed: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where its results go."""
        return Path(self.settings.results) / self.name

    @property
    def command(self) -> str:
        """The command that does it again, with these settings."""
        words = ["python", "scripts/tune.py", "--config", self.config, "--settings", self.settings_file]
        words += ["--results", self.settings.results, "--name", self.name]
        if "data" in self.fixed:
            words += ["--photos", self.fixed["data"]["init_args"]["folder"]]
        if f"{PREFIX}group" in self.fixed:
            words += ["--group", self.fixed[f"{PREFIX}group"]]
        words += [word for key, values in self.grid.items() for word in ("--grid", f"{key}={spell_argument(values)}")]
        return shlex.join(map(str, words))

    def inputs(self) -> dict[str, Any]:
        """Return what must be equal for two tunings to be the same one."""
        return {
            "config": yaml.safe_load(self.config.read_text(encoding="utf-8-sig")),
            "grid": {key: spell_argument(values) for key, values in self.grid.items()},
            "settings": {k: v for k, v in asdict(self.settings).items() if k not in ("results", "cache_folder")},
            "training_photos": len(self.paths),
            "training_fingerprint": fingerprint_of(file_digests(self.paths)),
        }

    def check_folder(self) -> None:
        """Refuse a folder that holds another tuning.

        Raises:
            UserError: it does.
        """
        record = self.folder / "tuning.json"
        if not record.exists():
            return
        try:
            earlier = json.loads(record.read_text(encoding="utf-8"))["inputs"]
        except (OSError, ValueError, KeyError, TypeError):
            earlier = None
        if earlier != json.loads(json.dumps(self.inputs())):
            raise UserError(
                f"{self.folder} holds the results of another tuning: choose another --name, or move it away."
            )


def write_results(
    tuning: Tuning, candidates: Sequence[Variant], fits: pd.DataFrame, device: str
) -> tuple[pd.DataFrame, list[str]]:
    """Write ``scores.csv``, ``summary.md``, ``anomalies.png``, ``best.yaml`` and, when all these are there, the record.

    Returns:
        The settings, best first (see ``rank``), and sentences on how the others differ from the best one.

    Raises:
        OSError: they cannot be written.
        UserError: no setting can be chosen, see ``rank``; the fits are written.
    """
    settings, folder = tuning.settings, tuning.folder
    names = [name_of(candidate.values) for candidate in candidates]
    write_whole(folder / "scores.csv", fits.assign(setting=fits["setting"].map(lambda i: names[i])).to_csv(index=False))
    ranking = rank(fits, settings.choose_by)
    best = int(ranking.index[0])
    differences = differences_from(best, fits, settings.held_out / (1 - settings.held_out))
    sentences = list(_sentences(names, ranking, differences))
    write_whole(folder / "summary.md", _summary(tuning, names, ranking, differences, sentences, fits, device))
    write_whole(folder / "anomalies.png", _draw_anomalies(tuning))
    write_whole(folder / "best.yaml", _best_config(tuning, candidates[best], len(candidates)))
    record = {
        "inputs": tuning.inputs(),
        "command": tuning.command,
        "best": names[best],
        "settings": [{"setting": names[int(number)], **_plain(row)} for number, row in ranking.iterrows()],
        "differences_from_best": [{**row, "setting": names[row["setting"]]} for row in differences.to_dict("records")],
        "weights": candidates[best].experiment.settings.model.init_args.backbone,
        "device": device,
        "versions": versions(),
        "commit": git_commit(),
        "code_sha256": code_digest(),
    }
    write_whole(folder / "tuning.json", json.dumps(record, indent=2) + "\n")
    return ranking, sentences


def _plain(row: pd.Series) -> dict[str, float | None]:
    return {str(name): None if pd.isna(value) else float(value) for name, value in row.items()}


def _best_config(tuning: Tuning, best: Variant, count: int) -> str:
    config = yaml.safe_load(tuning.config.read_text(encoding="utf-8-sig"))
    for key, value in {**tuning.fixed, **best.values}.items():
        place = config
        *parents, last = key.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    writers = [c for c in config["trainer"]["callbacks"] if c["class_path"].endswith("ResultsWriter")]
    for writer in writers:
        # Its runs are not those of the config that was tuned.
        writer["init_args"]["experiment"] += "_tuned"
    path = tuning.folder / "best.yaml"
    head = (
        f"# {tuning.config.name} with the best of {count} settings, chosen on synthetic anomalies in training photos:\n"
        f"# no defect and no test photo was looked at. {name_of(best.values)}.\n"
        "# summary.md beside this file has the figures.\n#\n"
        f"#   python scripts/train.py --config {path}\n\n"
    )
    return head + yaml.safe_dump(config, sort_keys=False, default_flow_style=None, width=120)


def _sentences(names: Sequence[str], ranking: pd.DataFrame, differences: pd.DataFrame) -> Iterator[str]:
    best = names[int(ranking.index[0])]
    for setting in ranking.index[1:]:
        rows = differences[differences["setting"] == setting]
        parts = []
        for finding, words in (
            ("lower", "lower in"), ("higher", "higher in"), ("cannot tell", "cannot be told apart in"),
            ("equal", "equal in"), ("no spread", "by the same in every split in"),
        ):  # fmt: skip
            found = [METRICS[metric] for metric in rows.loc[rows["finding"] == finding, "metric"]]
            if found:
                parts.append(f"{words} {' and '.join(found)}")
        if parts:
            yield f"{names[setting]}, beside {best}: {'; '.join(parts)}."


def _summary(
    tuning: Tuning,
    names: Sequence[str],
    ranking: pd.DataFrame,
    differences: pd.DataFrame,
    sentences: Sequence[str],
    fits: pd.DataFrame,
    device: str,
) -> str:
    settings = tuning.settings
    comparisons = Table(
        ["setting, minus the best one", "metric", "difference", "95 % interval", ""],
        [
            Row([
                names[row.setting],
                METRICS[row.metric],
                f"{row.difference:+.4f}",
                f"[{row.low:+.4f}, {row.high:+.4f}]",
                row.finding,
            ])
            for row in differences.itertuples()
        ],
    )  # fmt: skip
    random, fixed = fits["seed"].notna(), fits["seed"].isna()
    seeds = []
    if random.any():
        seeds.append(f"Seeds of the model: {', '.join(map(str, settings.seeds))}.")
    if fixed.any():
        seeds.append(f"{'Some settings draw' if random.any() else 'The model draws'} nothing at random: fitted once.")
    text = template_of("padim_bottle.tune", "summary.md.j2").render(
        name=tuning.config.name, photos=len(tuning.paths), splits=settings.splits,
        held_out=f"{settings.held_out:.0%}", kinds=", ".join(settings.anomalies.kinds), seeds=" ".join(seeds),
        ranking=ranking_table(names, ranking).markdown(),
        choose_by=", ".join(METRICS[name] for name in settings.choose_by),
        sentences=sentences, comparisons=comparisons.markdown(), intervals=len(comparisons.rows),
        command=tuning.command, fits=len(fits),
        seconds=f"{fits['seconds'].sum():.0f}", device=device,
    )  # fmt: skip
    return text.strip() + "\n"


def ranking_table(names: Sequence[str], ranking: pd.DataFrame) -> Table:
    """Return the settings with their metrics, best first; see ``rank``."""
    rows = [
        Row([
            names[int(number)],
            *(mean_and_spread(row[metric], row[f"{metric}_std"]) for metric in METRICS),
            figure(row["choice"]),
        ])
        for number, row in ranking.iterrows()
    ]  # fmt: skip
    title = f"Synthetic anomalies in held-out training photos, {ranking['fits'].max():.0f} fits a setting"
    return Table(["setting", *METRICS.values(), "choice"], rows, title=title)


def _draw_anomalies(tuning: Tuning) -> bytes:
    """Return a PNG of some of the damaged photos, a column for each kind, with the outlines of the masks."""
    anomalies = tuning.settings.anomalies
    kinds = anomalies.kinds
    drawn = Figure(figsize=(2.2 * len(kinds), 2.3 * _EXAMPLES), layout="constrained")
    for row, axes_row in enumerate(drawn.subplots(_EXAMPLES, len(kinds), squeeze=False)):
        for column, axes in enumerate(axes_row):
            number = (row * len(kinds) + column) % len(tuning.paths)
            # The kind that this photo has in the tuning: its number decides.
            kind = kinds[number % len(kinds)]
            picture, mask = add_anomaly(read_image(tuning.paths[number]), kind, anomalies, number)
            axes.imshow(picture)
            axes.contour(mask, [0.5], colors="cyan", linewidths=0.8)
            axes.set_axis_off()
            axes.set_title(kind, fontsize=9)
    png = io.BytesIO()
    drawn.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()
