#!/usr/bin/env bash
# cyclonedx-python-lib 11.12.0
#
# A CycloneDX 1.6 bill of materials of a model can carry a model card with measured metrics and their
# confidence intervals. The library's strict validator accepts such a file. Reading the file with
# Bom.from_json() and writing it again gives a valid file without the model card, and no warning.
#
# One would have guessed that what is valid is kept, or that reading says what it does not support.
#
# Seen:
#   valid before: True
#   valid after: True
#   component before: bom-ref, modelCard, name, type
#   component after: bom-ref, name, type
#   warnings: 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "cyclonedx-python-lib[json-validation]==11.12.0"
cat > "$folder/check.py" <<'PY'
import json
import sys
import warnings

from cyclonedx.model.bom import Bom
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

metric = {
    "type": "harmful score",
    "value": "0.03",
    "confidenceInterval": {"lowerBound": "0.01", "upperBound": "0.05"},
}
component = {
    "type": "machine-learning-model",
    "name": "model",
    "bom-ref": "model",
    "modelCard": {
        "modelParameters": {"task": "text-generation"},
        "quantitativeAnalysis": {"performanceMetrics": [metric]},
    },
}
document = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": [component]}
validator = JsonStrictValidator(SchemaVersion.V1_6)
before = json.dumps(document)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    after = JsonV1Dot6(Bom.from_json(document)).output_as_string()
result = [
    f"valid before: {validator.validate_str(before) is None}",
    f"valid after: {validator.validate_str(after) is None}",
    "component before: " + ", ".join(sorted(component)),
    "component after: " + ", ".join(sorted(json.loads(after)["components"][0])),
    f"warnings: {len(seen)}",
]
print("\n".join(result))
expected = [
    "valid before: True",
    "valid after: True",
    "component before: bom-ref, modelCard, name, type",
    "component after: bom-ref, name, type",
    "warnings: 0",
]
sys.exit(0 if result == expected else 1)
PY
"$folder/venv/bin/python" "$folder/check.py"
