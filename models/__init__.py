"""The models: an encoder and a decoder for patches, and what they are trained to do.

config          settings of models and objectives, without torch
blocks          layers of the convolutional architectures, and the posterior of an encoder
tied            weight tying, which makes a network exactly equivariant
vae             the registry `ARCHITECTURES`, and a model with seeded weights
objective       the losses of a VAE, and the protocol `Learner`
classification  the same protocol for training on labels
snapshot        saving a model as files, and loading it
hub             where a snapshot is: in a run, by itself, or on the Hugging Face hub
export/         the encoder as ONNX or torch.export (a command)
"""
