"""The Auto classes of transformers know the models once both packages are imported, in either order."""

import subprocess
import sys

import pytest

AUTO_IMPORTS = "from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForCausalLM"
USE = """
config = AutoConfig.for_model("latent_ebm_text", vocab_size=20, hidden_size=8, embedding_size=8)
print(type(AutoModelForCausalLM.from_config(config)).__name__)
config = AutoConfig.for_model("latent_ebm_image", decoder_channels=[4, 4], decoder_first_size=8)
print(type(AutoModel.from_config(config)).__name__)
"""


def run(*lines: str) -> str:
    code = "\n".join(lines)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("package_first", [True, False], ids=["package first", "transformers first"])
def test_auto_classes_know_the_models(package_first: bool) -> None:
    imports = ["import latent_ebm_text", AUTO_IMPORTS]
    models = run(*(imports if package_first else reversed(imports)), USE).split()
    assert models == ["LatentEBMForTextGeneration", "LatentEBMForImageGeneration"]


def test_the_configuration_alone_is_known_without_the_models() -> None:
    run(
        "import sys, latent_ebm_text",
        "from transformers import AutoConfig",
        "assert type(AutoConfig.for_model('latent_ebm_text')).__name__ == 'LatentEBMTextConfig'",
        "assert 'latent_ebm_text.models.modeling_text' not in sys.modules",
    )


@pytest.mark.parametrize("package_first", [True, False], ids=["package first", "transformers first"])
def test_models_are_known_without_pillow(package_first: bool) -> None:
    """The core does without the extra `image`."""
    imports = ["import latent_ebm_text", "from transformers import AutoConfig, AutoModel, AutoModelForCausalLM"]
    models = run(
        "import sys", "sys.modules['PIL'] = None", *(imports if package_first else reversed(imports)), USE
    ).split()
    assert models == ["LatentEBMForTextGeneration", "LatentEBMForImageGeneration"]


def test_importing_the_package_imports_neither_torch_nor_transformers() -> None:
    run("import sys, latent_ebm_text", "assert not {'torch', 'transformers'} & set(sys.modules)")


@pytest.mark.parametrize(
    "module", ["models.configuration", "models.modeling_image", "networks.lstm", "data.image_processing"]
)
def test_every_module_can_be_the_first_to_be_imported(module: str) -> None:
    run(f"import latent_ebm_text.{module}", AUTO_IMPORTS, USE)
