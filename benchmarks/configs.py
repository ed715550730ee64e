"""How many published config.json files are read: ``python benchmarks/configs.py FOLDER``.

FOLDER holds files named ``OWNER--MODEL_config.json``, some with ``.._hf_quant_config.json`` beside
them, as ``aiconfigurator-core`` bundles them in ``model_configs``. For every file it prints a line:
sizes, or why it is refused. The sizes of 38 models are tests (``tests/catalog/test_published.py``).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from simcluster.catalog import config_json
from simcluster.config import ModelConfig
from simcluster.errors import SimclusterError

QUANTISED = "_hf_quant_config.json"


def line_of(file: Path, home: Path) -> tuple[bool, str]:
    """Return whether `file` is read, and what is to be said of it; `home` is an empty folder."""
    name = file.name.removesuffix("_config.json")
    shutil.copy(file, home / "config.json")
    beside = file.with_name(name + QUANTISED)
    if beside.exists():
        shutil.copy(beside, home / "hf_quant_config.json")
    try:
        model = ModelConfig(spec=config_json.model(home / "config.json"), max_model_len=1)
    except SimclusterError as error:
        return False, f"{name}: refused: {str(error).removeprefix(str(home))}"
    sizes = (
        f"{model.spec.num_params / 1e9:.1f} billion parameters, {model.weight_bytes / 1e9:.1f} GB"
    )
    return True, f"{name}: {sizes}, {model.kv_bytes_per_token} bytes of KV per token"


def main() -> None:
    """Print a line per file, and how many are read."""
    files = sorted(Path(sys.argv[1]).glob("*_config.json"))
    files = [file for file in files if not file.name.endswith(QUANTISED)]
    num_read = 0
    for file in files:
        with tempfile.TemporaryDirectory() as home:
            is_read, line = line_of(file, Path(home))
        num_read += is_read
        print(line)
    print(f"{num_read} of {len(files)} are read")


if __name__ == "__main__":
    main()
