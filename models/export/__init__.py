"""The encoder of a run as ONNX or torch.export (command `models.export`).

encoder  traces it, and writes and checks the files
"""
