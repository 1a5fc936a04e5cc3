"""The command line: `latent-ebm train | generate | evaluate | score | interpolate | push | verify | doctor`."""
