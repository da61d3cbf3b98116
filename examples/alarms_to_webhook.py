"""Act on alarms: read the lines of predict.py --json, and tell a webhook of every alarm.

    python scripts/predict.py --watch inbox/ --csv log.csv --json --model results/my_part/seed_42 >> verdicts.jsonl
    python examples/alarms_to_webhook.py verdicts.jsonl http://localhost:8080/alarm

Either may be killed and started again at any time, and the server may be away: no alarm is lost. A line is done when
the server has answered, and how many bytes are done stands in verdicts.jsonl.done. One alarm may come twice.
"""

import json
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from padim_bottle.files import write_whole

PAUSE = 0.2  # seconds


def follow(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file that grows, from where an earlier process stopped."""
    done = file.with_name(f"{file.name}.done")
    file.touch()
    with file.open("rb") as lines:
        lines.seek(int(done.read_text()) if done.is_file() else 0)
        while True:
            line = lines.readline()
            if line.endswith(b"\n"):
                yield json.loads(line)
                write_whole(done, str(lines.tell()))
            else:  # not whole yet
                lines.seek(-len(line), 1)
                time.sleep(PAUSE)


def tell(url: str, row: dict[str, Any]) -> None:
    """Send a row until the server takes it."""
    request = urllib.request.Request(url, json.dumps(row).encode(), {"Content-Type": "application/json"})
    while True:
        try:
            urllib.request.urlopen(request, timeout=10).close()
            return
        except OSError as error:  # noqa: PERF203 - each try is a request
            print(f"{url}: {error}; trying again", file=sys.stderr)
            time.sleep(PAUSE)


def main() -> None:
    """Follow the file that is named, and tell the address that is named."""
    for row in follow(Path(sys.argv[1])):
        if row.get("verdict", "error") != "good":  # an alarm, or a photo that could not be read
            tell(sys.argv[2], row)


if __name__ == "__main__":
    main()
