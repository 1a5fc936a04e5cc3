"""The networks of a model: decoders p(x | z) and encoders q(z | x). They know nothing about priors and samplers."""
