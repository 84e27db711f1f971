"""The health check of a beat's container: it tells a beat that works from one that hangs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import Beat

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")


def ticking(pid: int, *seconds: str) -> subprocess.CompletedProcess[str]:
    """Runs the health check."""
    command = [sys.executable, str(ROOT / "tools" / "ticking.py"), str(pid), *seconds]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_beat_that_hangs_is_not_healthy(redis_url: str, tmp_path: Path) -> None:
    env = {"SHOP_BROKER_URL": redis_url, "SHOP_DATABASE_URL": f"sqlite:///{tmp_path / 'shop.db'}"}
    with Beat("example_project.app", tmp_path, env=env) as beat:
        assert ticking(beat.pid, "30").returncode == 0
        beat.pause()
        hanging = ticking(beat.pid, "1")
        assert hanging.returncode == 1
        assert "did nothing for 1 s" in hanging.stderr
        beat.resume()
        assert ticking(beat.pid, "30").returncode == 0
        beat.kill()
        gone = ticking(beat.pid)
    assert gone.returncode == 1
    assert "cannot be watched" in gone.stderr
