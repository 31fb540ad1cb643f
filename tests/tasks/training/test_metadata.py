from __future__ import annotations

import hashlib
from pathlib import Path

from tasks.training.metadata import _base, _whole_hash


def test_a_base_models_file_is_known_by_both_its_hashes(tmp_path: Path) -> None:
    model, cache = tmp_path / "model.safetensors", tmp_path / "cache"
    model.write_bytes(bytes(range(256)) * 6000)
    content = model.read_bytes()
    expected = {
        "sd_model_name": "model.safetensors",
        "sd_model_hash": hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8],
        "new_sd_model_hash": hashlib.sha256(content).hexdigest(),
    }
    assert _base(model, cache) == expected
    assert [path.read_text() for path in cache.iterdir()] == [expected["new_sd_model_hash"]]
    _whole_hash.cache_clear()  # another process
    next(cache.iterdir()).write_text("kept")
    assert _base(model, cache)["new_sd_model_hash"] == "kept"
    model.write_bytes(b"changed")
    assert _base(model, cache)["new_sd_model_hash"] == hashlib.sha256(b"changed").hexdigest()
    assert _base(tmp_path, None)["sd_model_hash"] == "IsADirectory"
    assert _base(Path("some/model"), None)["sd_model_hash"] == "NOFILE"
