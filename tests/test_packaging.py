"""What a wheel holds: the package, its models, its configs, and the command."""

import tomllib
from pathlib import Path

from ecoformer.cli.main import COMMANDS
from ecoformer.config.loading import CONFIGS

ROOT = Path(__file__).parents[1]


def test_models_and_configs_belong_to_the_package_beside_them() -> None:
    import ecoformer.models

    assert Path(ecoformer.models.__file__).resolve().parent == ROOT / "models"
    assert CONFIGS.resolve() == ROOT / "configs"


def test_every_command_has_a_module_and_every_script_is_one_of_them() -> None:
    modules = {module for module, _ in COMMANDS.values()}
    assert all((ROOT / "ecoformer" / "cli" / f"{module}.py").is_file() for module in modules)
    for script in {*(ROOT / "scripts").glob("*.py")} - {ROOT / "scripts" / "run_command.py"}:
        assert any(f'run(__name__, "{command}")' in script.read_text() for command in COMMANDS), script
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["ecoformer"]
