"""Send photos to a service, several clients at once, and compare each label with the one it should have.

    uploads.py URL LABELS.csv [COUNT [CLIENTS]]

LABELS.csv is what `python -m pigeonhole predict --csv` prints: columns file and label. Ends with 1 if any answer was
not 200 with the right label.
"""

from __future__ import annotations

import csv
import http.client
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from urllib.parse import urlsplit

BOUNDARY = "boundary-of-uploads"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
PART = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="photo"\r\n\r\n'
END = f"\r\n--{BOUNDARY}--\r\n"


def wrong(server: str, photo: str, label: str) -> str | None:
    """What is wrong with the answer for a photo, if anything is. No proxy is asked."""
    connection = http.client.HTTPConnection(server, timeout=30)
    try:
        connection.request("POST", "/predict", PART.encode() + Path(photo).read_bytes() + END.encode(), HEADERS)
        answer = connection.getresponse()
        body = answer.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return f"{photo}: {error}"
    finally:
        connection.close()
    right = answer.status == 200 and json.loads(body) == {"success": label}
    return None if right else f"{photo}: {answer.status} {body.strip()}, and not {label}"


def main(url: str, labels: str, count: str = "400", clients: str = "8") -> int:
    with Path(labels).open(newline="") as file:
        photos = [(row["file"], row["label"]) for row in csv.DictReader(file)]
    begin = time.monotonic()
    with ThreadPoolExecutor(int(clients)) as pool:
        uploads = islice(cycle(photos), int(count))
        answers = list(pool.map(lambda photo: wrong(urlsplit(url).netloc, *photo), uploads))
    seconds = time.monotonic() - begin
    complaints = [answer for answer in answers if answer is not None]
    print(
        f"{len(answers)} uploads by {clients} clients in {seconds:.1f} s, {len(complaints)} of them wrong",
        *complaints,
        sep="\n",
    )
    return 1 if complaints or len(answers) != int(count) else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
