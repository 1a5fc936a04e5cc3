"""What the recipes and the program `latent-ebm` run, a file each."""
