#!/bin/sh
# Write Pipfile.lock anew. Its list of sources is emptied: without one, pipenv asks the index that pip is set up for.
# OpenVINO's telemetry is taken out: OpenVINO does without, and nothing here phones home.
set -eu

.venv/pipenv/bin/pipenv lock
.venv/bin/python - <<'PYTHON'
import json
from pathlib import Path

lock = Path("Pipfile.lock")
content = json.loads(lock.read_text())
content["_meta"]["sources"] = []
for category in content.values():
    category.pop("openvino-telemetry", None)
lock.write_text(json.dumps(content, indent=4) + "\n")
PYTHON
