"""The models: an encoder and a decoder for patches, and what they are trained to do.

blocks           layers of the convolutional architectures
tied             weight tying, which makes a network exactly equivariant
vae              `ModelConfig`, the architectures, and a model with seeded weights
objective        the losses of a VAE, and the protocol `Learner`
classification   the same protocol for training on labels
snapshot         a model as files, and back

A new architecture is an entry in `ARCHITECTURES` and its name in `ModelConfig.architecture`.
"""

from models.vae import Architecture, build_refined, build_seed, build_tied

ARCHITECTURES: dict[str, Architecture] = {
    "seed": Architecture(build_seed),
    "refined": Architecture(build_refined),
    "tied": Architecture(build_tied, equivariant=True),
}
