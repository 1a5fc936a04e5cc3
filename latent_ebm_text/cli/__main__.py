"""`python -m latent_ebm_text.cli`, for `accelerate launch -m`."""

from latent_ebm_text.cli.main import main

if __name__ == "__main__":
    main()
