"""`python -m latent_ebm_text.commands`, for `accelerate launch -m`."""

from latent_ebm_text.commands.main import main

if __name__ == "__main__":
    main()
