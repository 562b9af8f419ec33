"""Check docker-compose.yaml against the Compose specification and Dockerfile with hadolint; needs no Docker engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from compose_spec import PyCompose

FILE = Path("docker-compose.yaml")


def main() -> int:
    """Print what is wrong; 1 if anything is."""
    compose = PyCompose.from_yaml(FILE.read_text(encoding="utf-8"))
    compose.validate()
    problems = [f"{FILE}: no service {name}" for name in ("redis", "gateway") if name not in compose.service_names()]
    hadolint = Path(sys.executable).with_name("hadolint")
    run = subprocess.run([hadolint, "Dockerfile"], capture_output=True, text=True, check=False)
    if run.returncode:
        problems.append(run.stdout + run.stderr)
    for problem in problems:
        print(problem)
    print(f"Compose file and Dockerfile: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
