"""What a node of the tree carries: `shapes` (names and shapes, free of torch) and `lora` (tensors and modules)."""
