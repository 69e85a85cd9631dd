"""The README's Python runs as it stands."""

import re
from pathlib import Path


README = Path(__file__).parents[1] / "README.md"


def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 8
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert names["logits"].shape == (2, 24, 256)
    assert "bits_per_byte" in capsys.readouterr().out
    assert names["made"].tokens.shape == (2, 8)
    assert (tmp_path / "saved/model.safetensors").exists()
    assert (tmp_path / "runs/readme/loss.png").stat().st_size > 1000
