#!/bin/sh
# Write Pipfile.lock anew. Its list of sources is emptied: without one, pipenv asks the index that pip is set up for.
set -eu

.venv/pipenv/bin/pipenv lock
.venv/bin/python - <<'PYTHON'
import json
from pathlib import Path

lock = Path("Pipfile.lock")
content = json.loads(lock.read_text())
content["_meta"]["sources"] = []
lock.write_text(json.dumps(content, indent=4) + "\n")
PYTHON
