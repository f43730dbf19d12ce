"""The pieces of the training example: a GPT in plain PyTorch, its text, and what is measured."""
