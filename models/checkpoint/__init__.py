"""The safe reader of checkpoints: containers, opcodes, tensors; nothing in a file is executed."""
