"""Explore a trained model in a browser: samples, chains, paths, a map of the latents, anomalies, images.

    python examples/demo/app.py                                   # the model of the quick start
    python examples/demo/app.py --model runs/ptb/model --image_model runs/quickstart-images/model
    python examples/demo/app.py --detector detector               # that LatentEBMTextDetector has saved there

The demo listens on 127.0.0.1 only. The folder can also be pushed as a Space; there the variables LATENT_EBM_MODEL and
LATENT_EBM_IMAGE_MODEL name the models.
"""

import argparse
import os

from views import DetectorViews, ImageViews, TextViews

from latent_ebm_text.errors import LatentEBMError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("LATENT_EBM_MODEL", "runs/quickstart/model")
    parser.add_argument("--model", default=default, help="folder or Hub id of a text model (default: %(default)s)")
    parser.add_argument(
        "--image_model", default=os.environ.get("LATENT_EBM_IMAGE_MODEL"), help="folder or Hub id of an image model"
    )
    parser.add_argument("--detector", help="folder of a saved LatentEBMTextDetector (default: fitted in the demo)")
    parser.add_argument("--port", type=int, help="port (default: the first free port from 7860 on)")
    options = parser.parse_args()
    try:
        import page
    except ModuleNotFoundError as error:
        parser.error(f"the demo needs {error.name}: pip install 'latent-ebm-text[demo]'")
    try:
        text = TextViews(options.model)
        images = ImageViews(options.image_model) if options.image_model else None
        detector = DetectorViews(options.detector)
    except LatentEBMError as error:
        parser.error(str(error))
    built = page.build(text, images, detector)
    try:
        # Without a server name gradio listens on 127.0.0.1; a Space sets GRADIO_SERVER_NAME.
        built.launch(
            server_port=options.port,
            theme=page.SYSTEM_FONTS,
            css=page.CSS,
            footer_links=[],
            ssr_mode=False,
            show_error=False,
        )
    except OSError as error:  # the port is taken
        parser.error(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
